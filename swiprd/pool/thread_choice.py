"""How many threads the next batch gets. Pure.

Where several workers share the cores, each has few threads; but a batch that nothing else runs
beside may have all of them. Whether that is faster depends on what else the host does just now:
on idle cores two threads answer resnext50 in 0.6 of the time of one, and beside a single busy
process they take twice as long, since every layer waits for the slower of the two. So what images
took with either is remembered, the faster is chosen, and the slower is tried now and then.
"""

from __future__ import annotations

import math

_SMOOTHING = 0.3  # weight of the newest time in the running average
_FIRST_RETRY = 32  # choices between two trials of what was the slower,
_LAST_RETRY = 1024  # and at most, after it was the slower time and again


class Threads:
    """Chooses threads for a batch that has the host to itself, and learns.

    Args:
        few: what each of several busy workers gets.
        many: what a batch may have that is alone; calibration found it faster on an idle host.
    """

    def __init__(self, few: int, many: int) -> None:
        self.few = few
        self.many = many
        self._best = many
        self._seconds: dict[int, float] = {}
        self._retry = _FIRST_RETRY
        self._choices = 0

    def alone(self) -> int:
        """Threads for a batch that nothing runs beside."""
        self._choices += 1
        if self._choices <= self._retry:
            return self._best
        self._choices = 0
        self._retry = min(2 * self._retry, _LAST_RETRY)
        return self._other

    def learn(self, threads: int, seconds: float) -> None:
        """One image took so long in the model with so many threads."""
        if threads == self._best and threads in self._seconds:
            self._seconds[threads] += _SMOOTHING * (seconds - self._seconds[threads])
        else:
            self._seconds[threads] = seconds  # tried so seldom that older times say nothing
        if self._seconds.get(self._other, math.inf) < self._seconds.get(self._best, 0.0):
            self._best = self._other
            self._retry, self._choices = _FIRST_RETRY, 0

    @property
    def _other(self) -> int:
        return self.few if self._best == self.many else self.many
