"""Read an image in a process of its own: one on a file system whose server may never answer.

There, open(2), fstat(2), read(2) and even close(2) may hang. So this process has no descriptor of
such a file: another reads it and passes what it has read; see detached.py.
"""

from __future__ import annotations

from swiprctl.detached import LONGEST, Detached
from swiprctl.errors import CannotOpen, IsDirectory, NoPermission, NoSuchFile, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from swiprctl.detached import Send
    from swiprctl.inputs import Image

_ERRORS = {one.__name__: one for one in (IsDirectory, NoPermission, NoSuchFile, TooLarge)}


class Opening:
    """One image on its way here.

    Args:
        open: opens it, in the other process, for reading: files as pipes.
        source: the path or descriptor that it opens. A descriptor stays open there.

    Raises:
        OSError: there is no process or descriptor to be had.
    """

    __slots__ = ("_process",)

    def __init__(self, open: Callable[[], Image], source: str | int) -> None:
        kept = {source} if isinstance(source, int) else set()
        self._process = Detached(lambda send: _read(open, send), kept)

    def fileno(self) -> int:
        """Give what to poll: it can be read when `finish` will not wait."""
        return self._process.fileno()

    def finish(self) -> int:
        """Give the descriptor, which is the caller's from here.

        Raises:
            CannotOpen: it cannot be opened or read.
            TooLarge: it has too many bytes.
        """
        try:
            data, descriptor = self._process.receive()
        except OSError as error:
            raise CannotOpen(f"it came without a descriptor: {error.strerror}") from error
        finally:
            self.close()
        if descriptor >= 0:
            return descriptor
        kind, _, why = data.decode("utf-8", "surrogateescape").partition(":")
        raise _ERRORS.get(kind, CannotOpen)(why or "the process that was to read it has died")

    def close(self) -> None:
        """End the other process, whatever it does. Can be called again."""
        self._process.close()


def _read(open: Callable[[], Image], send: Send) -> None:
    """Be the other process."""
    try:
        send(b":", open().copied())
    except (CannotOpen, TooLarge) as error:
        text = f"{type(error).__name__}:{error}"
        send(text.encode("utf-8", "surrogateescape")[:LONGEST], -1)
    except OSError as error:
        send(f"{CannotOpen.__name__}:{error.strerror}".encode(), -1)
