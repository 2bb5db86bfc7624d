"""How a worker ended, and whose fault that was. Pure."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """Who is to blame for a worker's end, if it had one image and no more."""

    NOBODY = "somebody killed it: we, an operator, the OOM killer"
    IMAGE = "it died by itself"
    DECODER = "an image kept the processor for longer than a decoder may; see worker.py"
    WEIGHTS = "what it had mapped is not there any more"


@dataclass(frozen=True)
class Death:
    """A worker's end. `how` is for people."""

    how: str
    fault: Fault


def death_of(status: int | None) -> Death:
    """Judge by waitpid(2)'s status; None where it is not known."""
    if status is None:
        return Death("its forkserver is gone", Fault.NOBODY)
    if not os.WIFSIGNALED(status):
        return Death(f"exit status {os.waitstatus_to_exitcode(status)}", Fault.IMAGE)
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGBUS:
        # No image is ever mapped; weights are.
        name += " (were the weights overwritten where they lie? Rename a new file over them)"
        return Death(name, Fault.WEIGHTS)
    if number == signal.SIGPROF:
        return Death(name, Fault.DECODER)
    return Death(name, Fault.NOBODY if number == signal.SIGKILL else Fault.IMAGE)
