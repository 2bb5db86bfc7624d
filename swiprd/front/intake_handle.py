"""The front's handle on one intake process, and the orders that it is given, one at a time."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from swiprctl.errors import Overloaded, SwiprError
from swiprctl.protocol import Frame, encode, parse_error
from swiprd.front.byte_budget import ByteBudget
from swiprd.intake import process
from swiprd.system.attachment import Attachment, Identity
from swiprd.system.channel import Channel

_IDLE = 60.0  # seconds that an intake stays without work: the next request need not wait for a fork
_RETRY = 0.1  # seconds after which a client tries again where an intake was killed


class Take:
    """An order: receive from a client."""

    def __init__(
        self,
        ticket: int,
        sock: socket.socket,
        size: int,
        received: Callable[[SwiprError | None], None],
        budget: ByteBudget,
    ) -> None:
        self.ticket = ticket
        self.attachment = Attachment(self._released)
        self._budget = budget
        self._copied = 0
        self._socket = sock
        self._size = size
        self._received = received
        self._told = False
        self._handle: Handle | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the connection has been closed meanwhile, so that nothing can be received."""
        return self._socket.fileno() < 0

    def send(self, handle: Handle, channel: Channel) -> None:
        """Give it to an intake."""
        self._handle = handle
        fields: dict[str, object] = {"op": "take", "ticket": self.ticket, "size": self._size}
        channel.send(encode(fields), self._socket.fileno())

    def progressed(self, error: SwiprError | None = None) -> None:
        """The message has been received, or cannot be: let the connection go on, or end it."""
        if not self._told:
            self._told = True
            self._received(error)

    def done(self, descriptor: int, identity: Identity | None, copied: int) -> None:
        """The intake has handed the file on, and keeps a duplicate until it is told to drop it.

        Args:
            copied: bytes of the copy in memory; 0 where it is the file itself.
        """
        self.progressed()
        try:
            self._budget.admit(copied)
        except Overloaded as error:
            os.close(descriptor)
            self._released()
            self.attachment.refuse(error)
            return
        self._copied = copied
        self.attachment.arrive(descriptor, identity)

    def fail(self, error: SwiprError, *, broken: bool = True) -> None:
        """No file comes. With `broken`, the connection cannot be read any further either."""
        self.progressed(error if broken else None)
        self.attachment.refuse(error)

    def _released(self) -> None:
        self._budget.leave(self._copied)
        assert self._handle is not None  # it has handed on what is released
        self._handle.drop(self.ticket)


class Identify:
    """An order: compute the identity of a memfd. The image is used even if that fails."""

    cancelled = False

    def __init__(self, ticket: int, memfd: int, released: Callable[[], None]) -> None:
        self.ticket = ticket
        self.attachment = Attachment(released)
        self._memfd = memfd

    def send(self, _handle: Handle, channel: Channel) -> None:
        """Give it to an intake."""
        channel.send(encode({"op": "identify", "ticket": self.ticket}), self._memfd)

    def done(self, identity: Identity | None) -> None:
        """The intake has computed the identity, or has found that there is none."""
        self.attachment.arrive(self._memfd, identity)

    def fail(self, _error: SwiprError) -> None:
        """The intake is gone."""
        self.attachment.arrive(self._memfd, None)


class CloseSocket:
    """An order: close a client's socket, and the descriptors that wait in it unread."""

    cancelled = False

    def __init__(self, ticket: int, sock: socket.socket) -> None:
        self.ticket = ticket
        self._socket = sock

    def send(self, _handle: Handle, channel: Channel) -> None:
        """Give it to an intake, and close ours: the intake's close is then the last."""
        channel.send(encode({"op": "close_socket", "ticket": self.ticket}), self._socket.fileno())
        self._socket.close()

    def fail(self, _error: SwiprError) -> None:
        """The intake has died, or none could be forked: close it here."""
        self._socket.close()


Order = Take | Identify | CloseSocket


class Handle:
    """The front's end of one intake.

    Args:
        on_free: called when it has done its order.
        on_gone: called once, when it has ended or was dismissed.
    """

    def __init__(
        self, limit: int, *, on_free: Callable[[], None], on_gone: Callable[[Handle], None]
    ) -> None:
        self._on_free = on_free
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._order: Order | None = None
        self._kept = 0  # files of which the intake keeps a duplicate until the front is done
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                process.run_intake(theirs, parent, limit)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours, on_frame=self._told, on_closed=self._closed)
        self._loop.add_reader(self._pidfd, self._died)
        self._timer = self._loop.call_later(_IDLE, self._leave_if_idle)
        self._used = self._loop.time()

    @property
    def busy(self) -> bool:
        """Whether it has an order that it has not done yet."""
        return self._order is not None

    def give(self, order: Order) -> None:
        """Give it something to do; only while it is not busy."""
        if not order.cancelled:
            self._used = self._loop.time()
            self._order = order
            order.send(self, self._channel)

    def drop(self, ticket: int) -> None:
        """Have the intake close the duplicate that it keeps for this ticket."""
        self._kept -= 1
        self._channel.send(encode({"op": "drop", "ticket": ticket}))

    def dismiss(self) -> None:
        """Let it leave: at once, or when a file system that it waits for answers."""
        self._channel.close()

    # --- messages from the intake

    def _told(self, frame: Frame) -> None:
        fields: Any = frame.fields
        order = self._order
        assert order is not None  # it does nothing unasked
        assert fields["ticket"] == order.ticket
        if "received" in fields:
            assert isinstance(order, Take)
            order.progressed()
            return
        self._order = None
        identity = Identity(fields["size"], fields["key"]) if "key" in fields else None
        match order:
            case Take() if "error" in fields:
                order.fail(parse_error(fields["error"]), broken=fields["broken"])
            case Take():
                self._kept += 1
                order.done(frame.attachment, identity, fields["copied"])
            case Identify():
                order.done(identity)
            case CloseSocket():
                pass
        self._on_free()

    def _closed(self, _error: Exception | None) -> None:
        """The intake has closed its end, or was dismissed."""
        self._timer.cancel()
        order, self._order = self._order, None
        if order is not None:
            order.fail(Overloaded("the process that received the image's file is gone", _RETRY))
        self._on_gone(self)

    def _died(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _leave_if_idle(self) -> None:
        rest = self._used + _IDLE - self._loop.time()
        if rest <= 0 and not self.busy and not self._kept:
            self.dismiss()
        else:
            self._timer = self._loop.call_later(max(rest, _IDLE / 10), self._leave_if_idle)
