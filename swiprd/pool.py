"""One loaded model: its forkserver and its workers. Keeps them alive, gives them work, kills them.

At any time one more worker is warm than may be busy: the standby. So a kill, which is how a
deadline ends, costs the next request nothing. The pool takes jobs from its owner when a worker is
free, and hands each back exactly once: answered, failed, or to be run again.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from swiprctl.errors import LoadingFailed, SwiprError, WorkerCrashed
from swiprctl.protocol import DEFAULT_TIMEOUT, Reply
from swiprd.admission import Job
from swiprd.canary import Canary, WrongAnswer
from swiprd.children import Forkserver, Worker
from swiprd.lifecycle import Backoff, State
from swiprd.memfd import sealed_memfd

MAX_CRASHES = 2
"""Workers that may die by themselves with the same image, before it is to blame."""

MAX_KILLS = 5
"""Workers that may be killed from outside (an operator, the OOM killer) with the same image."""

MAX_FALSE_STARTS = 3
"""Workers in a row that may die or answer wrongly at their first canary, before the model is."""

_EVENTS_KEPT = 32


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How the work is spread: workers that may be busy at once, threads of each, images a batch."""

    workers: int
    threads: int
    batch: int


class Owner(Protocol):
    """What the pool asks of whoever keeps the queue. `now` is the loop's time."""

    def take(self) -> Job | None:
        """The next job to run, or None."""

    def peek(self) -> Job | None:
        """What `take()` would give."""

    def answered(self, job: Job, fields: dict[str, object], share: float) -> None:
        """A row; `share` is the seconds of the whole pool's time that it took."""

    def failed(self, job: Job, error: SwiprError) -> None:
        """A named error."""

    def again(self, job: Job) -> None:
        """Its worker died through no proven fault of the job."""

    def pool_failed(self, error: LoadingFailed) -> None:
        """The model that has served cannot be brought back."""


