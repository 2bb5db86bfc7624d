"""request_queue.py: its promises, one by one and then under whatever hypothesis thinks up."""

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
from swiprd.front.request_queue import RequestQueue
from swiprd.pool.job import Job
from swiprd.pool.typical import Typical
from swiprd.system.attachment import Attachment

pytestmark = pytest.mark.timeout(60)

_ids = count(1)


def _ignore(_job: Job, _outcome: dict[str, object] | SwiprError) -> None:
    """RequestQueue ends no job: whoever submitted it does."""


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


def fill(queue: RequestQueue, uid: int, number: int) -> list[Job]:
    jobs = [make(uid) for _ in range(number)]
    for job in jobs:
        assert queue.admit(job, 0.0) is None
    return jobs


def serve(queue: RequestQueue, seconds: float, times: int = 5) -> None:
    """Have it learn that answers are so far apart."""
    for _ in range(times):
        queue.served(make(), seconds, now=0.0)


def take(queue: RequestQueue) -> Job | None:
    """Take the job whose turn it is."""
    job = queue.peek()
    if job is not None:
        queue.take(job)
    return job


def drain(queue: RequestQueue) -> list[Job]:
    """Run everything that waits, one after the other."""
    ran = []
    while (job := take(queue)) is not None:
        queue.finished(job)
        ran.append(job)
    return ran


class TestTurns:
    def test_one_uid_is_first_come_first_served(self) -> None:
        queue = RequestQueue(8)
        jobs = fill(queue, 1, 5)
        assert drain(queue) == jobs

    def test_uids_take_turns(self) -> None:
        queue = RequestQueue(16)
        a, b, c = fill(queue, 1, 3), fill(queue, 2, 1), fill(queue, 3, 2)
        assert drain(queue) == [a[0], b[0], c[0], a[1], c[1], a[2]]

    def test_a_newcomer_waits_for_no_more_than_what_runs_of_a_flood(self) -> None:
        queue = RequestQueue(128)
        flood = fill(queue, 1, 100)
        assert take(queue) is flood[0]
        (late,) = fill(queue, 2, 1)
        assert take(queue) is late
        assert take(queue) is flood[1]

    def test_so_does_one_who_asks_again_when_it_is_answered(self) -> None:
        queue = RequestQueue(128)
        flood = fill(queue, 1, 100)
        for number in range(5):
            assert take(queue) is flood[number]
            (late,) = fill(queue, 2, 1)
            assert take(queue) is late

    def test_uids_that_come_and_go_are_forgotten(self) -> None:
        queue = RequestQueue(8)
        for uid in range(5000):
            (job,) = fill(queue, uid, 1)
            assert take(queue) is job
            queue.finished(job)
        fill(queue, 0, 1)  # its turn is forgotten: it is as good as a new uid
        fill(queue, 5000, 1)
        fill(queue, 4999, 1)
        assert [job.uid for job in drain(queue)] == [0, 5000, 4999]

    def test_whoever_comes_back_goes_to_the_end_of_the_round(self) -> None:
        queue = RequestQueue(16)
        a, b = fill(queue, 1, 1), fill(queue, 2, 2)
        assert take(queue) is a[0]
        (again,) = fill(queue, 1, 1)
        assert [take(queue) for _ in range(3)] == [b[0], again, b[1]]

    def test_peek_is_what_next_gives(self) -> None:
        queue = RequestQueue(8)
        assert queue.peek() is None
        fill(queue, 1, 2)
        fill(queue, 2, 1)
        for _ in range(3):
            assert queue.peek() is take(queue) is not None

    def test_what_a_dead_worker_left_goes_to_the_head(self) -> None:
        queue = RequestQueue(16)
        a, b = fill(queue, 1, 3), fill(queue, 2, 3)
        first, second = take(queue), take(queue)
        assert (first, second) == (a[0], b[0])
        queue.requeue(b[0])
        assert take(queue) is b[0]
        assert drain(queue) == [a[1], b[1], a[2], b[2]]

    def test_requeuing_counts_it_as_waiting_and_not_twice(self) -> None:
        queue = RequestQueue(8)
        (job,) = fill(queue, 1, 1)
        assert take(queue) is job
        assert (queue.waiting, queue.total) == (0, 1)
        queue.requeue(job)
        assert (queue.waiting, queue.total) == (1, 1)
        assert queue.by_uid() == {1: 1}

    def test_the_oldest_is_the_one_that_waits_longest(self) -> None:
        queue = RequestQueue(8)
        assert queue.oldest(5.0) == 0.0
        queue.admit(make(1, arrived=1.0), 1.0)
        queue.admit(make(2, arrived=3.0), 3.0)
        assert queue.oldest(5.0) == 4.0
        take(queue)
        assert queue.oldest(5.0) == 2.0


