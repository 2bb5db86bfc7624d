"""The formats of answers beside CSV: JSON lines. Pure; imported where one of them is asked for."""

from __future__ import annotations

import json
import os
from binascii import b2a_base64

from swiprctl.rows import best, code, distinct, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swiprctl.errors import SwiprError
    from swiprctl.rows import Prediction


class JsonLines:
    """One object on one line for each answer.

    Args:
        most: how many labels to give, the best first; None gives all, in their order.
    """

    def __init__(self, *, most: int | None = None) -> None:
        self._most = most

    def header(self, labels: Sequence[str]) -> bytes:  # noqa: ARG002 - a table's
        """Give nothing: every object names its fields."""
        return b""

    def row(self, path: str, prediction: Prediction) -> bytes:
        """Make the object of an image that was answered; a value that is no number becomes null."""
        labels = distinct(prediction.labels or ())
        pairs: Iterable[tuple[str, float]]
        pairs = zip(labels, prediction.probabilities, strict=True)
        if self._most is not None:
            pairs = best(labels, prediction.probabilities, most=self._most)
        seconds = {name: getattr(prediction, name) for name in ("queued", "decode", "infer")}
        fields = {
            "probabilities": {label: _finite(probability) for label, probability in pairs},
            "model": prediction.model,
            "seconds": {name: _finite(value) for name, value in seconds.items()},
        }
        return _line(path, fields)

    def failure(self, path: str, error: SwiprError, labels: Sequence[str]) -> bytes:  # noqa: ARG002
        """Make the object of an image that has no answer."""
        return _line(path, {"error": {"code": code(error), "message": str(error)}})


def _line(path: str, fields: Mapping[str, object]) -> bytes:
    """A path that is not UTF-8 is given to be read, with U+FFFD, and its bytes in base64."""
    data = os.fsencode(path)
    front = {"path": data.decode("utf-8", "replace")}
    if front["path"].encode() != data:
        front["path_base64"] = b2a_base64(data, newline=False).decode()
    return json.dumps({**front, **fields}, allow_nan=False).encode() + b"\n"


def _finite(value: float) -> float | None:
    rounded = float(number(value))
    return rounded if abs(rounded) < float("inf") else None
