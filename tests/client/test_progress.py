"""How far it is, on a terminal: a line that mixes with nothing, and a summary."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemonprocess import own_children
from peer import Connection, Peer
from screen import Screen, terminal

from swiprctl.errors import BadImage
from swiprctl.progress import fitted

pytestmark = pytest.mark.timeout(60)

NUMBER = 40


class Gate:
    """A daemon that answers so many images as the test lets it, and refuses those named `bad`."""

    def __init__(self) -> None:
        self._places = threading.Semaphore(0)

    def let(self, number: int) -> None:
        self._places.release(number)

    def __call__(self, connection: Connection) -> None:
        while True:
            asked = connection.asked()
            if asked.op == "model":
                connection.reply(asked.id, model="peer@1", labels=["sharp", "blurred"])
                continue
            assert self._places.acquire(timeout=20)
            if asked.image == b"bad":
                connection.refuse(asked.id, BadImage("not an image"))
            else:
                connection.answer(asked, 0.25, 0.75)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    for number in range(NUMBER):
        (tmp_path / f"{number:02}").write_bytes(b"bad" if number == 5 else b"\xff\xd8\xff")
    gate = Gate()
    with Peer(tmp_path / "s", gate):
        yield gate
        gate.let(1000)  # so that nobody waits there any more


@contextlib.contextmanager
def started(
    folder: Path,
    slave: int,
    *words: str,
    rows_too: bool = True,
    script: str = 'exec "$0" -m swiprctl "$@"',
    **environment: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """The client on a terminal, in its foreground; rows go there too, or nowhere."""
    process = subprocess.Popen(
        ["bash", "-c", script, sys.executable, *words],
        cwd=folder,
        stdin=slave,
        stdout=slave if rows_too else subprocess.DEVNULL,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(slave), os.O_RDWR)),  # it controls it
        env={**os.environ, "SWIPR_SOCKET": f"{folder}/s", "TERM": "xterm", **environment},
    )
    os.close(slave)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


NAMES = [f"{number:02}" for number in range(NUMBER)]
ROWS = [f"{name},0.25,0.75" if name != "05" else "swiprctl: 05: not an image" for name in NAMES]


def summary(screen: Screen) -> str:
    """The screen's last line but the one of the cursor."""
    assert screen.lines[-1] == ""
    return screen.lines[-2]


@pytest.mark.parametrize("columns", [80, 200])
def test_a_line_while_it_lasts_that_mixes_with_nothing(
    tmp_path: Path, gate: Gate, columns: int
) -> None:
    with (
        terminal(columns) as (screen, slave),
        started(tmp_path, slave, "predict", *NAMES) as process,
    ):
        gate.let(1)  # else the wait for the first is told, too
        screen.wait_for(f"1 of {NUMBER} done")
        gate.let(9)
        screen.wait_for(lambda screen: screen.lines[-1].startswith("10 of 40 done, 1 failed, "))
        assert screen.lines[:-1] == ROWS[:10]
        assert re.fullmatch(
            r"10 of 40 done, 1 failed, \S+ (m?s|min) left, \S+/s", screen.lines[-1]
        ), screen.lines[-1]
        gate.let(NUMBER)
        screen.rest()
        assert process.wait() == 1
    assert screen.lines[:-2] == ROWS, "and the line is gone"
    for row in ROWS[1:10]:
        assert f"\r\x1b[K{row}\r\n\r" in screen.wrote, "it comes back at once"
    assert re.fullmatch(
        r"swiprctl: 39 answered, 1 failed \(1 bad-image\) in \S+ s, \S+/s", summary(screen)
    )
    assert screen.widest < columns


def test_it_follows_the_width(tmp_path: Path, gate: Gate) -> None:
    with (
        terminal(200) as (screen, slave),
        started(tmp_path, slave, "predict", *NAMES) as process,
    ):
        gate.let(10)
        screen.wait_for(lambda screen: screen.lines[-1].endswith("/s"))
        for columns, line in (
            (20, "10 of 40 done"),
            (8, "10 of 4"),
            (25, "10 of 40 done, 1 failed"),
        ):
            screen.resize(columns, process)
            screen.wait_for(lambda screen, line=line: screen.lines[-1] == line)
        gate.let(NUMBER)
        screen.rest()
    assert screen.lines[:-2] == ROWS


def test_rows_that_go_elsewhere(tmp_path: Path, gate: Gate) -> None:
    with (
        terminal() as (screen, slave),
        started(tmp_path, slave, "predict", *NAMES, rows_too=False),
    ):
        gate.let(1)
        screen.wait_for(f"1 of {NUMBER} done")
        gate.let(NUMBER)
        screen.rest()
    assert screen.lines[:-2] == ["swiprctl: 05: not an image"]
    assert summary(screen).startswith("swiprctl: 39 answered, 1 failed")


