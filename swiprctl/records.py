"""Rows and JSON lines as `predict` writes them, read back: the paths, each with its labels.

A row of CSV says little of itself. What its fields are is taken from the header, and without one
from how the first row looks. What is read is the user's own, but may be any file: every line and
field is bounded, and what is no record is refused with its line's number.
"""

from __future__ import annotations

import csv
import json
import math
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TextIO

from swiprctl.errors import BadRecords
from swiprctl.formats import unescape
from swiprctl.rows import distinct

ENCODING = "utf-8", "surrogateescape"
"""Of paths in records, whatever the locale is."""

_BLANK = "\ufeff \t\r\n"  # with the mark that Windows puts in front of UTF-8

_MAX_LINE = 1 << 24
"""Characters of a line: far more than 100,000 labels take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one picture.

    Attributes:
        path: as the file system has it: bytes that are not UTF-8 are lone surrogates.
        values: label: probability; NaN where it is no number.
        error: why there are none; empty where nothing failed.
    """

    path: str
    values: Mapping[str, float]
    error: str = ""


def read(stream: TextIO, name: str) -> Iterator[Record]:
    """Read records one by one, in any of the formats.

    Args:
        stream: opened with `errors="surrogateescape"` and `newline=""`.
        name: the file's, for messages; one that ends in .tsv has tabs.

    Raises:
        BadRecords: this is no such file, or not from this line on.
        OSError: it cannot be read.
    """
    lines = _Lines(stream, name)
    first = next((line for line in lines if line.strip(_BLANK)), "")
    whole = chain([first], lines)
    if first.lstrip(_BLANK).startswith("{"):
        yield from _objects(whole, lines)
        return
    if name.endswith(".tsv") or _has_tabs(first):
        yield from _table(map(_tsv, whole), lines)
        return
    try:
        yield from _table(csv.reader(whole, strict=True), lines)
    except csv.Error as error:
        raise lines.bad(f"not a row of CSV: {error}") from error


def _has_tabs(first: str) -> bool:
    """Tell TSV from CSV, whose first path may have a tab."""
    return first.startswith("path\t") or ("\t" in first and _is_number(first.rpartition("\t")[2]))


def _tsv(line: str) -> list[str]:
    fields = line.rstrip("\r\n").split("\t")
    escaped = [one.encode("utf-8", "surrogateescape") for one in fields]
    return [unescape(one).decode("utf-8", "surrogateescape") for one in escaped]


class _Lines:
    """The lines of a stream, counted and bounded."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(_MAX_LINE)
        if not line:
            raise StopIteration
        self._number += 1
        if len(line) == _MAX_LINE:
            raise self.bad(f"a line of {_MAX_LINE} characters or more")
        return line

    def bad(self, message: str) -> BadRecords:
        return BadRecords(
            f"{self._name}, line {self._number}: {message}; this takes what 'swiprctl predict -H"
            " --header' or 'predict --json' prints"
        )


def _objects(lines: Iterable[str], place: _Lines) -> Iterator[Record]:
    for line in lines:
        if not line.strip(_BLANK):
            continue
        try:
            yield _record(json.loads(line.strip(_BLANK)))
        except (ValueError, RecursionError) as error:
            raise place.bad(f"not a JSON object of predict: {error}") from error


def _record(fields: object) -> Record:
    """Read one object.

    Raises:
        ValueError: it has not the fields that predict writes.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        raise ValueError("it has no path")
    path = fields["path"]
    if "path_base64" in fields:
        path = b64decode(str(fields["path_base64"]), validate=True).decode(*ENCODING)
    path.encode(*ENCODING)  # any text is a name, but for surrogates that stand for no byte
    failure = fields.get("error")
    if failure is not None:
        told = failure.get("message") if isinstance(failure, dict) else failure
        return Record(path=path, values={}, error=str(told) or "it failed")
    found = fields.get("probabilities")
    if not isinstance(found, dict):
        raise ValueError("it has no probabilities")
    values = {str(label): math.nan if p is None else _number(p) for label, p in found.items()}
    return Record(path=path, values=values)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("a number of more than 300 digits is no probability") from None


def _table(rows: Iterator[list[str]], place: _Lines) -> Iterator[Record]:
    first = next((row for row in rows if any(row)), None)
    if first is None:
        return
    first[0] = first[0].removeprefix("\ufeff")
    if first[0] == "path":
        columns = _headed(first)
    elif _is_number(first[0]) or not any(map(_is_number, first[1:])):
        raise place.bad("neither a header that begins with 'path' nor a path with probabilities")
    else:
        columns = _headless(first)
        rows = chain([first], rows)
    for row in rows:
        if not any(row):
            continue
        try:
            yield columns(row)
        except ValueError as error:
            raise place.bad(str(error)) from error


def _headed(header: Sequence[str]) -> Callable[[list[str]], Record]:
    """Make what reads the rows below a header."""
    at = 1 + (header[1:2] == ["model"])
    failures = header[at : at + 2] == ["error", "message"]
    at += 2 * failures
    names = header[at:]
    if names[:2] in (["label", "probability"], ["label1", "probability1"]) or not names:
        return lambda row: _of_pairs(row, at, failures)
    labels = distinct(names)

    def record(row: list[str]) -> Record:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} fields below a header of {len(header)}")
        if header[1] == "model" and _is_number(row[1]):
            raise ValueError("a number below 'model': of a model with such a label, give JSON")
        error = row[at - 1] if failures and row[at - 2] else ""
        if error:
            return Record(path=row[0], values={}, error=error)
        return Record(path=row[0], values=dict(zip(labels, map(_parsed, row[at:]), strict=True)))

    return record


def _headless(first: Sequence[str]) -> Callable[[list[str]], Record]:
    """Make what reads rows without a header, from the first of them: a path, perhaps a model, and
    then either pairs or numbers, whose labels are their places then."""
    texts = [not _is_number(field) for field in first[1:]]
    if all(texts[::2]) and len(texts) % 2 == 0:
        return lambda row: _of_pairs(row, 1, False)
    if all(texts[1::2]) and len(texts) > 1 and texts[0]:
        return lambda row: _of_pairs(row, 2, False)
    at = 2 if texts[0] else 1  # behind the model's id, or behind the path

    def record(row: list[str]) -> Record:
        if len(row) != len(first):
            raise ValueError(f"{len(row)} fields, and {len(first)} in the first row")
        values = {str(place): _parsed(text) for place, text in enumerate(row[at:], 1)}
        return Record(path=row[0], values=values)

    return record


def _of_pairs(row: list[str], at: int, failures: bool) -> Record:
    if failures and row[at - 2 : at - 1] not in ([""], []):
        return Record(path=row[0], values={}, error=row[at - 1] if len(row) >= at else "it failed")
    pairs = row[at:]
    if len(row) < at or len(pairs) % 2:
        raise ValueError("a label without a probability")
    values: dict[str, float] = {}
    for label, text in zip(pairs[::2], pairs[1::2], strict=True):
        values.setdefault(label, _parsed(text))  # of labels that occur twice, the best
    return Record(path=row[0], values=values)


def _parsed(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
