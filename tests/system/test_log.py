"""log.py: one line an event, and journald's priorities where journald reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(30)

_EVENTS = """
import logging
from swiprd.system.log import log, set_up
set_up()
log.debug("too small")
log.info("an event")
log.warning("two\\nlines\\r\\nor three\\x1b[31m")
try:
    raise ValueError("inside")
except ValueError as error:
    log.error("it failed: %s", error, exc_info=error)
log.critical("the end")
logging.getLogger("other").info("not ours")
"""


def lines(*, journal: bool, stream: str | None = None) -> list[str]:
    """What a process writes to a pipe that JOURNAL_STREAM names, or does not."""
    read, write = os.pipe()
    stat = os.fstat(write)
    environment = {k: v for k, v in os.environ.items() if k != "JOURNAL_STREAM"}
    if journal:
        environment["JOURNAL_STREAM"] = stream or f"{stat.st_dev}:{stat.st_ino}"
    try:
        subprocess.run(
            [sys.executable, "-P", "-c", _EVENTS],
            stderr=write,
            env=environment,
            check=True,
            timeout=20,
        )
    finally:
        os.close(write)
        with open(read, encoding="utf-8", newline="\n") as pipe:
            found = pipe.read()
    return found.removesuffix("\n").split("\n")


def test_under_journald_each_line_has_its_priority_and_no_time() -> None:
    info, warning, error, critical = lines(journal=True)
    assert info == "<6>an event"
    assert warning == "<4>two | lines | or three\x1b[31m"
    assert error.startswith("<3>it failed: inside | Traceback ")
    assert error.endswith("ValueError: inside")
    assert critical == "<2>the end"


def test_elsewhere_it_has_a_time_and_a_name() -> None:
    found = lines(journal=False)
    assert len(found) == 4
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} swiprd: an event", found[0])
    assert not any(line.startswith("<") for line in found)


@pytest.mark.parametrize("stream", ["1:2", "nonsense", ":"])
def test_a_variable_that_was_meant_for_somebody_else_changes_nothing(stream: str) -> None:
    assert "swiprd: an event" in lines(journal=True, stream=stream)[0]


_MANY = """
import os, sys
from swiprd.system.log import log, set_up
set_up()
for number in range(3000):
    log.warning("line %d", number)
print("not blocked", flush=True)
sys.stdin.read(1)
log.warning("again")
log.warning("and again")
"""


def test_a_journal_that_does_not_read_blocks_nobody_and_is_told_what_it_missed() -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _MANY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write,
        text=True,
    )
    os.close(write)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "not blocked\n"
        with open(read, "rb") as pipe:
            missed = pipe.read(1 << 15)  # room again
            process.communicate("x", timeout=20)
            text = (missed + pipe.read()).decode()
    finally:
        process.kill()
        process.wait()
    *before, dropped, again, last = text.splitlines()
    assert again.endswith("again")
    assert last.endswith("and again")
    count = int(re.search(r"(\d+) lines were dropped", dropped)[1])
    whole = [line for line in before if "swiprd: line " in line]
    assert len(whole) + count in (3000, 3001), "one may have been cut short"
