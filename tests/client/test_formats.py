"""What `predict` prints in each format reads back as what was meant, in the order asked for."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer import Connection, Peer

from swiprctl.errors import BadImage, LoadingFailed, SwiprError, TryLater, WorkerCrashed
from swiprctl.formats import JsonLines, Tsv
from swiprctl.output import Writer
from swiprctl.rows import Prediction, Table
from swiprctl.sorting import SortedWriter

pytestmark = pytest.mark.timeout(60)

LABELS = ("sharp", "blurred,\tor so")
NAMES = (
    b"plain.jpg",
    b"-rf",
    b"a b,c;d.jpg",
    b'quoted"twice".jpg',
    b"two\nlines.jpg",
    b"\ttab\\t and backslash\\",
    b"return\r.jpg",
    b"\xff\xfe not UTF-8 \xc3",
    b"\x1b]0;title\x07\x1b[31m\x7f",
    "Wüste 🏜.jpg".encode(),
    b" leading blank",
    b"=1+1",
)


def read_csv(data: bytes) -> Iterator[tuple[bytes, list[str]]]:
    text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    for path, *fields in csv.reader(text, strict=True):
        yield os.fsencode(path), fields


def read_tsv(data: bytes) -> Iterator[tuple[bytes, list[str]]]:
    meant = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}

    def plain(field: str) -> str:
        parts, rest = [], field
        while rest:
            width = 2 if rest[0] == "\\" else 1
            parts.append(meant[rest[:2]] if width == 2 else rest[0])
            rest = rest[width:]
        return "".join(parts)

    text = data.decode("utf-8", "surrogateescape")
    for line in text.removesuffix("\n").split("\n"):
        path, *fields = map(plain, line.split("\t"))
        yield os.fsencode(path), fields


def read_jsonl(data: bytes) -> Iterator[tuple[bytes, list[str]]]:
    for line in data.splitlines():
        record = json.loads(line.decode())
        path = record["path"].encode()
        if "path_base64" in record:
            assert "\ufffd" in record["path"]
            path = base64.b64decode(record["path_base64"], validate=True)
        told = record.get("probabilities") or record["error"]
        yield path, [str(value) for value in told.values()]


READ = {"csv": read_csv, "tsv": read_tsv, "jsonl": read_jsonl}
EVERY = pytest.mark.parametrize("name", READ)


def daemon(connection: Connection) -> None:
    """Answer an image of digits with that many hundredths, and any other with an error."""
    while True:
        asked = connection.asked()
        if asked.op == "model":
            connection.reply(asked.id, model="peer@1", labels=list(LABELS))
        elif asked.image == b"bad":
            connection.refuse(asked.id, BadImage("not an image,\nat all"))
        elif asked.image == b"crash":
            connection.refuse(asked.id, WorkerCrashed("it killed two workers"))
        else:
            share = int(asked.image or b"0") / 100
            connection.answer(asked, share, 1 - share)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIPR_SOCKET", str(tmp_path / "s"))
    for number in (10, 60, 30, 90):
        Path(f"{number}.jpg").write_text(str(number))
    for name in ("bad", "crash"):
        Path(f"{name}.jpg").write_text(name)
    with Peer(tmp_path / "s", daemon):
        yield tmp_path


def predict(*words: str | bytes, stdin: bytes = b"") -> tuple[bytes, bytes, int]:
    done = subprocess.run(
        [sys.executable, "-m", "swiprctl", "predict", *words],
        input=stdin,
        capture_output=True,
        timeout=40,
        check=False,
    )
    return done.stdout, done.stderr, done.returncode


# -- names


@EVERY
def test_every_name_comes_back(folder: Path, name: str) -> None:
    for number, path in enumerate(NAMES):
        (folder / os.fsdecode(path)).write_text(str(number))
    out, err, status = predict(f"--format={name}", "--files0-from=-", stdin=b"\0".join(NAMES))
    assert (err, status) == (b"", 0)
    found = list(READ[name](out))
    assert [path for path, _ in found] == list(NAMES)
    assert [float(fields[0]) for _, fields in found] == [n / 100 for n in range(len(NAMES))]


# What a path may be: any bytes but NUL.
paths = st.binary(min_size=1, max_size=30).map(lambda b: b.replace(b"\0", b"\\"))
FORMATS: dict[str, Callable[[], Table | JsonLines]] = {
    "csv": lambda: Table(path=True, failures=True),
    "tsv": lambda: Tsv(path=True, failures=True),
    "jsonl": JsonLines,
}


@EVERY
@given(path=paths, message=st.text(max_size=20))
def test_any_path_and_message_come_back(name: str, path: bytes, message: str) -> None:
    format = FORMATS[name]()
    message = message.encode(errors="replace").decode().replace("\0", "")
    record = format.failure(os.fsdecode(path), BadImage(message), [])
    assert list(READ[name](record)) == [(path, ["bad-image", message])]


@EVERY
def test_a_terminal_gets_no_escape_sequence(folder: Path, name: str) -> None:
    path = NAMES[8]
    (folder / os.fsdecode(path)).write_text("5")
    words = [sys.executable, "-m", "swiprctl", "predict", "-H", f"--format={name}", path]
    master, terminal = pty.openpty()
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: it has left
        while data := os.read(master, 1000):
            shown += data
    os.close(master)
    assert process.wait() == 0
    assert b"0.05" in shown
    rest = shown.replace(b"\r\n", b"").replace(b"\t", b"")
    assert not [byte for byte in rest if byte < 32 or byte == 127]
    if name != "jsonl":
        assert shown.startswith(rb"\x1b]0;title\x07\x1b[31m\x7f")
        assert predict("-H", path)[0].startswith(path)


# -- columns


@pytest.mark.usefixtures("folder")
class TestColumns:
    def test_the_best_below_a_header(self) -> None:
        out = predict("--header", "--top=1", "-H", "60.jpg")[0]
        assert out == b"path,label,probability\n60.jpg,sharp,0.6\n"
        out = predict("--header", "--top=9", "--format=tsv", "60.jpg")[0]
        assert out == (
            b"label1\tprobability1\tlabel2\tprobability2\nsharp\t0.6\tblurred,\\tor so\t0.4\n"
        )

    def test_what_json_says_anyway(self) -> None:
        out = predict("--json", "60.jpg")[0]
        for word in ("--labels", "--with-model", "--header", "--format=jsonl"):
            assert predict("--json", word, "60.jpg") == (out, b"", 0)
        assert predict("--format=jsonl", "60.jpg")[0] == out

    def test_failures_in_a_table(self) -> None:
        words = ("--errors", "bad.jpg", "60.jpg", "missing.jpg")
        out, err, status = predict("--header", "--with-model", *words)
        assert (err, status) == (b"", 1)
        assert list(read_csv(out)) == [
            (b"path", ["model", "error", "message", *LABELS]),
            (b"bad.jpg", ["", "bad-image", "not an image,\nat all", "", ""]),
            (b"60.jpg", ["peer@1", "", "", "0.6", "0.4"]),
            (b"missing.jpg", ["", "cannot-open", "No such file or directory", "", ""]),
        ]
        out = predict("--top=1", "--format=tsv", *words)[0]
        assert list(read_tsv(out)) == [
            (b"bad.jpg", ["bad-image", "not an image,\nat all", "", ""]),
            (b"60.jpg", ["", "", "sharp", "0.6"]),
            (b"missing.jpg", ["cannot-open", "No such file or directory", "", ""]),
        ]

    def test_failures_in_json(self) -> None:
        out, err, status = predict("--errors", "--json", "crash.jpg")
        assert (err, status) == (b"", 70)
        error = {"code": "worker-crashed", "message": "it killed two workers"}
        assert json.loads(out) == {"path": "crash.jpg", "error": error}


def test_a_model_that_cannot_be_loaded_has_no_table(tmp_path: Path) -> None:
    """How wide the row of a failure is, nobody knows; in JSON it does not matter."""

    def broken(connection: Connection) -> None:
        while True:
            connection.refuse(connection.asked().id, LoadingFailed("no weights.pth"))

    (tmp_path / "a").touch()
    with Peer(tmp_path / "s", broken):
        words = ("--timeout=5", f"--socket={tmp_path}/s", "--errors", f"{tmp_path}/a")
        assert predict(*words) == (b"", b"swiprctl: no weights.pth\n", 75)
        out, err, status = predict("--json", *words)
    assert (err, status) == (b"", 75)
    assert json.loads(out)["error"] == {"code": "loading-failed", "message": "no weights.pth"}


# -- order


@pytest.mark.usefixtures("folder")
class TestOrder:
    FILES = ("10.jpg", "60.jpg", "30.jpg", "90.jpg")

    def first(self, *words: str) -> list[str]:
        out, err, status = predict(*words, "-H", *self.FILES)
        assert (err, status) == (b"", 0)
        return [path.decode().removesuffix(".jpg") for path, _ in read_csv(out)]

    def test_the_highest_come_first(self) -> None:
        assert self.first("--sort=sharp") == ["90", "60", "30", "10"]
        assert self.first("--sort", LABELS[1]) == ["10", "30", "60", "90"]
        assert self.first("--sort=sharp", "--reverse") == ["10", "30", "60", "90"]

    def test_the_most_extreme(self) -> None:
        assert self.first("--sort=sharp", "--limit=2") == ["90", "60"]
        assert self.first("--sort=sharp", "--limit=1", "--reverse") == ["10"]
        assert self.first("--sort=sharp", "--limit=9") == ["90", "60", "30", "10"]
        assert self.first("--sort=sharp", "--limit=1", "--header") == ["path", "90"]

    def test_failures_come_before(self) -> None:
        out, err, status = predict("--sort=sharp", "10.jpg", "missing", "90.jpg")
        assert out == b"90.jpg,0.9,0.1\n10.jpg,0.1,0.9\n"
        assert (err, status) == (b"swiprctl: missing: No such file or directory\n", 1)
        out = predict("--sort=sharp", "--errors", "--limit=1", "10.jpg", "missing", "90.jpg")[0]
        assert [path for path, _ in read_csv(out)] == [b"missing", b"90.jpg"]

    def test_a_label_that_is_not_there(self) -> None:
        out, err, status = predict("--sort=sharpness", "10.jpg", "90.jpg")
        assert (out, status) == (b"", 64)
        assert b"--sort: the model has no label 'sharpness'; it has sharp, blurred," in err


class TestSorting:
    def sort(
        self, values: list[float], *, limit: int | None = None, reverse: bool = False
    ) -> list[int]:
        put: list[bytes] = []
        format = Table(path=True)
        writer = SortedWriter(format, put.append, label="a", limit=limit, reverse=reverse)
        for number, value in enumerate(values):
            prediction = Prediction((value,), "m@1")
            prediction.labels = ("a",)
            assert writer.take(str(number), prediction) is None
        assert put == []
        writer.finish()
        return [int(record.partition(b",")[0]) for record in put]

    @given(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, float("nan")]), max_size=12),
        st.none() | st.integers(1, 14),
        st.booleans(),
    )
    def test_equals_keep_their_order_and_no_numbers_come_last(
        self, values: list[float], limit: int | None, reverse: bool
    ) -> None:
        sign = 1 if reverse else -1
        order = sorted(
            range(len(values)),
            key=lambda i: (
                values[i] != values[i],
                0 if values[i] != values[i] else sign * values[i],
            ),
        )
        assert self.sort(values, limit=limit, reverse=reverse) == order[:limit]

    def test_a_limit_bounds_what_is_kept(self) -> None:
        writer = SortedWriter(Table(path=True), [].append, label="a", limit=3)
        for number in range(1000):
            prediction = Prediction((number / 1000,), "m@1")
            prediction.labels = ("a",)
            writer.take(str(number), prediction)
        assert len(writer._kept) == 3

    def test_a_later_model_without_the_label_costs_its_own_images_alone(self) -> None:
        put: list[bytes] = []
        writer = SortedWriter(Table(path=True), put.append, label="a")
        failures = []
        for number, labels in enumerate([("a", "b"), ("b", "c"), ("b", "a")]):
            prediction = Prediction((0.25, 0.75), f"m@{number}")
            prediction.labels = labels
            failures.append(writer.take(str(number), prediction))
        assert failures[0] is failures[2] is None
        assert isinstance(failures[1], TryLater)
        assert str(failures[1]) == (
            "--sort: the model has no label 'a'; it has b, c; another model answered before"
        )
        writer.finish()
        assert put == [b"2,0.25,0.75\n", b"0,0.25,0.75\n"]

    def test_labels_that_occur_twice(self) -> None:
        writer = SortedWriter(Table(), [].append, label="crane")
        prediction = Prediction((0.5, 0.25, 0.25), "m@1")
        prediction.labels = ("crane", "heron", "crane")
        with pytest.raises(SwiprError, match=r"it has crane \(0\), crane \(2\)"):
            writer.take("x", prediction)


def test_a_header_is_that_of_the_first_model() -> None:
    put: list[bytes] = []
    writer = Writer(Table(path=True), put.append, header=True)
    for number, labels in enumerate([("a", "b"), ("b", "a"), ("a", "b")]):
        prediction = Prediction((0.5, 0.5), f"m@{number}")
        prediction.labels = labels
        failure = writer.take(str(number), prediction)
        assert (failure is None) == (labels == ("a", "b"))
    assert put == [b"path,a,b\n", b"0,0.5,0.5\n", b"2,0.5,0.5\n"]
