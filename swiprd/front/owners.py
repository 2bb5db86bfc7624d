"""Which user a uid counts as: the subordinate uids of a user, subuid(5), share that user's share.

Otherwise a user with 65,536 subordinate uids would have as many shares. Only local files are read,
and no name service is asked: it might not answer. Malformed lines are skipped.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swiprd.system.log import log

SUBUID = Path("/etc/subuid")
PASSWD = Path("/etc/passwd")

_MOST_BYTES = 4 << 20
_LAST_UID = 2**32 - 2  # the last of 32 bits is nobody: (uid_t) -1

Mark = tuple[int, int, int]


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Uids from `start` to below `end`, which count as `owner`."""

    start: int
    end: int
    owner: int


class Owners:
    """The ranges of subordinate uids, as of the last `refresh()`."""

    def __init__(self) -> None:
        self._marks: tuple[Mark | None, Mark | None] | None = None
        self._ranges: list[Range] = []
        self._starts: list[int] = []
        self._named: frozenset[int] = frozenset()
        self.refresh()

    def refresh(self) -> None:
        """Read the files if they have changed."""
        marks = _mark(SUBUID), _mark(PASSWD)
        if marks == self._marks:
            return
        self._marks = marks
        users = read_users(_lines(PASSWD))
        self._named = frozenset(users.values())
        self._ranges = read_ranges(_lines(SUBUID), users, {0, os.geteuid()})
        self._starts = [one.start for one in self._ranges]

    def of(self, uid: int) -> int:
        """Return the uid that this uid counts as: itself, unless it lies in a range of subordinate
        uids and has no name in passwd(5)."""
        at = bisect_right(self._starts, uid) - 1
        if at < 0 or uid >= self._ranges[at].end or uid in self._named:
            return uid
        return self._ranges[at].owner


def read_users(lines: Iterable[str]) -> dict[str, int]:
    """Names and uids from the lines of passwd(5)."""
    users: dict[str, int] = {}
    for line in lines:
        name, *rest = line.split(":")
        if len(rest) == 6 and (uid := _number(rest[1])) is not None:
            users.setdefault(name, uid)
    return users


def read_ranges(lines: Iterable[str], users: dict[str, int], privileged: set[int]) -> list[Range]:
    """Ranges from the lines of subuid(5), none overlapping another, lowest first.

    Those of an owner who is privileged, or not a local user, count as the first uid of its first
    range: what a container of root's does is not root's doing.
    """
    found: list[Range] = []
    owners: dict[str, int] = {}
    bad = 0
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = line.strip().split(":")
        numbers = [_number(one) for one in rest]
        start, size = numbers if len(numbers) == 2 else (None, None)
        if not name or not start or not size or start + size - 1 > _LAST_UID:
            bad += 1
            continue
        owner = users.get(name, _number(name))
        if owner is None or owner in privileged:
            owner = owners.setdefault(name, start)
        found.append(Range(start, start + size, owner))
    found.sort()
    ranges: list[Range] = []
    for one in found:
        if ranges and one.start < ranges[-1].end:
            bad += 1
        else:
            ranges.append(one)
    if bad:
        log.warning("%s: %d lines are left out: malformed, or they overlap others", SUBUID, bad)
    return ranges


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def _mark(file: Path) -> Mark | None:
    """Return values of which one changes when the file does; None where there is no file."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as stream:
            return stream.read(_MOST_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
