"""admission.py: the queue's promises, one by one and then under whatever hypothesis thinks up."""

from __future__ import annotations

from collections import defaultdict
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from swiprctl.errors import DeadlineExceeded, Overloaded, SwiprError
from swiprd.front.admission import Admission
from swiprd.pool.job import Job
from swiprd.pool.typical import Typical
from swiprd.system.attachment import Attachment

pytestmark = pytest.mark.timeout(60)

_ids = count(1)


def _ignore(_job: Job, _outcome: dict[str, object] | SwiprError) -> None:
    """Admission ends no job: whoever submitted it does."""


def make(
    uid: int = 1000, *, owner: object = None, arrived: float = 0.0, deadline: float = 1e9
) -> Job:
    return Job(
        id=next(_ids),
        uid=uid,
        owner=owner,
        image=Attachment(),
        arrived=arrived,
        deadline=deadline,
        timeout=None,
        done=_ignore,
    )


def fill(admission: Admission, uid: int, number: int) -> list[Job]:
    jobs = [make(uid) for _ in range(number)]
    for job in jobs:
        assert admission.admit(job, 0.0) is None
    return jobs


def serve(admission: Admission, seconds: float, times: int = 5) -> None:
    """Have it learn that answers are so far apart."""
    for _ in range(times):
        admission.served(make(), seconds, now=0.0)


def take(admission: Admission) -> Job | None:
    """Take the job whose turn it is."""
    job = admission.peek()
    if job is not None:
        admission.take(job)
    return job


def drain(admission: Admission) -> list[Job]:
    """Run everything that waits, one after the other."""
    ran = []
    while (job := take(admission)) is not None:
        admission.finished(job)
        ran.append(job)
    return ran


class TestTurns:
    def test_one_uid_is_first_come_first_served(self) -> None:
        admission = Admission(8)
        jobs = fill(admission, 1, 5)
        assert drain(admission) == jobs

    def test_uids_take_turns(self) -> None:
        admission = Admission(16)
        a, b, c = fill(admission, 1, 3), fill(admission, 2, 1), fill(admission, 3, 2)
        assert drain(admission) == [a[0], b[0], c[0], a[1], c[1], a[2]]

    def test_a_newcomer_waits_for_no_more_than_what_runs_of_a_flood(self) -> None:
        admission = Admission(128)
        flood = fill(admission, 1, 100)
        assert take(admission) is flood[0]
        (late,) = fill(admission, 2, 1)
        assert take(admission) is late
        assert take(admission) is flood[1]

    def test_so_does_one_who_asks_again_when_it_is_answered(self) -> None:
        admission = Admission(128)
        flood = fill(admission, 1, 100)
        for number in range(5):
            assert take(admission) is flood[number]
            (late,) = fill(admission, 2, 1)
            assert take(admission) is late

    def test_uids_that_come_and_go_are_forgotten(self) -> None:
        admission = Admission(8)
        for uid in range(5000):
            (job,) = fill(admission, uid, 1)
            assert take(admission) is job
            admission.finished(job)
        assert len(admission._fresh._turns) <= 1024

    def test_whoever_comes_back_goes_to_the_end_of_the_round(self) -> None:
        admission = Admission(16)
        a, b = fill(admission, 1, 1), fill(admission, 2, 2)
        assert take(admission) is a[0]
        (again,) = fill(admission, 1, 1)
        assert [take(admission) for _ in range(3)] == [b[0], again, b[1]]

    def test_peek_is_what_next_gives(self) -> None:
        admission = Admission(8)
        assert admission.peek() is None
        fill(admission, 1, 2)
        fill(admission, 2, 1)
        for _ in range(3):
            assert admission.peek() is take(admission) is not None

    def test_what_a_dead_worker_left_goes_to_the_head(self) -> None:
        admission = Admission(16)
        a, b = fill(admission, 1, 3), fill(admission, 2, 3)
        first, second = take(admission), take(admission)
        assert (first, second) == (a[0], b[0])
        admission.requeue(b[0])
        assert take(admission) is b[0]
        assert drain(admission) == [a[1], b[1], a[2], b[2]]

    def test_requeuing_counts_it_as_waiting_and_not_twice(self) -> None:
        admission = Admission(8)
        (job,) = fill(admission, 1, 1)
        assert take(admission) is job
        assert (admission.waiting, admission.total) == (0, 1)
        admission.requeue(job)
        assert (admission.waiting, admission.total) == (1, 1)
        assert admission.by_uid() == {1: 1}

    def test_the_oldest_is_the_one_that_waits_longest(self) -> None:
        admission = Admission(8)
        assert admission.oldest(5.0) == 0.0
        admission.admit(make(1, arrived=1.0), 1.0)
        admission.admit(make(2, arrived=3.0), 3.0)
        assert admission.oldest(5.0) == 4.0
        take(admission)
        assert admission.oldest(5.0) == 2.0


