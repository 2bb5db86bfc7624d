"""The daemon between its sockets and its workers: the model it serves, the queue, the deadlines.

Submitted jobs wait in `Admission`, run in the `Pool` and end here, each exactly once. A model that
cannot be loaded is a state with a reason, not an exit: systemd would count exits, and give up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from enum import Enum
from itertools import count
from typing import Any

from swiprctl.errors import (
    DeadlineExceeded,
    LoadingFailed,
    ShuttingDown,
    SwiprError,
    WorkerCrashed,
)
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprd.admission import Admission, Job
from swiprd.bundle import Bundle
from swiprd.calibrate import calibrate
from swiprd.config import Settings
from swiprd.loading import close, load, signature
from swiprd.log import log
from swiprd.poison import Poison
from swiprd.pool import Pool
from swiprd.recognition import recognise
from swiprd.report import describe_model, describe_process, describe_staff, describe_work
from swiprd.stats import Stats

_RETRY = 60.0  # seconds between tries to load a model that failed though its files did not change
_LOOK = 2.0  # seconds between looks whether a failed model's files have changed
_QUIET = 1.0  # seconds without a request before a calibration may begin

Outcome = dict[str, object] | SwiprError


class Phase(Enum):
    """What the service as a whole is doing."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "loading-failed"
    DRAINING = "draining"


