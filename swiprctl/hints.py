"""What was probably meant, and the line that does it. Imported once something has gone wrong.

Nothing here decides: a hint is text behind an error that stands by itself.
"""

from __future__ import annotations

import os
import stat

from swiprctl.errors import BadImage, CannotOpen, SwiprError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SHIPPED = "focus"
"""The model that is served where no other is named."""

_HEAD = 4096  # bytes looked at: longer than any path


def unknown_command(word: str, commands: Iterable[str]) -> str:
    """Say that a word is no command: a picture's name perhaps, or a slip."""
    known = (*commands, "help", "version")
    text = f"there is no command {word!r}"
    near = _nearest(word, known)
    if near is None and (os.path.lexists(word) or "/" in word or "." in word.strip(".")):
        return f"{text}: 'swiprctl predict {_quoted(word)}' asks about a picture"
    return (
        f"{text}: did you mean 'swiprctl {near}'?"
        if near
        else f"{text}; there are {', '.join(known)}"
    )


def unknown_option(name: str, options: Iterable[str]) -> str:
    """Say that there is no such option, and which one it may be."""
    near = _nearest(name, (*options, "--help", "--version")) if name.startswith("--") else None
    return f"there is no option {name}" + (f": did you mean {near}?" if near else "")


def no_model(name: str) -> str:
    """Say of what is no model, but was given for one, how to come by one; empty: nothing to say."""
    if name == SHIPPED:
        return (
            f"leave --model out: {SHIPPED} is the default, unless the administrator says otherwise"
        )
    if os.path.isfile(name):
        return f"it is a file: 'swiprd pack {_quoted(name)} -o FOLDER' makes a model's folder of it"
    return ""


def explain(error: SwiprError, descriptor: int, head: bytes) -> SwiprError:
    """Add to an error about an image on a descriptor what is there instead.

    Args:
        head: the first bytes of what was read there; empty where it was not read here.
    """
    if not isinstance(error, BadImage | CannotOpen):
        return error
    try:
        found = os.fstat(descriptor)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == os.stat(os.devnull).st_rdev:
            return CannotOpen(
                f"{os.devnull} is there, and no image: 'swiprctl predict - <FILE' gives it one"
            )
        if not isinstance(error, BadImage):
            return error
        if stat.S_ISREG(found.st_mode):
            if os.lseek(descriptor, 0, os.SEEK_CUR) >= found.st_size > 0:
                return BadImage("it has been read to its end already: nothing is left of it")
            head = head or os.pread(descriptor, _HEAD, 0)
    except (OSError, OverflowError):
        return error  # it is no descriptor
    if not head:
        return BadImage(f"{error}: nothing was written to it") if _is_pipe(found) else error
    for end, option in ((b"\0", "--files0-from"), (b"\n", "--files-from")):
        name, ended, _ = head[:_HEAD].partition(end)
        if ended and name and os.path.lexists(name.removesuffix(b"\r")):
            return BadImage(
                f"{error}, but names of files:"
                f" 'swiprctl predict {option}=-' reads names from standard input"
            )
    return error


def _is_pipe(found: os.stat_result) -> bool:
    return stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)


def _nearest(word: str, known: Iterable[str]) -> str | None:
    """Give the name that begins with a word, if only one does, or else looks like it."""
    import difflib

    names = list(known)
    begin = [name for name in names if len(word.strip("-")) > 2 and name.startswith(word)]
    near = begin if len(begin) == 1 else difflib.get_close_matches(word, names, 1, 0.7)
    return near[0] if near else None


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)
