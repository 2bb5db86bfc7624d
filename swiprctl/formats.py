"""The formats of answers beside CSV: TSV and JSON lines. Pure; imported where one is asked for."""

from __future__ import annotations

import json
import os
from binascii import b2a_base64

from swiprctl.rows import Table, best, code, distinct, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swiprctl.errors import SwiprError
    from swiprctl.rows import Prediction


_ESCAPES = {b"\\": b"\\\\", b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r"}


class Tsv(Table):
    r"""Rows of fields with tabs between them: a line is a row, whatever is in a name.

    A tab, line feed, carriage return and backslash in a field are written `\t`, `\n`, `\r` and
    `\\`, as PostgreSQL and MySQL write and read them; nothing is quoted, all other bytes stay.
    """

    _SEPARATOR = b"\t"

    def _quoted(self, data: bytes) -> bytes:
        return escape(data)


def escape(data: bytes) -> bytes:
    """Write what a field of TSV cannot have as `Tsv` says."""
    for special, escaped in _ESCAPES.items():  # the backslash first
        data = data.replace(special, escaped)
    return data


def unescape(data: bytes) -> bytes:
    """Read a field of TSV."""
    if b"\\" not in data:
        return data
    parts = data.split(b"\\\\")  # from the left: the first of two backslashes is the escape
    for special, escaped in list(_ESCAPES.items())[1:]:
        parts = [part.replace(escaped, special) for part in parts]
    return b"\\".join(parts)


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
