"""What has become of the inputs so far: how many were answered, how many failed and why."""

from __future__ import annotations

from time import monotonic

from swiprctl.errors import CannotOpen, NoDaemon, SwiprError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CODES = {CannotOpen: "cannot-open", NoDaemon: "no-daemon"}
"""Of errors that never travel, and so have no code."""


class Tally:
    """Counts, from the moment that it is made.

    Args:
        total: asked for how many inputs there are, or None as long as nobody knows.
        skipped: asked for how many files a walk has come upon that are no images.

    Attributes:
        answered: inputs that have an answer.
        failed: inputs that have an error, by its code.
    """

    __slots__ = ("_began", "_skipped", "_total", "answered", "failed")

    def __init__(
        self,
        total: Callable[[], int | None] = lambda: None,
        skipped: Callable[[], int] = lambda: 0,
    ) -> None:
        self._began = monotonic()
        self._total = total
        self._skipped = skipped
        self.answered = 0
        self.failed: dict[str, int] = {}

    def fail(self, error: SwiprError) -> None:
        """Count an input that failed."""
        code = error.code or next(
            (code for kind, code in _CODES.items() if isinstance(error, kind)), "error"
        )
        self.failed[code] = self.failed.get(code, 0) + 1

    @property
    def total(self) -> int | None:
        """How many inputs there are; None as long as nobody knows."""
        return self._total()

    @property
    def skipped(self) -> int:
        """How many files a walk has come upon that are no images."""
        return self._skipped()

    @property
    def failures(self) -> int:
        """How many have failed."""
        return sum(self.failed.values())

    @property
    def done(self) -> int:
        """How many have been answered or have failed."""
        return self.answered + self.failures

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return monotonic() - self._began

    def summary(self) -> str:
        """Say all of it in a line."""
        from swiprctl.report import duration

        parts = [f"{self.answered:,} answered"]
        if self.failed:
            why = ", ".join(f"{number:,} {code}" for code, number in sorted(self.failed.items()))
            parts.append(f"{self.failures:,} failed ({why})")
        if skipped := self.skipped:
            parts.append(f"{skipped:,} skipped (no images)")
        seconds = self.seconds
        return f"{', '.join(parts)} in {duration(seconds)}, {rate(self.done / seconds)}"


def rate(each_second: float) -> str:
    """Say how many that is a second: with three digits, or with all before the point."""
    return f"{each_second:,.0f}/s" if each_second >= 100 else f"{each_second:.3g}/s"
