"""threads.py: what a batch that is alone gets, as the host's other work comes and goes."""

from __future__ import annotations

from swiprd.pool.thread_choice import Threads


class Host:
    """Answers as a host would: seconds that an image takes, by threads."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.threads = Threads(1, 2)

    def images(self, number: int) -> list[int]:
        """Let lone images come, one after the other; return what each was given."""
        given = []
        for _ in range(number):
            threads = self.threads.alone()
            self.threads.learn(threads, self.seconds["one" if threads == 1 else "two"])
            given.append(threads)
        return given


def test_all_cores_until_something_is_known() -> None:
    assert Threads(1, 2).alone() == 2


def test_all_cores_while_that_is_faster_but_for_a_trial_now_and_then() -> None:
    given = Host(one=0.130, two=0.085).images(1000)
    assert given.count(2) > 950
    assert 2 <= given.count(1) <= 10
    first = given.index(1)
    assert given.index(1, first + 1) - first > 50, "the second trial waits longer than the first"


def test_few_threads_soon_after_another_process_came_and_all_soon_after_it_went() -> None:
    host = Host(one=0.130, two=0.085)
    host.images(100)
    host.seconds = {"one": 0.140, "two": 0.730}
    assert host.images(100).count(2) <= 3
    host.seconds = {"one": 0.130, "two": 0.085}
    assert host.images(400)[-100:].count(2) >= 99


def test_one_slow_image_alone_changes_little() -> None:
    host = Host(one=0.130, two=0.085)
    host.images(40)
    host.threads.learn(2, 0.2)
    assert host.images(10) == [2] * 10


def test_what_busy_workers_tell_counts_too() -> None:
    threads = Threads(1, 2)
    threads.learn(2, 0.5)
    assert threads.alone() == 2
    threads.learn(1, 0.13)
    assert threads.alone() == 1


def test_nothing_to_choose() -> None:
    threads = Threads(2, 2)
    for seconds in (0.1, 9.0, 0.1):
        threads.learn(2, seconds)
        assert threads.alone() == 2
