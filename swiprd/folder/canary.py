"""The image that a worker must answer rightly before anyone relies on it. Pure.

A model's folder may name its own canary and the row it gives. Without one the shipped photograph
is used; then the first worker's row, once it is plausible, is what all later workers must give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swiprd.system.messages import Limits

TOLERANCE = 1e-4
"""How far a probability may differ: the exactness that swipr promises. Threads change sums."""


class WrongAnswer(Exception):
    """A worker's row for the canary is not the expected row, or no row of probabilities."""


CANARY_LIMITS = Limits(max_bytes=64 << 20, max_pixels=178_956_970, max_decode=60.0)
"""Limits for the canary: those that the settings put on clients' images are not for it."""


@dataclass(kw_only=True)
class Canary:
    """The image's bytes, and the row to expect: None until the model or a worker has given one."""

    image: bytes
    expected: tuple[float, ...] | None
    activation: str
    classes: int

    def check(self, row: Sequence[float]) -> None:
        """Compare a worker's row with what is expected; a first plausible row sets that.

        Raises:
            WrongAnswer: it differs, or no model of this kind can have given it.
        """
        if len(row) != self.classes:
            raise WrongAnswer(f"{len(row)} probabilities for {self.classes} labels")
        if not all(math.isfinite(p) for p in row):
            raise WrongAnswer("a probability that is not a number")
        if self.activation != "none" and not all(-TOLERANCE <= p <= 1 + TOLERANCE for p in row):
            raise WrongAnswer("a probability outside 0 to 1")
        if self.activation in ("softmax", "log_softmax") and abs(sum(row) - 1) > 1e-3:
            raise WrongAnswer(f"probabilities that sum to {sum(row):.6g}")
        if self.expected is None:
            self.expected = tuple(row)
            return
        for label, (found, expected) in enumerate(zip(row, self.expected, strict=True)):
            if abs(found - expected) > TOLERANCE * max(1.0, abs(expected)):
                raise WrongAnswer(
                    f"{found:.6g} for label {label} of the canary, {expected:.6g} expected"
                )
