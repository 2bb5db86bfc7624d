"""Keeps a forkserver alive that has loaded one model, and has it fork workers.

A forkserver that dies takes its workers along, and another is started; later after each failure.
Which workers there are to be is the supervisor's to decide.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from itertools import count

from swiprctl.errors import LoadingFailed
from swiprd.pool.handles import Forkserver, Worker
from swiprd.pool.states import Backoff, State
from swiprd.pool.timers import Timers
from swiprd.system.log import log
from swiprd.system.messages import Exited, Failed, Forked, Load, Loaded, NotForked, Report

MAX_KILLED_LOADS = 3
"""Forkservers in a row that may be killed from outside while the model has never served yet."""

FORK_PATIENCE = 8.0
"""Seconds in which the forkserver, which does nothing else, must have forked a worker."""


class ForkserverKeeper:
    """Make it, `start()`, and `fork()` whenever there `can_fork`.

    Args:
        load: what each forkserver is told to load.
        on_loaded: called when a forkserver has loaded the model: it can fork.
        on_not_forked: called with the reason when there could be no further process.
        on_failed: called when the model cannot be loaded.

    Attributes:
        loaded: what the newest forkserver that has loaded the model said of it; None before.
        can_fork: the model is loaded, and workers can be had.
        workers: those that were ordered and whose end is not known yet, by their numbers.
        restarts: forkservers started after the first.
    """

    def __init__(
        self,
        *,
        load: Load,
        on_loaded: Callable[[Loaded], None],
        on_not_forked: Callable[[str], None],
        on_failed: Callable[[LoadingFailed], None],
    ) -> None:
        self._load = load
        self._on_loaded = on_loaded
        self._on_not_forked = on_not_forked
        self._on_failed = on_failed
        self._numbers = count(1)
        self._forkserver: Forkserver | None = None
        self._backoff = Backoff(first=0.5)
        self._timers = Timers()
        self._served = False
        self._closing = False
        self._closed = asyncio.Event()
        self.loaded: Loaded | None = None
        self.can_fork = False
        self.workers: dict[int, Worker] = {}
        self.restarts = -1

    def start(self) -> None:
        """Start a forkserver, and have it load the model.

        Raises:
            OSError: no process or descriptor is to be had.
        """
        self.restarts += 1
        self._forkserver = Forkserver(on_report=self._heard, on_gone=self._gone)
        self._forkserver.load(self._load)

    @property
    def pid(self) -> int:
        """The forkserver's pid; 0 where there is none just now."""
        return self._forkserver.pid if self._forkserver is not None else 0

    def served(self) -> None:
        """The model serves. From now on a forkserver is replaced, whatever it dies of."""
        self._served = True
        self._backoff.succeeded()

    def fork(
        self,
        *,
        on_forked: Callable[[Worker], None],
        on_answered: Callable[[Worker], None],
        on_gone: Callable[[Worker], None],
    ) -> Worker:
        """Order a worker; only where it `can_fork`.

        Raises:
            OSError: no descriptor is to be had.
        """
        assert self._forkserver is not None

        def gone(worker: Worker) -> None:
            del self.workers[worker.number]
            on_gone(worker)

        number = next(self._numbers)
        worker = Worker(
            number,
            self._forkserver.fork(number),
            on_forked=on_forked,
            on_answered=on_answered,
            on_gone=gone,
        )
        self.workers[number] = worker
        self._timers.later(FORK_PATIENCE, lambda: self._still_spawning(worker))
        return worker

    def close(self) -> None:
        """Let the forkserver leave, and its workers with it."""
        self._closing = True
        self._timers.cancel()
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
        """SIGKILL the forkserver, and by the kernel's doing its workers."""
        if self._forkserver is not None:
            self._forkserver.kill()

    # --- what the forkserver does

    def _heard(self, report: Report, pidfd: int | None) -> None:
        match report:
            case Loaded():
                self.loaded = report
                self.can_fork = True
                self._on_loaded(report)
            case Failed():
                self._on_failed(LoadingFailed(report.reason))
            case Forked() | NotForked() | Exited():
                worker = self.workers.get(report.worker)
                if worker is not None:
                    self._heard_of(worker, report, pidfd)
                elif pidfd is not None:
                    os.close(pidfd)  # a worker that nobody waits for any more: it gets EOF

    def _heard_of(
        self, worker: Worker, report: Forked | NotForked | Exited, pidfd: int | None
    ) -> None:
        match report:
            case Forked():
                assert pidfd is not None  # the handle has seen to it
                worker.forked(report.pid, pidfd)
            case NotForked():
                worker.condemned = f"it could not be forked: {report.reason}"
                self._on_not_forked(worker.condemned)
                worker.exited(None)
            case Exited():
                worker.exited(report.status)

    def _gone(self) -> None:
        assert self._forkserver is not None
        killed, self._forkserver = self._forkserver.killed, None
        self.can_fork = False
        for worker in list(self.workers.values()):
            worker.exited(None)
        if self._closing:
            self._closed.set()
        elif not self._served and (not killed or self.restarts >= MAX_KILLED_LOADS):
            self._on_failed(LoadingFailed("the process that loads the model died; see the log"))
        else:
            log.warning("the forkserver died; starting another")
            self._timers.later(self._backoff.failed(), self._restart)

    def _restart(self) -> None:
        try:
            self.start()
        except OSError as error:  # no process or descriptor is to be had just now
            log.error("the forkserver cannot be started: %s; trying again", error.strerror)
            self._timers.later(self._backoff.failed(), self._restart)

    def _still_spawning(self, worker: Worker) -> None:
        """Kill a forkserver that does not fork: while it is there, no other is started."""
        if worker.state is State.SPAWNING:
            log.error("the forkserver does not fork: it is killed")
            self.kill()
