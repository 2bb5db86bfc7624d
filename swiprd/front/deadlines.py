"""When requests' deadlines pass, and what becomes of a request then, wherever it is.

One whose file is still being read, or that waits, is refused. One that runs is killed with its
worker (`Pool.kill`; the signal is in pool/handles.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swiprctl.errors import DeadlineExceeded, Overloaded, SwiprError
from swiprd.front.request_queue import RequestQueue
from swiprd.front.suspicion import Suspicion
from swiprd.pool.job import Job
from swiprd.system.attachment import State

NEVER = float("inf")


class Deadlines:
    """A timer for each job.

    Args:
        usual: seconds for a request that names none.
        ceiling: seconds that no request gets more of.
        queue: where jobs wait.
        effort: seconds that a running job has had in its worker.
        end: ends a job that does not run, with its error.
        kill: ends a running job with its error, and its worker.
    """

    def __init__(
        self,
        usual: float,
        ceiling: float,
        *,
        queue: RequestQueue,
        suspicion: Suspicion,
        effort: Callable[[Job], float],
        end: Callable[[Job, SwiprError], None],
        kill: Callable[[Job, SwiprError], None],
    ) -> None:
        self._usual = usual
        self._ceiling = ceiling
        self._queue = queue
        self._suspicion = suspicion
        self._effort = effort
        self._end = end
        self._kill = kill
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
            self._timers[job.id] = self._loop.call_at(job.deadline, self._passed, job)

    def forget(self, job: Job) -> None:
        """A job has ended."""
        timer = self._timers.pop(job.id, None)
        if timer is not None:
            timer.cancel()

    # --- inside

    def _passed(self, job: Job) -> None:
        now = self._loop.time()
        if job.image.state is State.COMING:
            error: SwiprError = DeadlineExceeded(
                f"the file could not be read within {self._waited(job)}:"
                " its file system does not answer, or it is slow"
            )
            self._end(job, error)
        elif self._queue.withdraw(job):
            error = self._in_vain(job)
            if job.ran:
                self._suspicion.ran_in_vain(job, error, now, job.ran)
            self._end(job, error)
        else:
            error = DeadlineExceeded(f"not done within {self._waited(job)}; its worker was killed")
            self._queue.killed(job, now)
            if job.overdue and not job.ended:
                self._suspicion.ran_in_vain(job, error, now, max(job.ran, self._effort(job)))
            self._kill(job, error)

    def _waited(self, job: Job) -> str:
        """How long a job had until now, and whether more was asked for."""
        waited = f"{self._loop.time() - job.arrived:.1f} s"
        if self._is_cut(job):
            waited += ", the longest that this daemon gives (max_timeout)"
        return waited

    def _in_vain(self, job: Job) -> SwiprError:
        """What a job is told whose deadline has passed while it waited."""
        waited = self._waited(job)
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
        if self._is_cut(job):
            return Overloaded(why, self._queue.retry_after)
        return DeadlineExceeded(why)

    def _is_cut(self, job: Job) -> bool:
        return job.timeout is not None and job.timeout > self._ceiling