class Service:
    """Answers jobs with one model.

    Args:
        on_phase: called when `phase` has changed, with a line for people.
        on_reload: called with True when a model that serves begins to be replaced, and with False
            when that is over; with `reason`.
        fault: why no model can be loaded at all; empty where one can be tried.

    Attributes:
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
        self._on_phase = on_phase
        self._on_reload = on_reload
        self._fault = fault
        self._loop = asyncio.get_running_loop()
        self._admission = Admission(settings.queue)
        self._ids = count(1)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._pool: Pool | None = None
        self._pools: set[Pool] = set()  # with those that drain after a reload
        self._bundle: Bundle | None = None
        self._jobs: set[Job] = set()
        self._settled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._poison = Poison(settings.remember)
        self.stats = Stats()
        self.phase = Phase.LOADING
        self.reason = ""
        self.reload_error = ""
        self.begun = self.last_active = self.last_answer = self._loop.time()

    # --- life

    def start(self) -> None:
        """Begin to load the model."""
        self._spawn(self._bring_up())

    async def drain(self, patience: float) -> None:
        """Take no more jobs, end those that were taken, for `patience` seconds at most."""
        self._enter(Phase.DRAINING, "finishing what was accepted")
        if self._pool is None:
            self._refuse_waiting(ShuttingDown("the daemon leaves; its successor will answer", 1.0))
        try:
            await asyncio.wait_for(self._idle.wait(), patience)
        except TimeoutError:
            self._refuse_waiting(ShuttingDown("the daemon leaves; its successor will answer", 1.0))

    async def close(self) -> None:
        """Let every process leave; wait until they are gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in list(self._jobs):
            self._end(job, ShuttingDown("the daemon leaves; its successor will answer", 1.0))
        for pool in list(self._pools):
            await close(pool, self._pools)

    # --- jobs

    @property
    def busy(self) -> bool:
        """Whether a job waits or runs, or the model is on its way."""
        return bool(self._jobs) or self.phase is Phase.LOADING

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
        if self.phase is Phase.LOADING and timeout is None:
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
            if self.phase is Phase.FAILED:
                raise LoadingFailed(self.reason, _RETRY)
            if self.phase is Phase.DRAINING:
                raise ShuttingDown("the daemon leaves; its successor will answer", 0.1)
            if (known := self._recall(job)) is not None:
                raise known
            victim = self._admission.admit(job, now)
        except SwiprError as error:
            self._end(job, error)
            return
        if victim is not None:
            self._end(victim, self._admission.evicted())
        self._watch(job)
        if self._pool is not None:
            self._pool.dispatch()

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
            known = self._recall(job)
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
        if isinstance(error, WorkerCrashed):
            self._remember(job, error)
        self._finish_running(job, error)

    def again(self, job: Job) -> None:
        """See `pool.Owner`."""
        if not job.ended:
            self._admission.requeue(job)
            if self._pool is not None:  # not the one that asks, where that drains after a reload
                self._loop.call_soon(self._pool.dispatch)

    def pool_failed(self, error: LoadingFailed) -> None:
        """See `pool.Owner`."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self._spawn(close(pool, self._pools))
        self._spawn(self._keep_trying(error))

    # --- questions

    async def ping(self, timeout: float = DEFAULT_TIMEOUT) -> dict[str, object]:
        """Run the canary through a live worker, within `timeout` seconds once there is a model.

        Raises:
            LoadingFailed: there is no worker, or its answer is wrong.
        """
        await self._settled.wait()
        pool, _ = self._model()
        seconds = await pool.staff.check(timeout)
        self.last_answer = self._loop.time()
        return {"seconds": seconds, "model": pool.staff.described["model"]}

    @property
    def settled(self) -> bool:
        """Whether the first model serves, or it is known why not."""
        return self._settled.is_set()

    async def wait_settled(self) -> None:
        """Wait until `settled`."""
        await self._settled.wait()

    def describe(self) -> dict[str, object]:
        """What `model` answers.

        Raises:
            LoadingFailed: there is no model.
        """
        pool, bundle = self._model()
        return describe_model(bundle, pool.staff.described)

    def status(self) -> dict[str, object]:
        """What `status` answers, at once."""
        now = self._loop.time()
        return {
            "state": self.phase.value,
            "reason": self.reason,
            "reload_error": self.reload_error,
            **describe_process(self.begun, now),
            **describe_work(self._admission, self.stats, self._poison, now),
            "model": "",
            "workers": [],
            **(describe_staff(self._pool.staff, now) if self._pool is not None else {}),
        }

    async def reload(self) -> dict[str, object]:
        """Load the folder anew beside the model that serves; swap when it has proved itself.

        Raises:
            LoadingFailed: with the reason; the old model goes on.
        """
        async with self._reloading:
            replaces = self.phase is Phase.READY
            if replaces:
                self._on_reload(True, self.reason)
            try:
                pool, bundle = await self._load()
                self._install(pool, bundle)
                return {"model": pool.staff.described["model"]}
            except LoadingFailed as error:
                self._reload_failed(error)
                raise
            finally:
                if replaces:
                    self._on_reload(False, self.reason)

    def _reload_failed(self, error: LoadingFailed) -> None:
        self.reload_error = str(error)
        log.error("reload failed: %s", error)
        if self._pool is not None and self.phase is Phase.READY:
            old = self._pool.staff.described["model"]
            self.reason = f"serving {old}, as before: reload failed: {error}"

    # --- loading

    async def _bring_up(self) -> None:
        try:
            async with self._reloading:
                self._install(*await self._load())
        except LoadingFailed as error:
            await self._keep_trying(error)

    async def _keep_trying(self, error: LoadingFailed) -> None:
        """Say why there is no model, and try again when its files change, or after a while."""
        while True:
            self._enter(Phase.FAILED, f"the model cannot be loaded: {error}")
            self._refuse_waiting(LoadingFailed(self.reason, _RETRY))
            seen = signature(self._settings.model)
            until = self._loop.time() + _RETRY
            while self._loop.time() < until and signature(self._settings.model) == seen:
                await asyncio.sleep(_LOOK)  # inotify has no binding among our dependencies
            async with self._reloading:
                if self._pool is not None:
                    return  # a reload was quicker
                try:
                    self._install(*await self._load())
                except LoadingFailed as again:
                    error = again
                else:
                    return

    async def _load(self) -> tuple[Pool, Bundle]:
        if self._fault:
            raise LoadingFailed(self._fault)
        try:
            return await load(self._settings, self, self._ids, self._pools)
        except LoadingFailed:
            raise
        except Exception as error:
            # No process to be had, or a defect: without this, "loading" would be the last word.
            log.error("the model cannot be loaded: %r", error, exc_info=error)
            raise LoadingFailed(f"{self._settings.model}: {error!r}") from error

    def _model(self) -> tuple[Pool, Bundle]:
        if self._pool is None or self._bundle is None:
            raise LoadingFailed(self.reason or "the model is being loaded", 1.0)
        return self._pool, self._bundle

    def _install(self, pool: Pool, bundle: Bundle) -> None:
        old, self._pool, self._bundle = self._pool, pool, bundle
        if old is not None:
            self._spawn(self._retire(old))
        self.reload_error = ""
        self.last_answer = self.last_active = self._loop.time()
        if self.phase is not Phase.DRAINING:
            self._enter(Phase.READY, f"serving {pool.staff.described['model']}")
        now = self._loop.time()
        for job in self._jobs:
            if job.timeout is None and job.deadline == float("inf"):
                job.deadline = now + self._settings.timeout
                self._watch(job)
        pool.dispatch()
        self._spawn(calibrate(pool.staff, bundle, self._settings, self._is_quiet))

    def _is_quiet(self) -> bool:
        return not self._jobs and self._loop.time() - self.last_active >= _QUIET

    async def _retire(self, pool: Pool) -> None:
        """Let a replaced pool end what it runs; deadlines bound that."""
        await pool.drain()
        await close(pool, self._pools)

    # --- inside

    def _enter(self, phase: Phase, reason: str) -> None:
        if self.phase is Phase.DRAINING:
            return
        self.phase, self.reason = phase, reason
        self._settled.set()
        self._on_phase(phase, reason)

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
        if job.overdue:
            self._remember(job, error, ran=self._loop.time() - job.started)
        self._finish_running(job, error)
        for pool in list(self._pools):
            pool.expire(job)

    def _finish_running(self, job: Job, outcome: Outcome) -> None:
        if not job.ended:
            self._admission.finished(job)
            self._end(job, outcome)

    def _recall(self, job: Job) -> SwiprError | None:
        """What the sender of an image is told at once that is known to hang or crash workers."""
        if not len(self._poison):
            return None
        image = recognise(job.image, self._poison.has_size)
        now = self._loop.time()
        if image is None:
            return None
        return self._poison.recall(image, now, patience=job.deadline - now)

    def _remember(self, job: Job, error: SwiprError, *, ran: float = float("inf")) -> None:
        image = None if job.ended else recognise(job.image)
        if image is not None:
            log.warning("remembered, and refused for %g s: %s", self._poison.seconds, error)
            self._poison.remember(image, error, self._loop.time(), ran=ran)

    def _refuse_waiting(self, error: SwiprError) -> None:
        for job in list(self._jobs):
            if self._admission.withdraw(job):
                self._end(job, error)

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

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the service failed: %r", error, exc_info=error)
