"""What a process does first that works for a daemon in quiet time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from swiprd.system.kernel import die_with_parent


def stay_behind(arguments: Sequence[str]) -> None:
    """Run only where no other process wants the processor, and die with the parent.

    Args:
        arguments: the parent's pid; without it nothing is done: a person is waiting.
    """
    if arguments:
        die_with_parent(int(arguments[0]))
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
