"""Rows and JSON lines: what is printed reads back as what was meant."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiprctl.formats import JsonLines
from swiprctl.rows import Prediction, Table, best, distinct, number, row

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.66, "0.66"),
        (1.0, "1"),
        (0.0, "0"),
        (-0.0, "0"),
        (1e-9, "0.000000001"),
        (0.000123456789, "0.000123457"),
        (0.9999996, "1"),
        (0.99999949, "0.999999"),
        (0.1 + 0.2, "0.3"),
        (1 / 3, "0.333333"),
        (123456.0, "123456"),
        (1234567.0, "1234570"),
        (12.5, "12.5"),
        (-2.302585, "-2.30259"),  # log_softmax
        (-1e-7, "-0.0000001"),
        (1e20, "1" + "0" * 20),
        (5e-324, "0." + "0" * 323 + "494066"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_reads_back_without_an_exponent(value: float) -> None:
    text = number(value)
    assert set(text) <= set("-0123456789.")
    if abs(value) > 1.7976e308:  # rounding up may leave the range of a double
        return
    assert math.isclose(float(text), value, rel_tol=1e-5, abs_tol=5e-324)
    digits = text.removeprefix("-").replace(".", "").lstrip("0")
    assert len(digits.rstrip("0")) <= 6
    if "." in text:
        assert text[-1] not in "0."


# What a path may be: any bytes but NUL.
paths = st.binary(min_size=1, max_size=30).map(lambda b: b.replace(b"\0", b"x"))


@given(paths, st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_any_path_reads_back(path: bytes, probabilities: list[float]) -> None:
    data = row(tuple(probabilities), os.fsdecode(path))
    text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    ((found, *numbers),) = csv.reader(text)
    assert os.fsencode(found) == path
    assert [float(n) for n in numbers] == pytest.approx(probabilities, rel=1e-5)


def test_only_what_needs_quotes_has_them() -> None:
    assert row((0.66, 0.34)) == b"0.66,0.34\n"
    assert row((0.66, 0.34), "img.jpg") == b"img.jpg,0.66,0.34\n"
    assert row((1.0,), "a b;c.jpg") == b"a b;c.jpg,1\n"
    assert row((1.0,), "a,b") == b'"a,b",1\n'
    assert row((1.0,), 'a"b') == b'"a""b",1\n'
    assert row((1.0,), "a\nb") == b'"a\nb",1\n'
    assert row((1.0,), "a\rb") == b'"a\rb",1\n'
    assert row((1.0,), os.fsdecode(b"\xff.jpg")) == b"\xff.jpg,1\n"


def test_the_header_is_quoted_too() -> None:
    assert Table().header(["sharp", "blurred"]) == b"sharp,blurred\n"
    assert Table(path=True).header(["a, b", 'c"']) == b'path,"a, b","c"""\n'
    assert Table().header(["Wüste"]) == "Wüste\n".encode()


def labelled(probabilities: tuple[float, ...], *labels: str) -> Prediction:
    prediction = Prediction(probabilities, "m@1")
    prediction.labels = labels
    return prediction


def test_the_model_stands_between_the_path_and_the_numbers() -> None:
    prediction = Prediction((0.5, 1.0), "focus@1")
    table = Table(path=True, model=True)
    assert table.row("img.jpg", prediction) == b"img.jpg,focus@1,0.5,1\n"
    assert table.header(["sharp"]) == b"path,model,sharp\n"
    assert Table(model=True).row("", prediction) == b"focus@1,0.5,1\n"


def test_pairs() -> None:
    prediction = labelled((0.25, 0.75), "c", "a, b")
    assert Table(pairs=True).row("", prediction) == b'"a, b",0.75,c,0.25\n'
    table = Table(path=True, model=True, pairs=True)
    assert table.row("x.jpg", prediction) == b'x.jpg,m@1,"a, b",0.75,c,0.25\n'
    prediction.thresholds = (0.5, 1.0)
    assert Table(path=True, pairs=True).row("x.jpg", prediction) == b"x.jpg\n"
    assert Table(pairs=True).row("", prediction) == b"\n"


def test_the_header_of_the_best() -> None:
    assert Table(path=True, most=1).header(["a", "b"]) == b"path,label,probability\n"
    two = b"path,label1,probability1,label2,probability2\n"
    assert Table(path=True, most=2).header(["a", "b", "c"]) == two
    assert Table(path=True, most=7).header(["a", "b"]) == two


def test_the_best_come_first_and_equals_in_their_order() -> None:
    labels, values = ["a", "b", "c", "b"], [0.25, 0.5, float("nan"), 0.25]
    assert best(labels, values, most=3) == [("b", 0.5), ("a", 0.25), ("b", 0.25)]
    assert best(labels, values, most=1) == [("b", 0.5)]
    assert [label for label, _ in best(labels, values, most=9)] == ["b", "a", "b", "c"]


def test_thresholds_are_reached_from_themselves_on() -> None:
    labels, values = ["a", "b", "c", "d"], [0.25, 0.5, float("nan"), 0.75]
    found = best(labels, values, thresholds=[0.25, 0.75, 0.0, 0.5])
    assert found == [("d", 0.75), ("a", 0.25)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(1, 12))
def test_the_best_are_the_best(values: list[float], most: int) -> None:
    found = best([str(i) for i in range(len(values))], values, most=most)
    assert [value for _, value in found] == sorted(values, reverse=True)[:most]
    assert all(values[int(label)] == value for label, value in found)


def test_a_json_line() -> None:
    prediction = Prediction((2 / 3, 1e-9), "focus@1", 0.5, 0.25, float("inf"))
    prediction.labels = ("sharp", "blurred")
    line = JsonLines().row(os.fsdecode(b"\xff\n.jpg"), prediction)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    told = json.loads(line)
    assert told["path"] == "\ufffd\n.jpg"
    assert base64.b64decode(told["path_base64"]) == b"\xff\n.jpg"
    assert told["probabilities"] == {"sharp": 0.666667, "blurred": 1e-9}
    assert told["model"] == "focus@1"
    assert told["seconds"] == {"queued": 0.5, "decode": 0.25, "infer": None}
    two = json.loads(JsonLines(most=2).row("x", labelled((0.25, 0.5, 0.25), "a", "b", "a")))
    assert "path_base64" not in two
    assert list(two["probabilities"].items()) == [("b", 0.5), ("a (0)", 0.25)]


def test_labels_that_occur_twice_are_told_apart() -> None:
    assert distinct(["crane", "heron", "crane"]) == ["crane (0)", "heron", "crane (2)"]
    prediction = labelled((0.5, 0.25, 0.25), "crane", "heron", "crane")
    told = json.loads(JsonLines().row("x", prediction))
    assert told["probabilities"] == {"crane (0)": 0.5, "heron": 0.25, "crane (2)": 0.25}
