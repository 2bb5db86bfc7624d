"""When a batch has taken far longer than batches do: its worker is stuck, or so good as. Pure.

Nothing is killed for that: a deadline does it, and an image may really take so long. But a worker
that is stuck is no longer counted among those that may be busy, so that one hanging image does
not hold up everybody else until its deadline.
"""

from __future__ import annotations

from swiprd.typical import Typical

MOST = 4
"""Stuck workers at a time that others stand in for. Each may occupy a core and its memory."""

_LEAST = 0.5  # seconds: a fresh worker's first batch, or a busy host, takes that easily
_TIMES = 8.0  # the usual time: a large photograph takes so much longer than a small one
_SHARE = 0.25  # of its time, so that each image of a batch can still be tried alone


class Usual:
    """What a batch usually takes."""

    def __init__(self) -> None:
        self._times = Typical()

    def patience(self, left: float) -> float:
        """Seconds after which a batch is overdue, where its first deadline is in `left` seconds."""
        return max(_LEAST, min(_TIMES * self._times.seconds, _SHARE * left))

    def learn(self, seconds: float) -> None:
        """A batch took so long."""
        self._times.learn(seconds)
