"""When jobs' deadlines pass, and what those are told that have waited until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swiprctl.errors import DeadlineExceeded, Overloaded, SwiprError
from swiprd.pool.job import Job

NEVER = float("inf")


class Deadlines:
    """A timer for each job.

    Args:
        usual: seconds for a request that names none.
        ceiling: seconds that no request gets more of.
        on_passed: called with a job whose deadline has passed.
    """

    def __init__(self, usual: float, ceiling: float, on_passed: Callable[[Job], None]) -> None:
        self._usual = usual
        self._ceiling = ceiling
        self._on_passed = on_passed
        self._loop = asyncio.get_running_loop()
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def patience(self, timeout: float | None, *, loading: bool = False) -> float:
        """Seconds that a request gets which names `timeout`.

        Args:
            loading: the model is not there yet. Our own bounds cover work, not the daemon's start.
        """
        if loading:
            return NEVER if timeout is None else timeout
        return min(self._usual if timeout is None else timeout, self._ceiling)

    def watch(self, job: Job) -> None:
        """Call when a job has got its deadline, or another one."""
        self.forget(job)
        if job.deadline != NEVER:
            self._timers[job.id] = self._loop.call_at(job.deadline, self._on_passed, job)

    def forget(self, job: Job) -> None:
        """A job has ended."""
        timer = self._timers.pop(job.id, None)
        if timer is not None:
            timer.cancel()

    def waited(self, job: Job) -> str:
        """How long a job had until now, and whether more was asked for."""
        waited = f"{self._loop.time() - job.arrived:.1f} s"
        if self._is_cut(job):
            waited += ", the longest that this daemon gives (max_timeout)"
        return waited

    def in_vain(self, job: Job, retry_after: float) -> SwiprError:
        """What a job is told whose deadline has passed while it waited.

        Args:
            retry_after: seconds after which it may be worth to come again.
        """
        waited = self.waited(job)
        if job.ran:
            return DeadlineExceeded(
                f"not done within {waited}: it ran for {job.ran:.1f} s in vain, and then others"
                " went first"
            )
        if job.suspect:
            return DeadlineExceeded(
                f"no worker was free within {waited}: others go before an image that took long"
                " lately, or hung"
            )
        why = f"no worker was free within {waited}"
        # A client that named more than it was given has some of it left, and may come again.
        return Overloaded(why, retry_after) if self._is_cut(job) else DeadlineExceeded(why)

    def _is_cut(self, job: Job) -> bool:
        return job.timeout is not None and job.timeout > self._ceiling