class TestSuspects:
    def suspect(self, admission: Admission, uid: int, number: int) -> list[Job]:
        jobs = fill(admission, uid, number)
        for job in jobs:
            admission.suspect(job)
        return jobs

    def test_their_turn_is_none_of_the_others(self) -> None:
        admission = Admission(16)
        a, b = self.suspect(admission, 1, 2), self.suspect(admission, 2, 1)
        (c,) = fill(admission, 3, 1)
        assert drain(admission) == [c]
        ran = []
        while (job := admission.peek_suspect(lambda _: False)) is not None:
            admission.take(job)
            ran.append(job)
        assert ran == [a[0], b[0], a[1]]

    def test_some_may_be_skipped(self) -> None:
        admission = Admission(16)
        a, b = self.suspect(admission, 1, 2), self.suspect(admission, 2, 1)
        assert admission.peek_suspect(lambda job: job is a[0]) is a[1]
        assert admission.peek_suspect(lambda job: job.uid == 1) is b[0]
        assert admission.peek_suspect(lambda _: True) is None

    def test_one_that_a_worker_left_goes_to_the_end(self) -> None:
        admission = Admission(16)
        a = self.suspect(admission, 1, 2)
        admission.take(a[0])
        admission.requeue(a[0])
        assert admission.peek_suspect(lambda _: False) is a[1]

    def test_they_count_and_leave_as_others_do(self) -> None:
        admission = Admission(16)
        owner = object()
        a = self.suspect(admission, 1, 2)
        mine = make(2, owner=owner, arrived=1.0)
        admission.admit(mine, 1.0)
        admission.suspect(mine)
        assert (admission.waiting, admission.total) == (3, 3)
        assert admission.by_uid() == {1: 2, 2: 1}
        assert admission.withdraw(a[0])
        assert not admission.withdraw(a[0])
        assert admission.cancel(owner) == [mine]
        assert (admission.waiting, admission.oldest(3.0)) == (1, 3.0)

    def test_nobody_waits_for_them(self) -> None:
        admission = Admission(16)
        serve(admission, 10.0)
        self.suspect(admission, 1, 8)
        assert admission.admit(make(1, deadline=5.0), 0.0) is None

    def test_they_make_room_first(self) -> None:
        admission = Admission(6)
        fill(admission, 1, 3)
        b = self.suspect(admission, 1, 2)
        fill(admission, 1, 1)
        assert admission.admit(make(2), 0.0) is b[-1]


class TestLimit:
    def test_what_runs_counts(self) -> None:
        admission = Admission(3)
        fill(admission, 1, 3)
        running = [take(admission), take(admission)]
        with pytest.raises(Overloaded, match="the queue of 3 is full"):
            admission.admit(make(1), 0.0)
        assert running[0] is not None
        admission.finished(running[0])
        assert admission.admit(make(1), 0.0) is None
        assert (admission.waiting, admission.total, admission.refused) == (2, 3, 1)

    def test_a_newcomer_takes_the_newest_place_of_the_greediest(self) -> None:
        admission = Admission(6)
        a, b = fill(admission, 1, 4), fill(admission, 2, 2)
        late = make(3)
        assert admission.admit(late, 0.0) is a[-1]
        assert admission.by_uid() == {1: 3, 2: 2, 3: 1}
        assert admission.refused == 1
        assert set(drain(admission)) == {*a[:-1], *b, late}

    def test_one_who_has_his_share_pushes_nobody_out(self) -> None:
        admission = Admission(6)
        fill(admission, 1, 3)
        fill(admission, 2, 3)
        with pytest.raises(Overloaded):
            admission.admit(make(2), 0.0)

    def test_nor_does_he_for_somebody_elses_greed(self) -> None:
        admission = Admission(6)
        for uid, number in ((1, 3), (2, 1), (3, 1), (4, 1)):
            fill(admission, uid, number)
        with pytest.raises(Overloaded):
            admission.admit(make(2), 0.0)

    def test_equals_do_not_push_each_other_out_in_turns(self) -> None:
        admission = Admission(6)
        fill(admission, 1, 3)
        for _ in range(3):
            take(admission)  # the greediest has nothing to give up
        fill(admission, 2, 2)
        fill(admission, 3, 1)
        with pytest.raises(Overloaded):  # it would only be the other way round then
            admission.admit(make(3), 0.0)

    def test_nobody_who_runs_is_pushed_out(self) -> None:
        admission = Admission(2)
        fill(admission, 1, 2)
        take(admission)
        take(admission)
        with pytest.raises(Overloaded):
            admission.admit(make(2), 0.0)

    def test_some_places_are_kept_for_root_and_the_daemons_own_uid(self) -> None:
        admission = Admission(64, {0, 990})
        for uid in range(70_000, 70_060):
            fill(admission, uid, 1)
        with pytest.raises(Overloaded, match="the queue of 64 is full"):
            admission.admit(make(80_000), 0.0)
        fill(admission, 0, 3)
        with pytest.raises(Overloaded):
            admission.admit(make(80_000), 0.0)
        fill(admission, 990, 1)
        assert admission.total == 64

    def test_they_are_kept_only_while_those_have_less(self) -> None:
        admission = Admission(64)
        fill(admission, 0, 10)
        for uid in range(70_000, 70_054):
            fill(admission, uid, 1)
        assert admission.total == 64

    def test_what_is_refused_leaves_no_trace(self) -> None:
        admission = Admission(1)
        (job,) = fill(admission, 1, 1)
        refused = make(1)
        with pytest.raises(Overloaded):
            admission.admit(refused, 0.0)
        assert not admission.withdraw(refused)
        assert (admission.waiting, admission.total, admission.by_uid()) == (1, 1, {1: 1})
        assert drain(admission) == [job]


