"""A queue of jobs in which the uids take turns: next is the one whose turn is longest ago. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swiprd.pool.job import Job

_TURNS_KEPT = 1024  # uids whose last turn is remembered; a forgotten uid goes first


class RoundRobin:
    """First come, first served within a uid."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Job]] = {}
        self._turns: dict[int, int] = {}  # by uid: the number of its last turn; the oldest first
        self._numbers = count(1)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Job]:
        return (job for queue in self._queues.values() for job in queue)

    def __contains__(self, job: Job) -> bool:
        return job in self._queues.get(job.uid, ())

    def append(self, job: Job) -> None:
        """Let a job wait, the last of its uid's."""
        self._queues.setdefault(job.uid, deque()).append(job)
        self._length += 1

    def push_in(self, job: Job) -> None:
        """Let a job wait, the first of all."""
        self._queues.setdefault(job.uid, deque()).appendleft(job)
        self._turns[job.uid] = -next(self._numbers)
        self._length += 1

    def remove(self, job: Job) -> None:
        """Let a job wait no longer."""
        queue = self._queues[job.uid]
        queue.remove(job)
        if not queue:
            del self._queues[job.uid]
        self._length -= 1

    def next(self, skip: Callable[[Job], bool] | None = None) -> Job | None:
        """The job whose turn it is; those that are to be skipped are as if they were not there."""
        if skip is None:
            if not self._queues:
                return None
            return self._queues[min(self._queues, key=self._turn)][0]
        firsts = {
            uid: job
            for uid, queue in self._queues.items()
            if (job := next((one for one in queue if not skip(one)), None)) is not None
        }
        return firsts[min(firsts, key=self._turn)] if firsts else None

    def take(self, job: Job) -> None:
        """Let a job wait no longer, as its uid's turn."""
        self.remove(job)
        self._turns.pop(job.uid, None)
        self._turns[job.uid] = next(self._numbers)
        if len(self._turns) > _TURNS_KEPT:
            del self._turns[next(iter(self._turns))]

    def last(self, uid: int) -> Job:
        """The newest of a uid's."""
        return self._queues[uid][-1]

    def lengths(self) -> dict[int, int]:
        """Jobs that wait, by uid; none is 0."""
        return {uid: len(queue) for uid, queue in self._queues.items()}

    def _turn(self, uid: int) -> int:
        return self._turns.get(uid, 0)
