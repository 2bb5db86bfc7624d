"""Images that are objects of the caller's: bytes, and binary files. Imported for those alone."""

from __future__ import annotations

import io
import os
import stat

from swiprctl.errors import CannotOpen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_CHUNK = 1 << 20


def descriptor_of(
    source: bytes | bytearray | memoryview | BinaryIO, may_hang: Callable[[int], bool]
) -> int | None:
    """Give the descriptor that has an object's bytes; None where it has to be read.

    Args:
        may_hang: tells of a descriptor whether fstat(2) may never return.

    Raises:
        CannotOpen: it is a file that is closed, or cannot be read.
        TypeError: it is neither bytes nor a file.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return None
    if not hasattr(source, "read"):
        raise TypeError(f"neither a path, bytes, a descriptor nor a file: {type(source).__name__}")
    raw = getattr(source, "raw", source)
    # Only of these is it known that the descriptor gives the same bytes: gzip's does not.
    if not isinstance(raw, io.FileIO):
        return None
    try:
        number = raw.fileno()
        plain = may_hang(number) or stat.S_ISREG(os.fstat(number).st_mode)
        if plain and source.tell() == 0 and os.lseek(number, 0, os.SEEK_CUR) == 0:
            return number
    except (OSError, ValueError) as error:
        raise CannotOpen(f"cannot read the file: {error}") from error
    return None


def pieces(source: bytes | bytearray | memoryview | BinaryIO) -> Iterator[memoryview]:
    """Read an object to its end.

    Raises:
        CannotOpen: it cannot be read.
        TypeError: it gives text.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield memoryview(source).cast("B")
        return
    empty = True
    try:
        while data := source.read(_CHUNK):
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError("a file object must be opened in binary mode")
            empty = False
            yield memoryview(data)
        if empty and source.seekable() and source.tell() > 0:
            raise CannotOpen("it has been read to its end already: seek(0) goes back")
    except (OSError, ValueError) as error:
        raise CannotOpen(f"cannot read the file: {error}") from error
