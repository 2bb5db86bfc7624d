"""What is known against the images of jobs, and what is found out by them."""

from __future__ import annotations

from swiprctl.errors import SwiprError
from swiprd.admission import Job
from swiprd.poison import Poison
from swiprd.recognition import recall, recognise, remember, suspected


class Suspicion:
    """One daemon's.

    Args:
        seconds: how long an image is remembered; 0: none is.
    """

    def __init__(self, seconds: float) -> None:
        self.poison = Poison(seconds)

    def known(self, job: Job, now: float) -> SwiprError | None:
        """What a job is told at once, if its image is known to hang or to crash workers."""
        return recall(self.poison, job.image, now, job.deadline)

    def suspects(self, job: Job, now: float) -> bool:
        """Whether a job's image may hang; which one it is, is noted in the job."""
        job.identity = suspected(self.poison, job.image, now)
        return job.identity is not None

    def overdue(self, job: Job, now: float) -> None:
        """A job's image keeps a worker busy for long: from now on it is suspected."""
        job.identity = recognise(job.image)
        if job.identity is not None:
            self.poison.suspect(job.identity, now)

    def answered(self, job: Job) -> None:
        """A job has its row: its image is suspected no longer."""
        if job.identity is not None:
            self.poison.absolve(job.identity)

    def condemn(self, job: Job, error: SwiprError, now: float, ran: float = float("inf")) -> None:
        """A job's image is to blame for `error`; see `Poison.remember`."""
        remember(self.poison, job.image, error, now, ran)
