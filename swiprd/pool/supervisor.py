"""Keeps one model's processes alive: the forkserver, the workers, and the standby among them.

At any time one more worker is warm than may be busy: the standby. Nobody is given work who has
not answered the canary. This module decides who lives; what they work on is the pool's.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from swiprctl.errors import LoadingFailed
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprd.folder.canary import Canary
from swiprd.pool import stragglers
from swiprd.pool.deaths import Death, Fault, death_of
from swiprd.pool.handles import Forkserver, Worker
from swiprd.pool.health import HealthCheck
from swiprd.pool.recycling import RecyclingLimits
from swiprd.pool.states import Backoff, State
from swiprd.pool.thread_choice import Threads
from swiprd.system.log import log
from swiprd.system.messages import Exited, Failed, Forked, Loaded, NotForked, Report
from swiprd.system.proc import own_memory

MAX_KILLED_LOADS = 3
"""Forkservers in a row that may be killed from outside while the model has never served yet."""

FORK_PATIENCE = 8.0
"""Seconds in which the forkserver, which does nothing else, must have forked a worker."""

MAX_FALSE_STARTS = 3
"""Workers in a row that may die or answer wrongly at their first canary, before the model is."""

_EVENTS_KEPT = 32
_SHORT_OF = 1.0  # seconds until the next try, where the host is short of something
_LOOKS = 16  # answers between two looks at what memory a worker has


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How the work is spread: workers that may be busy at once, threads of each, images a batch.

    Attributes:
        alone: threads of a batch that nothing else runs beside.
    """

    workers: int
    threads: int
    batch: int
    alone: int


