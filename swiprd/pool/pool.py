"""Gives waiting jobs to one model's workers, and takes each back exactly once.

A job ends answered or failed, or is to be run again: because its worker died, and nothing proves
that the job was to blame. Who replaces a worker that was killed is not here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from swiprctl.errors import DeadlineExceeded, LoadingFailed, SwiprError
from swiprd.folder.canary import Canary
from swiprd.pool import stragglers
from swiprd.pool.deaths import Death, Fault, judge
from swiprd.pool.handles import Worker
from swiprd.pool.job import Job
from swiprd.pool.recycling import RecyclingLimits
from swiprd.pool.stragglers import UsualTime
from swiprd.pool.supervisor import Shape, Supervisor
from swiprd.system.messages import Answer, Limits, Load, Row
from swiprd.system.proc import is_stopped, processor_time


class Owner(Protocol):
    """What the pool asks of whoever keeps the queue, and tells it."""

    def peek(self) -> Job | None:
        """The next job to run, or None."""

    def peek_suspect(self) -> Job | None:
        """The next that is to run if nothing else does."""

    def take(self, job: Job) -> None:
        """One of these runs."""

    def answered(self, job: Job, row: Row, model: str, share: float, alone: float | None) -> None:
        """A row, and the id of the model that gave it.

        Args:
            share: seconds of the whole pool's time that it took.
            alone: seconds that it had a worker for itself; None: it was in a batch of several.
        """

    def failed(self, job: Job, error: SwiprError) -> None:
        """A named error."""

    def condemned(self, job: Job, error: SwiprError) -> None:
        """A named error, and the image is to blame: it is not to be tried again."""

    def ran_in_vain(self, job: Job, error: SwiprError, ran: float) -> None:
        """A named error, and the image may hang: it is not to be tried again by a request like
        this that does not give it much more than `ran` seconds."""

    def overdue(self, job: Job) -> None:
        """It takes far longer than is usual."""

    def again(self, job: Job) -> None:
        """Its worker died through no proven fault of the job."""


class Run(NamedTuple):
    """A job in a worker."""

    job: Job
    worker: Worker


class Pool:
    """The workers of one model. Make it, `await staff.start()`, `dispatch()` when jobs come.

    Args:
        on_given_up: called when the model that has served cannot be brought back.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        load: Load,
        shape: Shape,
        limits: Limits,
        canary: Canary,
        ids: Iterator[int],
        wear: RecyclingLimits,
        on_given_up: Callable[[Pool, LoadingFailed], None],
    ) -> None:
        self._owner = owner
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, Run] = {}
        self._usual = UsualTime()
        self._drained: asyncio.Event | None = None
        self.staff = Supervisor(
            load=load,
            shape=shape,
            canary=canary,
            ids=ids,
            wear=wear,
            on_idle=self.dispatch,
            on_given_up=lambda error: on_given_up(self, error),
        )

    def dispatch(self) -> None:
        """Give waiting jobs to idle workers, a batch at most to each; and suspects to others."""
        staff = self.staff
        while (worker := self._free()) is not None and (job := self._owner.peek()) is not None:
            full = staff.busy >= staff.shape.workers
            if full and not self._have_way_given():
                return
            batch = self._take_batch(job)
            threads = staff.shape.threads
            if not staff.busy and self._owner.peek() is None:
                threads = staff.threads.alone()
            self._give(worker, batch, threads)
            crowded = staff.stuck >= stragglers.MOST
            left = min(job.deadline for job in batch) - self._loop.time()
            patience = self._usual.patience(left, crowded=crowded)
            self._loop.call_later(patience, self._overdue, worker, batch)
            if full:
                staff.fill()
        while (worker := self._free()) is not None and self._owner.peek() is None:
            suspect = self._owner.peek_suspect()
            if suspect is None or (
                staff.stuck >= stragglers.MOST and not self._have_ended(suspect)
            ):
                return
            self._owner.take(suspect)
            self._give(worker, [suspect], staff.shape.threads)
            self._is_overdue(worker, suspect)

    def kill(self, job: Job, why: str) -> None:
        """Kill the worker of a running job, if it runs here; the rest of its batch runs again."""
        self._kill(job, why)
        self.staff.fill()
        self.dispatch()

    def effort(self, job: Job) -> float:
        """Seconds of the host's best that a job has had in its worker; 0: it runs elsewhere."""
        return stragglers.effort(*self._times(job)) if job.id in self._running else 0.0

    async def drain(self) -> None:
        """Take no more jobs; wait until those that run have ended."""
        self._drained = asyncio.Event()
        if self._running:
            await self._drained.wait()

    # --- what the workers give back

    def replied(self, _worker: Worker, id: int, answer: Answer) -> None:
        """See `handles.Giver`."""
        job = self._running[id].job
        self._forget(job)
        if isinstance(answer, SwiprError):
            self._owner.failed(job, answer)
            return
        if job.threads:
            self.staff.threads.learn(job.threads, answer.infer)
        shape = self.staff.shape
        seconds = self._loop.time() - job.started
        self._usual.learn(seconds)
        # Once it was overdue another worker stood in for its own: then it kept nobody waiting.
        held = job.overdue - job.started if job.overdue else seconds
        share = held / (shape.workers * shape.batch)
        alone = seconds if job.threads else None
        self._owner.answered(job, answer, self.staff.loaded.model, share, alone)

    def left(self, ids: list[int], death: Death) -> None:
        """See `handles.Giver`. Of a batch nobody is blamed: each is tried again alone."""
        jobs = [self._running[id].job for id in ids]
        for job in reversed(jobs):  # each goes back to the head of the queue: the first one last
            self._forget(job)
            error = judge(job, death, self._limits.max_decode)
            if error is None:
                job.alone = True
                job.started = job.overdue = 0.0
                self._owner.again(job)
            elif death.fault is Fault.WEIGHTS:
                self._owner.failed(job, error)
            else:
                self._owner.condemned(job, error)

    # --- inside

    def _overdue(self, worker: Worker, batch: list[Job]) -> None:
        """A batch was given long ago. If it still runs, see to it that the others need not wait."""
        left = [job for job in batch if self._worker_of(job) is worker]
        if not left:
            return
        if is_stopped(worker.pid):
            self.staff.discard(worker, "it was stopped, by a signal or a debugger")
        elif len(left) > 1:
            self.staff.discard(worker, "its batch takes long: each image is tried alone")
        else:
            self._is_overdue(worker, left[0])
        self.staff.fill()
        self.dispatch()

    def _is_overdue(self, worker: Worker, job: Job) -> None:
        """A worker is stuck with a job, or may be expected to be: let another stand in for it."""
        job.overdue, worker.stuck = self._loop.time(), True
        wait = job.started + stragglers.proof(job) - job.overdue
        self._loop.call_later(max(0.0, wait), self.dispatch)  # perhaps for a suspect in its place
        self.staff.fill()
        self._owner.overdue(job)

    def _times(self, job: Job) -> tuple[float, float]:
        """Seconds since a running job was given to its worker, and what that computed meanwhile."""
        pid = self._running[job.id].worker.pid
        return self._loop.time() - job.started, processor_time(pid) - job.computed

    def _stuck(self) -> list[Job]:
        return [job for job, worker in self._running.values() if worker.stuck]

    def _worker_of(self, job: Job) -> Worker | None:
        run = self._running.get(job.id)
        return run.worker if run is not None else None

    def _free(self) -> Worker | None:
        """An idle worker, if jobs are to be given to any."""
        if self.staff.closing or self._drained is not None:
            return None
        return self.staff.idle()

    def _give(self, worker: Worker, batch: list[Job], threads: int) -> None:
        now = self._loop.time()
        computed = processor_time(worker.pid)
        for job in batch:
            job.started, job.computed = now, computed
            job.threads = threads if len(batch) == 1 else 0
            self._running[job.id] = Run(job, worker)
        worker.give({job.id: job.image for job in batch}, self, self._limits, threads)

    def _take_batch(self, first: Job | None) -> list[Job]:
        """Take jobs whose turn it is. Who has a worker stuck gets each image tried alone."""
        hurt = {job.uid for job in self._stuck()}
        batch: list[Job] = []
        job = first
        while job is not None:
            alone = job.alone or job.uid in hurt
            if alone and batch:
                break
            self._owner.take(job)
            batch.append(job)
            if alone or len(batch) == self.staff.shape.batch:
                break
            job = self._owner.peek()
        return batch

    def _have_way_given(self) -> bool:
        """Put a job off whose worker nobody can stand in for any more, if there is one."""
        job = stragglers.giving_way(self._stuck()) if self.staff.stuck > stragglers.MOST else None
        if job is None:
            return False
        job.ran = max(job.ran, self.effort(job))
        self._kill(job, "it takes long, and others wait: its image is tried again later")
        job.alone = job.suspect = True
        job.started = job.overdue = 0.0
        self._owner.again(job)
        return True

    def _have_ended(self, suspect: Job) -> bool:
        """End a job that has had its time in vain, if there is one, to try another suspect."""
        stuck = self._stuck()
        hanging = [job for job in stuck if stragglers.hangs(*self._times(job))]
        job = stragglers.proved(stuck, hanging, suspect, self._loop.time())
        if job is None:
            return False
        ran = self.effort(job)
        self._kill(job, "it takes long, and others are to be tried in its place")
        error = DeadlineExceeded(
            f"not done after {ran:.1f} s in a worker, when others like it were waiting; its worker"
            " was killed"
        )
        self._owner.ran_in_vain(job, error, ran)
        return True

    def _kill(self, job: Job, why: str) -> None:
        worker = self._worker_of(job)
        self._forget(job)
        if worker is not None:
            worker.unanswered.pop(job.id, None)
            self.staff.discard(worker, why)

    def _forget(self, job: Job) -> None:
        """A job runs no more; a pool that drains may be done with that."""
        self._running.pop(job.id, None)
        if self._drained is not None and not self._running:
            self._drained.set()
