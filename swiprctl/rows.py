"""Predictions, and their text: CSV rows, as bytes. Pure. Other formats are in formats.py.

Bytes, because a path need not be UTF-8, and because rows end in a line feed alone: RFC 4180 asks
for CR LF, but these rows are read by shell pipelines, where the CR would stick to the last number.
"""

from __future__ import annotations

import os

from swiprctl.errors import BadRequest, CannotOpen, NoDaemon, SwiprError, TryLater

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeGuard

_DIGITS = 6
"""Significant digits. float32 carries seven."""

_MODELS_KNOWN = 8
"""Models whose labels are kept: those that answer what is under way, over some reloads."""


class Prediction:
    """What the model says about one image.

    Attributes:
        probabilities: one for each of the model's labels, in their order.
        model: the id of the model that answered.
        queued, decode, infer: seconds spent waiting, on the image, and in the model.
        labels: that model's, one for each probability; None of a `Client(labels=False)`, and of a
            daemon that is older than these.
        thresholds: what each probability must reach, in the same order; None where the model has
            none, or nobody asked.
    """

    __slots__ = (
        "decode",
        "infer",
        "labels",
        "model",
        "probabilities",
        "queued",
        "thresholds",
    )

    def __init__(
        self,
        probabilities: tuple[float, ...],
        model: str,
        queued: float = 0.0,
        decode: float = 0.0,
        infer: float = 0.0,
    ) -> None:
        self.probabilities = probabilities
        self.model = model
        self.queued = queued
        self.decode = decode
        self.infer = infer
        self.labels: tuple[str, ...] | None = None
        self.thresholds: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        if self.labels is None:
            shown = ", ".join(f"{p:.6g}" for p in self.probabilities[:5])
        else:
            shown = ", ".join(f"{label}: {p:.6g}" for label, p in self.top(5))
        more = ", …" if len(self.probabilities) > 5 else ""
        return f"Prediction(({shown}{more}), model={self.model!r})"

    def top(self, count: int = 1) -> list[tuple[str, float]]:
        """Give the labels with the highest probabilities, each with its own, the best first.

        Args:
            count: how many; of a model with fewer labels, all of them.

        Raises:
            ValueError: `count` is below 0, or the prediction has no labels.
        """
        if count < 0:
            raise ValueError(f"count: at least 0, found {count}")
        return best(self._distinct(), self.probabilities, most=count)

    def as_dict(self) -> dict[str, float]:
        """Map each label to its probability, in the model's order.

        Labels that occur twice have their index behind them, here and in `top`: ImageNet has a
        "crane (134)" and a "crane (517)".

        Raises:
            ValueError: the prediction has no labels.
        """
        return dict(zip(self._distinct(), self.probabilities, strict=True))

    def _distinct(self) -> list[str]:
        if self.labels is None:
            raise ValueError(
                "the prediction has no labels: a Client(labels=True) sees to it that it has"
            )
        return distinct(self.labels)

    @classmethod
    def parse(cls, fields: dict[str, object]) -> Prediction:
        """Validate a reply's fields; unknown ones are ignored.

        Raises:
            BadRequest: this is not a prediction.
        """
        probabilities = fields.get("probabilities")
        model = fields.get("model")
        if not _are_numbers(probabilities):
            raise BadRequest("the daemon's reply has no probabilities")
        if not isinstance(model, str):
            raise BadRequest("the daemon's reply does not name its model")
        times = [fields.get(name, 0.0) for name in ("queued", "decode", "infer")]
        if not _are_numbers(times):
            raise BadRequest("the daemon's reply has timings that are no numbers")
        prediction = cls(tuple(map(float, probabilities)), model, *map(float, times))
        if "labels" in fields:
            prediction.take_labels(fields)
        return prediction

    def take_labels(self, fields: dict[str, object]) -> None:
        """Validate and take the labels and thresholds among a reply's fields.

        Raises:
            BadRequest: they do not go with the probabilities.
        """
        labels, thresholds = fields.get("labels"), fields.get("thresholds")
        count = len(self.probabilities)
        if not isinstance(labels, list):
            raise BadRequest("the daemon does not name its labels")
        if len(labels) != count:
            raise BadRequest(f"the daemon names {len(labels)} labels for {count} probabilities")
        if thresholds is not None:
            if not isinstance(thresholds, list) or len(thresholds) != count:
                raise BadRequest("the daemon does not name a threshold for each label")
            if not _are_numbers(thresholds):
                raise BadRequest("the daemon names thresholds that are no numbers")
            self.thresholds = tuple(thresholds)
        self.labels = tuple(map(str, labels))


class KnownLabels:
    """The labels of models that have answered. A request names the model whose labels the client
    has, and a reply of that model leaves them out."""

    def __init__(self) -> None:
        self._by_model: dict[str, Prediction] = {}

    @property
    def latest(self) -> str:
        """The id of the model that was last heard of for the first time; empty before."""
        return next(reversed(self._by_model), "")

    def complete(self, prediction: Prediction, ask: Callable[[], dict[str, object]] | None) -> None:
        """Give a prediction the labels of its model, if it has none.

        Args:
            ask: describes the model that serves now; needed where the daemon, an older one, tells
                no labels with a row. None: then the prediction stays without.

        Raises:
            TryLater: that is another model than the one that answered.
            SwiprError: nothing usable was heard of it.
        """
        known = self._by_model.get(prediction.model)
        if prediction.labels is None and known is not None:
            prediction.labels, prediction.thresholds = known.labels, known.thresholds
        elif prediction.labels is None:
            if ask is None:
                return
            described = ask()
            if described.get("model") != prediction.model:
                raise TryLater(
                    f"{prediction.model} answered, but has been replaced since, and its labels are"
                    " not known any more; ask again"
                )
            prediction.take_labels(described)
        if known is None:
            self._by_model[prediction.model] = prediction
            if len(self._by_model) > _MODELS_KNOWN:
                del self._by_model[next(iter(self._by_model))]


