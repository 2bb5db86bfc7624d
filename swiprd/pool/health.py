"""The canary on its way through a worker: given, checked, and its end told exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swiprctl.errors import LoadingFailed, SwiprError
from swiprd.folder.canary import CANARY_LIMITS, Canary, WrongAnswer
from swiprd.pool.deaths import Death
from swiprd.pool.handles import Worker
from swiprd.system.attachment import Attachment
from swiprd.system.memfd import sealed_memfd
from swiprd.system.messages import Answer


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
