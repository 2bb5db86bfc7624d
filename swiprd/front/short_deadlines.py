"""Uids that give their requests less time than they take, several in a row. Pure.

Each costs a worker's life, and the fork of another costs the host more than most images do. Who
does it once may have been unlucky; who goes on has to wait, longer each time, or give more time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

LONGEST = 0.5
"""Seconds that a request had in a worker from which on its end is nobody's haste."""

_FREE = 2  # in a row that have no consequences
_FIRST = 0.5  # seconds that the next has to wait, doubled by each further one,
_LAST = 8.0  # and at most
_UIDS_KEPT = 1024


@dataclass(slots=True)
class _Row:
    number: int = 0
    given: float = 0.0
    until: float = 0.0


class ShortDeadlines:
    """Remembers who did so; a row of probabilities for that uid ends it."""

    def __init__(self) -> None:
        self._rows: OrderedDict[int, _Row] = OrderedDict()

    def killed(self, uid: int, ran: float, given: float, now: float) -> None:
        """A worker was killed at a deadline.

        Args:
            ran: seconds that the request had been in the worker.
            given: seconds that the request had altogether.
        """
        if ran >= LONGEST:
            return
        row = self._rows.setdefault(uid, _Row())
        row.number += 1
        row.given = max(row.given, given)
        if row.number > _FREE:
            row.until = now + min(_LAST, _FIRST * 2.0 ** min(row.number - _FREE - 1, 30))
        self._rows.move_to_end(uid)
        if len(self._rows) > _UIDS_KEPT:
            self._rows.popitem(last=False)

    def answered(self, uid: int) -> None:
        """A request of this uid was answered in time."""
        self._rows.pop(uid, None)

    def wait(self, uid: int, given: float, now: float) -> float:
        """Seconds that a request has to wait which gives no more than those did; mostly 0."""
        row = self._rows.get(uid)
        if row is None or given > row.given:
            return 0.0
        return max(0.0, row.until - now)