class TestComeBackLater:
    def test_a_deadline_that_cannot_be_made_is_refused_at_once(self) -> None:
        admission = Admission(128)
        serve(admission, 0.5)
        fill(admission, 1, 10)
        with pytest.raises(Overloaded, match=r"10 requests go first, .* 5\.0 s") as caught:
            admission.admit(make(1, deadline=104.0), 100.0)
        assert caught.value.retry_after is not None
        assert admission.admit(make(1, deadline=106.0), 100.0) is None
        assert admission.refused == 1

    def test_anothers_flood_makes_no_deadline_impossible(self) -> None:
        admission = Admission(128)
        serve(admission, 0.5)
        fill(admission, 1, 100)  # 50 s of work, of which a newcomer waits for one request
        late = make(2, deadline=10.0)
        assert admission.admit(late, 0.0) is None
        take(admission)
        assert take(admission) is late

    def test_nor_do_many_who_ask_little(self) -> None:
        admission = Admission(128)
        serve(admission, 1.0)
        for uid in range(5):
            fill(admission, uid, 10)
        fill(admission, 9, 1)
        with pytest.raises(Overloaded, match="11 requests go first"):  # 5 x 2, and its own 1
            admission.admit(make(9, deadline=10.5), 0.0)
        assert admission.admit(make(9, deadline=11.5), 0.0) is None

    def test_before_anything_was_served_nothing_is_known(self) -> None:
        admission = Admission(128)
        fill(admission, 1, 100)
        assert admission.admit(make(1, deadline=0.1), 0.0) is None

    def test_a_few_answers_are_no_estimate(self) -> None:
        admission = Admission(128)
        serve(admission, 29.0, times=4)
        fill(admission, 1, 10)
        assert admission.admit(make(1, deadline=5.0), 0.0) is None

    def test_less_time_than_the_quickest_image_took_is_refused(self) -> None:
        admission = Admission(128)
        for seconds in (0.5, 0.02, 3.0):
            admission.served(make(), seconds, now=seconds, alone=seconds)
        assert admission.admit(make(deadline=100.03), 100.0) is None
        with pytest.raises(DeadlineExceeded, match=r"gives 0\.01 s, .* 0\.02 s"):
            admission.admit(make(deadline=100.01), 100.0)
        assert admission.refused == 1
        admission.new_model(0.005)
        assert admission.admit(make(deadline=100.01), 100.0) is None

    def test_an_answer_after_its_deadline_says_nothing(self) -> None:
        admission = Admission(128)
        admission.served(make(deadline=0.2), 0.3, now=0.3, alone=0.3)
        assert admission.admit(make(arrived=1.0, deadline=1.1), 1.0) is None

    def test_no_answer_and_no_check_raises_it_over_a_twentieth_of_the_usual_timeout(self) -> None:
        admission = Admission(128, usual=10.0)
        admission.served(make(), 12.1, now=12.1, alone=12.1)
        assert admission.admit(make(arrived=20.0, deadline=20.51), 20.0) is None
        admission.new_model(12.1)
        assert admission.admit(make(arrived=20.0, deadline=20.51), 20.0) is None
        with pytest.raises(DeadlineExceeded):
            admission.admit(make(arrived=20.0, deadline=20.49), 20.0)

    def test_the_health_check_tells_before_any_answer_and_only_lowers_it(self) -> None:
        admission = Admission(128)
        admission.new_model(0.1)
        with pytest.raises(DeadlineExceeded):
            admission.admit(make(deadline=0.05), 0.0)
        admission.served(make(), 0.3, now=0.3, alone=0.3)
        assert admission.admit(make(deadline=0.15), 0.0) is None, "it took the check 0.1 s"
        admission.checked(0.04)
        assert admission.admit(make(deadline=0.05), 0.0) is None
        admission.checked(0.2)
        assert admission.admit(make(deadline=0.05), 0.0) is None

    def test_what_a_batch_took_says_nothing_of_an_image_alone(self) -> None:
        admission = Admission(128)
        serve(admission, 0.5)
        assert admission.admit(make(deadline=0.01), 0.0) is None

    def test_whoever_gives_too_little_time_again_and_again_has_to_wait(self) -> None:
        admission = Admission(128)
        for _ in range(3):
            job = make(7, deadline=0.1)
            assert admission.admit(job, 0.0) is None
            assert take(admission) is job
            admission.killed(job, 0.1)
            admission.finished(job)
        with pytest.raises(Overloaded, match=r"uid 7 gave 0\.1 s or more") as caught:
            admission.admit(make(7, arrived=0.1, deadline=0.2), 0.1)
        assert caught.value.retry_after == 0.5
        assert admission.admit(make(8, arrived=0.1, deadline=0.2), 0.1) is None
        assert admission.admit(make(7, arrived=0.1, deadline=0.3), 0.1) is None

    def test_the_advice_grows_with_the_queue(self) -> None:
        told = []
        for limit in (1, 4, 16, 64):
            admission = Admission(limit)
            serve(admission, 0.2)
            fill(admission, 0, limit)
            with pytest.raises(Overloaded) as caught:
                admission.admit(make(0), 0.0)
            told.append(caught.value.retry_after)
        assert all(isinstance(seconds, float) and seconds >= 0.05 for seconds in told)
        assert told == sorted(set(told))  # type: ignore[type-var]

    def test_it_is_never_a_busy_loop(self) -> None:
        admission = Admission(1)
        fill(admission, 1, 1)
        with pytest.raises(Overloaded) as caught:
            admission.admit(make(1), 0.0)
        assert caught.value.retry_after == 0.05

    def test_the_estimate_follows_what_is_served(self) -> None:
        admission = Admission(128)
        serve(admission, 10.0)
        serve(admission, 0.1, times=50)
        fill(admission, 1, 10)
        assert admission.admit(make(1, deadline=1.1), 0.0) is None

    def test_who_made_room_is_told_so(self) -> None:
        admission = Admission(4)
        fill(admission, 1, 4)
        admission.admit(make(2), 0.0)
        error = admission.evicted()
        assert "another user" in str(error)
        assert error.retry_after is not None


