"""How a worker ended, whose fault that was, and what becomes of the image that it had."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import Enum

from swiprctl.errors import BadImage, LoadingFailed, SwiprError, WorkerCrashed
from swiprd.pool.job import Job

MAX_CRASHES = 2
"""Workers that may die by themselves with the same image, before it is to blame."""

MAX_KILLS = 5
"""Workers that may be killed from outside (an operator, the OOM killer) with the same image."""


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


def judge(job: Job, death: Death, max_decode: float) -> SwiprError | None:
    """Count a worker's end against the job that it had; say what ends the job, if that does.

    Args:
        max_decode: seconds of processor time that a decoder has.
    """
    if not job.threads:
        return None  # one of a batch: any of them may be to blame
    if death.fault is Fault.DECODER:
        return BadImage(f"its decoder takes more than {max_decode:g} s of processor time")
    if death.fault is Fault.NOBODY:
        job.kills += 1
    else:
        job.crashes += 1
    if job.crashes < MAX_CRASHES and job.kills < MAX_KILLS:
        return None
    if death.fault is Fault.WEIGHTS:
        return LoadingFailed(f"the model's workers die of {death.how}")
    died = job.crashes + job.kills
    return WorkerCrashed(f"{died} workers died with this image, the last of {death.how}")