class TestSuspects:
    def suspect(self, queue: RequestQueue, uid: int, number: int) -> list[Job]:
        jobs = fill(queue, uid, number)
        for job in jobs:
            queue.suspect(job)
        return jobs

    def test_their_turn_is_none_of_the_others(self) -> None:
        queue = RequestQueue(16)
        a, b = self.suspect(queue, 1, 2), self.suspect(queue, 2, 1)
        (c,) = fill(queue, 3, 1)
        assert drain(queue) == [c]
        ran = []
        while (job := queue.peek_suspect(lambda _: False)) is not None:
            queue.take(job)
            ran.append(job)
        assert ran == [a[0], b[0], a[1]]

    def test_some_may_be_skipped(self) -> None:
        queue = RequestQueue(16)
        a, b = self.suspect(queue, 1, 2), self.suspect(queue, 2, 1)
        assert queue.peek_suspect(lambda job: job is a[0]) is a[1]
        assert queue.peek_suspect(lambda job: job.uid == 1) is b[0]
        assert queue.peek_suspect(lambda _: True) is None

    def test_one_that_a_worker_left_goes_to_the_end(self) -> None:
        queue = RequestQueue(16)
        a = self.suspect(queue, 1, 2)
        queue.take(a[0])
        queue.requeue(a[0])
        assert queue.peek_suspect(lambda _: False) is a[1]

    def test_they_count_and_leave_as_others_do(self) -> None:
        queue = RequestQueue(16)
        owner = object()
        a = self.suspect(queue, 1, 2)
        mine = make(2, owner=owner, arrived=1.0)
        queue.admit(mine, 1.0)
        queue.suspect(mine)
        assert (queue.waiting, queue.total) == (3, 3)
        assert queue.by_uid() == {1: 2, 2: 1}
        assert queue.withdraw(a[0])
        assert not queue.withdraw(a[0])
        assert queue.cancel(owner) == [mine]
        assert (queue.waiting, queue.oldest(3.0)) == (1, 3.0)

    def test_nobody_waits_for_them(self) -> None:
        queue = RequestQueue(16)
        serve(queue, 10.0)
        self.suspect(queue, 1, 8)
        assert queue.admit(make(1, deadline=5.0), 0.0) is None

    def test_they_make_room_first(self) -> None:
        queue = RequestQueue(6)
        fill(queue, 1, 3)
        b = self.suspect(queue, 1, 2)
        fill(queue, 1, 1)
        assert queue.admit(make(2), 0.0) is b[-1]


