"""The forkserver's process: the first is had ahead of its order, and none outlives the front."""

from __future__ import annotations

import os
import select
import subprocess
import sys

import pytest

from swiprd.pool import forkserver_process

pytestmark = pytest.mark.timeout(60)


def test_the_process_that_was_started_ahead_is_the_first_and_only_that() -> None:
    started = []
    try:
        forkserver_process.start_ahead()
        forkserver_process.start_ahead()  # there is one already
        before = children()
        started += [forkserver_process.start(), forkserver_process.start()]
        first, second = (process.pid for process, _ in started)
        assert children() - before == {second}
        assert first in before
    finally:
        for process, control in started:
            control.close()
            assert process.wait(30) == 0  # on EOF


def test_a_process_that_nobody_takes_leaves_with_the_front() -> None:
    code = (
        "import os; from swiprd.pool import forkserver_process as f; f.start_ahead();"
        "print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True); input()"
    )
    front = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert front.stdout is not None
    pidfd = os.pidfd_open(int(front.stdout.readline()))
    try:
        assert not select.select([pidfd], [], [], 0)[0]
        front.communicate("\n")
        assert select.select([pidfd], [], [], 30)[0]
    finally:
        os.close(pidfd)


def children() -> set[int]:
    """Pids of this process's children."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))
