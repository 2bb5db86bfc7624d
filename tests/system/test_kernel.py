"""kernel.py: a child that is stuck in C still dies with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from daemonprocess import is_alive, signal_if_there, wait_until

from swiprd.system.kernel import Stat, die_with_parent, statx

pytestmark = pytest.mark.timeout(30)

_FAMILY = """
import os, signal
from swiprd.system.kernel import die_with_parent
parent = os.getpid()
child = os.fork()
if child == 0:
    die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.write(1, f"{os.getpid()}\\n".encode())
    sum(iter(int, 1))  # one C call without an end: no bytecode, no signal handler, no read
signal.pause()
"""


def test_a_child_that_spins_in_c_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", _FAMILY], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert is_alive(child)
            parent.kill()
            parent.wait()
            wait_until(lambda: not is_alive(child), "the child is gone")
        finally:
            signal_if_there(child, signal.SIGKILL)


def test_a_parent_that_died_before_the_kernel_was_told_is_noticed() -> None:
    script = (
        "import os; from swiprd.system.kernel import die_with_parent;"
        "die_with_parent(os.getppid() + 1); print('still here')"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == ""


def test_it_leaves_a_child_of_a_living_parent_alone() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent(os.getppid())
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_statx_tells_what_fstat_does(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    os.utime(file, ns=(1, 1_700_000_000_123_456_789))
    with open(file, "rb") as opened:
        told, known = os.fstat(opened.fileno()), statx(opened.fileno())
    assert known == Stat(
        mode=told.st_mode,
        size=5,
        device=(os.major(told.st_dev), os.minor(told.st_dev)),
        inode=told.st_ino,
        modified=told.st_mtime_ns,
    )


def test_statx_of_nothing_open() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        statx(10_000)
