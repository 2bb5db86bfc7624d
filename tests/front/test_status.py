"""stats.py: what is counted where."""

from __future__ import annotations

import pytest

from swiprd.front.stats import BOUNDS, Stats

pytestmark = pytest.mark.timeout(30)


def test_outcomes_and_uids_are_counted() -> None:
    stats = Stats()
    stats.ended(1000, "ok", 0.02)
    stats.ended(1000, "bad-image", 0.01)
    stats.ended(0, "ok", 0.02)
    assert stats.outcomes == {"ok": 2, "bad-image": 1}
    assert stats.by_uid == {1000: 2, 0: 1}


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.005, 0), (0.0051, 1), (0.1, 4), (10.0, len(BOUNDS) - 1), (10.1, len(BOUNDS))],
)
def test_a_bucket_has_what_is_not_above_its_bound(seconds: float, bucket: int) -> None:
    stats = Stats()
    stats.ended(0, "ok", seconds)
    counts = stats.latency()["counts"]
    assert isinstance(counts, list)
    assert len(counts) == len(BOUNDS) + 1
    assert counts.index(1) == bucket


def test_latency_is_of_what_was_answered() -> None:
    stats = Stats()
    for seconds in (0.01, 0.02, 0.3):
        stats.ended(0, "ok", seconds)
    stats.ended(0, "deadline", 10.0)
    latency = stats.latency()
    assert latency["bounds"] == list(BOUNDS) == sorted(BOUNDS)
    assert sum(latency["counts"]) == 3  # type: ignore[call-overload]
    assert latency["sum"] == pytest.approx(0.33)


def test_what_is_given_out_is_a_copy() -> None:
    stats = Stats()
    stats.latency()["counts"].append(99)  # type: ignore[attr-defined]
    assert len(stats.latency()["counts"]) == len(BOUNDS) + 1  # type: ignore[arg-type]


def test_uids_without_end_do_not_grow_it_without_end() -> None:
    stats = Stats()
    for uid in range(5000):
        stats.ended(uid, "ok", 0.01)
    stats.ended(0, "ok", 0.01)
    assert len(stats.by_uid) == 1024
    assert stats.by_uid[0] == 2
    assert stats.outcomes["ok"] == 5001
