"""What happened so far: outcomes, latencies and who asked. Counts only; pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: the histogram's upper bounds, Prometheus' usual ones. The last bucket has no bound."""

_UIDS_KEPT = 1024  # a host has as many users as it has; a fuzzer must not grow this without end


class Stats:
    """Counters since the daemon's start."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()  # "ok" or a wire code
        self.by_uid: Counter[int] = Counter()
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0

    def ended(self, uid: int, outcome: str, seconds: float) -> None:
        """Count one predict request; `seconds` from its arrival to its answer."""
        self.outcomes[outcome] += 1
        if uid in self.by_uid or len(self.by_uid) < _UIDS_KEPT:
            self.by_uid[uid] += 1
        if outcome == "ok":
            self._buckets[bisect_left(BOUNDS, seconds)] += 1
            self._seconds += seconds

    def latency(self) -> dict[str, object]:
        """The histogram of answered requests: bounds in seconds, counts not cumulated."""
        return {
            "bounds": list(BOUNDS),
            "counts": list(self._buckets),
            "sum": self._seconds,
        }
