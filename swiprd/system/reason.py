"""The first line of a library's error, for a message of ours: torch's go on for a page."""

from __future__ import annotations


def first_line(error: Exception, most: int = 200) -> str:
    """Return the first line of an error's text that is not blank, or else the error's class.

    Args:
        most: characters, after which it is cut.
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:most]
