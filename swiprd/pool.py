"""Gives waiting jobs to one model's workers, and takes each back exactly once.

A job ends answered or failed, or is to be run again: because its worker died, and nothing proves
that the job was to blame. The kill at a deadline is here; who replaces the killed is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from swiprctl.errors import BadImage, LoadingFailed, SwiprError, WorkerCrashed
from swiprctl.protocol import Reply
from swiprd.admission import Job
from swiprd.canary import Canary
from swiprd.children import Worker
from swiprd.deaths import Death, Fault
from swiprd.overdue import Usual
from swiprd.processes import is_stopped
from swiprd.supervisor import Shape, Supervisor
from swiprd.wear import Wear

MAX_CRASHES = 2
"""Workers that may die by themselves with the same image, before it is to blame."""

MAX_KILLS = 5
"""Workers that may be killed from outside (an operator, the OOM killer) with the same image."""


class Owner(Protocol):
    """What the pool asks of whoever keeps the queue, and tells it."""

    def take(self) -> Job | None:
        """The next job to run, or None."""

    def peek(self) -> Job | None:
        """What `take()` would give."""

    def answered(
        self, job: Job, fields: dict[str, object], share: float, alone: float | None
    ) -> None:
        """A row; `share` is the seconds of the whole pool's time that it took, `alone` those that
        it had a worker for itself, if it had."""

    def failed(self, job: Job, error: SwiprError) -> None:
        """A named error."""

    def condemned(self, job: Job, error: SwiprError) -> None:
        """A named error, and the image is to blame: it is not to be tried again."""

    def again(self, job: Job) -> None:
        """Its worker died through no proven fault of the job."""

    def pool_failed(self, error: LoadingFailed) -> None:
        """The model that has served cannot be brought back."""


class Pool:
    """The workers of one model. Make it, `await staff.start()`, `dispatch()` when jobs come."""

    def __init__(
        self,
        owner: Owner,
        *,
        folder: str,
        device: str,
        shape: Shape,
        limits: Mapping[str, float],
        canary: Callable[[dict[str, Any]], Canary],
        ids: Iterator[int],
        memory: int | None,
        wear: Wear,
    ) -> None:
        self._owner = owner
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, Worker] = {}
        self._usual = Usual()
        self._drained: asyncio.Event | None = None
        self.staff = Supervisor(
            self,
            folder=folder,
            device=device,
            shape=shape,
            canary=canary,
            ids=ids,
            memory=memory,
            wear=wear,
        )

    def dispatch(self) -> None:
        """Give waiting jobs to idle workers, a batch at most to each."""
        staff = self.staff
        while not staff.closing and self._drained is None and staff.busy < staff.shape.workers:
            worker = staff.idle()
            if worker is None:
                return
            batch = self._take_batch()
            if not batch:
                return
            threads = staff.shape.threads
            if not staff.busy and self._owner.peek() is None:
                threads = staff.threads.alone()
            now = self._loop.time()
            for job in batch:
                job.started = now
                job.threads = threads if len(batch) == 1 else 0
                self._running[job.id] = worker
            worker.give(batch, self._limits, threads)
            patience = self._usual.patience(min(job.deadline for job in batch) - now)
            self._loop.call_later(patience, self._overdue, worker, batch)

    def expire(self, job: Job) -> None:
        """A running job's deadline has passed: kill its worker; its neighbours run again."""
        worker = self._forget(job)
        if worker is None:
            return
        worker.jobs.pop(job.id, None)
        self.staff.discard(worker, "deadline")
        self.staff.fill()
        self.dispatch()

    async def drain(self) -> None:
        """Take no more jobs; wait until those that run have ended."""
        self._drained = asyncio.Event()
        if self._running:
            await self._drained.wait()

    # --- what the supervisor tells

    def replied(self, job: Job, reply: Reply) -> None:
        """See `supervisor.Employer`."""
        self._forget(job)
        if reply.error is not None:
            self._owner.failed(job, reply.error)
            return
        if job.threads:
            infer: Any = reply.fields["infer"]
            self.staff.threads.learn(job.threads, infer)
        shape = self.staff.shape
        seconds = self._loop.time() - job.started
        self._usual.learn(seconds)
        # Once it was overdue another worker stood in for its own: then it kept nobody waiting.
        held = job.overdue - job.started if job.overdue else seconds
        fields = {**reply.fields, "model": self.staff.described["model"]}
        self._owner.answered(
            job, fields, held / (shape.workers * shape.batch), seconds if job.threads else None
        )

    def left(self, jobs: list[Job], death: Death) -> None:
        """See `supervisor.Employer`. Of a batch nobody is blamed: each is tried again alone."""
        for job in reversed(jobs):  # each goes back to the head of the queue: the first one last
            self._forget(job)
            if job.threads and death.fault is not Fault.NOBODY:
                job.crashes += 1
            elif job.threads:
                job.kills += 1
            if job.threads and death.fault is Fault.DECODER:
                most = self._limits["max_decode"]
                error: SwiprError = BadImage(
                    f"its decoder takes more than {most:g} s of processor time"
                )
                self._owner.condemned(job, error)
            elif job.crashes < MAX_CRASHES and job.kills < MAX_KILLS:
                job.alone = True
                job.started = job.overdue = 0.0
                self._owner.again(job)
            elif death.fault is Fault.WEIGHTS:
                self._owner.failed(job, LoadingFailed(f"the model's workers die of {death.how}"))
            else:
                died = job.crashes + job.kills
                error = WorkerCrashed(
                    f"{died} workers died with this image, the last of {death.how}"
                )
                self._owner.condemned(job, error)

    def someone_idle(self) -> None:
        """See `supervisor.Employer`."""
        self.dispatch()

    def given_up(self, error: LoadingFailed) -> None:
        """See `supervisor.Employer`."""
        self._owner.pool_failed(error)

    # --- inside

    def _overdue(self, worker: Worker, batch: list[Job]) -> None:
        """A batch was given long ago. If it still runs, see to it that the others need not wait."""
        left = [job for job in batch if self._running.get(job.id) is worker]
        if not left:
            return
        if is_stopped(worker.pid):
            self.staff.discard(worker, "it was stopped, by a signal or a debugger")
        elif len(left) > 1:
            self.staff.discard(worker, "its batch takes long: each image is tried alone")
        else:
            left[0].overdue, worker.stuck = self._loop.time(), True
        self.staff.fill()
        self.dispatch()

    def _take_batch(self) -> list[Job]:
        batch: list[Job] = []
        while len(batch) < self.staff.shape.batch:
            job = self._owner.peek()
            if job is None or (job.alone and batch):
                break
            self._owner.take()
            batch.append(job)
            if job.alone:
                break
        return batch

    def _forget(self, job: Job) -> Worker | None:
        """A job runs no more; a pool that drains may be done with that."""
        worker = self._running.pop(job.id, None)
        if self._drained is not None and not self._running:
            self._drained.set()
        return worker
