"""Images that are objects of the caller's: bytes, files, pixels. Imported for those alone."""

from __future__ import annotations

import io
import os
import stat

from swiprctl.errors import CannotOpen
from swiprctl.pixels import are_pixels, dimensions, file_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from swiprctl.pixels import Pixels

_CHUNK = 1 << 20


def descriptor_of(
    source: bytes | bytearray | memoryview | BinaryIO | Pixels, may_hang: Callable[[int], bool]
) -> int | None:
    """Give the descriptor that has an object's bytes; None where it has to be read.

    Args:
        may_hang: tells of a descriptor whether fstat(2) may never return.

    Raises:
        CannotOpen: it is a file that is closed, or cannot be read.
        TypeError: it is neither bytes, pixels nor a file.
    """
    if isinstance(source, bytes | bytearray | memoryview) or are_pixels(source):
        return None
    if not hasattr(source, "read"):
        raise TypeError(
            "neither a path, bytes, a descriptor, a file, an array nor a Pillow image:"
            f" {type(source).__name__}"
            + ("; predict_many() takes several" if hasattr(source, "__iter__") else "")
        )
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


def pieces(
    source: bytes | bytearray | memoryview | BinaryIO | Pixels, most: int
) -> Iterator[memoryview]:
    """Read an object to its end.

    Args:
        most: bytes that they may be together.

    Raises:
        CannotOpen: it cannot be read.
        TypeError: it gives text, or is an array of something else than bytes.
        ValueError: it is an array that has not the shape of a picture.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield memoryview(source).cast("B")
        return
    if are_pixels(source):
        yield from file_of(source, most)
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
    except CannotOpen:
        raise
    except (OSError, ValueError) as error:
        raise CannotOpen(f"cannot read the file: {error}") from error


def refuse_one(sources: object) -> None:
    """See that an iterable of inputs is not one input, whose characters, bytes or rows it would
    give.

    Raises:
        TypeError: it is one.
    """
    single = isinstance(sources, str | os.PathLike | bytes | bytearray | memoryview)
    if are_pixels(sources):
        single = dimensions(sources) in (2, 3)
    if single or hasattr(sources, "read"):
        raise TypeError(
            f"predict_many() takes several inputs, and this is one: {type(sources).__name__};"
            " give [it], or use predict()"
        )
