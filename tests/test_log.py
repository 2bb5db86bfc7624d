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
from swiprd.log import log, set_up
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
