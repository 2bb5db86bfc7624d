"""A worker's states as a table, and how long to wait before the next try. Pure.

SPAWNING ──forked──▶ WARMING ──answered──▶ IDLE ◀──answered── BUSY
    │                   │                   └────given────▶────┘
    └───────────────────┴── lost or killed, from any ──▶ GONE
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """What a worker is doing."""

    SPAWNING = "spawning"  # the forkserver was asked for it
    WARMING = "warming"  # it runs its first canary, which also warms the kernels up
    IDLE = "idle"  # it waits; one more than may be busy is kept so: the standby
    BUSY = "busy"  # it has a job, or a batch of them
    GONE = "gone"  # it is dead, or has been sent SIGKILL and is as good as dead


class Event(Enum):
    """What can happen to a worker."""

    FORKED = "forked"
    ANSWERED = "answered"
    GIVEN = "given"
    LOST = "lost"


_TABLE: dict[tuple[State, Event], State] = {
    (State.SPAWNING, Event.FORKED): State.WARMING,
    (State.WARMING, Event.ANSWERED): State.IDLE,
    (State.IDLE, Event.GIVEN): State.BUSY,
    (State.BUSY, Event.ANSWERED): State.IDLE,
    (State.SPAWNING, Event.LOST): State.GONE,
    (State.WARMING, Event.LOST): State.GONE,
    (State.IDLE, Event.LOST): State.GONE,
    (State.BUSY, Event.LOST): State.GONE,
}


class IllegalTransition(RuntimeError):
    """The daemon lost track of a worker: a defect, never a user's doing."""


def after(state: State, event: Event) -> State:
    """The state that follows.

    Raises:
        IllegalTransition: the event cannot happen in this state.
    """
    try:
        return _TABLE[state, event]
    except KeyError:
        raise IllegalTransition(f"a worker that is {state.value} was {event.value}") from None


class Backoff:
    """Seconds to wait before try after try: none at first, then doubling up to a ceiling.

    A success forgets the failures, so that one death now and then costs nothing.
    """

    def __init__(self, *, first: float = 0.1, ceiling: float = 10.0) -> None:
        self._first = first
        self._ceiling = ceiling
        self.failures = 0

    def failed(self) -> float:
        """Count a failure; say how long to wait before the next try."""
        self.failures += 1
        if self.failures == 1:
            return 0.0
        return min(self._ceiling, self._first * 2.0 ** min(self.failures - 2, 30))

    def succeeded(self) -> None:
        """Forget the failures."""
        self.failures = 0
