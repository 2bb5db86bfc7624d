"""The front's intakes: which uid has how many, what each is doing, what waits for one.

A uid gets an intake when it first passes a descriptor, and more only while those that it has are
busy with files that take long. Nobody is blamed: a file whose file system hangs costs its own
request, at its deadline, and no other uid anything.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from swiprctl.errors import Overloaded, SwiprError
from swiprctl.protocol import Frame, encode, parse_error
from swiprd import intake
from swiprd.attachment import Attachment, Identity
from swiprd.channel import Channel
from swiprd.log import log

MOST = 4
"""Intakes of one uid. So many of its files may hang before its others wait."""

_SLOW = 0.25  # seconds that an order waits for the uid's intakes before it gets another
_IDLE = 60.0  # seconds that an intake stays without work: the next request need not wait for a fork
_RETRY = 0.1  # seconds after which a client tries again where an intake was killed
_OWN = -1  # the key of the intake for images that came as bytes: it holds nobody's descriptor


class Intakes:
    """All of the front's.

    Args:
        limit: bytes of an image.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._by_uid: dict[int, list[_Handle]] = {}
        self._waiting: dict[int, deque[_Take | _Identify]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._tickets = count(1)

    @property
    def processes(self) -> int:
        """Intakes that there are."""
        return sum(map(len, self._by_uid.values()))

    @property
    def waiting(self) -> int:
        """Descriptors that have not been received yet, or are still being read."""
        busy = sum(handle.busy for handles in self._by_uid.values() for handle in handles)
        return busy + sum(map(len, self._waiting.values()))

    def take(
        self,
        uid: int,
        sock: socket.socket,
        size: int,
        received: Callable[[SwiprError | None], None],
    ) -> Attachment:
        """Have the next `size` bytes of a client's socket received, with their descriptor.

        Args:
            received: called once, when the socket can be read again; with an error, where the
                connection cannot go on.
        """
        return self._submit(uid, _Take(next(self._tickets), sock, size, received))

    def keep(self, memfd: int) -> Attachment:
        """Own a sealed memfd of the daemon's own; it is ready when it has been identified."""
        return self._submit(_OWN, _Identify(next(self._tickets), memfd))

    def bury(self, uid: int, sock: socket.socket) -> None:
        """Close a client's socket. What it has sent and nobody has read may carry descriptors,
        whose last close that is: then an intake closes it."""
        with suppress(OSError):  # it may have left
            sock.shutdown(socket.SHUT_RDWR)
        if _unread(sock):
            handles = self._by_uid.get(uid) or self._fork(uid)
            if handles:
                min(handles, key=lambda handle: handle.busy).bury(sock)
        sock.close()

    def close(self) -> None:
        """Let all leave. An intake that hangs goes when its file system answers."""
        for timer in self._timers.values():
            timer.cancel()
        for handles in list(self._by_uid.values()):
            for handle in list(handles):
                handle.dismiss()

    # --- inside

    def _submit(self, uid: int, order: _Take | _Identify) -> Attachment:
        self._waiting.setdefault(uid, deque()).append(order)
        self._go_on(uid)
        return order.attachment

    def _go_on(self, uid: int) -> None:
        """Give what waits for a uid's intakes to those that have nothing to do."""
        waiting = self._waiting.get(uid)
        while waiting:
            handles = self._by_uid.get(uid) or self._fork(uid)
            free = next((handle for handle in handles if not handle.busy), None)
            if free is not None:
                free.give(waiting.popleft())
            elif not handles:
                waiting.popleft().fail(Overloaded("no process is to be had to read it", 1.0))
            else:
                if len(handles) < MOST and uid not in self._timers:
                    self._timers[uid] = self._loop.call_later(_SLOW, self._add, uid)
                return
        self._waiting.pop(uid, None)

    def _add(self, uid: int) -> None:
        """The uid's intakes have been busy for a while: have one more for what waits."""
        del self._timers[uid]
        if self._waiting.get(uid):
            self._fork(uid)
            self._go_on(uid)

    def _fork(self, uid: int) -> list[_Handle]:
        """Start an intake for a uid; return all that it has."""
        try:
            handle = _Handle(
                self._limit,
                on_free=lambda: self._go_on(uid),
                on_gone=lambda handle: self._gone(uid, handle),
            )
        except OSError as error:
            log.error("no process can be had to receive the files of a uid: %s", error.strerror)
        else:
            self._by_uid.setdefault(uid, []).append(handle)
        return self._by_uid.get(uid, [])

    def _gone(self, uid: int, handle: _Handle) -> None:
        handles = self._by_uid[uid]
        handles.remove(handle)
        if not handles:
            del self._by_uid[uid]
        self._go_on(uid)


class _Take:
    """An order: receive from a client."""

    def __init__(
        self,
        ticket: int,
        sock: socket.socket,
        size: int,
        received: Callable[[SwiprError | None], None],
    ) -> None:
        self.ticket = ticket
        self.attachment = Attachment(self._released)
        self._socket = sock
        self._size = size
        self._received = received
        self._told = False
        self._handle: _Handle | None = None

    @property
    def moot(self) -> bool:
        """Whether the connection is closed: there is nothing to receive from."""
        return self._socket.fileno() < 0

    def send(self, handle: _Handle, channel: Channel) -> None:
        """Give it to an intake."""
        self._handle = handle
        fields: dict[str, object] = {"op": "take", "ticket": self.ticket, "size": self._size}
        channel.send(encode(fields), self._socket.fileno())

    def progressed(self, error: SwiprError | None = None) -> None:
        """The message has been received, or cannot be: tell the connection."""
        if not self._told:
            self._told = True
            self._received(error)

    def done(self, descriptor: int, identity: Identity | None) -> None:
        """The intake has handed the file on, and keeps a duplicate until it is told to drop it."""
        self.progressed()
        self.attachment.arrive(descriptor, identity)

    def fail(self, error: SwiprError, *, broken: bool = True) -> None:
        """There is no file; `broken`: and the connection cannot go on."""
        self.progressed(error if broken else None)
        self.attachment.refuse(error)

    def _released(self) -> None:
        if self._handle is not None:
            self._handle.drop(self.ticket)


class _Identify:
    """An order: tell which image a memfd is. Whatever comes of it, it is an image."""

    moot = False

    def __init__(self, ticket: int, memfd: int) -> None:
        self.ticket = ticket
        self.attachment = Attachment()
        self._memfd = memfd

    def send(self, _handle: _Handle, channel: Channel) -> None:
        """Give it to an intake."""
        channel.send(encode({"op": "identify", "ticket": self.ticket}), self._memfd)

    def done(self, _descriptor: None, identity: Identity | None) -> None:
        """The intake knows which, or that it cannot be told."""
        self.attachment.arrive(self._memfd, identity)

    def fail(self, _error: SwiprError) -> None:
        """The intake is gone."""
        self.attachment.arrive(self._memfd, None)


class _Handle:
    """The front's end of one intake.

    Args:
        on_free: called when it has done what it was given.
        on_gone: called once, when it can be given nothing more.
    """

    def __init__(
        self, limit: int, *, on_free: Callable[[], None], on_gone: Callable[[_Handle], None]
    ) -> None:
        self._on_free = on_free
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._order: _Take | _Identify | None = None
        self._kept = 0  # duplicates that it keeps for the front
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                intake.become(theirs, parent, limit)
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

    def give(self, order: _Take | _Identify) -> None:
        """Give it something to do; only while it is not busy."""
        if not order.moot:
            self._used = self._loop.time()
            self._order = order
            order.send(self, self._channel)

    def drop(self, ticket: int) -> None:
        """Have it close the duplicate that it keeps."""
        self._kept -= 1
        self._channel.send(encode({"op": "drop", "ticket": ticket}))

    def bury(self, sock: socket.socket) -> None:
        """Have it close a client's socket; the caller closes its own descriptor of it."""
        self._channel.send(encode({"op": "bury"}), sock.fileno())

    def dismiss(self) -> None:
        """Let it leave, at once or when it no longer hangs."""
        self._channel.close()

    # --- what it tells

    def _told(self, frame: Frame) -> None:
        fields: Any = frame.fields
        order = self._order
        assert order is not None  # it does nothing unasked
        assert fields["ticket"] == order.ticket
        if fields.get("received"):
            assert isinstance(order, _Take)
            order.progressed()
            return
        self._order = None
        if "error" in fields:
            error = parse_error(fields["error"])
            if isinstance(order, _Take):
                order.fail(error, broken=fields["broken"])
            else:
                order.fail(error)
        else:
            identity = Identity(fields["size"], fields["key"]) if "key" in fields else None
            if isinstance(order, _Take):
                self._kept += 1
            order.done(frame.attachment, identity)
        self._on_free()

    def _closed(self, _error: Exception | None) -> None:
        """It is gone, or dismissed."""
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


def _unread(sock: socket.socket) -> int:
    """Bytes that wait in a socket for us: SIOCINQ, unix(7)."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]