class Supervisor:
    """Make it, `await start()`, then give idle workers work.

    Args:
        canary: how many labels there are is put into it once the model is loaded.
        ids: where jobs get their ids from.
        memory: bytes that a worker may allocate on top of what it begins with; None: no bound.
        wear: when a worker is replaced.
        on_idle: called when a worker may wait for work.
        on_given_up: called when the model that has served cannot be brought back.

    Attributes:
        threads: how many the next batch gets that nothing runs beside.
        kills: (loop time, worker's number, why) of the last workers that did not leave by
            themselves; `killed` counts all of them.
        restarts: forkservers started after the first.
        recycled: workers that were replaced because they were worn.
    """

    def __init__(
        self,
        *,
        folder: str,
        device: str,
        shape: Shape,
        canary: Canary,
        ids: Iterator[int],
        memory: int | None,
        wear: RecyclingLimits,
        on_idle: Callable[[], None],
        on_given_up: Callable[[LoadingFailed], None],
    ) -> None:
        self._on_idle = on_idle
        self._on_given_up = on_given_up
        self._folder = folder
        self._device = device
        self.canary = canary
        self._ids = ids
        self._memory = memory
        self._wear = wear
        self._numbers = count(1)
        self._loop = asyncio.get_running_loop()
        self.shape = shape
        self.threads = Threads(shape.threads, shape.alone)
        self.workers: dict[int, Worker] = {}
        self.kills: deque[tuple[float, int, str]] = deque(maxlen=_EVENTS_KEPT)
        self.killed = 0
        self.restarts = -1
        self.recycled = 0
        self.closing = False
        self._trial: dict[int, Worker] = {}
        self._forkserver: Forkserver | None = None
        self._loaded: Loaded | None = None
        self._can_fork = False
        self._fork_backoff = Backoff()
        self._load_backoff = Backoff(first=0.5)
        self._hold_until = 0.0
        self._timers: set[asyncio.TimerHandle] = set()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._checked: Worker | None = None  # whom `check()` has asked,
        self._checking: asyncio.Future[None] = self._loop.create_future()  # and what comes of it
        self._closed = asyncio.Event()

    # --- life

    async def start(self) -> None:
        """Load the model and see a worker answer its canary.

        Raises:
            LoadingFailed: with the reason.
        """
        self._start_forkserver()
        await asyncio.shield(self._ready)

    @property
    def loaded(self) -> Loaded:
        """What the forkserver said of the model; only once `start()` is done."""
        assert self._loaded is not None
        return self._loaded

    @property
    def pid(self) -> int:
        """The forkserver's pid; 0 where there is none just now."""
        return self._forkserver.pid if self._forkserver is not None else 0

    def reshape(self, shape: Shape) -> None:
        """Spread the work another way. Workers over the new number leave when they are idle."""
        self.shape = shape
        self.threads = Threads(shape.threads, shape.alone)
        self.fill()

    def close(self) -> None:
        """Let every process leave. What workers still have goes back to those who gave it."""
        if self.closing:
            return
        self.closing = True
        for timer in self._timers:
            timer.cancel()
        if not self._ready.done():
            self._ready.cancel()
        for worker in [*self.workers.values(), *self._trial.values()]:
            self.discard(worker, "the pool closes")
        if self._forkserver is not None:
            self._forkserver.close()
        else:
            self._closed.set()

    async def wait_closed(self, patience: float = 5.0) -> None:
        """Wait until the forkserver is gone; SIGKILL it if that takes too long (seconds)."""
        try:
            await asyncio.wait_for(self._closed.wait(), patience)
        except TimeoutError:
            self.kill()
            await self._closed.wait()

    def kill(self) -> None:
        """SIGKILL all of it, now."""
        if self._forkserver is not None:
            self._forkserver.kill()

    # --- workers

    @property
    def busy(self) -> int:
        """Workers that have jobs. Canaries are not counted, nor those that others stand in for:
        neither must hold a job up."""
        busy = sum(w.state is State.BUSY and not w.probing for w in self.workers.values())
        return busy - self._stand_ins

    @property
    def stuck(self) -> int:
        """Workers that have had their jobs for far longer than is usual."""
        return sum(w.stuck and w.state is State.BUSY for w in self.workers.values())

    @property
    def _stand_ins(self) -> int:
        """Workers that there may be more, for those that are stuck."""
        return min(stragglers.MOST, self.stuck)

    def idle(self) -> Worker | None:
        """An idle worker, the warmest first."""
        return max(
            (w for w in self.workers.values() if w.state is State.IDLE),
            key=lambda w: (w.answered, -w.number),
            default=None,
        )

    def discard(self, worker: Worker, why: str) -> None:
        """SIGKILL a worker. What it had goes back to the giver, and through no fault of its."""
        if worker.state is State.GONE:
            return
        if not self.closing:
            self._note(worker, why)
        worker.kill(why)
        worker.give_back(Death(why, Fault.NOBODY))

    def fill(self) -> None:
        """Have as many workers as there should be."""
        if self.closing or not self._can_fork or self._forkserver is None:
            return
        if self._loop.time() < self._hold_until:
            return  # `_false_start` has set a timer
        alive = [w for w in self.workers.values() if w.state is not State.GONE]
        # The first worker comes alone: with it the model is ready, and others would only slow it.
        wanted = self.shape.workers + 1 + self._stand_ins if self._ready.done() else 1
        try:
            for _ in range(wanted - len(alive)):
                worker = self._fork(
                    on_forked=self._probe,
                    on_answered=self._answered,
                    on_gone=self._worker_gone,
                )
                self.workers[worker.number] = worker
        except OSError as error:  # no descriptor is to be had just now
            log.error("no worker can be had: %s; trying again", error.strerror)
            self._hold_until = self._loop.time() + _SHORT_OF
            self._later(_SHORT_OF, self.fill)
        for worker in alive[wanted:]:
            if worker.state is State.IDLE:
                worker.retire()

    async def check(self, timeout: float = DEFAULT_TIMEOUT) -> float:
        """Run the canary through a live worker; return the seconds it took.

        Raises:
            LoadingFailed: no worker is alive, or its answer is wrong or late; it has been killed.
        """
        begun = self._loop.time()
        if self._checked is None:  # who asks meanwhile shares the answer
            idle = [w for w in self.workers.values() if w.state is State.IDLE]
            if not idle:
                raise LoadingFailed("no worker is ready", 1.0)
            self._checking = self._loop.create_future()
            # The one not heard of for longest: so the standby, too, has its turn.
            self._checked = min(idle, key=lambda w: w.heard)
            self._probe(self._checked, timeout)
        await asyncio.shield(self._checking)
        return self._loop.time() - begun

    def fork_for_trial(self, *, on_forked: Callable[[Worker], None]) -> Worker | None:
        """Fork a worker that is given no work here; None where that cannot be done now."""
        if self.closing or not self._can_fork or self._forkserver is None:
            return None

        def answered(_worker: Worker) -> None:
            """Only the trial, which gave it work, is to know."""

        def gone(worker: Worker) -> None:
            del self._trial[worker.number]

        try:
            worker = self._fork(on_forked=on_forked, on_answered=answered, on_gone=gone)
        except OSError:
            return None
        self._trial[worker.number] = worker
        return worker

    # --- the forkserver

    def _start_forkserver(self) -> None:
        self.restarts += 1
        self._can_fork = False
        self._forkserver = Forkserver(on_event=self._heard, on_gone=self._forkserver_gone)
        self._forkserver.load(self._folder, self._device, self._memory)

    def _heard(self, event: Report, pidfd: int | None) -> None:
        match event:
            case Loaded():
                if self._loaded is None:
                    self.canary.classes = len(event.labels)
                self._loaded = event
                self._can_fork = True
                self.fill()
            case Failed():
                self._fail(LoadingFailed(event.reason))
            case Forked() | NotForked() | Exited():
                worker = self.workers.get(event.worker) or self._trial.get(event.worker)
                if worker is not None:
                    self._heard_of(worker, event, pidfd)
                elif pidfd is not None:
                    os.close(pidfd)  # a worker that nobody waits for any more: it gets EOF

    def _heard_of(
        self, worker: Worker, event: Forked | NotForked | Exited, pidfd: int | None
    ) -> None:
        match event:
            case Forked():
                assert pidfd is not None
                worker.forked(event.pid, pidfd)
            case NotForked():
                worker.condemned = f"it could not be forked: {event.reason}"
                self._false_start(worker.condemned)
                worker.exited(None)
            case Exited():
                worker.exited(event.status)

    def _forkserver_gone(self) -> None:
        assert self._forkserver is not None
        killed, self._forkserver = self._forkserver.killed, None
        for worker in [*self.workers.values(), *self._trial.values()]:
            worker.exited(None)
        if self.closing:
            self._closed.set()
            return
        if not self._ready.done() and (not killed or self.restarts >= MAX_KILLED_LOADS):
            self._fail(LoadingFailed("the process that loads the model died; see the log"))
            return
        log.warning("the forkserver died; starting another")
        self._later(self._load_backoff.failed(), self._restart_forkserver)

    def _restart_forkserver(self) -> None:
        try:
            self._start_forkserver()
        except OSError as error:  # no process or descriptor is to be had just now
            log.error("the forkserver cannot be started: %s; trying again", error.strerror)
            self._later(self._load_backoff.failed(), self._restart_forkserver)

    def _fork(
        self,
        *,
        on_forked: Callable[[Worker], None],
        on_answered: Callable[[Worker], None],
        on_gone: Callable[[Worker], None],
    ) -> Worker:
        assert self._forkserver is not None
        number = next(self._numbers)
        worker = Worker(
            number,
            self._forkserver.fork(number),
            on_forked=on_forked,
            on_answered=on_answered,
            on_gone=on_gone,
        )
        self._later(FORK_PATIENCE, lambda: self._still_spawning(worker))
        return worker

    def _still_spawning(self, worker: Worker) -> None:
        """A forkserver that does not fork is worse than none: it holds the place of another."""
        if worker.state is State.SPAWNING:
            log.error("the forkserver does not fork: it is killed")
            self.kill()

    def _fail(self, error: LoadingFailed) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
        elif not self.closing:
            self._on_given_up(error)

    # --- the canary

    def _probe(self, worker: Worker, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Have a worker run the canary; without its right answer it is not kept."""
        try:
            HealthCheck(
                worker,
                self.canary,
                id=next(self._ids),
                timeout=timeout,
                on_end=self._probed,
            )
        except OSError as error:
            self._probed(worker, LoadingFailed(f"no canary could be made: {error.strerror}"))

    def _probed(self, worker: Worker, error: LoadingFailed | None) -> None:
        if self._checked is worker:
            self._checked = None
            if error is None:
                self._checking.set_result(None)
            else:
                self._checking.set_exception(error)
        if error is not None:
            alive = worker.state is not State.GONE
            self.discard(worker, str(error))
            if alive or death_of(worker.status).fault is not Fault.NOBODY:
                self._false_start(str(error))
            return
        self._hold_until = 0.0
        self._fork_backoff.succeeded()
        self._load_backoff.succeeded()
        if not self._ready.done():
            self._ready.set_result(None)
        self.fill()

    def _false_start(self, why: str) -> None:
        """A worker did not get as far as its first answer: wait before the next, or give up."""
        wait = self._fork_backoff.failed()
        self._hold_until = self._loop.time() + wait
        if self._fork_backoff.failures >= MAX_FALSE_STARTS and not any(
            w.state in (State.IDLE, State.BUSY) for w in self.workers.values()
        ):
            self._fail(LoadingFailed(f"no worker answers the canary: {why}"))
            return
        self._later(wait, self.fill)

    # --- what workers do

    def _answered(self, worker: Worker) -> None:
        if worker.state is State.IDLE and worker.answered % _LOOKS == 1:
            self._recycle(worker)
        if len(self.workers) > self.shape.workers + 1:
            self.fill()
        self._on_idle()

    def _recycle(self, worker: Worker) -> None:
        """Let an idle worker leave if it is worn and the standby can take its place at once."""
        memory = own_memory(worker.pid)
        if not worker.memory:
            worker.memory = memory
        why = self._wear.worn(worker.answered, memory - worker.memory)
        if not why or not any(
            w.state is State.IDLE and w is not worker for w in self.workers.values()
        ):
            return
        log.info("worker %d (pid %d) is replaced: %s", worker.number, worker.pid, why)
        self.recycled += 1
        worker.retire()
        self.fill()

    def _worker_gone(self, worker: Worker) -> None:
        """A worker is dead and its exit status known, or not to be known."""
        del self.workers[worker.number]
        if not worker.condemned:
            death = death_of(worker.status)
            self._note(worker, death.how)
            worker.give_back(death)
        self.fill()

    def _note(self, worker: Worker, why: str) -> None:
        log.warning("worker %d (pid %d): %s", worker.number, worker.pid, why)
        self.killed += 1
        self.kills.append((self._loop.time(), worker.number, why))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            if not self.closing:
                call()

        timer = self._loop.call_later(seconds, run)
        self._timers.add(timer)
