"""The descriptor of an image, from its arrival in the front to its close: one owner, closed once.

A client's descriptor is received by an intake process (intake/process.py). Until the intake has
passed it on, the attachment is coming; then it is ready, or refused with an error. The intake keeps
a duplicate while the attachment is open, so that no close in the front is the last.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from swiprctl.errors import SwiprError


class State(Enum):
    """How far an attachment has come."""

    COMING = "coming"
    READY = "ready"
    REFUSED = "refused"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Identity:
    """An image: its size in bytes, and a key that tells it from all others of that size."""

    size: int
    key: bytes


def _nothing() -> None:
    """Do nothing: for an attachment without a callback."""


class Attachment:
    """An image's descriptor, counted by its holders.

    The code that makes or receives an attachment is its first holder, each `hold()` adds one. Each
    holder calls `close()` once, and the last call closes the descriptor.

    Args:
        released: called once, when the descriptor is closed; never where none has arrived.
        abandoned: called once, when it is closed while it is still coming.

    Attributes:
        state: how far it has come.
        identity: which image it is; None before it is ready, and where it has no identity.
        error: why it was refused.
    """

    def __init__(
        self,
        released: Callable[[], None] = _nothing,
        abandoned: Callable[[], None] = _nothing,
    ) -> None:
        self.state = State.COMING
        self.identity: Identity | None = None
        self.error: SwiprError | None = None
        self._descriptor = -1
        self._released = released
        self._abandoned = abandoned
        self._settled: Callable[[], None] = _nothing
        self._holders = 1

    @classmethod
    def of(cls, descriptor: int) -> Attachment:
        """Own a descriptor that the daemon made itself."""
        attachment = cls()
        attachment.arrive(descriptor, None)
        return attachment

    def fileno(self) -> int:
        """The descriptor; only while it is ready."""
        assert self.state is State.READY
        return self._descriptor

    def when_settled(self, call: Callable[[], None]) -> None:
        """Call once it is no longer coming, perhaps now; never after `close()`."""
        if self.state is State.COMING:
            self._settled = call
        elif self.state is not State.CLOSED:
            call()

    def arrive(self, descriptor: int, identity: Identity | None) -> None:
        """Own this descriptor: the attachment is ready. If it is closed by now, so is this."""
        if self.state is State.CLOSED:
            os.close(descriptor)
            released, self._released, self._abandoned = self._released, _nothing, _nothing
            released()
            return
        self._descriptor, self.identity = descriptor, identity
        self._settle(State.READY)

    def refuse(self, error: SwiprError) -> None:
        """Settle without a descriptor, with this error."""
        if self.state is State.COMING:
            self.error = error
            self._settle(State.REFUSED)

    def hold(self) -> Attachment:
        """Keep it open until another `close()`."""
        self._holders += 1
        return self

    def close(self) -> None:
        """Let go of it; the last holder closes the descriptor."""
        self._holders -= 1
        assert self._holders >= 0, "closed more often than it was held"
        if self._holders:
            return
        was, self.state = self.state, State.CLOSED
        self._settled = _nothing
        released, abandoned = self._released, self._abandoned
        if was is not State.COMING:
            # They mostly refer to an object that owns this one: a cycle would stay in memory until
            # the collector comes, thousands of requests later.
            self._released = self._abandoned = _nothing
        if was is State.READY:
            os.close(self._descriptor)
            self._descriptor = -1
            released()
        elif was is State.COMING:
            abandoned()

    def _settle(self, state: State) -> None:
        self.state = state
        call, self._settled = self._settled, _nothing
        call()
