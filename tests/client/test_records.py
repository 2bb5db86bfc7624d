"""Rows read back: what predict prints, in each of its shapes, and what is no such thing."""

from __future__ import annotations

import io
import math
import os

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from swiprctl.errors import BadImage, BadRecords
from swiprctl.formats import JsonLines, Tsv
from swiprctl.records import Record, read
from swiprctl.rows import Prediction, Table

pytestmark = pytest.mark.timeout(60)


def records(data: bytes, name: str = "rows.csv") -> list[Record]:
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape", newline="")
    return list(read(stream, name))


ONE = Record(path="a,b.jpg", values={"sharp": 0.75, "very blurred": 0.25})


@pytest.mark.parametrize(
    "data",
    [
        b'path,sharp,very blurred\n"a,b.jpg",0.75,0.25\n',
        b'\xef\xbb\xbfpath,sharp,very blurred\r\n"a,b.jpg",0.75,0.25\r\n',
        b'path,sharp,very blurred\n"a,b.jpg",0.75,0.25',
        b'path,model,sharp,very blurred\n"a,b.jpg",m@1,0.75,0.25\n',
        b'path,error,message,sharp,very blurred\n"a,b.jpg",,,0.75,0.25\n',
        b'path,model,error,message,sharp,very blurred\n\n"a,b.jpg",m@1,,,0.75,0.25\n\n',
        b'path,label1,probability1,label2,probability2\n"a,b.jpg",sharp,0.75,very blurred,0.25\n',
        b'path,error,message\n"a,b.jpg",,,sharp,0.75,very blurred,0.25\n',
        b'"a,b.jpg",sharp,0.75,very blurred,0.25\n',
        b'"a,b.jpg",m@1,sharp,0.75,very blurred,0.25\n',
        b"path\tsharp\tvery blurred\na,b.jpg\t0.75\t0.25\n",
        b"\npath\tsharp\tvery blurred\r\na,b.jpg\t0.75\t0.25\r\n",
        b"a,b.jpg\tsharp\t0.75\tvery blurred\t0.25\n",
        b'{"path": "a,b.jpg", "probabilities": {"sharp": 0.75, "very blurred": 0.25}}\n',
        b'\n {"probabilities": {"sharp": 0.75, "very blurred": 0.25}, "path": "a,b.jpg"}',
    ],
)
def test_one_record_in_every_shape(data: bytes) -> None:
    assert records(data) == [ONE]


def test_tabs() -> None:
    assert records(b'a\\tb\\\\t"\t1\n', "rows.tsv")[0].path == 'a\tb\\t"'
    assert records(b"a\tb,1,0\n")[0] == Record(path="a\tb", values={"1": 1.0, "2": 0.0})


def test_rows_without_labels_are_numbered() -> None:
    assert records(b"a,0.75,0.25\nb,0,1\n") == [
        Record(path="a", values={"1": 0.75, "2": 0.25}),
        Record(path="b", values={"1": 0.0, "2": 1.0}),
    ]
    assert records(b"a,m@1,0.5,0.25,0.25\n")[0].values == {"1": 0.5, "2": 0.25, "3": 0.25}


def test_the_best_label_alone() -> None:
    found = records(b"path,label,probability\na,cat,0.75\nb,dog,0.5\n")
    assert [record.values for record in found] == [{"cat": 0.75}, {"dog": 0.5}]
    assert records(b"path,label,probability\na\n") == [Record(path="a", values={})]


def test_a_label_that_is_called_model_is_not_left_out() -> None:
    with pytest.raises(BadRecords, match="line 2: a number below 'model'"):
        records(b"path,model,other\na,0.75,0.25\n")


def test_failures() -> None:
    failed = Record(path="a", values={}, error="not an image")
    assert records(b"path,error,message,x,y\na,bad-image,not an image,,\n") == [failed]
    assert records(b"path,error,message\na,bad-image,not an image\n") == [failed]
    line = b'{"path": "a", "error": {"code": "bad-image", "message": "not an image"}}\n'
    assert records(line) == [failed]


def test_labels_that_occur_twice() -> None:
    assert list(records(b"path,crane,dog,crane\na,1,2,3\n")[0].values) == [
        *("crane (0)", "dog", "crane (2)")
    ]
    assert records(b"a,crane,0.75,crane,0.25\n")[0].values == {"crane": 0.75}


