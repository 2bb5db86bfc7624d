"""Has a model's folder been edited since it was read? By inode, size and time of its files.

model.toml and the files that it names count. Other files in the folder, such as answers that are
written there, do not. Standard library only; a look takes microseconds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from swiprd.folder.toml_table import SpecError, read

_Mark = tuple[int, ...]
_Marks = dict[Path, _Mark | None]  # by path; None where there is no file

_SEARCHED = 1 << 20
"""Bytes of a model.toml in which names of files are looked for."""


class Edits:
    """Two states of a folder: when it was last read, and when the model that serves was read.

    Attributes:
        on_edit: called when a request finds that the folder has been edited. None: edits are not
            looked for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last_read: _Marks = {}
        self._serving: _Marks = {}
        self.on_edit: Callable[[], None] | None = None

    def reading(self) -> None:
        """Take note of the folder's state: it is about to be read."""
        self._last_read = _marks(self._folder)

    def stale(self) -> bool:
        """Whether it has been edited since it was last read."""
        return self.on_edit is not None and _marks(self._folder) != self._last_read

    def settle(self) -> None:
        """The loading is over: the state that was read last is the one that serves, or failed."""
        self._serving = self._last_read

    def noticed(self, *, failed: bool) -> bool:
        """Whether it has been edited since the model that serves was read; if so, call `on_edit`.

        Args:
            failed: the model could not be loaded; then a new file may be the repair, and counts.
        """
        if self.on_edit is None:
            return False
        edited = any(_mark(path) != mark for path, mark in self._serving.items())
        if edited or (failed and _marks(self._folder) != self._serving):
            self.on_edit()
            return True
        return False


def _marks(folder: Path) -> _Marks:
    """Return the state of model.toml and of each file that it names.

    Every string in quotes that is the name of a file counts: model.toml need not be valid.
    """
    file = folder / "model.toml"
    found: _Marks = {file: _mark(file)}
    try:
        text = read(file, _SEARCHED)
    except SpecError:
        return found
    for name in {*text.split(b'"'), *text.split(b"'")}:
        path = folder / os.fsdecode(name)
        if (mark := _mark(path)) is not None:
            found[path] = mark
    return found


def _mark(path: Path) -> _Mark | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL
        return None
    if stat.S_ISDIR(found.st_mode):
        return None  # a folder: any file that is put into it would count as an edit
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
