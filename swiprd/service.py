"""The daemon between its sockets and its workers: the queue and the deadlines.

Submitted jobs wait in `Admission`, run in the `Pool` that serves and end here, each exactly once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from itertools import count

from swiprctl.errors import DeadlineExceeded, LoadingFailed, ShuttingDown, SwiprError, WorkerCrashed
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprd.admission import Admission, Job
from swiprd.config import Settings
from swiprd.poison import Poison
from swiprd.pool import Pool
from swiprd.recognition import recall, remember
from swiprd.report import describe_process, describe_staff, describe_work
from swiprd.stats import Stats
from swiprd.succession import RETRY, Phase, Succession

_QUIET = 1.0  # seconds without a request before a calibration may begin

Outcome = dict[str, object] | SwiprError


class Service:
    """Answers jobs with one model.

    Args:
        on_phase, on_reload, fault: see `Succession`.

    Attributes:
        model: whoever serves, and how that changes.
        last_active: loop time when a job was last submitted or ended.
        last_answer: loop time of the last row that a worker gave.
    """

    def __init__(
        self,
        settings: Settings,
        on_phase: Callable[[Phase, str], None],
        on_reload: Callable[[bool, str], None] = lambda _, __: None,
        *,
        fault: str = "",
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._admission = Admission(settings.queue)
        self._ids = count(1)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._jobs: set[Job] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._poison = Poison(settings.remember)
        self.model = Succession(
            settings, self, self._ids, on_phase=on_phase, on_reload=on_reload, fault=fault
        )
        self.stats = Stats()
        self.begun = self.last_active = self.last_answer = self._loop.time()

    # --- life

    def start(self) -> None:
        """Begin to load the model."""
        self.model.start()

    async def drain(self, patience: float) -> None:
        """Take no more jobs, end those that were taken, for `patience` seconds at most."""
        self.model.leave()
        if self.model.pool is None:
            self.refuse_waiting(_leaving(1.0))
        try:
            await asyncio.wait_for(self._idle.wait(), patience)
        except TimeoutError:
            self.refuse_waiting(_leaving(1.0))

    async def close(self) -> None:
        """Let every process leave; wait until they are gone."""
        await self.model.stop()
        for job in list(self._jobs):
            self._end(job, _leaving(1.0))
        await self.model.close()

    # --- jobs

    @property
    def busy(self) -> bool:
        """Whether a job waits or runs, or the model is on its way."""
        return bool(self._jobs) or self.model.phase is Phase.LOADING

    def submit(
        self,
        *,
        uid: int,
        owner: object,
        image: int,
        timeout: float | None,
        done: Callable[[Outcome], None],
        discard: Callable[[int], None] = os.close,
        blame: Callable[[], None] | None = None,
    ) -> None:
        """Take an image; `done` is called once, perhaps at once. Owns the descriptor from here.

        Args:
            discard: closes the descriptor.
            blame: called when a worker has been killed that did not come to an end with it.
        """
        now = self._loop.time()
        self.last_active = now
        patience = self._settings.timeout if timeout is None else timeout
        if self.model.phase is Phase.LOADING and timeout is None:
            patience = float("inf")  # a deadline covers work, not the start of the daemon
        job = Job(
            id=next(self._ids),
            uid=uid,
            owner=owner,
            image=image,
            arrived=now,
            deadline=now + patience,
            timeout=timeout,
            done=lambda _, outcome: done(outcome),
            discard=discard,
            blame=blame,
        )
        self._jobs.add(job)
        self._idle.clear()
        try:
            self.model.require_unedited()
            if self.model.phase is Phase.FAILED:
                raise LoadingFailed(self.model.reason, RETRY)
            if self.model.phase is Phase.DRAINING:
                raise _leaving(0.1)
            if (known := recall(self._poison, image, now, job.deadline)) is not None:
                raise known
            victim = self._admission.admit(job, now)
        except SwiprError as error:
            self._end(job, error)
            return
        if victim is not None:
            self._end(victim, self._admission.evicted())
        self._watch(job)
        if self.model.pool is not None:
            self.model.pool.dispatch()

    def cancel(self, owner: object) -> None:
        """Forget what waits for an owner who has left. What runs ends unheard."""
        for job in self._admission.cancel(owner):
            self._end(job, ShuttingDown("the client left"), counted="left")

    def refuse_passed(self, uid: int, error: SwiprError) -> None:
        """End what waits with a descriptor of this uid that may hang whoever reads it."""
        for job in list(self._jobs):
            if job.uid == uid and job.blame is not None and self._admission.withdraw(job):
                self._end(job, error)

    def take(self) -> Job | None:
        """See `pool.Owner`."""
        return self._admission.next()

    def peek(self) -> Job | None:
        """See `pool.Owner`. What has been found out about an image while it waited ends it here."""
        while (job := self._admission.peek()) is not None:
            known = recall(self._poison, job.image, self._loop.time(), job.deadline)
            if known is None:
                break
            self._admission.withdraw(job)
            self._end(job, known)
        return job

    def answered(self, job: Job, fields: dict[str, object], share: float) -> None:
        """See `pool.Owner`."""
        self.last_answer = self._loop.time()
        self._admission.served(share)
        self._finish_running(
            job,
            {
                "probabilities": fields["probabilities"],
                "model": fields["model"],
                "queued": job.started - job.arrived,
                "decode": fields["decode"],
                "infer": fields["infer"],
            },
        )

    def failed(self, job: Job, error: SwiprError) -> None:
        """See `pool.Owner`."""
        if isinstance(error, WorkerCrashed) and not job.ended:
            remember(self._poison, job.image, error, self._loop.time())
        self._finish_running(job, error)

    def again(self, job: Job) -> None:
        """See `pool.Owner`."""
        if not job.ended:
            self._admission.requeue(job)
            pool = self.model.pool  # not the one that asks, where that drains after a reload
            if pool is not None:
                self._loop.call_soon(pool.dispatch)

    def pool_failed(self, error: LoadingFailed) -> None:
        """See `pool.Owner`."""
        self.model.fallen(error)

    # --- the model

    def installed(self, pool: Pool) -> None:
        """See `succession.Court`."""
        now = self.last_answer = self.last_active = self._loop.time()
        for job in self._jobs:
            if job.timeout is None and job.deadline == float("inf"):
                job.deadline = now + self._settings.timeout
                self._watch(job)
        pool.dispatch()

    def refuse_waiting(self, error: SwiprError) -> None:
        """End what no worker has yet. See `succession.Court`, too."""
        for job in list(self._jobs):
            if self._admission.withdraw(job):
                self._end(job, error)

    def is_quiet(self) -> bool:
        """See `succession.Court`."""
        return not self._jobs and self._loop.time() - self.last_active >= _QUIET

    # --- questions

    async def ping(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, object]:
        """Run the canary through a live worker, within `timeout` seconds once there is a model.

        Raises:
            LoadingFailed: there is no worker, or its answer is wrong.
        """
        await self.model.wait_settled()
        pool, _ = self.model.current()
        seconds = await pool.staff.check(timeout)
        self.last_answer = self._loop.time()
        return {"seconds": seconds, "model": pool.staff.described["model"]}

    def status(self) -> dict[str, object]:
        """What `status` answers, at once."""
        now = self._loop.time()
        pool = self.model.pool
        return {
            **self.model.status(),
            **describe_process(self.begun, now),
            **describe_work(self._admission, self.stats, self._poison, now),
            **describe_staff(pool.staff if pool is not None else None, now),
        }

    # --- inside

    def _watch(self, job: Job) -> None:
        if job.deadline != float("inf"):
            self._timers[job.id] = self._loop.call_at(job.deadline, self._expire, job)

    def _expire(self, job: Job) -> None:
        waited = self._loop.time() - job.arrived
        if self._admission.withdraw(job):
            self._end(job, DeadlineExceeded(f"no worker was free within {waited:.1f} s"))
            return
        if job.blame is not None:
            job.blame()  # first, lest what else that uid passed hangs another worker
        error = DeadlineExceeded(f"not done within {waited:.1f} s; its worker was killed")
        if job.overdue and not job.ended:
            now = self._loop.time()
            remember(self._poison, job.image, error, now, ran=now - job.started)
        self._finish_running(job, error)
        for pool in list(self.model.pools):
            pool.expire(job)

    def _finish_running(self, job: Job, outcome: Outcome) -> None:
        if not job.ended:
            self._admission.finished(job)
            self._end(job, outcome)

    def _end(self, job: Job, outcome: Outcome, *, counted: str = "") -> None:
        """The one place where a job ends: its timer, its descriptor, its count, its answer."""
        job.ended = True
        timer = self._timers.pop(job.id, None)
        if timer is not None:
            timer.cancel()
        job.discard(job.image)
        self._jobs.discard(job)
        now = self.last_active = self._loop.time()
        code = outcome.code if isinstance(outcome, SwiprError) else "ok"
        self.stats.ended(job.uid, counted or code, now - job.arrived)
        if not self._jobs:
            self._idle.set()
        job.done(job, outcome)


def _leaving(retry_after: float) -> ShuttingDown:
    return ShuttingDown("the daemon leaves; its successor will answer", retry_after)
