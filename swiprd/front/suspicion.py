"""What is known against the images of jobs, and what is found out by them."""

from __future__ import annotations

from swiprctl.errors import SwiprError
from swiprd.front.poison import Poison
from swiprd.pool.job import Job
from swiprd.system.log import log


class Suspicion:
    """One daemon's. An image that cannot be told from others is never suspected.

    Args:
        seconds: how long an image is remembered; 0: none is.
    """

    def __init__(self, seconds: float) -> None:
        self.poison = Poison(seconds)

    def known(self, job: Job, now: float) -> SwiprError | None:
        """What a job is told at once, if its image is known to hang or to crash workers."""
        image = job.image.identity
        if image is None:
            return None
        return self.poison.recall(image, now, patience=job.deadline - now)

    def suspects(self, job: Job, now: float) -> bool:
        """Whether a job's image may hang."""
        image = job.image.identity
        return image is not None and self.poison.suspects(image, now)

    def overdue(self, job: Job, now: float) -> None:
        """A job's image keeps a worker busy for long: from now on it is suspected."""
        if job.image.identity is not None:
            self.poison.suspect(job.image.identity, now)

    def answered(self, job: Job) -> None:
        """A job has its row: its image is suspected no longer."""
        if job.image.identity is not None:
            self.poison.absolve(job.image.identity)

    def condemn(self, job: Job, error: SwiprError, now: float, ran: float = float("inf")) -> None:
        """A job's image is to blame for `error`; see `Poison.remember`."""
        if job.image.identity is not None:
            log.warning("remembered, and refused for %g s: %s", self.poison.seconds, error)
            self.poison.remember(job.image.identity, error, now, ran=ran)
