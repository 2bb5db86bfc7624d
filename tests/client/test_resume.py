"""`predict --output FILE --resume`: whatever interrupts it, in the end FILE has each row once."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemonprocess import DaemonProcess, wait_until
from peer import Connection, Peer

from swiprctl.errors import BadImage, Overloaded

pytestmark = pytest.mark.timeout(120)


class Served:
    """A daemon that answers an image with its size in hundredths, and counts what it is asked."""

    def __init__(self) -> None:
        self.model = "peer@1"
        self.labels = ["sharp", "blurred"]
        self.images = self.bad = self.late = 0
        self.stop_after = -1
        self.busy = False

    def __call__(self, connection: Connection) -> None:
        while True:
            asked = connection.asked()
            if asked.op == "model":
                connection.reply(asked.id, model=self.model, labels=self.labels)
                continue
            self.images += 1
            assert asked.image is not None
            if asked.image.startswith(b"bad"):
                self.bad += 1
                connection.refuse(asked.id, BadImage("not an image"))
            elif asked.image.startswith(b"late"):
                self.late += 1
                connection.refuse(asked.id, Overloaded("the queue is full", 1e6))
            elif self.images != self.stop_after:
                share = len(asked.image) / 100
                values = [share, 1 - share][: len(self.labels)]
                fields = {"probabilities": values, "model": self.model, "labels": self.labels}
                connection.reply(asked.id, **fields)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIPR_SOCKET", str(tmp_path / "s"))
    for number in (10, 20, 30, 60):
        Path(f"{number}.jpg").write_bytes(bytes(number))
    for name in ("bad", "late"):
        Path(f"{name}.jpg").write_text(name)
    served = Served()
    with Peer(tmp_path / "s", served):
        yield served


FOUR = ("10.jpg", "20.jpg", "30.jpg", "60.jpg")


def command(*words: str | bytes) -> list[str | bytes]:
    return [sys.executable, "-m", "swiprctl", "predict", *words]


def predict(*words: str | bytes, largest_file: int = -1) -> tuple[str, int]:
    """Run it to its end; gives what it said and its exit status."""

    def limit() -> None:
        if largest_file >= 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    done = subprocess.run(
        command(*words), capture_output=True, timeout=60, check=False, preexec_fn=limit
    )
    assert done.stdout == b""
    return done.stderr.decode(errors="surrogateescape"), done.returncode


def rows(name: str = "rows.csv") -> list[str]:
    return Path(name).read_text(errors="surrogateescape").splitlines()


def test_a_second_time_nothing_is_asked_again(served: Served) -> None:
    assert predict("--output=rows.csv", *FOUR) == ("", 0)
    expected = ["10.jpg,0.1,0.9", "20.jpg,0.2,0.8", "30.jpg,0.3,0.7", "60.jpg,0.6,0.4"]
    assert rows() == expected
    assert served.images == 4
    assert predict("--output=rows.csv", "--resume", *FOUR) == ("", 0)
    assert rows() == expected
    assert served.images == 4
    (err, status) = predict("--output=rows.csv", "--resume", "-v", *FOUR)
    assert "swiprctl: rows.csv: 4 of the inputs were in it\n" in err
    assert status == 0


def test_what_is_new_is_appended(served: Served) -> None:
    assert predict("--output=rows.csv", "--resume", "20.jpg") == ("", 0)
    assert predict("--output=rows.csv", "--resume", *FOUR) == ("", 0)
    assert rows() == ["20.jpg,0.2,0.8", "10.jpg,0.1,0.9", "30.jpg,0.3,0.7", "60.jpg,0.6,0.4"]
    assert served.images == 4
    assert predict("--output=rows.csv", "--resume", "10.jpg") == ("", 0)
    assert len(rows()) == 4  # those that this command does not name stay


def test_changed_files_have_one_row(served: Served) -> None:
    predict("--output=rows.csv", "--header", *FOUR)
    Path("20.jpg").write_bytes(bytes(25))
    os.utime("30.jpg", ns=(1, 1))
    assert predict("--output=rows.csv", "--header", "--resume", *FOUR) == ("", 0)
    assert rows() == [
        *("path,sharp,blurred", "10.jpg,0.1,0.9", "60.jpg,0.6,0.4"),
        *("20.jpg,0.25,0.75", "30.jpg,0.3,0.7"),
    ]
    assert served.images == 6
    assert predict("--output=rows.csv", "--header", "--resume", *FOUR) == ("", 0)
    assert served.images == 6
    assert sorted(os.listdir()) == sorted(
        [*FOUR, "bad.jpg", "late.jpg", "rows.csv", "rows.csv.resume", "s"]
    )


def test_another_models_rows_are_replaced(served: Served) -> None:
    predict("--output=rows.jsonl", *FOUR)
    served.model = "peer@2"
    assert predict("--output=rows.jsonl", "--resume", *FOUR) == ("", 0)
    assert [json.loads(line)["model"] for line in rows("rows.jsonl")] == ["peer@2"] * 4
    assert served.images == 8


def test_another_models_labels_do_not_stand_below_a_header(served: Served) -> None:
    predict("--output=rows.csv", "--header", *FOUR)
    before = rows()
    served.labels = ["cat", "dog"]
    err, status = predict("--output=rows.csv", "--header", "--resume", *FOUR)
    assert status == 73
    assert "rows.csv: its header has the labels of another model" in err
    assert rows() == before


def test_an_input_that_is_named_twice_has_two_rows(served: Served) -> None:
    words = ("--resume", "--output=rows.csv", "10.jpg", "20.jpg", "10.jpg")
    for _ in range(2):
        assert predict(*words) == ("", 0)
        assert rows() == ["10.jpg,0.1,0.9", "20.jpg,0.2,0.8", "10.jpg,0.1,0.9"]
    assert served.images == 3
    Path("10.jpg").write_bytes(bytes(15))
    assert predict(*words) == ("", 0)
    assert rows() == ["20.jpg,0.2,0.8", "10.jpg,0.15,0.85", "10.jpg,0.15,0.85"]


def test_failures_are_asked_again(served: Served) -> None:
    words = ("--resume", "--output=rows.csv", "bad.jpg", "10.jpg", "missing")
    for images in (2, 3):
        err, status = predict(*words)
        assert status == 1
        assert "bad.jpg: not an image" in err
        assert rows() == ["10.jpg,0.1,0.9"]
        assert served.images == images
    Path("10.jpg").write_text("bad")  # and now it has no row
    assert predict(*words)[1] == 1
    assert rows() == []


@pytest.mark.parametrize("why", ["missing", "late", "no answer"])
def test_a_failure_that_may_pass_leaves_the_row_there(served: Served, why: str) -> None:
    """A disk that is not mounted tonight does not cost the rows of a year."""
    words = ("--resume", "--timeout=1", "--output=rows.csv", *FOUR)
    assert predict(*words) == ("", 0)
    before = rows()
    if why == "missing":
        for name in FOUR[:3]:
            Path(name).rename(f"away-{name}")
    elif why == "late":
        for name in FOUR[:3]:
            Path(name).write_text("late")
    else:
        served.model = "peer@2"
        served.stop_after = served.images + 1
    assert predict(*words)[1] == 1
    assert sorted(rows()) == sorted(before)
    served.stop_after = -1
    for number in (10, 20, 30):
        Path(f"{number}.jpg").write_bytes(bytes(number + 1))
    assert predict(*words) == ("", 0)
    assert len(rows()) == 4
    assert rows() != before


def test_answers_without_a_row_are_known_where_no_row_is(served: Served) -> None:
    words = ("--where=sharp > 0.5", "--output=rows.csv")
    assert predict(*words, *FOUR[:3]) == ("", 0)
    assert predict(*words, "--resume", *FOUR[:3]) == ("", 0)
    assert served.images == 3
    assert predict(*words, "--resume", *FOUR) == ("", 0)
    assert (rows(), served.images) == (["60.jpg,0.6,0.4"], 4)


def test_failures_with_records_are_asked_again_if_that_may_help(served: Served) -> None:
    words = ("--resume", "--errors", "--timeout=1", "--output=rows.jsonl")
    words = (*words, "bad.jpg", "late.jpg", "10.jpg", "missing")
    codes = {"bad.jpg": "bad-image", "late.jpg": "overloaded", "missing": "cannot-open"}
    for _ in range(2):
        before = served.late
        assert predict(*words) == ("", 1)
        assert served.late > before
        found = [json.loads(line) for line in rows("rows.jsonl")]
        assert {one["path"]: one["error"]["code"] for one in found if "error" in one} == codes
        assert len(found) == 4
        assert served.bad == 1


def test_a_folder_is_walked_again_for_what_is_new(served: Served) -> None:
    """The walk has opened each file by then: also those that are left out."""
    folder = Path("folder")
    folder.mkdir()
    paths = [folder / f"{number:03}.gif" for number in range(100)]
    for number, path in enumerate(paths):
        path.write_bytes(b"GIF89a" + bytes(number % 50))
    words = ("-r", "--output=rows.csv", "--resume", "folder")
    assert predict(*words) == ("", 0)
    before = rows()
    assert [row.partition(",")[0] for row in before] == list(map(str, paths))
    paths[50].write_bytes(b"GIF89a")
    (folder / "new.gif").write_bytes(b"GIF89a")
    few = (resource.RLIMIT_NOFILE, (40, 40))
    done = subprocess.run(
        command(*words),
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(*few),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rows() == [
        *before[:50],
        *before[51:],
        f"{paths[50]},0.06,0.94",
        "folder/new.gif,0.06,0.94",
    ]
    assert served.images == 102


def test_standard_input_is_always_new(served: Served) -> None:
    for size in (5, 6):
        done = subprocess.run(
            command("--output=rows.csv", "--resume", "-"), input=bytes(size), check=True
        )
        assert done.returncode == 0
        assert rows() == [f"-,0.0{size},0.9{10 - size}"]
    assert served.images == 2


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.ndjson", "rows --format=csv"])
def test_names_of_any_bytes(name: str) -> None:
    paths = (
        b"-rf",
        b"a\nb",
        b'q"t',
        b"t\tb\\t",
        b"\xff\xc3",
        b"r\r",
        b"c,d",
        b"e\x00".strip(b"\0"),
    )
    for number, path in enumerate(paths):
        Path(os.fsdecode(path)).write_bytes(bytes(number))
    output, *format = name.split()
    words = (f"--output={output}", "--resume", *format, "--", *paths)
    assert predict(*words) == ("", 0)
    before = Path(output).read_bytes()
    assert predict(*words) == ("", 0)
    assert Path(output).read_bytes() == before
    Path("a\nb").write_bytes(bytes(50))
    assert predict(*words) == ("", 0)
    after = Path(output).read_bytes()
    assert after != before
    assert len(after.splitlines()) == len(before.splitlines())


# -- what is refused


REFUSED = [
    (("--output=rows.csv",), "rows.csv: it exists; --resume goes on with it, --force begins"),
    (
        ("--output=rows.csv", "--resume", "--header"),
        "rows.csv: it was begun with --format=csv, and this is --format=csv --header; take the",
    ),
    (("--output=folder", "--format=csv"), "folder: Is a directory"),
    (("--output=/dev/null", "--format=csv"), "/dev/null: it is no plain file; without --output"),
    (("--output=missing/rows.csv",), "missing/rows.csv: No such file or directory"),
    (("--output=other.csv", "--resume"), "other.csv: other.csv.resume, which says what its rows"),
]


@pytest.mark.parametrize(("words", "why"), REFUSED, ids=lambda x: " ".join(x)[:50])
def test_what_is_refused(served: Served, words: tuple[str, ...], why: str) -> None:
    predict("--output=rows.csv", "10.jpg")
    Path("other.csv").write_text("of somebody else\n")
    Path("folder").mkdir()
    before = {path: path.read_bytes() for path in Path().glob("*.csv*")}
    err, status = predict(*words, *FOUR)
    assert status == 73
    assert err.startswith(f"swiprctl: {why}")
    assert {path: path.read_bytes() for path in Path().glob("*.csv*")} == before
    assert served.images == 1


@pytest.mark.usefixtures("served")
def test_force_begins_anew() -> None:
    Path("rows.csv").write_text("of somebody else\n")
    for words in (FOUR[:2], FOUR[2:]):
        assert predict("--output=rows.csv", "--force", *words) == ("", 0)
        assert len(rows()) == 2
    assert predict("--output=rows.csv", "--resume", *FOUR) == ("", 0)
    assert len(rows()) == 4


@pytest.mark.usefixtures("served")
def test_a_condition_that_is_none_costs_no_rows() -> None:
    predict("--output=rows.csv", *FOUR)
    before = rows()
    err, status = predict("--output=rows.csv", "--force", "--where=sharp >", *FOUR)
    assert status == 64
    assert "sharp >" in err
    assert rows() == before


@pytest.mark.usefixtures("served")
def test_a_link_stays_a_link() -> None:
    Path("link.csv").symlink_to("rows.csv")
    for size in (10, 11):
        Path("10.jpg").write_bytes(bytes(size))
        assert predict("--output=link.csv", "--resume", *FOUR) == ("", 0)
    assert Path("link.csv").is_symlink()
    assert len(rows()) == 4


@pytest.mark.usefixtures("served")
def test_a_hyphen_is_no_output_file() -> None:
    err, status = predict("--output=-", "--format=csv", *FOUR)
    assert status == 64
    assert err.startswith("swiprctl: --output=-: leave it out, and the rows go to standard output")
    assert not Path("-").exists()


@pytest.mark.parametrize("done", [-1, 0, 1], ids=["removed", "changed", "added"])
def test_a_file_that_was_changed_is_not_gone_on_with(served: Served, done: int) -> None:
    predict("--output=rows.csv", *FOUR)
    text = Path("rows.csv").read_text()
    changed = {
        -1: text.replace("20.jpg,0.2,0.8\n", ""),
        0: text.replace("0.2,", "0.3,"),
        1: text + "mine.jpg,1,0\n",
    }
    Path("rows.csv").write_text(changed[done])
    err, status = predict("--output=rows.csv", "--resume", *FOUR)
    assert status == 73
    assert "--force begins anew" in err
    assert Path("rows.csv").read_text() == changed[done]
    if done == 1:  # what the message says, works
        subprocess.run(err.split("'")[1], shell=True, check=True)
        assert predict("--output=rows.csv", "--resume", *FOUR) == ("", 0)
        assert Path("rows.csv").read_text() == text
    else:
        assert "row 2, at byte 15, is not as" in err
    assert served.images == 4


def test_a_second_writer_is_refused(served: Served) -> None:
    served.stop_after = 2
    with subprocess.Popen(command("--output=rows.csv", *FOUR), stderr=subprocess.PIPE) as first:
        try:
            wait_until(lambda: Path("rows.csv").exists() and bool(rows()), "a row is there")
            for word in ("--resume", "--force"):
                err, status = predict("--output=rows.csv", word, "30.jpg")
                assert (err, status) == (
                    "swiprctl: rows.csv: another swiprctl is writing it\n",
                    73,
                )
            assert rows() == ["10.jpg,0.1,0.9"]
        finally:
            first.send_signal(signal.SIGINT)
            _, err = first.communicate(timeout=30)
    assert err == b"swiprctl: rows.csv: it has 1 row so far; --resume goes on with it\n"
    assert first.returncode == -signal.SIGINT
    served.stop_after = -1
    assert predict("--output=rows.csv", "--resume", *FOUR) == ("", 0)
    assert len(rows()) == 4


@pytest.mark.usefixtures("served")
def test_a_disk_that_is_full_leaves_what_can_be_gone_on_with() -> None:
    """The journal's lines are longer, so with a limit on files' sizes it is full first; the other
    way round, the journal is moved to where there is room."""
    paths = [f"{n:03}.jpg" for n in range(60)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(bytes(number))
    predict("--output=one.csv", *paths)
    words = ("--output=rows.csv", "--resume", *paths)
    seen = 0
    for largest in (100, 500, 1000, 2000, 2500):
        err, status = predict(*words, largest_file=largest)
        assert status == 74
        assert err.startswith("swiprctl: rows.csv: it has ") or seen == 0
        assert "rows.csv.resume: File too large\n" in err
        assert len(rows()) >= seen
        seen = len(rows())
    assert seen > 10
    assert predict(*words) == ("", 0)
    assert sorted(rows()) == sorted(rows("one.csv"))


@pytest.mark.usefixtures("served")
def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    """A small one, if this process may mount it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        pytest.skip("takes the right to mount")
    try:
        paths = [f"{'x' * 200}{n:03}.jpg" for n in range(60)]
        for number, path in enumerate(paths):
            Path(path).write_bytes(bytes(number))
        predict("--output=one.csv", *paths)
        words = (f"--output={folder}/rows.csv", "--resume", *paths)
        for _ in range(2):
            err, status = predict(*words)
            assert status == 74
            assert "No space left on device" in err
            assert "--resume goes on with it" in err
        assert 10 < len(rows(f"{folder}/rows.csv")) < 60
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        assert predict(*words) == ("", 0)
        assert sorted(rows(f"{folder}/rows.csv")) == sorted(rows("one.csv"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# -- interruption


@pytest.mark.parametrize("interrupted", [5, pytest.param(30, marks=pytest.mark.long)])
def test_interrupted_runs_make_the_rows_of_one(
    daemon: DaemonProcess, photos: list[bytes], tmp_path: Path, interrupted: int
) -> None:
    """At moments chosen at random, by SIGINT and by SIGKILL; files change meanwhile."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    paths = [str(pictures / f"{n}\n{'ä' * (n % 7)},.jpg") for n in range(200)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(photos[number % len(photos)])
    paths += paths[:20]  # named twice
    names = tmp_path / "names"
    names.write_text("\0".join(paths))
    output = tmp_path / "rows.csv"
    words = ("--timeout=600", f"--socket={daemon.path}", f"--files0-from={names}")
    resume = command(*words, "--header", f"--output={output}", "--resume")
    wide = signal.Signals
    seen: Counter[int] = Counter()
    while sum(seen.values()) < interrupted:
        if output.exists() and rng.random() < 0.2:
            Path(rng.choice(paths)).write_bytes(rng.choice(photos))
        with subprocess.Popen(resume, stderr=subprocess.PIPE) as process:
            try:
                process.wait(rng.choice([0.1, 0.3, 1.0]) * rng.random() + 0.05)
            except subprocess.TimeoutExpired:
                process.send_signal(rng.choice([wide.SIGINT, wide.SIGKILL]))
            _, err = process.communicate(timeout=60)
        # SIGINT while the interpreter starts is Python's to tell.
        ended = process.returncode in (0, -wide.SIGINT, -wide.SIGKILL)
        assert ended or err.rstrip().endswith(b"KeyboardInterrupt"), err
        seen[process.returncode] += process.returncode != 0
        if process.returncode == 0:  # too fast: from the beginning
            for path in rng.sample(paths, 150):
                os.utime(path)
    done = subprocess.run(resume, capture_output=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    one = command(*words, "--header", f"--output={tmp_path}/one.csv")
    subprocess.run(one, timeout=100, check=True)
    found, expected = (
        Counter(map(tuple, csv.reader(io.StringIO(file.read_bytes().decode(), ""), strict=True)))
        for file in (output, tmp_path / "one.csv")
    )
    assert found == expected
    assert sum(expected.values()) == 1 + len(paths)


def test_the_lock_is_the_files(served: Served) -> None:
    """So that it goes with the process, however that ends."""
    with open("rows.csv", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert predict("--output=rows.csv", "10.jpg")[1] == 73
    assert predict("--output=rows.csv", "10.jpg") == ("", 0)
    assert served.images == 1