class TestLimit:
    def test_what_runs_counts(self) -> None:
        queue = RequestQueue(3)
        fill(queue, 1, 3)
        running = [take(queue), take(queue)]
        with pytest.raises(Overloaded, match="the queue of 3 is full"):
            queue.admit(make(1), 0.0)
        assert running[0] is not None
        queue.finished(running[0])
        assert queue.admit(make(1), 0.0) is None
        assert (queue.waiting, queue.total, queue.refused) == (2, 3, 1)

    def test_a_newcomer_takes_the_newest_place_of_the_greediest(self) -> None:
        queue = RequestQueue(6)
        a, b = fill(queue, 1, 4), fill(queue, 2, 2)
        late = make(3)
        assert queue.admit(late, 0.0) is a[-1]
        assert queue.by_uid() == {1: 3, 2: 2, 3: 1}
        assert queue.refused == 1
        assert set(drain(queue)) == {*a[:-1], *b, late}

    def test_one_who_has_his_share_pushes_nobody_out(self) -> None:
        queue = RequestQueue(6)
        fill(queue, 1, 3)
        fill(queue, 2, 3)
        with pytest.raises(Overloaded):
            queue.admit(make(2), 0.0)

    def test_nor_does_he_for_somebody_elses_greed(self) -> None:
        queue = RequestQueue(6)
        for uid, number in ((1, 3), (2, 1), (3, 1), (4, 1)):
            fill(queue, uid, number)
        with pytest.raises(Overloaded):
            queue.admit(make(2), 0.0)

    def test_equals_do_not_push_each_other_out_in_turns(self) -> None:
        queue = RequestQueue(6)
        fill(queue, 1, 3)
        for _ in range(3):
            take(queue)  # the greediest has nothing to give up
        fill(queue, 2, 2)
        fill(queue, 3, 1)
        with pytest.raises(Overloaded):  # it would only be the other way round then
            queue.admit(make(3), 0.0)

    def test_nobody_who_runs_is_pushed_out(self) -> None:
        queue = RequestQueue(2)
        fill(queue, 1, 2)
        take(queue)
        take(queue)
        with pytest.raises(Overloaded):
            queue.admit(make(2), 0.0)

    def test_some_places_are_kept_for_root_and_the_daemons_own_uid(self) -> None:
        queue = RequestQueue(64, {0, 990})
        for uid in range(70_000, 70_060):
            fill(queue, uid, 1)
        with pytest.raises(Overloaded, match="the queue of 64 is full"):
            queue.admit(make(80_000), 0.0)
        fill(queue, 0, 3)
        with pytest.raises(Overloaded):
            queue.admit(make(80_000), 0.0)
        fill(queue, 990, 1)
        assert queue.total == 64

    def test_they_are_kept_only_while_those_have_less(self) -> None:
        queue = RequestQueue(64)
        fill(queue, 0, 10)
        for uid in range(70_000, 70_054):
            fill(queue, uid, 1)
        assert queue.total == 64

    def test_what_is_refused_leaves_no_trace(self) -> None:
        queue = RequestQueue(1)
        (job,) = fill(queue, 1, 1)
        refused = make(1)
        with pytest.raises(Overloaded):
            queue.admit(refused, 0.0)
        assert not queue.withdraw(refused)
        assert (queue.waiting, queue.total, queue.by_uid()) == (1, 1, {1: 1})
        assert drain(queue) == [job]


