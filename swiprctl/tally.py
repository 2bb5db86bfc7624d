"""What has become of the inputs so far: how many were answered, how many failed and why."""

from __future__ import annotations

from time import monotonic

from swiprctl.errors import SwiprError
from swiprctl.rows import code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swiprctl.output import Sink
    from swiprctl.rows import Prediction


class Tally:
    """A sink before another: counts what it takes, from the moment that it is made.

    Args:
        sink: takes the answers.
        inputs: what they are of, which may have a `total` of them, or None as long as nobody knows;
            and `skipped`: how many files a walk has come upon that are no images.

    Attributes:
        answered: inputs that have an answer.
        failed: inputs that have an error, by its code.
    """

    __slots__ = ("_began", "_inputs", "_sink", "answered", "failed")

    def __init__(self, sink: Sink, inputs: object) -> None:
        self._sink = sink
        self._began = monotonic()
        self._inputs = inputs
        self.answered = 0
        self.failed: dict[str, int] = {}

    def take(self, path: str, answer: Prediction | SwiprError) -> SwiprError | None:
        """Count an answer that is handed on; gives the failure that it is, or has become."""
        failure = self._sink.take(path, answer)
        if failure is None:
            self.answered += 1
        else:
            why = code(failure)
            self.failed[why] = self.failed.get(why, 0) + 1
        return failure

    def drop(self, path: str, prediction: Prediction) -> None:
        """Count an answer of which there is to be no record."""
        self._sink.drop(path, prediction)
        self.answered += 1

    def finish(self) -> None:
        """Have it finish what it holds back."""
        self._sink.finish()

    def close(self) -> None:
        """Have it let go of what is open."""
        self._sink.close()

    @property
    def total(self) -> int | None:
        """How many inputs there are; None as long as nobody knows."""
        if isinstance(self._inputs, list):
            return len(self._inputs)
        total = getattr(self._inputs, "total", None)
        return total if isinstance(total, int) else None

    @property
    def skipped(self) -> int:
        """How many files a walk has come upon that are no images."""
        skipped = getattr(self._inputs, "skipped", 0)
        return skipped if isinstance(skipped, int) else 0

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