class TestLeaving:
    def test_withdraw_takes_what_waits_and_nothing_else(self) -> None:
        admission = Admission(8)
        a, b = fill(admission, 1, 2)
        assert take(admission) is a
        assert not admission.withdraw(a), "it runs"
        assert admission.withdraw(b)
        assert not admission.withdraw(b), "it is out already"
        assert (admission.waiting, admission.total, admission.by_uid()) == (0, 1, {1: 1})
        admission.finished(a)
        assert (admission.total, admission.by_uid()) == (0, {})

    def test_cancel_takes_the_owners_own(self) -> None:
        admission = Admission(8)
        mine, yours = object(), object()
        jobs = [make(1, owner=mine), make(1, owner=yours), make(2, owner=mine)]
        for job in jobs:
            admission.admit(job, 0.0)
        assert set(admission.cancel(mine)) == {jobs[0], jobs[2]}
        assert admission.cancel(mine) == []
        assert drain(admission) == [jobs[1]]

    def test_cancel_leaves_what_runs(self) -> None:
        admission = Admission(8)
        owner = object()
        job = make(1, owner=owner)
        admission.admit(job, 0.0)
        assert take(admission) is job
        assert admission.cancel(owner) == []
        assert admission.total == 1


LIMIT = 6


class Queueing(RuleBasedStateMachine):
    """Drive an Admission beside a model that knows only where each job must be."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(LIMIT)
        self.now = 0.0
        self.between = Typical(5)
        self.queues: dict[int, list[Job]] = defaultdict(list)
        self.at_work: set[Job] = set()
        # Turns that other uids had since this one waits or had its own: {waiting: {other: turns}}.
        self.passed: dict[int, dict[int, int]] = {}

    @property
    def waiting(self) -> list[Job]:
        return [job for queue in self.queues.values() for job in queue]

    def held(self, uid: int) -> int:
        return len(self.queues[uid]) + sum(job.uid == uid for job in self.at_work)

    def left(self, job: Job) -> None:
        self.queues[job.uid].remove(job)
        if not self.queues[job.uid]:
            self.passed.pop(job.uid, None)

    @rule(
        uid=st.integers(1, 4),
        owner=st.sampled_from("xyz"),
        patience=st.sampled_from([0.0, 0.5, 2.0, 1e6]),
    )
    def admit(self, uid: int, owner: str, patience: float) -> None:
        job = make(uid, owner=owner, arrived=self.now, deadline=self.now + patience)
        full = self.admission.total == LIMIT
        held = {u: self.held(u) for u, queue in self.queues.items() if queue}
        refused = self.admission.refused
        wait = len(self.waiting) * self.between.seconds
        try:
            victim = self.admission.admit(job, self.now)
        except Overloaded as error:
            advice = error.retry_after
        else:
            advice = 0.0
        if advice != 0.0:
            assert advice is not None
            assert advice >= 0.05
            assert self.admission.refused == refused + 1
            assert full or wait > patience - 1e-6, "there was room and time"
            greediest = max(held.values(), default=0)
            share = LIMIT // len(self.admission.by_uid().keys() | {uid})
            fair = self.held(uid) >= share or greediest <= self.held(uid) + 1
            assert fair or wait > patience - 1e-6, "somebody else had more"
            return
        assert (victim is not None) == full
        if victim is not None:
            assert victim is self.queues[victim.uid][-1], "the newest goes"
            assert held[victim.uid] == max(held.values()), "of the greediest"
            assert held[victim.uid] > self.held(uid) + 1, "who has more, even afterwards"
            assert self.held(uid) < LIMIT // len({*self.admission.by_uid(), uid, victim.uid})
            self.left(victim)
        if not self.queues[uid]:
            self.passed[uid] = defaultdict(int)
        self.queues[uid].append(job)

    @rule(target=running)
    def next(self) -> object:
        job = self.take()
        return multiple() if job is None else job

    def take(self) -> Job | None:
        peeked = self.admission.peek()
        job = take(self.admission)
        assert job is peeked
        if job is None:
            assert not self.waiting
            return None
        assert job is self.queues[job.uid][0], "first come, first served"
        del self.passed[job.uid]
        for turns in self.passed.values():
            turns[job.uid] += 1
            assert turns[job.uid] <= 1, "a second turn before another uid's first"
        if len(self.queues[job.uid]) > 1:
            self.passed[job.uid] = defaultdict(int)
        self.queues[job.uid].pop(0)
        self.at_work.add(job)
        return job

    @rule(job=consumes(running))
    def finished(self, job: Job) -> None:
        self.end(job)

    def end(self, job: Job) -> None:
        self.at_work.remove(job)
        self.admission.finished(job)

    @rule(job=consumes(running))
    def requeue(self, job: Job) -> None:
        self.at_work.remove(job)
        self.admission.requeue(job)
        assert self.admission.peek() is job
        self.passed.setdefault(job.uid, defaultdict(int))
        self.queues[job.uid].insert(0, job)
        for turns in self.passed.values():
            turns[job.uid] -= 1  # this one does not count: it had waited for it before

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.waiting))
        assert self.admission.withdraw(job)
        assert not self.admission.withdraw(job)
        self.left(job)

    @rule(owner=st.sampled_from("xyz"))
    def cancel(self, owner: str) -> None:
        expected = {job for job in self.waiting if job.owner == owner}
        taken = self.admission.cancel(owner)
        assert len(taken) == len(expected)
        assert set(taken) == expected
        for job in taken:
            self.left(job)

    @rule()
    def run_all_that_waits(self) -> None:
        while (job := self.take()) is not None:
            self.end(job)

    @rule(seconds=st.sampled_from([0.01, 0.3, 2.0]))
    def served(self, seconds: float) -> None:
        serve(self.admission, seconds)
        for _ in range(5):
            self.between.learn(seconds)

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        waiting = self.waiting
        assert self.admission.waiting == len(waiting)
        assert self.admission.total == len(waiting) + len(self.at_work) <= LIMIT
        counts: dict[int, int] = defaultdict(int)
        for job in [*waiting, *self.at_work]:
            counts[job.uid] += 1
        assert self.admission.by_uid() == counts
        oldest = max((self.now - job.arrived for job in waiting), default=0)
        assert self.admission.oldest(self.now) == oldest


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
