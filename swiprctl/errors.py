"""Every way swipr can fail, as one tree: the class is the wire code and the exit status.

    SwiprError
    ├── UsageError            64   the command line is wrong
    ├── CannotOpen            66   the client may not or cannot open the file; an OSError
    │   ├── NoSuchFile             a FileNotFoundError
    │   ├── NoPermission           a PermissionError
    │   └── IsDirectory            an IsADirectoryError
    ├── CannotWrite           73   the output file cannot be opened, or not gone on with
    │   └── WriteFailed       74   it does not take everything
    ├── NoDaemon              69   nothing answers on the socket and none can be started;
    │                              a ConnectionError
    ├── BadImage              65   bad-image
    ├── TooLarge              65   too-large
    ├── BadRecords            65   the file has not the rows that predict writes
    ├── WorkerCrashed         70   worker-crashed
    ├── TryLater              75   (carries retry_after, seconds)
    │   ├── Overloaded             overloaded
    │   ├── ShuttingDown           shutting-down
    │   └── LoadingFailed          loading-failed
    ├── BadRequest            76   bad-request
    ├── Forbidden             77   forbidden; a PermissionError
    └── DeadlineExceeded     124   deadline; a TimeoutError

Exit statuses follow sysexits(3) and timeout(1). 255 is never used: it stops xargs(1).
Imports nothing: the client's start-up time is part of its contract.
"""

from __future__ import annotations


class SwiprError(Exception):
    """Something that a user of swipr can see go wrong; `str()` is a sentence without a full stop.

    Attributes:
        code: the name this error has on the wire; empty where it never travels.
        exit_status: what `swiprctl` exits with when this is the only input's fate.
        path: the name of the input that it is about, where that has one and a Client tells.
    """

    code = ""
    exit_status = 70
    path: str | None = None

    def lines(self) -> list[str]:
        """What the command says of it, line by line."""
        return [str(self)]


class UsageError(SwiprError):
    """The command line asks for something that does not exist."""

    exit_status = 64


class CannotOpen(SwiprError, OSError):
    """The client cannot open or read the file it was given.

    Attributes:
        errno, strerror, filename: as of any OSError, where the kernel has said why.
    """

    exit_status = 66

    def __str__(self) -> str:
        return Exception.__str__(self)  # an OSError's own would say "[Errno 2] …: 'img.jpg'"

    def __reduce__(self) -> tuple[object, ...]:
        told = {name: getattr(self, name) for name in ("errno", "strerror", "filename")}
        return type(self), self.args, {**vars(self), **told}


class NoSuchFile(CannotOpen, FileNotFoundError):
    """There is no file of that name."""


class NoPermission(CannotOpen, PermissionError):
    """The user may not read the file."""


class IsDirectory(CannotOpen, IsADirectoryError):
    """It is a directory."""


def cannot_open(error: OSError, text: str) -> CannotOpen:
    """Make the error that says why a file cannot be opened, in our words and in the kernel's."""
    kind = CannotOpen
    if isinstance(error, FileNotFoundError):
        kind = NoSuchFile
    elif isinstance(error, PermissionError):
        kind = NoPermission
    told = kind(text)
    told.errno, told.strerror, told.filename = error.errno, error.strerror, error.filename
    return told


class CannotWrite(SwiprError):
    """The output file cannot be opened, or does not have what the work could go on with."""

    exit_status = 73


class WriteFailed(CannotWrite):
    """The output file does not take everything; what it has can be gone on with."""

    exit_status = 74


class NoDaemon(SwiprError, ConnectionError):
    """No daemon answers on the socket, and none could be started."""

    exit_status = 69


class BadImage(SwiprError):
    """The bytes are not an image, or not one that can be decoded whole."""

    code = "bad-image"
    exit_status = 65


class TooLarge(SwiprError):
    """The image has more bytes or pixels than the daemon takes."""

    code = "too-large"
    exit_status = 65


class BadRecords(SwiprError):
    """The file has not the rows or objects that predict writes, or too many."""

    exit_status = 65


class WorkerCrashed(SwiprError):
    """The image killed the worker that had it, and again the next one."""

    code = "worker-crashed"
    exit_status = 70


class TryLater(SwiprError):
    """The daemon cannot answer now; `retry_after` says in how many seconds it may, if known."""

    exit_status = 75

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(TryLater):
    """The queue is full, or the request cannot be answered within its deadline."""

    code = "overloaded"


class ShuttingDown(TryLater):
    """The daemon is leaving; its successor will answer."""

    code = "shutting-down"


class LoadingFailed(TryLater):
    """The model cannot be loaded; the message says why."""

    code = "loading-failed"


class BadRequest(SwiprError):
    """The peer does not speak this protocol."""

    code = "bad-request"
    exit_status = 76


class Forbidden(SwiprError, PermissionError):
    """This uid may not do this, or may not open the socket."""

    code = "forbidden"
    exit_status = 77


class DeadlineExceeded(SwiprError, TimeoutError):
    """The deadline passed before the answer was there."""

    code = "deadline"
    exit_status = 124


_BY_CODE: dict[str, type[SwiprError]] = {
    error.code: error
    for error in (
        BadImage,
        TooLarge,
        WorkerCrashed,
        Overloaded,
        ShuttingDown,
        LoadingFailed,
        BadRequest,
        Forbidden,
        DeadlineExceeded,
    )
}


def from_wire(code: str, message: str, retry_after: float | None) -> SwiprError:
    """Make the exception that a wire error stands for; an unknown code is kept in the text."""
    error = _BY_CODE.get(code)
    if error is None:
        return SwiprError(f"{code}: {message}")
    if issubclass(error, TryLater):
        return error(message, retry_after)
    return error(message)
