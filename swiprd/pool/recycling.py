"""When a worker has served long enough and another takes its place: a model may leak. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RecyclingLimits:
    """What a worker may do before it is replaced; 0 for either: whatever it likes.

    Attributes:
        requests: that it answers.
        growth: bytes of memory of its own, on top of what it had after its first answer.
    """

    requests: int
    growth: int

    def worn(self, answered: int, grown: int) -> str:
        """Say why a worker is to be replaced; empty where it is not."""
        if self.requests and answered >= self.requests:
            return f"it has answered {answered} requests"
        if self.growth and grown >= self.growth:
            return f"it has grown by {grown >> 20} MiB"
        return ""
