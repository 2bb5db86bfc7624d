"""One canary on its way through one worker: given, checked, and its end told exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swiprctl.errors import LoadingFailed, SwiprError
from swiprd.folder.canary import CANARY_LIMITS, Canary, WrongAnswer
from swiprd.pool.handles import Worker
from swiprd.pool.job import Job
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
        job_id: int,
        timeout: float,
        on_end: Callable[[Worker, LoadingFailed | None], None],
    ) -> None:
        self._worker = worker
        self._canary = canary
        self._on_end = on_end
        self._image = Attachment.of(sealed_memfd(canary.image))
        self._ended = False
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = loop.call_later(timeout, self._late)
        worker.probing = True
        job = Job(
            id=job_id,
            uid=0,
            owner=self,
            image=self._image,
            arrived=now,
            started=now,
            deadline=now + timeout,
            timeout=timeout,
            done=_unused,
        )
        worker.give([job], CANARY_LIMITS, threads=1)

    def replied(self, answer: Answer) -> None:
        """The worker has answered: compare its row with what it must be."""
        try:
            if isinstance(answer, SwiprError):
                raise WrongAnswer(str(answer))
            self._canary.check(answer.probabilities)
        except WrongAnswer as error:
            self._end(LoadingFailed(f"the model answers the canary wrongly: {error}"))
        else:
            self._end(None)

    def lost(self, how: str) -> None:
        """The worker is dead."""
        self._end(LoadingFailed(f"a worker died at the canary: {how}"))

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


def _unused(_job: Job, _outcome: dict[str, object] | SwiprError) -> None:
    """A canary ends in its `HealthCheck`."""
