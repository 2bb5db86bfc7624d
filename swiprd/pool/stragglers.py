"""When a batch has taken far longer than batches do: its worker is stuck, or so good as. Pure.

Nothing is killed for that: a deadline does it, and an image may really take so long. But a worker
that is stuck is no longer counted among those that may be busy, so that one hanging image does
not hold up everybody else until its deadline. Only where more are stuck than others can stand in
for, and somebody waits, does one of them give way: its image is tried again later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from swiprd.pool.job import Job
from swiprd.pool.typical import Typical

LONGER = 4.0
"""Times as long as it had in vain must a request give an image, for it to be tried again."""

MOST = 4
"""Stuck workers at a time that others stand in for. Each may occupy a core and its memory."""

_LEAST = 0.5  # seconds: a fresh worker's first batch, or a busy host, takes that easily
_TIMES = 8.0  # the usual time: a large photograph takes so much longer than a small one
_SHARE = 0.25  # of its time, so that each image of a batch can still be tried alone
_BLOCKED = 0.05  # of the time at most: whoever computes gets more, unless 40 share two cores
_HURRY = 3.0  # by how much sooner, where nobody can stand in any more: it is tried again later


class UsualTime:
    """What a batch usually takes."""

    def __init__(self) -> None:
        self._times = Typical()

    def patience(self, left: float, *, crowded: bool = False) -> float:
        """Seconds after which a batch is overdue, where its first deadline is in `left` seconds.

        Args:
            crowded: as many workers are stuck as others stand in for.
        """
        longest = min(_TIMES * self._times.seconds, _SHARE * left)
        return max(_LEAST, longest / _HURRY if crowded else longest)

    def learn(self, seconds: float) -> None:
        """A batch took so long."""
        self._times.learn(seconds)


def hangs(seconds: float, computed: float) -> bool:
    """Whether a worker waits for something, rather than compute, as far as can be told.

    Args:
        seconds: since it was given what it has; `computed`: of them, processor time.
    """
    return computed < _BLOCKED * seconds


def effort(seconds: float, computed: float) -> float:
    """Seconds of the host's best that an image has had: on a busy host a computation is slow."""
    return seconds if hangs(seconds, computed) else computed


def proof(job: Job) -> float:
    """Seconds in a worker, waiting, after which an image will be refused to a request like this."""
    return (job.deadline - job.arrived) / LONGER


def giving_way(stuck: Sequence[Job]) -> Job | None:
    """Which of the jobs that are stuck goes first: of the uid that has the most, the newest.

    So the older ones come to an end, one way or the other. Those that nobody waits for any more
    go before all others.
    """
    held = Counter(job.uid for job in stuck)
    return max(stuck, key=lambda job: (job.unheard, held[job.uid], job.started), default=None)


def proved(stuck: Sequence[Job], hanging: Sequence[Job], waits: Job, now: float) -> Job | None:
    """Which of them has had enough time for `waits`, a suspect, to be tried in its place.

    The oldest of those that hang, of the same uid or of one that has more. What computes is let
    alone: it will come to an end, by itself or by its bound of processor time.
    """
    held = Counter(job.uid for job in stuck)
    enough = [
        job
        for job in hanging
        if now - job.started >= proof(job)
        and (job.uid == waits.uid or held[job.uid] > held[waits.uid])
    ]
    left = [job for job in stuck if job.unheard]
    return max(left or enough, key=lambda job: (held[job.uid], -job.started), default=None)
