"""The front's end of one intake, and the orders that it can be given, one at a time."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from swiprctl.errors import Overloaded, SwiprError
from swiprctl.protocol import Frame, encode, parse_error
from swiprd.front.byte_budget import ByteBudget
from swiprd.intake import process
from swiprd.system.attachment import Attachment, Identity
from swiprd.system.channel import Channel

IDLE = 60.0  # seconds that an intake stays without work: the next request need not wait for a fork
_DROP_WITHIN = 0.05  # seconds until it hears which duplicates to close: of many requests at once
_RETRY = 0.1  # seconds after which a client tries again where an intake was killed


@dataclass(frozen=True, kw_only=True)
class Message:
    """A client's message that carries a descriptor, and waits in its socket.

    Attributes:
        size: bytes up to its end.
        received: called once, when the socket can be read again; with an error, where the
            connection cannot go on.
    """

    socket: socket.socket
    size: int
    received: Callable[[SwiprError | None], None]

    @property
    def lost(self) -> bool:
        """Whether the connection is closed: there is nothing to receive from."""
        return self.socket.fileno() < 0


class Share:
    """What one image takes of the byte budget, in the name of a uid."""

    def __init__(self, budget: ByteBudget, uid: int) -> None:
        self._budget = budget
        self._uid = uid
        self._size = 0

    def admit(self, size: int) -> None:
        """Account for the image's bytes.

        Raises:
            Overloaded: there is no room for it.
        """
        self._budget.admit(self._uid, size)
        self._size = size

    def leave(self) -> None:
        """Account for it no longer."""
        self._budget.leave(self._uid, self._size)
        self._size = 0


class Take:
    """An order: receive a message, and hand its file on.

    Args:
        given_up: called if nobody wants the file any more and no intake has been told to take it.
    """

    def __init__(
        self,
        ticket: int,
        message: Message,
        share: Share,
        given_up: Callable[[Take], None],
    ) -> None:
        self.ticket = ticket
        self.message = message
        self.attachment = Attachment(self._released, self._abandoned)
        self._share = share
        self._given_up = given_up
        self._is_copy = False
        self._told = False
        self._handle: Handle | None = None

    @property
    def moot(self) -> bool:
        """Whether there is nothing to be done any more."""
        return self.message.lost

    def send(self, handle: Handle, channel: Channel) -> None:
        """Give it to an intake."""
        self._handle = handle
        order: dict[str, object] = {
            "op": "take",
            "ticket": self.ticket,
            "size": self.message.size,
        }
        channel.send(encode(order), self.message.socket.fileno())

    def progressed(self, error: SwiprError | None = None) -> None:
        """The message has been received, or cannot be: tell the connection."""
        if not self._told:
            self._told = True
            self.message.received(error)

    def done(self, descriptor: int, identity: Identity | None, copied: int) -> None:
        """The intake has handed the file on, and keeps a duplicate until it is told to drop it.

        Args:
            copied: bytes of memory that it takes, where it is a copy; of that no duplicate is kept.
        """
        self.progressed()
        self._is_copy = copied > 0
        try:
            self._share.admit(copied)
        except Overloaded as error:
            os.close(descriptor)
            self.attachment.refuse(error)
            return
        self.attachment.arrive(descriptor, identity)

    def fail(self, error: SwiprError, *, broken: bool = True) -> None:
        """There is no file; `broken`: and the connection cannot go on."""
        self.progressed(error if broken else None)
        self.attachment.refuse(error)

    def _released(self) -> None:
        self._share.leave()
        assert self._handle is not None  # it has handed on what is released
        if not self._is_copy:
            self._handle.drop(self.ticket)

    def _abandoned(self) -> None:
        if self._handle is None:
            self._given_up(self)


class Discard:
    """An order: receive a message that nobody wants, so that the next can be read."""

    def __init__(self, ticket: int, message: Message) -> None:
        self.ticket = ticket
        self._message = message

    @property
    def moot(self) -> bool:
        """Whether there is nothing to be done any more."""
        return self._message.lost

    def send(self, _handle: Handle, channel: Channel) -> None:
        """Give it to an intake."""
        order: dict[str, object] = {
            "op": "discard",
            "ticket": self.ticket,
            "size": self._message.size,
        }
        channel.send(encode(order), self._message.socket.fileno())

    def done(self) -> None:
        """It has been received."""
        self._message.received(None)

    def fail(self, error: SwiprError) -> None:
        """It cannot be received."""
        self._message.received(error)


class Identify:
    """An order: tell which image a memfd is. Whatever comes of it, it is an image."""

    moot = False

    def __init__(self, ticket: int, memfd: int, released: Callable[[], None]) -> None:
        self.ticket = ticket
        self.attachment = Attachment(released)
        self._memfd = memfd

    def send(self, _handle: Handle, channel: Channel) -> None:
        """Give it to an intake."""
        channel.send(encode({"op": "identify", "ticket": self.ticket}), self._memfd)

    def done(self, identity: Identity | None) -> None:
        """The intake knows which, or that it cannot be told."""
        self.attachment.arrive(self._memfd, identity)

    def fail(self, _error: SwiprError) -> None:
        """The intake is gone."""
        self.attachment.arrive(self._memfd, None)


class CloseSockets:
    """An order: close clients' sockets, with what waits in them."""

    moot = False

    def __init__(self, ticket: int, sock: socket.socket) -> None:
        self.ticket = ticket
        self.sockets = [sock]
        self._left = 0

    def send(self, _handle: Handle, channel: Channel) -> None:
        """Give it to an intake, whose descriptors are the last then."""
        self._left = len(self.sockets)
        for sock in self.sockets:
            channel.send(encode({"op": "close_socket", "ticket": self.ticket}), sock.fileno())
            sock.close()

    def done(self) -> bool:
        """One more is closed; whether all are."""
        self._left -= 1
        return not self._left

    def fail(self, _error: SwiprError) -> None:
        """The intake is gone, or none is to be had."""
        for sock in self.sockets:
            sock.close()