def number(value: float) -> str:
    """Write a number with 6 significant digits and no exponent, whatever its size."""
    text = f"{value:.{_DIGITS - 1}e}"
    if text[-1] in "nf":  # nan, inf, -inf
        return text
    mantissa, _, exponent = text.partition("e")
    sign = "-" if mantissa[0] == "-" else ""
    digits = mantissa.removeprefix("-").replace(".", "").rstrip("0")
    point = int(exponent) + 1  # the decimal point stands behind so many digits
    if not digits:
        return "0"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if point >= len(digits):
        return f"{sign}{digits}{'0' * (point - len(digits))}"
    return f"{sign}{digits[:point]}.{digits[point:]}"


class Table:
    """How answers become CSV rows: which columns there are, and how they are written.

    Args:
        path, model: whether there is a column for each, in this order, in front of the others.
        failures: whether failures have rows: two columns more, empty where nothing failed.
        pairs: whether the labels stand in the rows, each with its probability behind it, the best
            first, and of a model that has thresholds, those that reach theirs.
        most: how many such pairs there are, whatever the thresholds; None as many as there are.
    """

    _SEPARATOR = b","

    def __init__(
        self,
        *,
        path: bool = False,
        model: bool = False,
        failures: bool = False,
        pairs: bool = False,
        most: int | None = None,
    ) -> None:
        self._path = path
        self._model = model
        self._failures = failures
        self._pairs = pairs or most is not None
        self._most = most

    def header(self, labels: Sequence[str]) -> bytes:
        """Make the row of the columns' names."""
        names = ["path"] * self._path + ["model"] * self._model
        names += ["error", "message"] * self._failures
        if not self._pairs:
            names += labels
        elif self._most == 1:
            names += "label", "probability"
        else:
            for number in range(1, self._width(labels) // 2 + 1):
                names += f"label{number}", f"probability{number}"
        return self._line([self._text(name) for name in names])

    def row(self, path: str, prediction: Prediction) -> bytes:
        """Make the row of an image that was answered."""
        fields = self._front(path, prediction.model)
        if not self._pairs:
            return self._line([*fields, *(number(p).encode() for p in prediction.probabilities)])
        thresholds = prediction.thresholds if self._most is None else None
        labels = prediction.labels or ()
        found = best(labels, prediction.probabilities, most=self._most, thresholds=thresholds)
        for label, probability in found:
            fields += self._text(label), number(probability).encode()
        return self._line(fields)

    def failure(self, path: str, error: SwiprError, labels: Sequence[str]) -> bytes:
        """Make the row of an image that has no answer: as wide as the others, but for `pairs` of
        which there may be fewer."""
        told = [self._text(code(error)), self._text(str(error))]
        return self._line([*self._front(path, "", told), *[b""] * self._width(labels)])

    def _front(self, path: str, model: str, failure: Sequence[bytes] = (b"", b"")) -> list[bytes]:
        fields = [self._quoted(os.fsencode(path))] if self._path else []
        if self._model:
            fields.append(self._text(model) if model else b"")
        return [*fields, *failure] if self._failures else fields

    def _width(self, labels: Sequence[str]) -> int:
        if not self._pairs:
            return len(labels)
        return 0 if self._most is None else 2 * min(self._most, len(labels))

    def _line(self, fields: list[bytes]) -> bytes:
        return self._SEPARATOR.join(fields) + b"\n"

    def _text(self, text: str) -> bytes:
        return self._quoted(text.encode(errors="replace"))

    def _quoted(self, data: bytes) -> bytes:
        """Quote as RFC 4180 does, where that is needed."""
        if any(special in data for special in (b",", b'"', b"\r", b"\n")) or not data:
            return b'"' + data.replace(b'"', b'""') + b'"'
        return data


def row(probabilities: tuple[float, ...], path: str | None = None) -> bytes:
    """Make the CSV row of one image, with its path in front unless that is None."""
    return Table(path=path is not None).row(path or "", Prediction(probabilities, ""))


def best(
    labels: Sequence[str],
    probabilities: Sequence[float],
    *,
    most: int | None = None,
    thresholds: Sequence[float] | None = None,
) -> list[tuple[str, float]]:
    """Pair labels with their probabilities, the best first, and equals in the labels' order.

    Args:
        most: how many to give; None gives all.
        thresholds: for each label what its probability must reach; None asks nothing of it.
    """
    # NaN sorts below every number.
    order = sorted(range(len(labels)), key=lambda i: -p if (p := probabilities[i]) == p else 1e999)
    if thresholds is not None:
        order = [i for i in order if probabilities[i] >= thresholds[i]]
    return [(labels[i], probabilities[i]) for i in order[:most]]


def code(error: SwiprError) -> str:
    """Name an error in a record: by its name on the wire, if it has one."""
    if isinstance(error, CannotOpen):
        return "cannot-open"
    return error.code or ("no-daemon" if isinstance(error, NoDaemon) else "failed")


def distinct(labels: Sequence[str]) -> list[str]:
    """Tell labels apart that occur twice, by their index: ImageNet has two cranes."""
    seen: dict[str, int] = {}
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
    return [
        label if seen[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels)
    ]


def _are_numbers(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(type(one) in (int, float) for one in values)
