"""The manual's EXAMPLES, run as they stand there, with the default model and real programs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemonprocess import DaemonProcess

pytestmark = [pytest.mark.timeout(120), pytest.mark.long]

ROOT = Path(__file__).parent.parent.parent
PHOTOS = ROOT / "tests/photos"
PAGE = (ROOT / "packaging/man/swiprctl.1").read_text()


def literal(text: str) -> str:
    """Undo what the page's language needs."""
    return text.replace("\\e", "\\")


EXAMPLES = [
    literal(block)
    for block in re.findall(
        r"^\.Bd -literal.*?\n(.*?)^\.Ed",
        PAGE.partition(".Sh EXAMPLES")[2].partition(".Sh ")[0],
        flags=re.M | re.S,
    )
]
ELSEWHERE = ["/var/lib/prometheus", "swiprctl stop --all"]
"""Of examples that other tests try, or that want a place of the system's."""


def example(word: str) -> str:
    """Find the one example with a word in it."""
    (found,) = (block for block in EXAMPLES if word in block)
    return found


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"the manual's example with {program} is not tried: sudo apt install {package}",
    )


@pytest.fixture(scope="module")
def focus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon with the default model."""
    shape = ("--workers=1", "--threads=1", "--batch=1", "--timeout=60")
    daemon = DaemonProcess(
        tmp_path_factory.mktemp("focus"), *shape, model=ROOT / "swiprd/models/focus"
    )
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


@pytest.fixture
def place(tmp_path: Path, focus: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `photos/`, in which `swiprctl` is the one that is tested."""
    (tmp_path / "photos").mkdir()
    for photo in PHOTOS.glob("*.jpg"):
        shutil.copy(photo, tmp_path / "photos")
    shutil.copy(PHOTOS / "coffee-blurred.jpg", tmp_path / "photos/a, b\n'c'.jpg")
    (tmp_path / "bin").mkdir()
    for name, words in (("swiprctl", "-m swiprctl"), ("python3", "")):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SWIPR_SOCKET", str(focus.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str) -> str:
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


BLURRED = {"chelsea-blurred.jpg", "coffee-blurred.jpg"}
ODD = "a, b\n'c'.jpg"


def test_moved_away(place: Path) -> None:
    assert run(example("xargs -0 -r mv -n -t blurred")) == ""
    moved = {path.name for path in (place / "blurred").iterdir()}
    assert moved == {*BLURRED, ODD}
    left = {path.name for path in (place / "photos").iterdir()}
    assert left == {path.name for path in PHOTOS.glob("*.jpg")} - BLURRED


def test_nothing_that_was_moved_is_overwritten(place: Path) -> None:
    script = example("xargs -0 -r mv -n -t blurred")
    run(script)
    first = (place / "blurred/coffee-blurred.jpg").read_bytes()
    shutil.copy(PHOTOS / "chelsea-blurred.jpg", place / "photos/coffee-blurred.jpg")
    assert run(script.replace("mkdir blurred", "")) == ""
    assert (place / "blurred/coffee-blurred.jpg").read_bytes() == first
    assert (place / "photos/coffee-blurred.jpg").exists()


def test_the_worst_as_a_page(place: Path) -> None:
    script = example("swiprctl sheet >worst.html")
    assert run(script) == ""
    page = (place / "worst.html").read_text()
    assert '"photos/a%2C%20b%0A%27c%27.jpg"' in page
    assert page.count('"photos/') == 2 * len(list((place / "photos").iterdir()))
    assert run(script.replace("=100", "=2")) == ""
    assert (place / "worst.html").read_text().count('"photos/') == 4