class TestComeBackLater:
    def test_a_deadline_that_cannot_be_made_is_refused_at_once(self) -> None:
        queue = RequestQueue(128)
        serve(queue, 0.5)
        fill(queue, 1, 10)
        with pytest.raises(Overloaded, match=r"10 requests go first, .* 5\.0 s") as caught:
            queue.admit(make(1, deadline=104.0), 100.0)
        assert caught.value.retry_after is not None
        assert queue.admit(make(1, deadline=106.0), 100.0) is None
        assert queue.refused == 1

    def test_anothers_flood_makes_no_deadline_impossible(self) -> None:
        queue = RequestQueue(128)
        serve(queue, 0.5)
        fill(queue, 1, 100)  # 50 s of work, of which a newcomer waits for one request
        late = make(2, deadline=10.0)
        assert queue.admit(late, 0.0) is None
        take(queue)
        assert take(queue) is late

    def test_nor_do_many_who_ask_little(self) -> None:
        queue = RequestQueue(128)
        serve(queue, 1.0)
        for uid in range(5):
            fill(queue, uid, 10)
        fill(queue, 9, 1)
        with pytest.raises(Overloaded, match="11 requests go first"):  # 5 x 2, and its own 1
            queue.admit(make(9, deadline=10.5), 0.0)
        assert queue.admit(make(9, deadline=11.5), 0.0) is None

    def test_before_anything_was_served_nothing_is_known(self) -> None:
        queue = RequestQueue(128)
        fill(queue, 1, 100)
        assert queue.admit(make(1, deadline=0.1), 0.0) is None

    def test_a_few_answers_are_no_estimate(self) -> None:
        queue = RequestQueue(128)
        serve(queue, 29.0, times=4)
        fill(queue, 1, 10)
        assert queue.admit(make(1, deadline=5.0), 0.0) is None

    def test_less_time_than_the_quickest_image_took_is_refused(self) -> None:
        queue = RequestQueue(128)
        for seconds in (0.5, 0.02, 3.0):
            queue.served(make(), seconds, now=seconds, alone=seconds)
        assert queue.admit(make(deadline=100.03), 100.0) is None
        with pytest.raises(DeadlineExceeded, match=r": 0\.01 s of its .* 0\.02 s"):
            queue.admit(make(deadline=100.01), 100.0)
        with pytest.raises(DeadlineExceeded, match=r": 0 s of its timeout were left, .* 0\.02 s"):
            queue.admit(make(deadline=99.0), 100.0)
        assert queue.refused == 2
        queue.new_model(0.005)
        assert queue.admit(make(deadline=100.01), 100.0) is None

    def test_an_answer_after_its_deadline_says_nothing(self) -> None:
        queue = RequestQueue(128)
        queue.served(make(deadline=0.2), 0.3, now=0.3, alone=0.3)
        assert queue.admit(make(arrived=1.0, deadline=1.1), 1.0) is None

    def test_no_answer_and_no_check_raises_it_over_a_twentieth_of_the_usual_timeout(self) -> None:
        queue = RequestQueue(128, usual=10.0)
        queue.served(make(), 12.1, now=12.1, alone=12.1)
        assert queue.admit(make(arrived=20.0, deadline=20.51), 20.0) is None
        queue.new_model(12.1)
        assert queue.admit(make(arrived=20.0, deadline=20.51), 20.0) is None
        with pytest.raises(DeadlineExceeded):
            queue.admit(make(arrived=20.0, deadline=20.49), 20.0)

    def test_the_health_check_tells_before_any_answer_and_only_lowers_it(self) -> None:
        queue = RequestQueue(128)
        queue.new_model(0.1)
        with pytest.raises(DeadlineExceeded):
            queue.admit(make(deadline=0.05), 0.0)
        queue.served(make(), 0.3, now=0.3, alone=0.3)
        assert queue.admit(make(deadline=0.15), 0.0) is None, "it took the check 0.1 s"
        queue.checked(0.04)
        assert queue.admit(make(deadline=0.05), 0.0) is None
        queue.checked(0.2)
        assert queue.admit(make(deadline=0.05), 0.0) is None

    def test_what_a_batch_took_says_nothing_of_an_image_alone(self) -> None:
        queue = RequestQueue(128)
        serve(queue, 0.5)
        assert queue.admit(make(deadline=0.01), 0.0) is None

    def test_whoever_gives_too_little_time_again_and_again_has_to_wait(self) -> None:
        queue = RequestQueue(128)
        for _ in range(3):
            job = make(7, deadline=0.1)
            assert queue.admit(job, 0.0) is None
            assert take(queue) is job
            queue.killed(job, 0.1)
            queue.finished(job)
        with pytest.raises(Overloaded, match=r"uid 7 gave 0\.1 s or more") as caught:
            queue.admit(make(7, arrived=0.1, deadline=0.2), 0.1)
        assert caught.value.retry_after == 0.5
        assert queue.admit(make(8, arrived=0.1, deadline=0.2), 0.1) is None
        assert queue.admit(make(7, arrived=0.1, deadline=0.3), 0.1) is None

    def test_the_advice_grows_with_the_queue(self) -> None:
        told = []
        for limit in (1, 4, 16, 64):
            queue = RequestQueue(limit)
            serve(queue, 0.2)
            fill(queue, 0, limit)
            with pytest.raises(Overloaded) as caught:
                queue.admit(make(0), 0.0)
            told.append(caught.value.retry_after)
        assert all(isinstance(seconds, float) and seconds >= 0.05 for seconds in told)
        assert told == sorted(set(told))  # type: ignore[type-var]

    def test_it_is_never_a_busy_loop(self) -> None:
        queue = RequestQueue(1)
        fill(queue, 1, 1)
        with pytest.raises(Overloaded) as caught:
            queue.admit(make(1), 0.0)
        assert caught.value.retry_after == 0.05

    def test_the_estimate_follows_what_is_served(self) -> None:
        queue = RequestQueue(128)
        serve(queue, 10.0)
        serve(queue, 0.1, times=50)
        fill(queue, 1, 10)
        assert queue.admit(make(1, deadline=1.1), 0.0) is None

    def test_who_made_room_is_told_so(self) -> None:
        queue = RequestQueue(4)
        fill(queue, 1, 4)
        queue.admit(make(2), 0.0)
        error = queue.evicted()
        assert "another user" in str(error)
        assert error.retry_after is not None