class Pool:
    """The workers of one model. Make it, `await start()`, then call `dispatch()` when jobs come.

    Attributes:
        described: what the forkserver said of the model: labels, model, versions, device.
        kills: (loop time, worker's number, why) of the last workers that did not leave by
            themselves.
        restarts: forkservers started after the first.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        folder: str,
        device: str,
        shape: Shape,
        limits: dict[str, object],
        canary: Callable[[dict[str, Any]], Canary],
        ids: Iterator[int],
    ) -> None:
        self._owner = owner
        self._folder = folder
        self._device = device
        self._limits = limits
        self._make_canary = canary
        self._ids = ids
        self._numbers = count(1)
        self._loop = asyncio.get_running_loop()
        self.shape = shape
        self.described: dict[str, Any] = {}
        self.canary: Canary | None = None
        self.workers: dict[int, Worker] = {}
        self._trial: dict[int, Worker] = {}
        self.kills: deque[tuple[float, int, str]] = deque(maxlen=_EVENTS_KEPT)
        self.killed = 0
        self.restarts = -1
        self._forkserver: Forkserver | None = None
        self._loaded = False
        self._fork_backoff = Backoff()
        self._load_backoff = Backoff(first=0.5)
        self._hold_until = 0.0
        self._timers: set[asyncio.TimerHandle] = set()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._running: dict[int, Worker] = {}
        self._draining: asyncio.Event | None = None
        self._closed = asyncio.Event()
        self.closing = False

    # --- life

    async def start(self) -> None:
        """Load the model and see a worker answer its canary.

        Raises:
            LoadingFailed: with the reason.
        """
        self._start_forkserver()
        await asyncio.shield(self._ready)

    @property
    def busy(self) -> int:
        """Workers that have jobs, canaries not counted: those must not hold a job up."""
        return sum(w.state is State.BUSY and not w.probing for w in self.workers.values())

    @property
    def pid(self) -> int:
        """The forkserver's pid; 0 where there is none just now."""
        return self._forkserver.pid if self._forkserver is not None else 0

    def reshape(self, shape: Shape) -> None:
        """Spread the work another way; workers of the old way leave when they are idle."""
        self.shape = shape
        self._fill()

    async def drain(self) -> None:
        """Take no more jobs; wait until those that run have ended."""
        self._draining = asyncio.Event()
        self._drained()
        await self._draining.wait()

    def close(self) -> None:
        """Let every process leave. Jobs that still run are handed back to be run again."""
        if self.closing:
            return
        self.closing = True
        for timer in self._timers:
            timer.cancel()
        if not self._ready.done():
            self._ready.cancel()
        for worker in list(self.workers.values()):
            self._discard(worker, "the pool closes")
        for worker in list(self._trial.values()):
            worker.kill("the pool closes")
        if self._forkserver is not None:
            self._forkserver.close()
        else:
            self._closed.set()

    async def wait_closed(self, patience: float = 5.0) -> None:
        """Wait until the forkserver is gone; SIGKILL it if that takes too long (seconds)."""
        try:
            await asyncio.wait_for(self._closed.wait(), patience)
        except TimeoutError:
            if self._forkserver is not None:
                self._forkserver.kill()
            await self._closed.wait()

    def kill(self) -> None:
        """SIGKILL all of it: loading took too long."""
        if self._forkserver is not None:
            self._forkserver.kill()

    # --- work

    def dispatch(self) -> None:
        """Give waiting jobs to idle workers, a batch at most to each."""
        self._drained()
        while not self.closing and self._draining is None and self.busy < self.shape.workers:
            worker = self._idle()
            if worker is None:
                return
            batch = self._take_batch()
            if not batch:
                return
            now = self._loop.time()
            for job in batch:
                job.started = now
                self._running[job.id] = worker
            worker.give(batch)

    def expire(self, job: Job) -> None:
        """A running job's deadline has passed: kill its worker; its neighbours run again."""
        worker = self._running.pop(job.id, None)
        if worker is None:
            return
        worker.jobs.pop(job.id, None)
        if worker.state is not State.GONE:
            self._discard(worker, "deadline")
            self._fill()
        self.dispatch()

    def fork_for_trial(
        self,
        threads: int,
        *,
        on_forked: Callable[[Worker], None],
        on_reply: Callable[[Worker, Job, Reply], None],
    ) -> Worker | None:
        """Fork a worker that the pool gives no work; None where there is no forkserver now."""
        if self.closing or not self._loaded or self._forkserver is None:
            return None

        def gone(worker: Worker) -> None:
            del self._trial[worker.number]

        worker = self._fork(threads, on_forked=on_forked, on_reply=on_reply, on_gone=gone)
        self._trial[worker.number] = worker
        return worker

    def _drained(self) -> None:
        if self._draining is not None and not self._running:
            self._draining.set()

    async def check(self, timeout: float = DEFAULT_TIMEOUT) -> float:
        """Run the canary through a live worker; return the seconds it took.

        Raises:
            LoadingFailed: no worker is alive, or its answer is wrong or late; it has been killed.
        """
        idle = [w for w in self.workers.values() if w.state is State.IDLE]
        if not idle:
            raise LoadingFailed("no worker is ready")
        # The one not heard of for longest: so the standby, too, has its turn.
        worker = min(idle, key=lambda w: w.heard)
        begun = self._loop.time()
        outcome: asyncio.Future[None] = self._loop.create_future()
        self._probe(worker, outcome, timeout)
        await outcome
        return self._loop.time() - begun

    # --- the forkserver

    def _start_forkserver(self) -> None:
        self.restarts += 1
        self._loaded = False
        self._forkserver = Forkserver(on_event=self._heard, on_gone=self._forkserver_gone)
        self._forkserver.load(self._folder, self._device)

    def _heard(self, event: dict[str, Any], descriptor: int | None) -> None:
        number = event.get("worker", -1)
        worker = self.workers.get(number) or self._trial.get(number)
        match event["event"]:
            case "loaded":
                self._loaded = True
                self.described = event
                if self.canary is None:
                    self.canary = self._make_canary(event)
                self._fill()
            case "failed":
                self._fail(LoadingFailed(event["reason"]))
            case "forked" if worker is not None and descriptor is not None:
                worker.forked(event["pid"], descriptor)
            case "forked" if worker is not None:
                worker.condemned = f"it could not be forked: {event['reason']}"
                self._false_start(worker.condemned)
                worker.exited(None)
            case "exited" if worker is not None:
                worker.exited(event["status"])
            case _ if descriptor is not None:
                os.close(descriptor)  # a worker that nobody waits for any more: it gets EOF

    def _forkserver_gone(self) -> None:
        self._forkserver = None
        for worker in [*self.workers.values(), *self._trial.values()]:
            worker.exited(None)
        if self.closing:
            self._closed.set()
            return
        if not self._loaded and self.restarts == 0:
            self._fail(LoadingFailed("the process that loads the model died; see the log"))
            return
        self._later(self._load_backoff.failed(), self._start_forkserver)

    def _fail(self, error: LoadingFailed) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
        elif not self.closing:
            self._owner.pool_failed(error)

    # --- workers

    def _fill(self) -> None:
        """Have as many workers as there should be, of the right shape."""
        if self.closing or not self._loaded or self._forkserver is None:
            return
        if self._loop.time() < self._hold_until:
            return  # `_false_start` has set a timer
        alive = [w for w in self.workers.values() if w.state is not State.GONE]
        right = [w for w in alive if w.threads == self.shape.threads]
        # The first worker comes alone: with it the model is ready, and others would only slow it.
        wanted = self.shape.workers + 1 if self._ready.done() else 1
        for _ in range(wanted - len(right)):
            worker = self._fork(
                self.shape.threads,
                on_forked=lambda w: self._probe(w, None, DEFAULT_TIMEOUT),
                on_reply=self._replied,
                on_gone=self._worker_gone,
            )
            self.workers[worker.number] = worker
        warm = [w for w in right if w.state in (State.IDLE, State.BUSY)]
        surplus = [w for w in alive if w.threads != self.shape.threads] if warm else []
        surplus += warm[wanted:]
        for worker in surplus:
            if worker.state is State.IDLE:
                worker.retire()

    def _fork(
        self,
        threads: int,
        *,
        on_forked: Callable[[Worker], None],
        on_reply: Callable[[Worker, Job, Reply], None],
        on_gone: Callable[[Worker], None],
    ) -> Worker:
        assert self._forkserver is not None
        number = next(self._numbers)
        return Worker(
            number,
            threads,
            self._forkserver.fork(number, threads),
            limits=self._limits,
            on_forked=on_forked,
            on_reply=on_reply,
            on_gone=on_gone,
        )

    def _idle(self) -> Worker | None:
        """An idle worker: of the right shape if there is one, the warmest first."""
        idle = [w for w in self.workers.values() if w.state is State.IDLE]
        return max(
            idle,
            key=lambda w: (w.threads == self.shape.threads, w.answered, -w.number),
            default=None,
        )

    def _take_batch(self) -> list[Job]:
        batch: list[Job] = []
        while len(batch) < self.shape.batch:
            job = self._owner.peek()
            if job is None or (job.alone and batch):
                break
            self._owner.take()
            batch.append(job)
            if job.alone:
                break
        return batch

    def _probe(self, worker: Worker, outcome: asyncio.Future[None] | None, timeout: float) -> None:
        """Have a worker run the canary. Without an outcome it is the worker's first."""
        assert self.canary is not None
        try:
            image = sealed_memfd(self.canary.image)
        except OSError as error:
            self._discard(worker, f"no canary could be made for it: {error.strerror}")
            self._false_start(f"no canary could be made: {error.strerror}")
            if outcome is not None:
                outcome.set_exception(LoadingFailed(f"no canary could be made: {error.strerror}"))
            return
        now = self._loop.time()

        def done(_job: Job, result: dict[str, object] | SwiprError) -> None:
            timer.cancel()
            os.close(image)
            if outcome is not None and not outcome.done():
                if isinstance(result, SwiprError):
                    outcome.set_exception(LoadingFailed(f"the canary: {result}"))
                else:
                    outcome.set_result(None)

        job = Job(
            id=next(self._ids),
            uid=0,
            owner=self,
            image=image,
            arrived=now,
            started=now,
            deadline=now + timeout,
            timeout=timeout,
            done=done,
        )
        timer = self._loop.call_later(timeout, self._expire_probe, job)
        self._running[job.id] = worker
        worker.probing = True
        worker.give([job])

    def _expire_probe(self, job: Job) -> None:
        self.expire(job)
        self._end_probe(job, LoadingFailed("the canary was not answered in time"))
        self._false_start("it did not answer its canary in time")

    def _end_probe(self, job: Job, result: dict[str, object] | SwiprError) -> None:
        if not job.ended:
            job.ended = True
            job.done(job, result)

    def _replied(self, worker: Worker, job: Job, reply: Reply) -> None:
        self._running.pop(job.id, None)
        if job.owner is self:
            self._probed(worker, job, reply)
        elif reply.error is not None:
            self._owner.failed(job, reply.error)
        else:
            share = (self._loop.time() - job.started) / self.shape.workers
            if self.shape.batch > 1:
                share /= self.shape.batch
            fields = {**reply.fields, "model": self.described["model"]}
            self._owner.answered(job, fields, share)
        if worker.threads != self.shape.threads:
            self._fill()
        self.dispatch()

    def _probed(self, worker: Worker, job: Job, reply: Reply) -> None:
        worker.probing = False
        try:
            if reply.error is not None:
                raise WrongAnswer(str(reply.error))
            row: Any = reply.fields.get("probabilities")
            assert self.canary is not None
            self.canary.check(row)
        except WrongAnswer as error:
            self._discard(worker, f"canary: {error}")
            self._end_probe(job, LoadingFailed(f"the model answers wrongly: {error}"))
            self._false_start(str(error))
            return
        self._hold_until = 0.0
        self._fork_backoff.succeeded()
        self._load_backoff.succeeded()
        self._end_probe(job, reply.fields)
        if not self._ready.done():
            self._ready.set_result(None)
        self._fill()

    def _discard(self, worker: Worker, why: str) -> None:
        """Kill a worker; what else it had runs again, each alone."""
        jobs = list(worker.jobs.values())
        worker.jobs.clear()
        if worker.state is not State.GONE:
            self._note(worker, why)
        worker.kill(why)
        for job in jobs:
            self._run_again(job)

    def _worker_gone(self, worker: Worker) -> None:
        """A worker is dead and its exit status known, or not to be known."""
        del self.workers[worker.number]
        jobs = list(worker.jobs.values())
        worker.jobs.clear()
        if worker.condemned:
            self._fill()
            return
        how, own_fault = _cause(worker.status)
        self._note(worker, how)
        for job in jobs:
            if len(jobs) == 1 and own_fault:
                job.crashes += 1
            elif len(jobs) == 1:
                job.kills += 1
            if job.owner is self:
                self._running.pop(job.id, None)
                self._end_probe(job, LoadingFailed(f"the worker died at its canary: {how}"))
                if own_fault:
                    self._false_start(how)
            elif job.crashes >= MAX_CRASHES or job.kills >= MAX_KILLS:
                self._running.pop(job.id, None)
                tries = job.crashes + job.kills
                self._owner.failed(
                    job, WorkerCrashed(f"{tries} workers died with this image: {how}")
                )
            else:
                self._run_again(job)
        self._fill()
        self.dispatch()

    def _run_again(self, job: Job) -> None:
        self._running.pop(job.id, None)
        if job.owner is self:
            self._end_probe(job, LoadingFailed("the worker was killed"))
            return
        job.alone = True
        job.started = 0.0
        self._owner.again(job)

    def _false_start(self, why: str) -> None:
        """A worker did not get as far as its first answer: wait before the next, or give up."""
        wait = self._fork_backoff.failed()
        self._hold_until = self._loop.time() + wait
        if self._fork_backoff.failures >= MAX_FALSE_STARTS and not any(
            w.state in (State.IDLE, State.BUSY) for w in self.workers.values()
        ):
            self._fail(LoadingFailed(f"no worker answers the canary: {why}"))
            return
        self._later(wait, self._fill)

    def _note(self, worker: Worker, why: str) -> None:
        self.killed += 1
        self.kills.append((self._loop.time(), worker.number, why))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            if not self.closing:
                call()

        timer = self._loop.call_later(seconds, run)
        self._timers.add(timer)


def _cause(status: int | None) -> tuple[str, bool]:
    """Say how a process ended, from waitpid(2)'s status, and whether by its own fault."""
    if status is None:
        return "its forkserver is gone", False
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return name, number != signal.SIGKILL
    return f"exit status {os.waitstatus_to_exitcode(status)}", True
