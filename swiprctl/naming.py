"""The name of an input, for the error that tells what became of it. Imported for errors alone."""

from __future__ import annotations

import copy
import os

from swiprctl.errors import CannotOpen, SwiprError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Error = TypeVar("_Error", bound=SwiprError)


def name_of(source: object) -> str | None:
    """Give the path of an input; of a file or a Pillow image, where it was opened; else None."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    # Of a descriptor that was opened by number, the name is that number.
    for attribute in ("name", "filename"):
        found = getattr(source, attribute, None)
        if isinstance(found, str | os.PathLike) and (path := os.fsdecode(found)):
            return path
    return None


def named(error: _Error, source: object) -> _Error:
    """Give an input's error with the input's name in `path`, and before its text.

    It is a copy: several inputs may have come to the same end.
    """
    path = name_of(source)
    if path is None:
        return error
    told = copy.copy(error)
    told.__cause__ = error.__cause__
    told.path = path
    told.args = (f"{path}: {error}", *error.args[1:])
    if isinstance(told, CannotOpen):
        told.filename = path
    return told
