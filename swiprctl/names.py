"""The inputs that a list names, one by one, without reading ahead and without waiting.

A list of 100,000 names is read a piece at a time; a list that a slow program is still writing
gives what it has. This module opens lists and nothing that is on them.
"""

from __future__ import annotations

import os
import select
import stat

from swiprctl.errors import CannotOpen, IsDirectory
from swiprctl.signatures import HEAD, begins_an_image

_MAX_NAME = 1 << 17
_WINDOWS = (
    "its lines end in CR LF, as on Windows:"
    " tr -d '\\r' <LIST | swiprctl predict --files-from=- reads it"
)
_LINES = "it has lines, and no NUL: --files-from reads such a list"


class Names:
    """The inputs on a list, for `Client.predict_many`: in order, as they come.

    Iterating gives a path, or 0 for standard input, or None where the next name has not arrived
    yet; then `fileno()` is what to poll. The list's descriptor is closed at its end, and a list
    that cannot be read to its end leaves an `error`: what was on it before is not lost.
    """

    def __init__(self, path: str, end: bytes = b"\n") -> None:
        """Take the names in a file (`-` for standard input), ended by `end` each.

        Raises:
            CannotOpen: the list cannot be opened.
        """
        self._called = "the list of names" + ("" if path == "-" else f" {path}")
        self._image = f"it is an image, and no list: give it as swiprctl predict {path}"
        self._end = end
        self._left = b""
        self._names: list[str] = []
        self._given = 0
        self._total: int | None = None
        self._own = False
        self._first = True  # no name has come yet
        self.error: CannotOpen | None = None
        # There `-` can only be a file's name: standard input is the list itself.
        self._dash = None if path == "-" else "-"
        if path == "-":
            self._list = 0
            return
        try:
            self._list = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
            if stat.S_ISDIR(os.fstat(self._list).st_mode):
                os.close(self._list)
                raise IsDirectory(f"{path}: it is a directory")
        except IsDirectory:
            raise
        except OSError as error:
            raise CannotOpen(f"{path}: {error.strerror}") from error
        self._own = True

    def fileno(self) -> int:
        """Give the list's descriptor; -1 once it is closed."""
        return self._list

    def __iter__(self) -> Names:
        return self

    def __next__(self) -> str | int | None:
        while not self._names:
            if self._list < 0:
                raise StopIteration
            # Poll first: O_NONBLOCK on a standard input would be everybody's who shares it.
            poll = select.poll()
            poll.register(self._list, select.POLLIN)
            if not poll.poll(0):
                return None
            self._read()
        name = self._names.pop()
        self._given += 1
        return 0 if name == self._dash else name

    @property
    def total(self) -> int | None:
        """How many names there are, if the list is a file; None where it may still be written."""
        if self._list < 0:
            return self._given + len(self._names)
        if self._total is None and stat.S_ISREG(os.fstat(self._list).st_mode):
            self._total = self._given + len(self._names) + self._left_in_file()
        return self._total

    def _left_in_file(self) -> int:
        """Count the names that have not been read yet."""
        number = 0
        left = self._left
        position = os.lseek(self._list, 0, os.SEEK_CUR)
        while data := os.pread(self._list, 1 << 20, position):
            position += len(data)
            parts = (left + data).split(self._end)
            left = parts.pop()
            number += sum(map(bool, parts))
        return number + bool(left)

    def close(self) -> None:
        """Close the list, if it was opened here."""
        if self._own:
            os.close(self._list)
            self._own = False
        self._list = -1

    def _read(self) -> None:
        try:
            data = os.read(self._list, 1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self.close()
            self._refuse(error.strerror or str(error))
            return
        if self._first and not self._left and begins_an_image(data[:HEAD]):
            self._refuse(self._image)
            return
        if not data:
            self.close()
            parts = [self._left] if self._left else []
            lines = self._first and self._end == b"\0" and b"\n" in self._left
            if lines and not _is_there(self._left):
                self._refuse(_LINES)
                return
        else:
            parts = (self._left + data).split(self._end)
            self._left = parts.pop()
            parts = self._before_a_fault(parts)
            if len(self._left) > _MAX_NAME:
                lines = self._end == b"\0" and b"\n" in self._left
                self._refuse(
                    _LINES if lines else f"a name of more than {_MAX_NAME} bytes; is it one?"
                )
        self._first = self._first and not parts
        # Empty lines are how people end lists; an empty name between NULs is a mistake to be told.
        keep_empty = self._end == b"\0"
        self._names = [os.fsdecode(part) for part in reversed(parts) if part or keep_empty]

    def _before_a_fault(self, parts: list[bytes]) -> list[bytes]:
        """Give the names before one that shows the list to be of another kind; that ends it."""
        if self._end == b"\0":
            return parts
        for number, part in enumerate([*parts, self._left]):
            if b"\0" in part:
                self._refuse("NULs end its names: --files0-from reads such a list")
            elif (
                number < len(parts)
                and part.endswith(b"\r")
                and _is_there(part[:-1])
                and not _is_there(part)
            ):
                self._refuse(_WINDOWS)
            else:
                continue
            return parts[:number]
        return parts

    def _refuse(self, why: str) -> None:
        self.close()
        self._left = b""
        self.error = CannotOpen(f"{self._called}: {why}")


def _is_there(name: bytes) -> bool:
    return os.path.lexists(name)
