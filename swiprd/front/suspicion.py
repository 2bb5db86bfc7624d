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
        usual: seconds that a request has which names no timeout.
    """

    def __init__(self, seconds: float, usual: float) -> None:
        self.poison = Poison(seconds)
        self._usual = usual

    def known(self, job: Job, now: float) -> SwiprError | None:
        """What a job is told at once, if its image is known to hang or to crash workers."""
        image = job.image.identity
        if image is None:
            return None
        return self.poison.recall(image, now, uid=job.uid, patience=job.deadline - now)

    def suspects(self, job: Job, now: float) -> bool:
        """Whether a job's image may hang."""
        image = job.image.identity
        return image is not None and self.poison.suspects(image, now, uid=job.uid)

    def overdue(self, job: Job, now: float) -> None:
        """A job's image keeps a worker busy for long: from now on it is suspected."""
        if job.image.identity is not None:
            self.poison.suspect(
                job.image.identity, now, uid=job.uid, proves=self._had_its_time(job)
            )

    def answered(self, job: Job) -> None:
        """A job has its row: its image is suspected no longer."""
        if job.image.identity is not None:
            self.poison.absolve(job.image.identity)

    def condemn(self, job: Job, error: SwiprError, now: float) -> None:
        """A job's image is to blame for `error`, whoever asks for it."""
        if job.image.identity is not None:
            log.warning("remembered, and refused for %g s: %s", self.poison.seconds, error)
            self.poison.remember(job.image.identity, error, now)

    def ran_in_vain(self, job: Job, error: SwiprError, now: float, ran: float) -> None:
        """A job's image has had `ran` seconds in a worker, and no row came of it."""
        if job.image.identity is not None:
            log.warning(
                "remembered, and refused to uid %d for %g s: %s",
                job.uid,
                self.poison.seconds,
                error,
            )
            self.poison.remember(
                job.image.identity,
                error,
                now,
                uid=job.uid,
                ran=ran,
                proves=self._had_its_time(job),
            )

    def _had_its_time(self, job: Job) -> bool:
        """Whether a job gave its image as long as is usual, and did not lose most of it waiting:
        else it proves nothing to others, who may give more."""
        gave = job.timeout is None or job.timeout >= self._usual
        return gave and job.deadline - job.started >= self._usual / 2
