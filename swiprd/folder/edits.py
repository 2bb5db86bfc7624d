"""Has somebody edited a model's folder since it was read? By what tells its files' states apart.

What counts is model.toml and the files that it names: what else is in the folder, such as answers
that are written there, is nobody's business. Standard library only; a look takes microseconds.
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
    """What is known of a folder: as it was when it was last read, and when what serves was.

    Attributes:
        on_edit: called when somebody asks for a model whose folder has been edited since. None:
            nobody looks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tried: _Marks = {}
        self._serves: _Marks = {}
        self.on_edit: Callable[[], None] | None = None

    def reading(self) -> None:
        """The folder is about to be read."""
        self._tried = _marks(self._folder)

    def stale(self) -> bool:
        """Whether it has been edited since it was last read."""
        return self.on_edit is not None and _marks(self._folder) != self._tried

    def settle(self) -> None:
        """What was read last is what serves from now on, or why nothing does."""
        self._serves = self._tried

    def noticed(self, *, failed: bool) -> bool:
        """Whether it has been edited since what serves was read; if so, `on_edit` is told.

        Args:
            failed: nothing serves, perhaps as a file was missing that is there by now.
        """
        if self.on_edit is None:
            return False
        edited = any(_mark(path) != mark for path, mark in self._serves.items())
        if edited or (failed and _marks(self._folder) != self._serves):
            self.on_edit()
            return True
        return False


def _marks(folder: Path) -> _Marks:
    """Tell the state of model.toml and of each file that it names.

    Whatever stands in quotes and is a file counts: the rest of model.toml may be wrong.
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
        return None  # whatever is put into it would be an edit
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
