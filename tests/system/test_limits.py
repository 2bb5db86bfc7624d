"""limits.py: the limits that a shell has set, in words."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("-f 10", "10240 bytes of a file (ulimit -f, RLIMIT_FSIZE)"),
        ("-t 77", "77 seconds of processor time (ulimit -t, RLIMIT_CPU)"),
        ("-v 4000000", "4096000000 bytes of address space (ulimit -v, RLIMIT_AS)"),
        ("-d 3000000", "3072000000 bytes of data (ulimit -d, RLIMIT_DATA)"),
    ],
)
def test_a_limit_of_the_shell_is_named(option: str, words: str) -> None:
    program = "from swiprd.system.limits import describe; print(describe())"
    shell = ["bash", "-c", f'ulimit {option} && exec "$0" -P -c "$1"', sys.executable, program]
    told = subprocess.run(shell, check=True, capture_output=True, text=True)
    assert words in told.stdout
