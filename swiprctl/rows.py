"""Predictions as text: CSV rows and JSON lines, as bytes. Pure.

Bytes, because a path need not be UTF-8, and because rows end in a line feed alone: RFC 4180 asks
for CR LF, but these rows are read by shell pipelines, where the CR would stick to the last number.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from swiprctl.client import Prediction

_DIGITS = 6
"""Significant digits. float32 carries seven."""


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


def row(probabilities: Iterable[float], path: str | None = None) -> bytes:
    """Make the row of one image, with its path in front unless that is None."""
    numbers = ",".join(map(number, probabilities)).encode()
    return (numbers if path is None else _quoted(os.fsencode(path)) + b"," + numbers) + b"\n"


def header(labels: Iterable[str], *, path: bool) -> bytes:
    """Make the row of labels."""
    names = [*(["path"] if path else []), *labels]
    return b",".join(_quoted(name.encode(errors="replace")) for name in names) + b"\n"


def json_line(prediction: Prediction, labels: Sequence[str], path: str) -> bytes:
    """Make one object on one line. Bytes of a path that are not UTF-8 become lone surrogates,
    `\\udc80` to `\\udcff`, as Python's surrogateescape has them; what is no number becomes null.
    """
    import json

    seconds = {name: getattr(prediction, name) for name in ("queued", "decode", "infer")}
    line = {
        "path": path,
        "probabilities": {
            label: _finite(probability)
            for label, probability in zip(distinct(labels), prediction.probabilities, strict=True)
        },
        "model": prediction.model,
        "seconds": {name: _finite(value) for name, value in seconds.items()},
    }
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def distinct(labels: Sequence[str]) -> list[str]:
    """Tell labels apart that occur twice, by their index: ImageNet has two cranes."""
    seen: dict[str, int] = {}
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
    return [
        label if seen[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels)
    ]


def _finite(value: float) -> float | None:
    rounded = float(number(value))
    return rounded if abs(rounded) < float("inf") else None


def _quoted(data: bytes) -> bytes:
    """Quote as RFC 4180 does, where that is needed."""
    if any(special in data for special in (b",", b'"', b"\r", b"\n")) or not data:
        return b'"' + data.replace(b'"', b'""') + b'"'
    return data
