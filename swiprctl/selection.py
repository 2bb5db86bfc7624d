"""`swiprctl select`, and the sinks for it: `Where` picks the answers that fulfil a condition,
`Matches` prints their paths.

Imported by `swiprctl select` and `predict --where` alone.
"""

from __future__ import annotations

import os

from swiprctl.condition import OPERATORS, Condition, ConditionError
from swiprctl.errors import SwiprError, TryLater, UsageError
from swiprctl.expression import parse
from swiprctl.rows import Prediction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from swiprctl.arguments import Arguments
    from swiprctl.output import Sink

_NONE, _FAILED = 1, 2  # exit statuses, as grep has them


def select(
    arguments: Arguments, put: Callable[[bytes], None], predict: Callable[[Sink], int]
) -> int:
    """Print the paths of what fulfils the condition; gives the exit status, as grep has it.

    Args:
        put: takes the bytes of one path.
        predict: has the inputs answered into a sink; gives 0 if none failed.

    Raises:
        UsageError: the condition is none, or not one on the model's labels.
        OutputFailed: nothing more is taken.
    """
    matches = Matches(put, b"\0" if arguments.null else b"\n")
    expression = arguments.where or ""
    try:
        _look_for_another(arguments.paths)
        failed = predict(Where(matches, parse(expression), invert=arguments.invert))
    except ConditionError as error:
        if not os.path.lexists(expression):
            raise
        kind = "folder" if os.path.isdir(expression) else "file"
        raise UsageError(
            f"{expression} is a {kind}, and the first operand is the condition: swiprctl select"
            " 'blurred > 0.8' PATH..."
        ) from error
    if failed:
        return _FAILED
    return 0 if matches.any else _NONE


def _look_for_another(paths: list[str]) -> None:
    """See that no condition stands where the paths do, as where two operands were swapped.

    Raises:
        UsageError: this one is no file's name, and is a condition.
    """
    for path in paths:
        if not any(operator in path for operator in OPERATORS) or os.path.lexists(path):
            continue
        try:
            parse(path)
        except ConditionError:
            continue
        raise UsageError(
            f"{path!r} is a condition and no file, and the condition comes first: swiprctl select"
            " 'blurred > 0.8' PATH..."
        )


class Where:
    """Hands on the answers that fulfil a condition, and all failures; the rest is dropped.

    Args:
        sink: what stands behind it.
        condition: what to fulfil.
        invert: hand on the answers that do not.
    """

    def __init__(self, sink: Sink, condition: Condition, *, invert: bool = False) -> None:
        self._sink = sink
        self._condition = condition
        self._invert = invert
        self._fits = False

    def take(self, path: str, answer: Prediction | SwiprError) -> SwiprError | None:
        """Judge an answer; gives the failure that it is, or has become.

        Raises:
            ConditionError: the first model to answer has not the labels of the condition. Those of
                a later one are that image's failure: it may have answered others before.
            OutputFailed: nothing more is taken.
        """
        if isinstance(answer, Prediction):
            try:
                chosen = self._condition.fulfilled(answer) is not self._invert
                self._fits = True
            except ConditionError as error:
                if not self._fits:
                    raise
                return self._sink.take(path, TryLater(f"{error}; another model answered before"))
            if not chosen:
                self._sink.drop(path, answer)
                return None
        return self._sink.take(path, answer)

    def drop(self, path: str, prediction: Prediction) -> None:
        """Tell the next."""
        self._sink.drop(path, prediction)

    def finish(self) -> None:
        """Have the next write what it holds back."""
        self._sink.finish()

    def close(self) -> None:
        """Have the next let go of what is open."""
        self._sink.close()


class Matches:
    """The last sink of `select`: prints the path of each answer that comes so far.

    Attributes:
        any: whether one came.
    """

    def __init__(self, put: Callable[[bytes], None], end: bytes) -> None:
        """Print by `put`, each path as it was given, with `end` behind it."""
        self._put = put
        self._end = end
        self.any = False

    def take(self, path: str, answer: Prediction | SwiprError) -> SwiprError | None:
        """Print a path; gives a failure back.

        Raises:
            OutputFailed: nothing more is taken.
        """
        if isinstance(answer, SwiprError):
            return answer
        self.any = True
        self._put(os.fsencode(path) + self._end)
        return None

    def drop(self, path: str, prediction: Prediction) -> None:
        """Print nothing."""

    def finish(self) -> None:
        """Print nothing more: no path was held back."""

    def close(self) -> None:
        """Close nothing."""
