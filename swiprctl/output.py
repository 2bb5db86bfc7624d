"""Standard output and standard error: every byte is written, or the failure is reported. And the
`Writer`, the sink that makes records of answers and puts them there, or elsewhere.

By write(2), repeated until all is written: under PYTHONUNBUFFERED Python's stream has no buffer,
writes only as much as one write(2) takes, and calls that a success.
"""

from __future__ import annotations

import os
import select
import sys

from swiprctl.errors import SwiprError, TryLater
from swiprctl.rows import Prediction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import NoReturn, Protocol

    class Format(Protocol):
        """How answers become records. `Table` in rows.py is one; formats.py has the others."""

        def header(self, labels: Sequence[str]) -> bytes: ...
        def row(self, path: str, prediction: Prediction) -> bytes: ...
        def failure(self, path: str, error: SwiprError, labels: Sequence[str]) -> bytes: ...

    class Sink(Protocol):
        """Where answers go. A sink may stand before another and hand on what it takes, as it is or
        later; every answer comes to `take` or to `drop` once, in the order of the inputs."""

        def take(self, path: str, answer: Prediction | SwiprError) -> SwiprError | None:
            """Make a record of an answer; gives the failure that it is, or has become."""

        def drop(self, path: str, prediction: Prediction) -> None:
            """Hear of an answer of which a sink before this one wants no record."""

        def finish(self) -> None:
            """Write what was held back: all answers have been given."""

        def close(self) -> None:
            """Let go of what is open, however the work ended."""

    class Line(Protocol):
        """What stands on the terminal's last line for a while."""

        def lift(self, descriptor: int) -> None:
            """Make way for what is written to a descriptor now."""

        def lower(self) -> None:
            """Come back behind it."""


EX_IOERR = 74
INTERRUPTED = 128 + 2  # SIGINT
_PIPE_BROKEN = 128 + 13  # SIGPIPE

_STDOUT, _STDERR = 1, 2


class OutputFailed(Exception):
    """Standard output takes nothing more; `status` is what to exit with."""

    def __init__(self, status: int) -> None:
        self.status = status


def write(data: bytes) -> None:
    """Put data on standard output at once.

    Raises:
        OutputFailed: it takes nothing more. A part of the data may be there.
    """
    line = _line
    if line is not None:
        line.lift(_STDOUT)
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        _put(_STDOUT, data)
    except BrokenPipeError as error:
        raise OutputFailed(_PIPE_BROKEN) from error  # `| head` is no mistake
    except OSError as error:
        say(f"standard output: {error.strerror or error}")
        raise OutputFailed(EX_IOERR) from error
    finally:
        if line is not None:
            line.lower()


def show(data: bytes) -> None:
    """Put a record on standard output, which is a terminal: nothing in a name or label does
    things to it. A terminal's own bytes are those of the line feed and the tab.

    Raises:
        OutputFailed: it takes nothing more.
    """
    text = data.decode("utf-8", "surrogateescape")
    text = "".join(f"\\x{ord(c) & 0xFF:02x}" if c not in "\n\t" and _unsafe(c) else c for c in text)
    write(text.encode())


class Writer:
    """The last sink: makes a record of each answer and puts it where it is to be.

    Args:
        format: makes the records.
        put: takes the bytes of one record, or of the header.
        header: whether the columns' names come first. Images that a model with other labels
            answers then fail: no row stands below the labels of another model.
        failures: whether failures have records.
        ask: tells the labels of the model that serves, for a failure in a table that comes before
            any answer.
        labels: those that the header has which is there already; None if there is none.
    """

    def __init__(
        self,
        format: Format,
        put: Callable[[bytes], None],
        *,
        header: bool = False,
        failures: bool = False,
        ask: Callable[[], Iterable[str]] = tuple,
        labels: tuple[str, ...] | None = None,
    ) -> None:
        self._format = format
        self._put = put
        self._header = header
        self._failures = failures
        self._ask = ask
        self._labels = labels

    def take(self, path: str, answer: Prediction | SwiprError) -> SwiprError | None:
        """Put the record of an answer; gives the failure that it is, or has become.

        Raises:
            OutputFailed: nothing more is taken.
        """
        if isinstance(answer, Prediction):
            # Not sooner: a daemon that is still loading knows no labels yet.
            if self._begun(answer.labels or ()):
                self._put_row(path, answer)
                return None
            answer = TryLater(
                f"{answer.model} has answered, which has other labels than the model whose"
                " labels are in the header; ask again"
            )
        if self._failures:
            if self._labels is None:
                self._begun(tuple(self._ask()))
            self._put(self._format.failure(path, answer, self._labels or ()))
        return answer

    def drop(self, path: str, prediction: Prediction) -> None:
        """Put nothing."""

    def finish(self) -> None:
        """Put nothing more: no record was held back."""

    def close(self) -> None:
        """Close nothing."""

    def _put_row(self, path: str, prediction: Prediction) -> None:
        self._put(self._format.row(path, prediction))

    def _begun(self, labels: tuple[str, ...]) -> bool:
        """Put the header, if it is time; gives whether a row of these labels may stand below it."""
        if self._header and labels != self._labels:
            header = self._format.header(labels)
            if self._labels is None:
                self._put(header)
            elif header != self._format.header(self._labels):
                return False
        self._labels = labels
        return True


def say(text: str) -> None:
    """Put one line on standard error. Paths keep their bytes, except where they would break the
    line or, on a terminal, do things to it."""
    if sys.stderr is None:
        return
    terminal = on_terminal()
    shown = "".join(
        f"\\x{ord(c) & 0xFF:02x}" if c in "\r\n" or (terminal and _unsafe(c)) else c for c in text
    )
    text = f"swiprctl: {shown}\n"
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # the locale has not all characters; the path has its bytes
        data = text.encode("utf-8", "surrogateescape")
    line = _line
    if line is not None:
        line.lift(_STDERR)
    try:
        _put(_STDERR, data)
    except OSError:
        pass  # nobody is there to be told
    finally:
        if line is not None:
            line.lower()


_line: Line | None = None


def keep_clear(line: Line | None) -> None:
    """Have a line make way for all that is written from now on; None: there is none any more."""
    global _line
    _line = line


def on_terminal() -> bool:
    """Whether somebody reads standard error as it is written."""
    return sys.stderr is not None and os.isatty(_STDERR)


def leave(status: int) -> NoReturn:
    """End this process, by the signal where that is what ended its work.

    A shell ends its loop only where it sees that Ctrl-C ended the command in it. The interpreter
    is not torn down, which takes 1 to 2 ms, for nothing: the kernel closes what is open.
    """
    if sys.stdout is not None and status not in (EX_IOERR, INTERRUPTED, _PIPE_BROKEN):
        try:
            os.close(_STDOUT)  # where a quota or a server was full, some file systems say so now
        except OSError as error:
            say(f"standard output: {error.strerror}")
            status = EX_IOERR
    if status in (INTERRUPTED, _PIPE_BROKEN):
        import _signal  # type: ignore[import-not-found]  # `signal` builds enums: 1 ms

        _signal.signal(status - 128, _signal.SIG_DFL)
        os.kill(os.getpid(), status - 128)
    os._exit(status)


def _put(descriptor: int, data: bytes) -> None:
    """Write all of it, however little is taken at a time."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # O_NONBLOCK is the pipe's, and with that everybody's who shares it.
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


def _unsafe(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xDC80 <= code <= 0xDCFF
