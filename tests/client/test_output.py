"""What the client prints gets there, every byte of it, or the client says that it did not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import fuseserver
import pytest
from daemonprocess import wait_until
from peer import Connection, Peer

pytestmark = pytest.mark.timeout(60)

INPUTS = 120
BUFFERING = pytest.mark.parametrize("unbuffered", ["1", ""], ids=["unbuffered", "buffered"])


def answers(connection: Connection) -> None:
    """Answer everything, with more than a page of text where that is asked for."""
    while True:
        asked = connection.asked()
        if asked.op == "predict":
            connection.answer(asked, *[0.123456] * 200)
        else:
            connection.reply(asked.id, model="peer@1", labels=[f"label {n}" for n in range(900)])


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "a.jpg").touch()
    with Peer(tmp_path / "s", answers):
        yield tmp_path


def start(
    folder: Path,
    *words: str,
    unbuffered: str = "",
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
    largest_file: int = resource.RLIM_INFINITY,
) -> subprocess.Popen[bytes]:
    environment = {"SWIPR_SOCKET": str(folder / "s"), "PYTHONUNBUFFERED": unbuffered}
    limit = (largest_file, resource.RLIM_INFINITY)
    return subprocess.Popen(
        [sys.executable, "-m", "swiprctl", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **environment},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )


def waiting(pipe: int) -> int:
    """Bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


WORDS = {
    "rows": ["predict", *["a.jpg"] * INPUTS],
    "json": ["model", "--json"],
    "text": ["model"],
    "help": ["--help"],
}


@BUFFERING
@pytest.mark.parametrize("words", [WORDS["rows"], WORDS["json"]], ids=["rows", "json"])
def test_a_pipe_that_does_not_block_gets_every_byte(
    peer: Path, words: list[str], unbuffered: str
) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    process = start(peer, *words, unbuffered=unbuffered, stdout=writing)
    try:
        # Two rows: there is no room for a third.
        wait_until(lambda: process.poll() is not None or waiting(reading) > 3000, "it is full")
        os.close(writing)
        with open(reading, "rb") as stream:
            found = stream.read()
        assert process.wait(30) == 0
    finally:
        process.kill()
        _, err = process.communicate()
    assert err == b""
    expected, _ = start(peer, *words, stdout=subprocess.PIPE).communicate(timeout=30)
    assert len(expected) > 1000
    assert found == expected


@BUFFERING
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_file_that_takes_a_part_is_a_failure(
    peer: Path, words: list[str], unbuffered: str
) -> None:
    """As on a full disk: what fits is written, and only the next write(2) fails."""
    full = peer / "full"
    with open(full, "wb") as file:
        process = start(peer, *words, unbuffered=unbuffered, stdout=file.fileno(), largest_file=50)
        _, err = process.communicate(timeout=30)
    assert err == b"swiprctl: standard output: File too large\n"
    assert process.returncode == 74
    assert full.stat().st_size == 50


@BUFFERING
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_full_device_is_a_failure(peer: Path, words: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        process = start(peer, *words, unbuffered=unbuffered, stdout=full.fileno())
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (
        74,
        b"swiprctl: standard output: No space left on device\n",
    )


@pytest.mark.skipif(not fuseserver.possible(), reason="takes root and /dev/fuse")
def test_a_file_system_that_says_only_in_the_end_that_it_kept_nothing(peer: Path) -> None:
    """As NFS does, and quotas: write(2) takes all of it, and close(2) fails."""
    with fuseserver.mounted(peer / "fuse", peer / "a.jpg") as folder:
        file = os.open(folder / "unkept", os.O_WRONLY)
        process = start(peer, "predict", "a.jpg", stdout=file)
        _, err = process.communicate(timeout=30)
        with pytest.raises(OSError, match="quota"):
            os.close(file)
    assert (process.returncode, err) == (
        74,
        b"swiprctl: standard output: Disk quota exceeded\n",
    )


def test_words_get_through_to_a_pipe_that_does_not_block(peer: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    missing = [f"missing{n}" for n in range(INPUTS)]
    process = start(peer, "predict", *missing, stderr=writing)
    try:
        wait_until(lambda: process.poll() is not None or waiting(reading) > 3000, "it writes")
        os.close(writing)
        with open(reading, "rb") as stream:
            assert len(stream.read().splitlines()) == INPUTS
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()


# -- signals


@contextlib.contextmanager
def blocked(folder: Path, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell's script, in a group of its own, when the client in it waits for a pipe's writer."""
    os.mkfifo(folder / "fifo")
    process = subprocess.Popen(
        ["bash", "-c", script, sys.executable],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SWIPR_SOCKET": str(folder / "s")},
        process_group=0,
    )
    writer = os.open(folder / "fifo", os.O_WRONLY)  # returns when the client has opened it, too
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(writer)
        process.communicate()


def test_an_interrupt_ends_it_by_the_signal(peer: Path) -> None:
    with blocked(peer, 'exec "$0" -m swiprctl predict a.jpg fifo') as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"a.jpg,0.123456,")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert process.stderr.read() == b""


def test_an_interrupt_ends_a_shells_loop(peer: Path) -> None:
    loop = 'for f in a.jpg fifo a.jpg; do "$0" -m swiprctl predict $f; echo "$?"; done'
    with blocked(peer, loop) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"0.123456,")
        assert process.stdout.readline() == b"0\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert process.stdout.read() == b""


def test_one_that_is_to_be_ignored_is(peer: Path) -> None:
    with blocked(peer, "trap '' INT; exec \"$0\" -m swiprctl predict fifo") as process:
        process.send_signal(signal.SIGINT)
        assert select.select([process.stdout], [], [], 0.2)[0] == []
        assert process.poll() is None


def test_nobody_reading_ends_it_by_the_signal(peer: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start(peer, "predict", "a.jpg", stdout=writing)
    _, err = process.communicate(timeout=30)
    os.close(writing)
    assert (process.returncode, err) == (-signal.SIGPIPE, b"")