Order = Take | Discard | Identify | CloseSockets


class Handle:
    """The front's end of one intake.

    Args:
        on_free: called when it has done what it was given.
        on_gone: called once, when it can be given nothing more.
    """

    def __init__(
        self, limit: int, *, on_free: Callable[[], None], on_gone: Callable[[Handle], None]
    ) -> None:
        self._on_free = on_free
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._order: Order | None = None
        self._kept = 0  # duplicates that it keeps for the front
        self._dropped: list[int] = []  # tickets of those that it is to close
        self._dropping: asyncio.TimerHandle | None = None
        self._asked_to_leave = False
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
        self._timer = self._loop.call_later(IDLE, self._leave_if_idle)
        self._used = self._loop.time()

    @property
    def busy(self) -> bool:
        """Whether it has an order that it has not done yet, or may be about to leave."""
        return self._order is not None or self._asked_to_leave

    def give(self, order: Order) -> None:
        """Give it something to do; only while it is not busy."""
        if not order.moot:
            self._used = self._loop.time()
            self._order = order
            order.send(self, self._channel)

    def drop(self, ticket: int) -> None:
        """Have it close the duplicate that it keeps, soon."""
        self._kept -= 1
        self._dropped.append(ticket)
        if self._dropping is None:
            self._dropping = self._loop.call_later(_DROP_WITHIN, self._drop)

    def dismiss(self) -> None:
        """Let it leave, whatever it does."""
        self._channel.close()

    # --- what it tells

    def _told(self, frame: Frame) -> None:
        fields: Any = frame.fields
        if "stays" in fields:
            self._asked_to_leave = False
            self._on_free()
            return
        order = self._order
        assert order is not None  # it does nothing unasked
        assert fields["ticket"] == order.ticket
        if "received" in fields:
            assert isinstance(order, Take)
            order.progressed()
            return
        if isinstance(order, CloseSockets) and not order.done():
            return
        self._order = None
        identity = Identity(fields["size"], fields["key"]) if "key" in fields else None
        match order:
            case Take() if "error" in fields:
                order.fail(parse_error(fields["error"]), broken=fields["broken"])
            case Discard() if "error" in fields:
                order.fail(parse_error(fields["error"]))
            case Discard():
                order.done()
            case Take():
                self._kept += not fields["copied"]
                order.done(frame.attachment, identity, fields["copied"])
            case Identify():
                order.done(identity)
            case CloseSockets():
                pass
        self._on_free()

    def _drop(self) -> None:
        self._dropping = None
        tickets, self._dropped = self._dropped, []
        self._channel.send(encode({"op": "drop", "tickets": tickets}))

    def _closed(self, _error: Exception | None) -> None:
        """It is gone, or dismissed."""
        self._timer.cancel()
        if self._dropping is not None:
            self._dropping.cancel()
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
        rest = self._used + IDLE - self._loop.time()
        if rest <= 0 and not self.busy and not self._kept:
            # It stays if a close hangs: else each minute would leave another process behind.
            self._used = self._loop.time()
            self._asked_to_leave = True
            self._channel.send(encode({"op": "leave"}))
        self._timer = self._loop.call_later(max(rest, IDLE / 10), self._leave_if_idle)
