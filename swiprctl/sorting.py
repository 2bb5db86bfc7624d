"""Rows in the order of a label's probability, all of them or the N most extreme.

What is kept are the records as they will be written, at most N with a limit: so a million images
take the memory of N rows. Without one, all rows are kept until the last has come.
"""

from __future__ import annotations

from heapq import heappush, heappushpop

from swiprctl.errors import TryLater, UsageError
from swiprctl.output import Writer
from swiprctl.rows import Prediction, distinct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from swiprctl.errors import SwiprError
    from swiprctl.output import Format

_LISTED = 20
"""Labels that an error lists, of a model that has more."""


class SortedWriter(Writer):
    """A `Writer` that puts the header and the failures as they come, and the rows in the end.

    Args:
        label: what the rows are sorted by, the highest probability first; one that occurs twice is
            named with its index, "crane (134)".
        reverse: whether the lowest comes first. No number (NaN) comes last either way, and equals
            in the order of the inputs.
        limit: how many rows are put; None puts all.
    """

    def __init__(
        self,
        format: Format,
        put: Callable[[bytes], None],
        *,
        label: str,
        reverse: bool = False,
        limit: int | None = None,
        header: bool = False,
        failures: bool = False,
        ask: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        super().__init__(format, put, header=header, failures=failures, ask=ask)
        self._label = label
        self._sign = -1.0 if reverse else 1.0
        self._limit = limit
        self._kept: list[tuple[bool, float, int, bytes]] = []  # with a limit, a heap: worst first
        self._count = 0
        self._index: tuple[Sequence[str], int] | None = None

    def take(self, path: str, answer: Prediction | SwiprError) -> SwiprError | None:
        """Keep a row, or put the record of a failure; gives the failure that it is, or has become.

        Raises:
            UsageError: the first model to answer has no such label. That a later one has none is
                that image's failure: the rows before it are kept.
            OutputFailed: nothing more is taken.
        """
        if isinstance(answer, Prediction):
            try:
                self._place(answer.labels or ())
            except UsageError as error:
                if self._index is None:
                    raise
                answer = TryLater(f"{error}; another model answered before")
        return super().take(path, answer)

    def finish(self) -> None:
        """Put the rows.

        Raises:
            OutputFailed: not all of them are taken.
        """
        self._kept.sort(reverse=True)
        for *_, record in self._kept:
            self._put(record)
        self._kept.clear()

    def _put_row(self, path: str, prediction: Prediction) -> None:
        """Keep a row, of a model that has the label."""
        value = prediction.probabilities[self._place(prediction.labels or ())]
        is_number = value == value
        self._count -= 1  # of equals, the later one is worse
        kept = (
            is_number,
            self._sign * value if is_number else 0.0,
            self._count,
            self._format.row(path, prediction),
        )
        if self._limit is None:
            self._kept.append(kept)
        elif len(self._kept) < self._limit:
            heappush(self._kept, kept)
        else:
            heappushpop(self._kept, kept)

    def _place(self, labels: Sequence[str]) -> int:
        if self._index is None or self._index[0] is not labels:
            self._index = labels, place(self._label, labels)
        return self._index[1]


def place(label: str, labels: Sequence[str]) -> int:
    """Find a label's index.

    Raises:
        UsageError: there is no such label; the message lists those there are.
    """
    names = distinct(labels)
    if label in names:
        return names.index(label)
    twins = [name for name, plain in zip(names, labels, strict=True) if plain == label]
    shown = twins or names
    listed = ", ".join(shown[:_LISTED])
    if len(shown) > _LISTED:
        listed += ", ... ('swiprctl model --json' has all)"
    what = "more than one label" if twins else "no label"
    raise UsageError(f"--sort: the model has {what} {label!r}; it has {listed}")