class TestLeaving:
    def test_withdraw_takes_what_waits_and_nothing_else(self) -> None:
        queue = RequestQueue(8)
        a, b = fill(queue, 1, 2)
        assert take(queue) is a
        assert not queue.withdraw(a), "it runs"
        assert queue.withdraw(b)
        assert not queue.withdraw(b), "it is out already"
        assert (queue.waiting, queue.total, queue.by_uid()) == (0, 1, {1: 1})
        queue.finished(a)
        assert (queue.total, queue.by_uid()) == (0, {})

    def test_cancel_takes_the_owners_own(self) -> None:
        queue = RequestQueue(8)
        mine, yours = object(), object()
        jobs = [make(1, owner=mine), make(1, owner=yours), make(2, owner=mine)]
        for job in jobs:
            queue.admit(job, 0.0)
        assert set(queue.cancel(mine)) == {jobs[0], jobs[2]}
        assert queue.cancel(mine) == []
        assert drain(queue) == [jobs[1]]

    def test_cancel_leaves_what_runs(self) -> None:
        queue = RequestQueue(8)
        owner = object()
        job = make(1, owner=owner)
        queue.admit(job, 0.0)
        assert take(queue) is job
        assert queue.cancel(owner) == []
        assert queue.total == 1


LIMIT = 6


class Queueing(RuleBasedStateMachine):
    """Drive a RequestQueue beside a model that knows only where each job must be."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.queue = RequestQueue(LIMIT)
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
        full = self.queue.total == LIMIT
        held = {u: self.held(u) for u, queue in self.queues.items() if queue}
        refused = self.queue.refused
        wait = len(self.waiting) * self.between.seconds
        try:
            victim = self.queue.admit(job, self.now)
        except Overloaded as error:
            advice = error.retry_after
        else:
            advice = 0.0
        if advice != 0.0:
            assert advice is not None
            assert advice >= 0.05
            assert self.queue.refused == refused + 1
            assert full or wait > patience - 1e-6, "there was room and time"
            greediest = max(held.values(), default=0)
            share = LIMIT // len(self.queue.by_uid().keys() | {uid})
            fair = self.held(uid) >= share or greediest <= self.held(uid) + 1
            assert fair or wait > patience - 1e-6, "somebody else had more"
            return
        assert (victim is not None) == full
        if victim is not None:
            assert victim is self.queues[victim.uid][-1], "the newest goes"
            assert held[victim.uid] == max(held.values()), "of the greediest"
            assert held[victim.uid] > self.held(uid) + 1, "who has more, even afterwards"
            assert self.held(uid) < LIMIT // len({*self.queue.by_uid(), uid, victim.uid})
            self.left(victim)
        if not self.queues[uid]:
            self.passed[uid] = defaultdict(int)
        self.queues[uid].append(job)

    @rule(target=running)
    def next(self) -> object:
        job = self.take()
        return multiple() if job is None else job

    def take(self) -> Job | None:
        peeked = self.queue.peek()
        job = take(self.queue)
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
        self.queue.finished(job)

    @rule(job=consumes(running))
    def requeue(self, job: Job) -> None:
        self.at_work.remove(job)
        self.queue.requeue(job)
        assert self.queue.peek() is job
        self.passed.setdefault(job.uid, defaultdict(int))
        self.queues[job.uid].insert(0, job)
        for turns in self.passed.values():
            turns[job.uid] -= 1  # this one does not count: it had waited for it before

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.waiting))
        assert self.queue.withdraw(job)
        assert not self.queue.withdraw(job)
        self.left(job)

    @rule(owner=st.sampled_from("xyz"))
    def cancel(self, owner: str) -> None:
        expected = {job for job in self.waiting if job.owner == owner}
        taken = self.queue.cancel(owner)
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
        serve(self.queue, seconds)
        for _ in range(5):
            self.between.learn(seconds)

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        waiting = self.waiting
        assert self.queue.waiting == len(waiting)
        assert self.queue.total == len(waiting) + len(self.at_work) <= LIMIT
        counts: dict[int, int] = defaultdict(int)
        for job in [*waiting, *self.at_work]:
            counts[job.uid] += 1
        assert self.queue.by_uid() == counts
        oldest = max((self.now - job.arrived for job in waiting), default=0)
        assert self.queue.oldest(self.now) == oldest


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