@pytest.mark.parametrize("data", [b"path,a,b\nx,nan,1\n", b"x,a,nan,b,1\n"])
def test_what_is_no_number(data: bytes) -> None:
    values = records(data)[0].values
    assert math.isnan(values["a"])
    assert values["b"] == 1
    null = records(b'{"path": "x", "probabilities": {"a": null, "b": 1}}\n')[0].values
    assert math.isnan(null["a"])


def test_nothing() -> None:
    assert records(b"") == records(b"\n\n") == records(b"path,a,b\n") == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path,a,b\nx,1\n", "rows.csv, line 2: 2 fields below a header of 3"),
        (b"path,a,b\nx,1,2\n\ny,1,2,3\n", "line 4: 4 fields below a header of 3"),
        (b"path,a,b\nx,1,two\n", "line 2: 'two' is no number"),
        (b'path,a\n"x"y,1\n', "line 2: not a row of CSV"),
        (b'path,a\n"x,1\n', "line 2: not a row of CSV"),
        (b"x,1,2\ny,1\n", "line 2: 2 fields, and 3 in the first row"),
        (b"x,cat,1\ny,cat\n", "line 2: a label without a probability"),
        (b"sharp,blurred\n0.5,0.5\n", "neither a header that begins with 'path' nor"),
        (b"0.5,0.5\n", "neither a header that begins with 'path' nor"),
        (b"photos of mine\n", "neither a header that begins with 'path' nor"),
        (b'{"path": "x"}\n', "line 1: not a JSON object of predict: it has no probabilities"),
        (b'{"probabilities": {}}\n', "it has no path"),
        (b'{"path": "x", "probabilities": {"a": "1"}}\n', "'1' is no number"),
        (b'{"path": "x", "probabilities": {"a": true}}\n', "True is no number"),
        (b'{"path": "x"\n', "line 1: not a JSON object"),
        (b'{"path": "x", "path_base64": "*", "probabilities": {}}\n', "not a JSON object"),
        (b'{"a":' * 100_000, "not a JSON object"),
        (b"x" * (1 << 24), "a line of 16777216 characters or more"),
    ],
)
def test_what_is_no_record(data: bytes, message: str) -> None:
    with pytest.raises(BadRecords) as caught:
        records(data)
    assert message in str(caught.value)
    assert "what 'swiprctl predict -H --header'" in str(caught.value)


paths = st.binary(min_size=1, max_size=20).map(lambda b: b.replace(b"\0", b"x"))
labels = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    min_size=2,
    max_size=4,
    unique=True,
)


@given(st.lists(paths, min_size=1, max_size=3), labels)
def test_what_predict_writes_is_read(names: list[bytes], labels: list[str]) -> None:
    # Nothing tells such a label from such a column.
    assume(labels[0] not in ("model", "label", "label1", "error"))
    probabilities = [n / 8 for n in range(len(labels))]
    prediction = Prediction(tuple(probabilities), "m@1")
    prediction.labels = tuple(labels)
    values = dict(zip(labels, probabilities, strict=True))
    error = BadImage("not an image")
    for format in (
        *(Table(path=True), Table(path=True, model=True), Table(path=True, failures=True)),
        *(Table(path=True, model=True, failures=True), Table(path=True, most=9), JsonLines()),
        *(Tsv(path=True, failures=True), Tsv(path=True, most=2)),
        *(Table(path=True, pairs=True, failures=True), Table(path=True, most=2, failures=True)),
    ):
        data = format.header(labels)
        data += b"".join(format.row(os.fsdecode(name), prediction) for name in names)
        failures = format.failure("x", error, labels) if b"message" in data else b""
        found = records(data + failures)
        if failures:
            assert found.pop() == Record(path="x", values={}, error="not an image")
        assert [os.fsencode(record.path) for record in found] == names
        for record in found:
            assert dict(record.values).items() <= values.items()
            assert len(record.values) >= 2


@given(st.binary(max_size=60) | st.text('path,"{}:[]\n\t01.', max_size=40).map(str.encode))
def test_any_file_ends_in_records_or_an_error_that_names_the_line(data: bytes) -> None:
    found = []
    try:
        found = records(data)
    except BadRecords as error:
        told = str(error)
        found = []
    else:
        told = "rows.csv, line "
    assert told.startswith("rows.csv, line ")
    assert all(isinstance(record, Record) for record in found)
