"""Decides which workers one model has: how many, which are replaced, and the standby among them.

At any time one more worker is warm than may be busy: the standby. No worker is given work before it
has answered the canary. What the workers work on is the pool's to decide; the forkserver that they
come from is its keeper's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from swiprctl.errors import LoadingFailed
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprd.folder.canary import Canary
from swiprd.pool import stragglers
from swiprd.pool.deaths import Death, Fault, death_of
from swiprd.pool.handles import Worker
from swiprd.pool.health import HealthChecks
from swiprd.pool.keeper import ForkserverKeeper
from swiprd.pool.recycling import RecyclingLimits
from swiprd.pool.states import Backoff, State
from swiprd.pool.thread_choice import Threads
from swiprd.pool.timers import Timers
from swiprd.system.log import log
from swiprd.system.messages import Load, Loaded
from swiprd.system.proc import own_memory

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
        load: what the forkserver is told to load.
        canary: how many labels there are is put into it once the model is loaded.
        ids: where jobs get their ids from.
        wear: when a worker is replaced.
        on_idle: called when a worker may wait for work.
        on_given_up: called when the model that has served cannot be brought back.

    Attributes:
        forkserver: its keeper.
        threads: how many the next batch gets that nothing runs beside.
        kills: (loop time, worker's number, why) of the last workers that did not leave by
            themselves; `killed` counts all of them.
        recycled: workers that were replaced because they were worn.
    """

    def __init__(
        self,
        *,
        load: Load,
        shape: Shape,
        canary: Canary,
        ids: Iterator[int],
        wear: RecyclingLimits,
        on_idle: Callable[[], None],
        on_given_up: Callable[[LoadingFailed], None],
    ) -> None:
        self._on_idle = on_idle
        self._on_given_up = on_given_up
        self.canary = canary
        self._wear = wear
        self.forkserver = ForkserverKeeper(
            load=load,
            on_loaded=self._on_loaded,
            on_not_forked=self._false_start,
            on_failed=self._fail,
        )
        self._checks = HealthChecks(canary, ids, self._checked)
        self._loop = asyncio.get_running_loop()
        self.shape = shape
        self.threads = Threads(shape.threads, shape.alone)
        self.workers: dict[int, Worker] = {}
        self.kills: deque[tuple[float, int, str]] = deque(maxlen=_EVENTS_KEPT)
        self.killed = 0
        self.recycled = 0
        self.closing = False
        self._fork_backoff = Backoff()
        self._hold_until = 0.0
        self._timers = Timers()
        self._ready: asyncio.Future[None] = self._loop.create_future()

    # --- life

    async def start(self) -> None:
        """Load the model and see a worker answer its canary.

        Raises:
            LoadingFailed: with the reason.
        """
        self.forkserver.start()
        await asyncio.shield(self._ready)

    @property
    def loaded(self) -> Loaded:
        """What the forkserver said of the model; only once `start()` is done."""
        assert self.forkserver.loaded is not None
        return self.forkserver.loaded

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
        self._timers.cancel()
        if not self._ready.done():
            self._ready.cancel()
        for worker in list(self.forkserver.workers.values()):
            self.discard(worker, "the pool closes")
        self.forkserver.close()

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
        if self.closing or not self.forkserver.can_fork:
            return
        if self._loop.time() < self._hold_until:
            return  # `_false_start` has set a timer
        alive = [w for w in self.workers.values() if w.state is not State.GONE]
        # The first worker comes alone: with it the model is ready, and others would only slow it.
        wanted = self.shape.workers + 1 + self._stand_ins if self._ready.done() else 1
        try:
            for _ in range(wanted - len(alive)):
                worker = self.forkserver.fork(
                    on_forked=self._checks.begin,
                    on_answered=self._answered,
                    on_gone=self._worker_gone,
                )
                self.workers[worker.number] = worker
        except OSError as error:  # no descriptor is to be had just now
            log.error("no worker can be had: %s; trying again", error.strerror)
            self._hold_until = self._loop.time() + _SHORT_OF
            self._timers.later(_SHORT_OF, self.fill)
        for worker in alive[wanted:]:
            if worker.state is State.IDLE:
                worker.retire()

    @property
    def check_seconds(self) -> float:
        """Seconds of the quickest health check in a worker; only once `start()` is done."""
        return self._checks.quickest

    async def check(self, timeout: float = DEFAULT_TIMEOUT) -> float:
        """Run the canary through a live worker; return the seconds it took.

        Raises:
            LoadingFailed: no worker is alive, or its answer is wrong or late; it has been killed.
        """
        idle = [w for w in self.workers.values() if w.state is State.IDLE]
        return await self._checks.ask(idle, timeout)

    def fork_for_trial(self, *, on_forked: Callable[[Worker], None]) -> Worker | None:
        """Fork a worker that is given no work here; None where that cannot be done now."""
        if self.closing or not self.forkserver.can_fork:
            return None
        try:
            return self.forkserver.fork(on_forked=on_forked, on_answered=_untold, on_gone=_untold)
        except OSError:
            return None

    # --- their health

    def _on_loaded(self, loaded: Loaded) -> None:
        if not self.canary.classes:  # another forkserver must not change what is right
            self.canary.classes = len(loaded.labels)
        self.fill()

    def _checked(self, worker: Worker, error: LoadingFailed | None) -> None:
        """A health check has ended. Without its right answer a worker is not kept."""
        if error is not None:
            alive = worker.state is not State.GONE
            self.discard(worker, str(error))
            if alive or death_of(worker.status).fault is not Fault.NOBODY:
                self._false_start(str(error))
            return
        self._hold_until = 0.0
        self._fork_backoff.succeeded()
        self.forkserver.served()
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
        self._timers.later(wait, self.fill)

    def _fail(self, error: LoadingFailed) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
        elif not self.closing and self._ready.exception() is None:
            self._on_given_up(error)

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


def _untold(_worker: Worker) -> None:
    """What becomes of a trial's worker is the trial's to know."""
