"""Conditions on a row, such as `blurred > 0.8 and not top == "cat"`: their tree, bound to a model.

A condition is made by `expression.parse` from what the user writes, and knows labels by name. Which
probability a label stands for is the model's matter: `Bound` looks the names up once for each model
that answers, so that a reload in the middle is no mistake. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swiprctl.errors import UsageError
from swiprctl.rows import Prediction, distinct, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Operand: TypeAlias = "Number | Label | Top"
    Node: TypeAlias = "Comparison | Reached | Not | All | Any"

Numbers = Sequence[float]

_LISTED = 20
"""Labels that an error lists: of more, the nearest."""

_SHOWN = 22
"""Characters shown before, of and behind what an error means."""

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    "==": lambda left, right: left == right,
    # Like the others, false where one of them is NaN.
    "!=": lambda left, right: left < right or left > right,
}
OPERATORS = frozenset(_COMPARE)


class ConditionError(UsageError):
    """The condition cannot be understood, or not with this model.

    Attributes:
        expression: as the user wrote it.
        start, end: which of its characters are meant.
    """

    def __init__(self, message: str, expression: str, start: int, end: int) -> None:
        super().__init__(message)
        self.expression = expression
        self.start = start
        self.end = end

    def lines(self) -> list[str]:
        """Show the expression with carets below what is meant, in 76 columns, and the message."""
        before = _plain(self.expression[: self.start])
        meant = _plain(self.expression[self.start : self.end])[:_SHOWN]
        behind = _plain(self.expression[self.end :])
        if len(before) > _SHOWN:
            before = "..." + before[-_SHOWN:]
        if len(behind) > _SHOWN:
            behind = behind[:_SHOWN] + "..."
        carets = "^" * max(1, _columns(meant))
        return [str(self), f"  {before}{meant}{behind}", f"  {' ' * _columns(before)}{carets}"]


@dataclass(frozen=True, slots=True)
class Number:
    """A number."""

    value: float


@dataclass(frozen=True, slots=True)
class Label:
    """A label's probability, or behind `top ==` its name; `start` to `end` is where it stands."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Top:
    """The best label's name."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a < b`, or a chain, `a < b <= c`: one operator fewer than operands. With `Top`, the chain
    is one of two, the other is a `Label`, and the operator is `==` or `!=`."""

    operands: tuple[Operand, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reached:
    """A label by itself: its probability reaches the threshold that the model has for it."""

    label: Label


@dataclass(frozen=True, slots=True)
class Not:
    """`not a`."""

    operand: Node


@dataclass(frozen=True, slots=True)
class All:
    """`a and b and …`."""

    operands: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """`a or b or …`."""

    operands: tuple[Node, ...]


class Condition:
    """A condition on predictions, whichever model makes them."""

    def __init__(self, expression: str, tree: Node) -> None:
        self.expression = expression
        self.tree = tree
        self._bound: dict[str, Bound] = {}

    def fulfilled(self, prediction: Prediction) -> bool:
        """Whether a row fulfils it.

        Args:
            prediction: with its labels, which a `Client(labels=True)` gives.

        Raises:
            ConditionError: the model has not the labels, or not the thresholds, that it names.
        """
        bound = self._bound.get(prediction.model)
        if bound is None:
            bound = Bound(self, prediction)
            if len(self._bound) > 8:  # over that many reloads, nothing of the first is under way
                self._bound.clear()
            self._bound[prediction.model] = bound
        return bound.test(prediction.probabilities)


class Bound:
    """A condition on the probabilities of one model.

    Comparisons see a probability as it is printed, with six significant digits: 0.7 in float32 is
    a little less than 0.7, and the row says 0.7. Thresholds and the best label are judged on the
    probabilities as they came, as `predict --labels` and `--top` do.
    """

    def __init__(self, condition: Condition, prediction: Prediction) -> None:
        """Look up the labels.

        Args:
            prediction: one of the model's, with its labels.

        Raises:
            ConditionError: the model has not the labels, or not the thresholds, that it names.
        """
        self._expression = condition.expression
        self._model = prediction.model
        self._labels = prediction.labels or ()
        self._distinct = distinct(self._labels)
        self._thresholds = prediction.thresholds
        self.test = self._node(condition.tree)

    def _node(self, node: Node) -> Callable[[Numbers], bool]:
        match node:
            case Not(operand):
                inner = self._node(operand)
                return lambda row: not inner(row)
            case All(operands):
                every = [self._node(one) for one in operands]
                return lambda row: all(test(row) for test in every)
            case Any(operands):
                some = [self._node(one) for one in operands]
                return lambda row: any(test(row) for test in some)
            case Reached(label):
                return self._reached(label)
            case Comparison((Top(), Label() as label) | (Label() as label, Top()), (operator,)):
                index, wanted = self._index(label), operator == "=="
                return lambda row: (best := _top(row)) >= 0 and (best == index) is wanted
            case Comparison(operands, operators):
                return self._chain(operands, operators)

    def _chain(
        self, operands: tuple[Operand, ...], operators: tuple[str, ...]
    ) -> Callable[[Numbers], bool]:
        values = [self._value(one) for one in operands]
        compare = [_COMPARE[operator] for operator in operators]

        def test(row: Numbers) -> bool:
            found = [value(row) for value in values]
            return all(map(_holds, compare, found, found[1:]))

        return test

    def _value(self, operand: Operand) -> Callable[[Numbers], float]:
        match operand:
            case Number(value):
                return lambda _: value
            case Label():
                index = self._index(operand)
                return lambda row: float(number(row[index]))
            case Top():
                raise AssertionError("a chain with top")  # the parser makes none

    def _reached(self, label: Label) -> Callable[[Numbers], bool]:
        index = self._index(label)
        if self._thresholds is None:
            name = self._expression[label.start : label.end]
            raise self._error(
                label,
                f"{self._model} has no threshold for {label.name!r}: compare it with a number, as"
                f" in '{name} > 0.5', and quote that, or the shell takes > for itself",
            )
        threshold = self._thresholds[index]
        return lambda row: row[index] >= threshold

    def _index(self, label: Label) -> int:
        """Find which probability a label names: one of several by its index, `crane (134)`."""
        if label.name in self._distinct:
            return self._distinct.index(label.name)
        same = [
            one
            for one, plain in zip(self._distinct, self._labels, strict=True)
            if plain == label.name
        ]
        if same:
            told = " or ".join(f'"{one}"' for one in same[:_LISTED])
            raise self._error(
                label, f"{self._model} has {len(same)} labels {label.name!r}: write {told}"
            )
        alike = [one for one in self._distinct if one.casefold() == label.name.casefold()]
        meant = f"; did you mean {alike[0]!r}?" if alike else f"; {self._having(label.name)}"
        raise self._error(label, f"{self._model} has no label {label.name!r}{meant}")

    def _having(self, name: str) -> str:
        """List the labels, or of many those that are most like a name."""
        if len(self._distinct) <= _LISTED:
            return f"it has {', '.join(self._distinct)}"
        from difflib import SequenceMatcher

        def likeness(label: str) -> float:
            lower, wanted = label.lower(), name.lower()
            return (wanted in lower) + SequenceMatcher(None, lower, wanted).ratio()

        nearest = sorted(self._distinct, key=likeness, reverse=True)[: _LISTED // 2]
        more = len(self._distinct) - len(nearest)
        return f"the nearest are {', '.join(nearest)}; 'swiprctl model' lists {more} more"

    def _error(self, label: Label, message: str) -> ConditionError:
        return ConditionError(message, self._expression, label.start, label.end)


def _holds(compare: Callable[[float, float], bool], left: float, right: float) -> bool:
    return compare(left, right)


def _top(row: Numbers) -> int:
    """Find the best label as `rows.best` does: the first of equals, and NaN below every number.
    Where nothing is a number, nothing is best: -1."""
    best = min(range(len(row)), key=lambda i: -p if (p := row[i]) == p else float("inf"))
    return best if row[best] == row[best] else -1


def _plain(text: str) -> str:
    """Show what moves the cursor, or is no character, as a question mark."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _columns(text: str) -> int:
    """Count the columns that a terminal takes for printable characters."""
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)