@pytest.mark.parametrize(
    ("option", "left"), [("--no-progress", 1), ("-q", 0), ("--quiet", 0)], ids=str
)
def test_silenced(tmp_path: Path, gate: Gate, option: str, left: int) -> None:
    """A summary that is asked for comes all the same, and is what is waited for here."""
    with (
        terminal() as (screen, slave),
        started(tmp_path, slave, "predict", option, *NAMES) as process,
    ):
        gate.let(1)
        screen.wait_for("00,0.25,0.75\r\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.5)  # past the moment at which it would come
        process.send_signal(signal.SIGUSR1)
        screen.wait_for("swiprctl: 1 answered in ")
        gate.let(NUMBER)
        screen.rest()
        assert process.wait() == 1
    assert "\x1b" not in screen.wrote
    assert len(screen.lines) - 1 == NUMBER + 1 + left


def test_nothing_in_a_pipe(tmp_path: Path, gate: Gate) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "swiprctl", "predict", *NAMES],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SWIPR_SOCKET": f"{tmp_path}/s"},
    )
    assert process.stdout is not None
    gate.let(1)
    process.stdout.readline()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.5)
    gate.let(NUMBER)
    _, err = process.communicate(timeout=30)
    assert err == b"swiprctl: 05: not an image\n"


@pytest.mark.parametrize(
    ("script", "term"),
    [
        ('exec "$0" -m swiprctl "$@"', "dumb"),
        ('set -m; "$0" -m swiprctl "$@" & wait', "xterm"),
    ],
    ids=["one that cannot erase", "in the background"],
)
def test_a_terminal_that_gets_no_line(tmp_path: Path, gate: Gate, script: str, term: str) -> None:
    with (
        terminal() as (screen, slave),
        started(tmp_path, slave, "predict", *NAMES, script=script, TERM=term) as process,
    ):
        gate.let(1)
        screen.wait_for("00,0.25,0.75\r\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.5)
        gate.let(NUMBER)
        screen.rest()
    assert "\x1b" not in screen.wrote
    assert screen.lines[:NUMBER] == ROWS


def test_a_signal_asks_for_a_summary_anywhere(tmp_path: Path, gate: Gate) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "swiprctl", "predict", *NAMES],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SWIPR_SOCKET": f"{tmp_path}/s"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    gate.let(8)
    for _ in range(7):
        process.stdout.readline()
    assert process.stderr.readline() == b"swiprctl: 05: not an image\n"
    process.send_signal(signal.SIGUSR1)
    told = process.stderr.readline()
    gate.let(NUMBER)
    process.communicate(timeout=30)
    assert process.returncode == 1
    # The last row may not have been counted yet.
    assert re.fullmatch(
        rb"swiprctl: [67] answered, 1 failed \(1 bad-image\) in \S+ m?s, \S+/s\n", told
    )


