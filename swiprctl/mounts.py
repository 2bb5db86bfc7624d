"""Does a path or a descriptor lead to a file system that may hang? Asked without touching it.

Imported where one is mounted. Even lstat(2) on a path below it may hang: each step of the way is
looked at only when it is known to be elsewhere.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_MOST_LINKS = 40  # as the kernel has it: path_resolution(7)
_ESCAPED = ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\"))


class SlowMounts:
    """Mounts of such file systems, from their lines in proc_pid_mountinfo(5)."""

    def __init__(self, lines: list[bytes]) -> None:
        self._points = set()
        self._ids = set()
        for line in lines:
            id, _, _, _, point, *_ = line.split(b" ")
            for code, byte in _ESCAPED:
                point = point.replace(code, byte)
            if point != b"/":  # what serves the root serves the interpreter, too
                self._points.add(os.fsdecode(point))
                self._ids.add(id.decode())

    def hold(self, source: str | int) -> bool:
        """Whether a path leads there, or a descriptor is of a file there."""
        if isinstance(source, int):
            return lies_on(source, self._ids)
        return leads_into(source, self._points)


def leads_into(path: str, points: Collection[str]) -> bool:
    """Whether following a path comes to one of these places, if only to leave it again."""
    here = ""
    if not path.startswith("/"):
        try:
            here = os.getcwd().rstrip("/")
        except OSError:
            return False  # it has been deleted: nothing is below it
        if any(here == point or here.startswith(f"{point}/") for point in points):
            return True
    steps = path.split("/")[::-1]
    links = 0
    while steps:
        step = steps.pop()
        if step == "..":
            here = here.rpartition("/")[0]
        if step in ("", ".", ".."):
            continue
        here = f"{here}/{step}"
        if here in points:
            return True
        try:
            target = os.readlink(here)
        except (OSError, ValueError):  # no link, or nothing at all; ValueError: a NUL
            continue
        links += 1
        if links > _MOST_LINKS:
            return False
        here = "" if target.startswith("/") else here.rpartition("/")[0]
        steps += target.split("/")[::-1]
    return False


def lies_on(descriptor: int, mounts: Collection[str]) -> bool:
    """Whether a descriptor is open on one of the mounts with these ids."""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            return any(
                name == "mnt_id" and value.strip() in mounts
                for name, _, value in (line.partition(":") for line in file)
            )
    except OSError:
        return False
