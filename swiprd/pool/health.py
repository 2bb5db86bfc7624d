"""Health checks: the canary goes through a worker, and its row must be right.

Each worker begins with one; any may be asked for another while it waits for work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from swiprctl.errors import LoadingFailed, SwiprError
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprd.folder.canary import CANARY_LIMITS, Canary, WrongAnswer
from swiprd.pool.deaths import Death
from swiprd.pool.handles import Worker
from swiprd.system.attachment import Attachment
from swiprd.system.memfd import sealed_memfd
from swiprd.system.messages import Answer


class HealthChecks:
    """Runs health checks, and tells what came of each.

    Args:
        ids: where health checks get their ids from.
        on_end: called once for each, with the worker and what is wrong with it, or None.

    Attributes:
        quickest: seconds that the quickest took which found nothing wrong.
    """

    def __init__(
        self,
        canary: Canary,
        ids: Iterator[int],
        on_end: Callable[[Worker, LoadingFailed | None], None],
    ) -> None:
        self._canary = canary
        self._ids = ids
        self._on_end = on_end
        self.quickest = float("inf")
        self._loop = asyncio.get_running_loop()
        self._asked: Worker | None = None  # whom `ask()` has asked,
        self._answer: asyncio.Future[None] = self._loop.create_future()  # and what comes of it

    def begin(self, worker: Worker, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Have a worker run the canary."""
        begun = self._loop.time()

        def ended(worker: Worker, error: LoadingFailed | None) -> None:
            if error is None:
                self.quickest = min(self.quickest, self._loop.time() - begun)
            self._ended(worker, error)

        try:
            HealthCheck(worker, self._canary, id=next(self._ids), timeout=timeout, on_end=ended)
        except OSError as error:
            self._ended(worker, LoadingFailed(f"no canary could be made: {error.strerror}"))

    async def ask(self, idle: Sequence[Worker], timeout: float) -> float:
        """Run the canary through one of these workers; return the seconds it took.

        Raises:
            LoadingFailed: there is none, or its answer is wrong or late.
        """
        begun = self._loop.time()
        if self._asked is None:  # who asks meanwhile shares the answer
            if not idle:
                raise LoadingFailed("no worker is ready", 1.0)
            self._answer = self._loop.create_future()
            # The one not heard of for longest: so the standby, too, has its turn.
            self._asked = min(idle, key=lambda w: w.heard)
            self.begin(self._asked, timeout)
        await asyncio.shield(self._answer)
        return self._loop.time() - begun

    def _ended(self, worker: Worker, error: LoadingFailed | None) -> None:
        if self._asked is worker:
            self._asked = None
            if error is None:
                self._answer.set_result(None)
            else:
                self._answer.set_exception(error)
        self._on_end(worker, error)


class HealthCheck:
    """Gives the canary to a worker, at once.

    Args:
        on_end: called once, with the worker and what is wrong with it, or None.

    Raises:
        OSError: no descriptor or memory is left for the image.
    """

    def __init__(
        self,
        worker: Worker,
        canary: Canary,
        *,
        id: int,
        timeout: float,
        on_end: Callable[[Worker, LoadingFailed | None], None],
    ) -> None:
        self._worker = worker
        self._canary = canary
        self._on_end = on_end
        self._image = Attachment.of(sealed_memfd(canary.image))
        self._ended = False
        self._timer = asyncio.get_running_loop().call_later(timeout, self._late)
        worker.probing = True
        worker.give({id: self._image}, self, CANARY_LIMITS, threads=1)

    def replied(self, _worker: Worker, _id: int, answer: Answer) -> None:
        """See `Giver`: compare the row with what it must be."""
        try:
            if isinstance(answer, SwiprError):
                raise WrongAnswer(str(answer))
            self._canary.check(answer.probabilities)
        except WrongAnswer as error:
            self._end(LoadingFailed(f"the model answers the canary wrongly: {error}"))
        else:
            self._end(None)

    def left(self, _ids: list[int], death: Death) -> None:
        """See `Giver`."""
        self._end(LoadingFailed(f"a worker died at the canary: {death.how}"))

    def _late(self) -> None:
        self._end(LoadingFailed("a worker did not answer the canary in time"))

    def _end(self, error: LoadingFailed | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._image.close()
        self._timer.cancel()
        self._worker.probing = False
        self._on_end(self._worker, error)