def test_a_signal_that_comes_early_ends_nothing(tmp_path: Path) -> None:
    """Here, while the client asks which model serves, to go on with an output file."""
    asked, go = threading.Event(), threading.Event()

    def late(connection: Connection) -> None:
        while True:
            request = connection.asked()
            if request.op == "model":
                asked.set()
                assert go.wait(timeout=20)
                connection.reply(request.id, model="peer@1", labels=["sharp", "blurred"])
            else:
                connection.answer(request, 0.25, 0.75)

    for name in "ab":
        (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    with Peer(tmp_path / "s", late):
        command = [sys.executable, "-m", "swiprctl", "predict", "--output=rows.csv"]
        around = {**os.environ, "SWIPR_SOCKET": f"{tmp_path}/s"}
        subprocess.run([*command, "a"], cwd=tmp_path, env=around, timeout=30, check=True)
        process = subprocess.Popen(
            [*command, "--resume", "a", "b"], cwd=tmp_path, stderr=subprocess.PIPE, env=around
        )
        assert asked.wait(timeout=20)
        process.send_signal(signal.SIGUSR1)
        go.set()
        _, err = process.communicate(timeout=30)
    assert (err, process.returncode) == (b"", 0)
    assert (tmp_path / "rows.csv").read_text() == "a,0.25,0.75\nb,0.25,0.75\n"


def test_a_terminal_that_says_no_width(tmp_path: Path, gate: Gate) -> None:
    with (
        terminal(0) as (screen, slave),
        started(tmp_path, slave, "predict", *NAMES),
    ):
        gate.let(10)
        screen.wait_for("10 of 40 done, 1 failed")
        gate.let(NUMBER)
        screen.rest()


def test_an_interrupt_takes_the_line_away_and_sums_up(tmp_path: Path, gate: Gate) -> None:
    with (
        terminal() as (screen, slave),
        started(tmp_path, slave, "predict", *NAMES) as process,
    ):
        gate.let(3)
        screen.wait_for(lambda screen: screen.lines[-1].startswith("3 of 40 done"))
        process.send_signal(signal.SIGINT)
        screen.rest()
        assert process.wait() == -signal.SIGINT
        gate.let(NUMBER)
    assert screen.lines[:-2] == ROWS[:3]
    assert summary(screen).startswith("swiprctl: 3 answered in ")


def test_a_shell_that_stops_it_gets_a_clean_line(tmp_path: Path, gate: Gate) -> None:
    script = 'set -m; "$0" -m swiprctl predict "$@"; echo; echo stopped; fg >/dev/null'
    with (
        terminal() as (screen, slave),
        started(tmp_path, slave, *NAMES, script=script) as shell,
    ):
        gate.let(1)
        screen.wait_for("1 of 40 done")
        os.kill(own_children(shell.pid)[0], signal.SIGTSTP)
        screen.wait_for("stopped\r\n")
        assert screen.lines[0] == ROWS[0]
        assert not [line for line in screen.lines if "done" in line]
        stopped = screen.lines[:-1]
        screen.wait_for(lambda screen: screen.lines[-1].startswith("1 of 40 done"))
        gate.let(NUMBER)
        screen.rest()
    assert screen.lines[: len(stopped)] == stopped
    assert screen.lines[len(stopped) : -2] == ROWS[1:]


def test_short_work_says_nothing(tmp_path: Path, gate: Gate) -> None:
    gate.let(NUMBER)
    with terminal() as (screen, slave), started(tmp_path, slave, "predict", *NAMES[:3]):
        screen.rest()
    assert screen.lines == [*ROWS[:3], ""]


@pytest.mark.parametrize(
    ("option", "end"), [("--files-from=list", "\n"), ("--files0-from=list", "\0")]
)
def test_a_list_that_is_a_file_is_counted(
    tmp_path: Path, gate: Gate, option: str, end: str
) -> None:
    (tmp_path / "list").write_text(end.join(NAMES) + (end * 2 if end == "\n" else ""))
    with terminal() as (screen, slave), started(tmp_path, slave, "predict", option):
        gate.let(1)
        screen.wait_for("1 of 40 done")
        gate.let(NUMBER)
        screen.rest()


def test_a_walk_counts_what_it_leaves_out(tmp_path: Path, gate: Gate) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    for number in range(NUMBER):
        (tmp_path / "deep" / f"{number:02}").write_bytes(b"\xff\xd8\xff" if number % 2 else b"text")
    (tmp_path / "deep/er/00").write_bytes(b"\xff\xd8\xff")
    with terminal() as (screen, slave), started(tmp_path, slave, "predict", "-r", "deep"):
        gate.let(1)
        screen.wait_for("1 done")
        gate.let(NUMBER)
        screen.rest()
    assert re.fullmatch(
        r"swiprctl: 21 answered, 20 skipped \(no images\) in \S+ s, \S+/s", summary(screen)
    )


def test_what_is_left_out_is_counted(tmp_path: Path, gate: Gate) -> None:
    words = ["predict", "--output=rows.csv", *NAMES]
    gate.let(NUMBER)
    with terminal() as (screen, slave), started(tmp_path, slave, *words):
        screen.rest()
    with terminal() as (screen, slave), started(tmp_path, slave, *words, "--resume"):
        screen.wait_for("0 of 1 done")
        gate.let(1)
        screen.rest()
    assert re.fullmatch(
        r"swiprctl: 0 answered, 1 failed \(1 bad-image\), 39 there already in \S+ s, \S+/s",
        summary(screen),
    )


@pytest.mark.usefixtures("gate")
def test_nothing_found_is_said(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.jpg").write_bytes(b"no image")
    for quiet in (False, True):
        words = ("predict", "-r", "texts", *(["-q"] if quiet else []))
        with terminal() as (screen, slave), started(tmp_path, slave, *words) as process:
            screen.rest()
            assert process.wait() == 0
        assert screen.lines[:-1] == (
            []
            if quiet
            else ["swiprctl: no images: 1 other files, by their first bytes; see --hidden and -L"]
        )


def test_what_fits() -> None:
    parts = ["12 of 40 done", "1 failed", "2 s left"]
    assert fitted(parts, 33) == "12 of 40 done, 1 failed, 2 s left"
    assert fitted(parts, 32) == "12 of 40 done, 1 failed"
    assert fitted(parts, 13) == "12 of 40 done"
    assert fitted(parts, 5) == "12 of"
    assert fitted(parts, -1) == ""
