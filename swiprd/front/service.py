"""The daemon between its sockets and its workers: the queue and the deadlines.

Submitted jobs wait in the `RequestQueue`, run in the `Pool` that serves and end here, each
exactly once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from itertools import count

from swiprctl.errors import (
    DeadlineExceeded,
    LoadingFailed,
    ShuttingDown,
    SwiprError,
)
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprd.config import Settings
from swiprd.front.deadlines import Deadlines
from swiprd.front.request_queue import RequestQueue
from swiprd.front.stats import Stats
from swiprd.front.status import describe_process, describe_staff, describe_work
from swiprd.front.suspicion import Suspicion
from swiprd.pool.job import Job
from swiprd.pool.model_manager import RETRY, ModelManager, Phase
from swiprd.pool.pool import Pool
from swiprd.system.attachment import Attachment, State
from swiprd.system.messages import Row

_QUIET = 1.0  # seconds without a request before a calibration may begin
_TAKES_LONG = 5.0  # seconds that whoever takes long still gets when the daemon leaves

Outcome = dict[str, object] | SwiprError


class Service:
    """Answers jobs with one model.

    Args:
        on_phase, on_reload, fault: see `ModelManager`.

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
        usual = min(settings.timeout, settings.ceiling)
        self._queue = RequestQueue(settings.queue, {0, os.geteuid()}, usual)
        self._ids = count(1)
        self._jobs: set[Job] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._suspicion = Suspicion(settings.remember, usual)
        self._deadlines = Deadlines(
            settings.timeout,
            settings.ceiling,
            queue=self._queue,
            suspicion=self._suspicion,
            effort=lambda job: max((pool.effort(job) for pool in self.model.pools), default=0.0),
            end=self._end,
            kill=lambda job, error: self._kill(job, error, "deadline"),
        )
        self._hurried = False
        self.model = ModelManager(
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
        for job in self._coming():  # a file system that does not answer holds no stop up
            self._end(job, _leaving(0.1))
        if self.model.pool is None:
            self.refuse_waiting(_leaving(1.0))
        hurry = self._loop.call_later(_TAKES_LONG, self._hurry)
        try:
            await asyncio.wait_for(self._idle.wait(), patience)
        except TimeoutError:
            self.refuse_waiting(_leaving(1.0))
        finally:
            hurry.cancel()

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
        image: Attachment,
        timeout: float | None,
        done: Callable[[Outcome], None],
    ) -> None:
        """Take an image; `done` is called once, perhaps at once. Owns the attachment from here.

        The deadline counts from now on, also while the image is still coming.
        """
        now = self._loop.time()
        self.last_active = now
        loading = self.model.phase is Phase.LOADING
        job = Job(
            id=next(self._ids),
            uid=uid,
            owner=owner,
            image=image,
            arrived=now,
            deadline=now + self._deadlines.patience(timeout, loading=loading),
            timeout=timeout,
            done=lambda _, outcome: done(outcome),
        )
        self._jobs.add(job)
        self._idle.clear()
        self._deadlines.watch(job)
        image.when_settled(lambda: self._arrived(job))

    def _arrived(self, job: Job) -> None:
        """The image is there, or will not come."""
        now = self._loop.time()
        try:
            if job.image.error is not None:
                raise job.image.error
            self.model.require_unedited()
            if self.model.phase is Phase.FAILED:
                raise LoadingFailed(self.model.reason, RETRY)
            if self.model.phase is Phase.DRAINING:
                raise _leaving(0.1)
            if (known := self._suspicion.known(job, now)) is not None:
                raise known
            victim = self._queue.admit(job, now)
        except SwiprError as error:
            self._end(job, error)
            return
        if victim is not None:
            self._end(victim, self._queue.evicted())
        if self.model.pool is not None:
            self.model.pool.dispatch()

    def cancel(self, owner: object) -> None:
        """Forget what waits for an owner who has left. What runs ends unheard."""
        coming = [job for job in self._coming() if job.owner is owner]
        for job in [*coming, *self._queue.cancel(owner)]:
            self._end_unheard(job)
        for job in self._jobs:
            job.unheard |= job.owner is owner

    def peek(self) -> Job | None:
        """See `pool.Owner`. What has been found out about an image while it waited ends it here,
        or has it wait for longer."""
        while (job := self._queue.peek()) is not None:
            if self._ended_by_what_is_known(job):
                continue
            if not self._suspicion.suspects(job, self._loop.time()):
                break
            self._queue.suspect(job)
            if self._hurried:
                self._give_up(job)
        return job

    def peek_suspect(self) -> Job | None:
        """See `pool.Owner`. While an image is being tried, further copies of it wait."""
        tried = {job.image.identity for job in self._jobs if job.started} - {None}
        while (
            job := self._queue.peek_suspect(lambda one: one.image.identity in tried)
        ) is not None:
            if not self._ended_by_what_is_known(job):
                break
        return job

    def take(self, job: Job) -> None:
        """See `pool.Owner`."""
        self._queue.take(job)

    def overdue(self, job: Job) -> None:
        """See `pool.Owner`."""
        if job.ended:
            return
        if self._hurried:
            self._give_up(job)
        else:
            self._suspicion.overdue(job, self._loop.time())

    def answered(self, job: Job, row: Row, model: str, share: float, alone: float | None) -> None:
        """See `pool.Owner`."""
        self.last_answer = self._loop.time()
        self._queue.served(job, share, now=self.last_answer, alone=alone)
        self._suspicion.answered(job)
        self._finish_running(
            job,
            {
                "probabilities": row.probabilities,
                "model": model,
                "queued": job.started - job.arrived,
                "decode": row.decode,
                "infer": row.infer,
            },
        )

    def failed(self, job: Job, error: SwiprError) -> None:
        """See `pool.Owner`."""
        self._finish_running(job, error)

    def condemned(self, job: Job, error: SwiprError) -> None:
        """See `pool.Owner`."""
        if not job.ended:
            self._suspicion.condemn(job, error, self._loop.time())
        self._finish_running(job, error)

    def ran_in_vain(self, job: Job, error: SwiprError, ran: float) -> None:
        """See `pool.Owner`."""
        if not job.ended:
            self._suspicion.ran_in_vain(job, error, self._loop.time(), ran)
        self._finish_running(job, error)

    def again(self, job: Job) -> None:
        """See `pool.Owner`."""
        if not job.ended:
            self._queue.requeue(job)
            if job.unheard:
                self._queue.withdraw(job)
                self._end_unheard(job)
            elif job.suspect and self._hurried:
                self._give_up(job)
            pool = self.model.pool  # not the one that asks, where that drains after a reload
            if pool is not None:
                self._loop.call_soon(pool.dispatch)

    # --- the model

    def installed(self, pool: Pool) -> None:
        """See `model_manager.Court`."""
        now = self.last_answer = self.last_active = self._loop.time()
        self._queue.new_model(pool.staff.check_seconds)
        for job in self._jobs:
            deadline = now + self._deadlines.patience(job.timeout)
            if deadline < job.deadline:
                job.deadline = deadline
                self._deadlines.watch(job)
        pool.dispatch()

    def refuse_waiting(self, error: SwiprError) -> None:
        """End what no worker has yet. See `model_manager.Court`, too."""
        coming = self._coming()
        for job in list(self._jobs):
            if job in coming or self._queue.withdraw(job):
                self._end(job, error)

    def is_quiet(self) -> bool:
        """See `model_manager.Court`."""
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
        if pool is self.model.pool:  # else that was another model
            self._queue.checked(pool.staff.check_seconds)
        self.last_answer = self._loop.time()
        return {"seconds": seconds, "model": pool.staff.loaded.model}

    def status(self) -> dict[str, object]:
        """What `status` answers, at once."""
        now = self._loop.time()
        pool = self.model.pool
        return {
            **self.model.status(),
            **describe_process(
                self.begun, now, self._settings.model, [one.staff for one in self.model.pools]
            ),
            **describe_work(self._queue, self.stats, self._suspicion.poison, now),
            **describe_staff(pool.staff if pool is not None else None, now),
        }

    # --- inside

    def _coming(self) -> list[Job]:
        """Jobs whose image is not there yet."""
        return [job for job in self._jobs if job.image.state is State.COMING]

    def _ended_by_what_is_known(self, job: Job) -> bool:
        """End a waiting job if its image is known to hang or crash, or if it is too late for it."""
        now = self._loop.time()
        known = self._suspicion.known(job, now)
        if known is None and self._queue.too_late(job, now):
            known = DeadlineExceeded(
                f"no worker was free within {now - job.arrived:.1f} s; what is left is less than"
                " any image has taken"
            )
        if known is not None:
            self._queue.withdraw(job)
            self._end(job, known)
        return known is not None

    def _hurry(self) -> None:
        """The daemon leaves: end what takes long, from now on."""
        self._hurried = True
        for job in list(self._jobs):
            if job.overdue or job.suspect:
                self._give_up(job)

    def _give_up(self, job: Job) -> None:
        error = ShuttingDown("the daemon leaves, and this takes long; its successor may try", 1.0)
        if self._queue.withdraw(job):
            self._end(job, error)
        elif not job.ended:
            self._kill(job, error, "the daemon leaves, and this takes long")

    def _kill(self, job: Job, error: SwiprError, why: str) -> None:
        """End a running job, and its worker."""
        self._finish_running(job, error)
        for pool in list(self.model.pools):
            pool.kill(job, why)

    def _finish_running(self, job: Job, outcome: Outcome) -> None:
        if not job.ended:
            self._queue.finished(job)
            self._end(job, outcome)

    def _end_unheard(self, job: Job) -> None:
        self._end(job, ShuttingDown("the client left"), counted="left")

    def _end(self, job: Job, outcome: Outcome, *, counted: str = "") -> None:
        """The one place where a job ends: its timer, its descriptor, its count, its answer."""
        job.ended = True
        self._deadlines.forget(job)
        job.image.close()
        self._jobs.discard(job)
        now = self.last_active = self._loop.time()
        code = outcome.code if isinstance(outcome, SwiprError) else "ok"
        self.stats.ended(job.uid, counted or code, now - job.arrived)
        if not self._jobs:
            self._idle.set()
        job.done(job, outcome)


def _leaving(retry_after: float) -> ShuttingDown:
    return ShuttingDown("the daemon leaves; its successor will answer", retry_after)
