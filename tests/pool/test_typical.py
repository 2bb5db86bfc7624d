"""typical.py and haste.py: what is usual, and who gives less than that."""

from __future__ import annotations

import pytest

from swiprd.front.short_deadlines import ShortDeadlines
from swiprd.pool.typical import Typical


class TestTypical:
    def test_nothing_is_known_of_too_few(self) -> None:
        typical = Typical(least=3)
        typical.learn(1.0)
        typical.learn(1.0)
        assert typical.seconds == 0.0
        typical.learn(1.0)
        assert typical.seconds == 1.0

    @pytest.mark.parametrize("at", [0, 3, 19])
    def test_one_that_is_far_from_the_rest_does_not_count(self, at: int) -> None:
        typical = Typical()
        for number in range(20):
            typical.learn(29.0 if number == at else 0.1)
        assert typical.seconds == pytest.approx(0.1)

    def test_what_is_frequent_is_usual(self) -> None:
        typical = Typical()
        for number in range(32):
            typical.learn(2.0 if number % 2 else 0.1)
        assert 0.7 < typical.seconds < 1.1

    def test_what_was_long_ago_is_forgotten(self) -> None:
        typical = Typical()
        for seconds in [10.0] * 100 + [0.1] * 32:
            typical.learn(seconds)
        assert typical.seconds == pytest.approx(0.1)


class TestHaste:
    def test_the_third_in_a_row_has_consequences(self) -> None:
        haste = ShortDeadlines()
        for now in (0.0, 1.0):
            haste.killed(7, 0.01, 0.02, now)
            assert haste.wait(7, 0.02, now) == 0.0
        haste.killed(7, 0.01, 0.02, 2.0)
        assert haste.wait(7, 0.02, 2.0) == 0.5
        assert haste.wait(7, 0.02, 2.4) == pytest.approx(0.1)
        assert haste.wait(7, 0.02, 9.0) == 0.0

    def test_whoever_gives_more_may_try(self) -> None:
        haste = ShortDeadlines()
        for _ in range(3):
            haste.killed(7, 0.01, 0.02, 0.0)
        assert haste.wait(7, 0.03, 0.0) == 0.0
        assert haste.wait(8, 0.01, 0.0) == 0.0, "another uid"

    def test_it_takes_longer_each_time_up_to_a_bound(self) -> None:
        haste = ShortDeadlines()
        waits = []
        for _ in range(40):
            haste.killed(7, 0.01, 0.02, 0.0)
            waits.append(haste.wait(7, 0.02, 0.0))
        assert waits[:7] == [0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0]
        assert max(waits) == 8.0

    def test_an_answer_ends_it(self) -> None:
        haste = ShortDeadlines()
        for _ in range(3):
            haste.killed(7, 0.01, 0.02, 0.0)
        haste.answered(7)
        haste.killed(7, 0.01, 0.02, 0.0)
        assert haste.wait(7, 0.02, 0.0) == 0.0

    def test_what_had_its_time_is_no_haste(self) -> None:
        haste = ShortDeadlines()
        for _ in range(9):
            haste.killed(7, 0.5, 10.0, 0.0)
        assert haste.wait(7, 0.02, 0.0) == 0.0

    def test_uids_are_forgotten(self) -> None:
        haste = ShortDeadlines()
        for uid in range(5000):
            haste.killed(uid, 0.01, 0.02, 0.0)
        for uid in (0, 4999):
            haste.killed(uid, 0.01, 0.02, 0.0)
            haste.killed(uid, 0.01, 0.02, 0.0)
        assert haste.wait(0, 0.02, 0.0) == 0.0, "its first kill is forgotten"
        assert haste.wait(4999, 0.02, 0.0) > 0.0