@pytest.mark.parametrize("word", ["--output=rows.csv --resume photos\n", "systemd-run"])
def test_gone_on_with(place: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    scripts = [block for block in EXAMPLES if word in block and "--resume" in block]
    # What the timer runs, in the directory that it is told.
    script = re.sub(r"systemd-run .*\\\n +", "", scripts[word == "systemd-run" and -1])
    assert script.startswith("swiprctl predict -r ")
    run(script)
    first = (place / "rows.csv").read_bytes()
    shutil.copy(PHOTOS / "coffee.jpg", place / "photos/new.jpg")
    run(script)
    rows = (place / "rows.csv").read_bytes()
    assert rows.startswith(first)
    assert rows[len(first) :].startswith(b"photos/new.jpg,")
    assert rows[len(first) :].count(b"\n") == 1


def test_chosen_by_find(place: Path) -> None:
    os.utime(place / "photos/coffee-blurred.jpg", (0, 0))
    found = run(example("-mtime -1"))
    assert sorted(found) == sorted(f"photos/chelsea-blurred.jpg\nphotos/{ODD}\n")


def test_a_row_for_each_that_find_finds(place: Path) -> None:
    rows = run(example("-exec swiprctl predict -H {} +"))
    # By either of the two lines.
    assert rows.count("photos/") == 2 * len(list((place / "photos").iterdir()))


@needs("exiftool", "libimage-exiftool-perl")
def test_ratings(place: Path) -> None:
    (place / "photos" / ODD).unlink()  # exiftool itself takes no line feed
    assert run(example("exiftool")) == ""
    told = run("exiftool -s3 -p '$filename $xmp:rating' -q photos 2>/dev/null")
    assert set(told.splitlines()) == {f"{name} 1" for name in BLURRED}


@needs("sqlite3", "sqlite3")
def test_rows_in_sqlite(place: Path) -> None:
    found = run(example("sqlite3"))
    assert {f"photos/{name}" for name in BLURRED} <= set(found.splitlines())
    assert f"photos/{ODD}" in found
    connection = sqlite3.connect(place / "photos.db")
    try:
        rows = connection.execute("SELECT path, sharp, blurred FROM rows").fetchall()
    finally:
        connection.close()
    assert len(rows) == len(list((place / "photos").iterdir()))
    assert all(isinstance(row[1], float) and abs(row[1] + row[2] - 1) < 1e-4 for row in rows)


def test_rows_in_pandas(place: Path) -> None:
    pytest.importorskip("pandas")
    printed = run(example("import pandas"))
    assert [line.split()[-1] for line in printed.splitlines()[:1]] == ["blurred"]
    assert all(f"photos/{name}" in printed for name in BLURRED)
    assert "photos/rocket.jpg" not in printed
    assert len(list((place / "photos").iterdir())) > len(BLURRED) + 1


@needs("ssconvert", "gnumeric")
def test_rows_in_a_workbook(place: Path) -> None:
    done = subprocess.run(["bash", "-ec", example("ssconvert")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(place / "rows.xlsx") as book:
        cells = book.read("xl/worksheets/sheet1.xml").decode()
    # A number in each cell but for the header's and the paths': no text to be converted.
    numbers = re.findall(r'<c r="[BC]\d+"(?![^>]* t="s")[^>]*>\s*<v>([^<]*)</v>', cells)
    assert len(numbers) == 2 * len(list((place / "photos").iterdir()))
    assert all(0 <= float(number) <= 1 for number in numbers)


@needs("inotifywait", "inotify-tools")
def test_an_incoming_folder(place: Path) -> None:
    incoming = place / "incoming"
    (incoming / "later").mkdir(parents=True)
    process = subprocess.Popen(
        ["bash", "-c", example("inotifywait")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if "Watches established" in line:
                break
        shutil.copy(PHOTOS / "coffee.jpg", incoming)
        first = process.stdout.readline()
        # Two that are written under another name; the list says no more of those.
        shutil.copy(PHOTOS / "coffee.jpg", incoming / ".hidden")
        shutil.copy(PHOTOS / "chelsea-blurred.jpg", incoming / "b.jpg.part")
        (incoming / "b.jpg.part").rename(incoming / "b.jpg")
        shutil.copy(PHOTOS / "rocket.jpg", incoming / "later/c, d.jpg")
        rest = [process.stdout.readline() for _ in range(2)]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert [line.rpartition(".jpg")[0] for line in (first, *rest)] == [
        *("incoming/coffee", "incoming/b", '"incoming/later/c, d')
    ]
    assert (out, err) == ("", "")


def test_no_example_is_left_out() -> None:
    names = re.findall(r'example\("(.*?)"\)', Path(__file__).read_text())
    names.append("--output=rows.csv --resume photos")
    for block in EXAMPLES:
        tried = [name for name in (*names, *ELSEWHERE) if name in block]
        assert tried, block


def test_the_readme_s_jobs_are_of_these() -> None:
    readme = (ROOT / "README.md").read_text()
    chapter = readme.partition("## Jobs, a line or two each")[2].partition("\n## ")[0]
    jobs = re.findall(r"^```sh\n(.*?)^```", chapter, flags=re.M | re.S)
    assert len(jobs) == 4
    for job in jobs:
        assert job in EXAMPLES
