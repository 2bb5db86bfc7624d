"""The queue: which request may wait, which runs next, which is refused. Pure: `now` is an argument.

Requests wait in one queue for each uid. The next request comes from the uid whose last turn is
longest ago, so that a flood from one uid delays another uid by one request at most: the request
that is running. When the queue is full, a new request whose uid holds less than its share takes the
place of the newest request of the uid that holds the most. Requests for suspect images, which have
kept a worker busy for long and may hang, wait in a second queue, served when the first is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from swiprctl.errors import DeadlineExceeded, Overloaded
from swiprctl.protocol import DEFAULT_TIMEOUT
from swiprd.front.least_time import LeastTime
from swiprd.front.round_robin import RoundRobin
from swiprd.front.short_deadlines import ShortDeadlines
from swiprd.pool.job import Job
from swiprd.pool.typical import Typical

_RESERVED = 16  # one place in 16 is reserved for root and the daemon's own uid, for repairs
_LEAST = 5  # answers that an estimate needs before a request is refused because of it
_SOONEST_RETRY = 0.05  # seconds; a shorter wait is a busy loop


class RequestQueue:
    """The queue. Counts what waits and what runs against one limit.

    Args:
        limit: places.
        privileged: uids for which some places are reserved: root's, and the daemon's own.
        usual: seconds that a request has which names no timeout.
    """

    def __init__(
        self,
        limit: int,
        privileged: Collection[int] = (0,),
        usual: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.limit = limit
        self._privileged = frozenset(privileged)
        self._fresh = RoundRobin()
        self._suspects = RoundRobin()  # run when no other request waits
        self._held: dict[int, int] = {}  # by uid, waiting and running
        self._total = 0
        self._interval = Typical(_LEAST)  # seconds between two answers while there is work
        self._least_time = LeastTime(usual)
        self._short_deadlines = ShortDeadlines()
        self.refused = 0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._fresh) + len(self._suspects)

    @property
    def total(self) -> int:
        """Requests that wait or run."""
        return self._total

    def oldest(self, now: float) -> float:
        """Seconds that the longest waiting request has waited."""
        return max((now - job.arrived for job in (*self._fresh, *self._suspects)), default=0.0)

    def admit(self, job: Job, now: float) -> Job | None:
        """Let a job wait. Return the job that has to make room for it, if one has to.

        Raises:
            DeadlineExceeded: any image takes longer than the time that this one has.
            Overloaded: the queue is full, or the job cannot be answered within its deadline.
        """
        self._check_time(job, now)
        victim = None
        if self._total >= self.limit - self._reserved(job.uid):
            victim = self._make_room(job.uid)
        self._fresh.append(job)
        self._count(job.uid, 1)
        return victim

    def requeue(self, job: Job) -> None:
        """Queue a job again whose worker died: at the head, as it has waited already. A suspect
        goes to the end of the suspects."""
        if job.suspect:
            self._suspects.append(job)
        else:
            self._fresh.push_in(job)

    def suspect(self, job: Job) -> None:
        """Move a waiting job to the suspects, which run when no other job waits."""
        self._fresh.remove(job)
        job.suspect = True
        self._suspects.append(job)

    def take(self, job: Job) -> None:
        """Take a job whose turn it is; it runs until `finished()`."""
        self._line(job).take(job)

    def peek(self) -> Job | None:
        """The job whose turn it is, left where it is, if any waits that is no suspect."""
        return self._fresh.next()

    def peek_suspect(self, skip: Callable[[Job], bool]) -> Job | None:
        """The suspect whose turn it is, of those that `skip` does not tell to leave out."""
        return self._suspects.next(skip)

    def withdraw(self, job: Job) -> bool:
        """Take a job out of the queue and the count; False if it is not waiting."""
        line = self._line(job)
        if job not in line:
            return False
        line.remove(job)
        self._count(job.uid, -1)
        return True

    def cancel(self, owner: object) -> list[Job]:
        """Take the waiting jobs of one owner out of the queue, and return them."""
        jobs = [job for job in (*self._fresh, *self._suspects) if job.owner is owner]
        for job in jobs:
            self.withdraw(job)
        return jobs

    def finished(self, job: Job) -> None:
        """A running job has ended, with an answer or an error."""
        self._count(job.uid, -1)

    def served(self, job: Job, share: float, *, now: float, alone: float | None = None) -> None:
        """Learn from an answer.

        Args:
            share: seconds between two answers of a busy pool, estimated from this answer.
            alone: seconds that the job ran while no other job did; None if one did.
        """
        self._interval.learn(share)
        if now > job.deadline:
            return
        if alone is not None:
            self._least_time.learn(alone)
        self._short_deadlines.answered(job.uid)

    def checked(self, seconds: float) -> None:
        """Learn from a health check, which took so long in its worker."""
        self._least_time.learn(seconds)

    def killed(self, job: Job, now: float) -> None:
        """Learn from a running job whose deadline has passed."""
        self._short_deadlines.killed(job.uid, now - job.started, job.deadline - job.arrived, now)

    def too_late(self, job: Job, now: float) -> bool:
        """Whether any image takes longer than the time that this job has left."""
        return now + self._least_time.seconds > job.deadline

    def new_model(self, seconds: float) -> None:
        """Forget what images took: another model answers from now on, and its health check took
        so long."""
        self._interval = Typical(_LEAST)
        self._least_time.forget()
        self._least_time.learn(seconds)

    def by_uid(self) -> dict[int, int]:
        """Requests waiting or running, by uid."""
        return dict(self._held)

    def _check_time(self, job: Job, now: float) -> None:
        given = job.deadline - now
        ahead = self._ahead(job.uid)
        wait = ahead * self._interval.seconds
        if wait and now + wait + self._least_time.seconds > job.deadline:
            self.refused += 1
            raise Overloaded(
                f"{ahead} requests go first, which takes about {wait:.1f} s:"
                " more than this one has",
                self.retry_after,
            )
        if self.too_late(job, now):
            self.refused += 1
            raise DeadlineExceeded(
                f"not tried: {max(given, 0.0):.3g} s of its timeout were left, and even a small"
                f" image takes {self._least_time.seconds:.3g} s: give more"
            )
        if (wait := self._short_deadlines.wait(job.uid, given, now)) > 0.0:
            self.refused += 1
            raise Overloaded(
                f"the last requests of uid {job.uid} gave {given:.3g} s or more, and that was too"
                " little: give more",
                round(max(_SOONEST_RETRY, wait), 3),
            )

    def _ahead(self, uid: int) -> int:
        """Requests that may run before a new request of this uid: its own, and of each other uid
        no more than there are rounds until then."""
        lengths = self._fresh.lengths()
        own = lengths.pop(uid, 0)
        return own + sum(min(waiting, own + 1) for waiting in lengths.values())

    def _reserved(self, uid: int) -> int:
        """Free places that this uid may not have: reserved for root and the daemon's own uid."""
        if uid in self._privileged:
            return 0
        held = sum(self._held.get(one, 0) for one in self._privileged)
        return max(0, self.limit // _RESERVED - held)

    def _make_room(self, uid: int) -> Job:
        held = self._held.get(uid, 0)
        share = self.limit // (len(self._held.keys() | {uid}))
        suspects = self._suspects.lengths()
        protected = {
            one for one in self._privileged if self._held.get(one, 0) <= self.limit // _RESERVED
        }
        waiting = {*self._fresh.lengths(), *suspects} - protected
        greedy = max(waiting, key=lambda u: self._held[u], default=uid)
        if held >= share or greedy == uid or self._held.get(greedy, 0) <= held + 1:
            self.refused += 1
            raise Overloaded(f"the queue of {self.limit} is full", self.retry_after)
        victim = (self._suspects if greedy in suspects else self._fresh).last(greedy)
        self.withdraw(victim)
        self.refused += 1
        return victim

    def evicted(self) -> Overloaded:
        """Make the error for the job that `admit()` returned."""
        return Overloaded("made room in a full queue for another user", self.retry_after)

    @property
    def retry_after(self) -> float:
        """Seconds after which a refused client may try again: half of the queue is done by then."""
        return round(max(_SOONEST_RETRY, self._total * self._interval.seconds / 2), 3)

    def _line(self, job: Job) -> RoundRobin:
        return self._suspects if job.suspect else self._fresh

    def _count(self, uid: int, by: int) -> None:
        self._total += by
        held = self._held.get(uid, 0) + by
        if held:
            self._held[uid] = held
        else:
            del self._held[uid]
