"""Refuses requests of a uid whose deadlines were too short several times in a row. Pure.

Each such request costs a worker, which is killed, and the fork of another costs the host more than
most images do. Two in a row may be bad luck. From the third on, the uid's next request has to wait,
twice as long each time, unless its deadline is longer.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

LONGEST = 0.5
"""Seconds in a worker: a request that ran longer and was killed did not have a short deadline."""

_FREE = 2  # kills in a row without consequences
_FIRST = 0.5  # seconds that the uid has to wait after the third, doubled by each further one,
_LAST = 8.0  # and at most
_UIDS_KEPT = 1024


@dataclass(slots=True)
class _Streak:
    number: int = 0
    given: float = 0.0
    until: float = 0.0


class ShortDeadlines:
    """The streaks of all uids; an answer in time ends the streak of its uid."""

    def __init__(self) -> None:
        self._streaks: OrderedDict[int, _Streak] = OrderedDict()

    def killed(self, uid: int, ran: float, given: float, now: float) -> None:
        """A worker was killed at a deadline.

        Args:
            ran: seconds that the request had been in the worker.
            given: seconds that the request had altogether.
        """
        if ran >= LONGEST:
            return
        streak = self._streaks.setdefault(uid, _Streak())
        streak.number += 1
        streak.given = max(streak.given, given)
        if streak.number > _FREE:
            streak.until = now + min(_LAST, _FIRST * 2.0 ** min(streak.number - _FREE - 1, 30))
        self._streaks.move_to_end(uid)
        if len(self._streaks) > _UIDS_KEPT:
            self._streaks.popitem(last=False)

    def answered(self, uid: int) -> None:
        """A request of this uid was answered in time."""
        self._streaks.pop(uid, None)

    def wait(self, uid: int, given: float, now: float) -> float:
        """Seconds until a request may be tried that gives no more time than the streak did; mostly
        0."""
        streak = self._streaks.get(uid)
        if streak is None or given > streak.given:
            return 0.0
        return max(0.0, streak.until - now)
