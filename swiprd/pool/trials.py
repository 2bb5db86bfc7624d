"""How many images a second a shape answers: in workers of its own, while nobody asks for anything.

A request that comes meanwhile is served as ever, and what has been counted until then is kept: the
measurement goes on when it is quiet again, later each time. All of it has a budget of the host's
time: a daemon that is asked now and then must not measure on and on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from swiprd.folder.canary import CANARY_LIMITS
from swiprd.pool.deaths import Death
from swiprd.pool.handles import Worker
from swiprd.pool.states import Backoff, State
from swiprd.pool.supervisor import Shape, Supervisor
from swiprd.system.attachment import Attachment
from swiprd.system.memfd import sealed_memfd
from swiprd.system.messages import Answer

AT_ONCE = 30.0
"""Seconds for which a daemon's measurements may occupy the host before they have to pause."""

SHARE = 0.1
"""Of the host's time that they get beyond that."""

_LEAST_SECONDS = 0.8  # a measurement takes so long at least,
_LEAST_ANSWERS = 12  # until there were so many answers of each worker,
_MOST_SECONDS = 6.0  # but no longer than this,
_MOST_TRIES = 12  # nor so often: what was counted by then has to do
_FIRST_PAUSE = 1.0  # seconds after a second interruption, doubled by each further one,
_LONGEST_PAUSE = 60.0  # and at most
_POLL = 0.5  # seconds between looks whether the daemon is quiet
_LOOK = 0.05  # the same in a measurement


class Interrupted(Exception):
    """A request came, a worker died or the pool leaves: there is nothing more to count now."""


class Budget:
    """Seconds of the host's time, as of an account: what comes in each second is `SHARE`. Pure."""

    def __init__(self, now: float) -> None:
        self._left = AT_ONCE
        self._at = now

    def spend(self, seconds: float, now: float) -> None:
        """A measurement took so long."""
        self._settle(now)
        self._left -= seconds

    def wait(self, now: float) -> float:
        """Seconds until another may begin."""
        self._settle(now)
        return max(0.0, -self._left / SHARE)

    def _settle(self, now: float) -> None:
        self._left = min(AT_ONCE, self._left + SHARE * (now - self._at))
        self._at = now


@dataclass(slots=True)
class Tally:
    """What has been counted of one shape so far."""

    answers: int = 0
    seconds: float = 0.0
    tries: int = 0

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.answers / self.seconds if self.seconds else 0.0

    def suffices(self, workers: int) -> bool:
        """Whether a shape of so many workers needs no further look."""
        if self.seconds < _LEAST_SECONDS:
            return False
        return self.answers >= _LEAST_ANSWERS * workers or self.seconds >= _MOST_SECONDS


class Measurements:
    """Measures shapes of one model's workers.

    Args:
        quiet: whether nobody asks for anything.

    Attributes:
        figures: images per second of what has been measured.
    """

    def __init__(self, staff: Supervisor, quiet: Callable[[], bool]) -> None:
        self._staff = staff
        self._quiet = quiet
        self._loop = asyncio.get_running_loop()
        self._budget = Budget(self._loop.time())
        self.figures: dict[Shape, float] = {}

    async def rate(self, shape: Shape) -> float:
        """Images per second of a shape, however long it takes until there was time to measure it.

        Raises:
            Interrupted: the pool leaves.
        """
        if shape in self.figures:
            return self.figures[shape]
        tally = Tally()
        backoff = Backoff(first=_FIRST_PAUSE, ceiling=_LONGEST_PAUSE)
        while not tally.suffices(shape.workers) and tally.tries < _MOST_TRIES:
            await self._wait_for_time()
            begun = self._loop.time()
            tally.tries += 1
            try:
                await count_answers(self._staff, shape, tally, self._quiet)
            except Interrupted:
                await asyncio.sleep(backoff.failed())
            finally:
                now = self._loop.time()
                self._budget.spend(now - begun, now)
        self.figures[shape] = tally.rate
        return tally.rate

    async def _wait_for_time(self) -> None:
        while not self._staff.closing:
            wait = self._budget.wait(self._loop.time())
            if not wait and self._quiet():
                return
            await asyncio.sleep(max(_POLL, wait))
        raise Interrupted


async def count_answers(
    staff: Supervisor, shape: Shape, tally: Tally, quiet: Callable[[], bool]
) -> None:
    """Add to a shape's tally until it suffices.

    Raises:
        Interrupted: the host was not left alone meanwhile. What was counted before is in there.
    """
    trial = _Trial(staff, shape)
    try:
        await trial.run(quiet, tally)
    finally:
        trial.close()


class _Trial:
    """Workers of one shape that answer the canary over and over."""

    def __init__(self, staff: Supervisor, shape: Shape) -> None:
        self._loop = asyncio.get_running_loop()
        self._shape = shape
        self._image = Attachment.of(sealed_memfd(staff.canary.image))
        self._ids = count(1)
        self._warm: set[int] = set()
        self._answers = 0
        self._last = 0.0  # when the last of them came
        self._going = True
        self._workers: list[Worker] = []
        for _ in range(shape.workers):
            worker = staff.fork_for_trial(on_forked=self._give)
            if worker is not None:
                self._workers.append(worker)

    async def run(self, quiet: Callable[[], bool], tally: Tally) -> None:
        """Warm up, then count.

        Raises:
            Interrupted: as `count_answers()` says.
        """
        begun = 0.0
        waited = 0.0
        before = tally.answers, tally.seconds
        while not tally.suffices(self._shape.workers):
            await asyncio.sleep(_LOOK)
            waited += _LOOK
            alive = all(w.state is not State.GONE for w in self._workers)
            if not quiet() or not alive or len(self._workers) < self._shape.workers:
                raise Interrupted
            if not begun:
                if len(self._warm) == self._shape.workers:
                    begun, self._answers, self._last = self._loop.time(), 0, 0.0
                elif waited > 10 * _MOST_SECONDS:
                    raise Interrupted
                continue
            elapsed = before[1] + self._loop.time() - begun
            tally.answers = before[0] + self._answers
            # Up to the last answer: should this be interrupted, what is under way is lost.
            tally.seconds = before[1] + max(0.0, self._last - begun)
            if elapsed >= _MOST_SECONDS:
                tally.seconds = elapsed

    def close(self) -> None:
        """Kill the workers: what they still compute is of no use."""
        self._going = False
        for worker in self._workers:
            worker.kill("the measurement is over")
        self._image.close()

    def replied(self, worker: Worker, _id: int, _answer: Answer) -> None:
        """See `handles.Giver`: it is given the next, until all is over."""
        self._answers += 1
        self._last = self._loop.time()
        if not worker.unanswered and self._going:
            self._warm.add(worker.number)
            self._give(worker)

    def left(self, _ids: list[int], _death: Death) -> None:
        """See `handles.Giver`: nobody waits for these. `run()` sees that a worker is missing."""

    def _give(self, worker: Worker) -> None:
        ids = [next(self._ids) for _ in range(self._shape.batch)]
        worker.give(dict.fromkeys(ids, self._image), self, CANARY_LIMITS, self._shape.threads)
