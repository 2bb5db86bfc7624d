"""The front's intakes: which uid has how many, what each is doing, what waits for one.

A uid gets an intake when it first passes a descriptor, and more only while those that it has are
busy with files that take long. Nobody is blamed: a file whose file system hangs costs its own
request, at its deadline, and no other uid anything.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from swiprctl.errors import Overloaded, SwiprError
from swiprd.front.byte_budget import ByteBudget
from swiprd.front.intake_handle import (
    CloseSockets,
    Discard,
    Handle,
    Identify,
    Message,
    Order,
    Share,
    Take,
)
from swiprd.system.attachment import Attachment
from swiprd.system.log import log
from swiprd.system.memfd import sealed_memfd

MOST = 4
"""Intakes of one uid. So many of its files may hang before its others wait."""

MOST_CLOSING = 32
"""Intakes of one uid that close sockets. A close is over some time: with so many, each stuck with a
deleted file in many pieces, the uid's disk has no time to make more of them."""

_BATCH = 64  # sockets that one of those gets at a time
_SLOW = 0.25  # seconds that an order waits for the uid's intakes before it gets another

_Key = tuple[str, int]
_OWN: _Key = ("bytes", 0)  # for images that came as bytes: it holds nobody's descriptor


class Intakes:
    """All of the front's.

    Sockets are closed, and messages discarded, by intakes that read no file: those that do may be
    stuck for good.

    Args:
        limit: bytes of an image.
        budget: for images that are held in memory here.
    """

    def __init__(self, limit: int, budget: ByteBudget) -> None:
        self._limit = limit
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._handles: dict[_Key, list[Handle]] = {}
        self._waiting: dict[_Key, deque[Order]] = {}
        self._timers: dict[_Key, asyncio.TimerHandle] = {}
        self._tickets = count(1)

    @property
    def processes(self) -> int:
        """Intakes that there are."""
        return sum(map(len, self._handles.values()))

    @property
    def waiting(self) -> int:
        """Files that have not been received yet or are still being read, and sockets to close."""
        busy = sum(handle.busy for handles in self._handles.values() for handle in handles)
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
        message = Message(socket=sock, size=size, received=received)
        order = Take(
            next(self._tickets),
            message,
            Share(self._budget, uid),
            lambda order: self._give_up(uid, order),
        )
        self._submit(("files", uid), order)
        return order.attachment

    def keep(self, uid: int, image: bytes) -> Attachment:
        """Hold an image that came as bytes; it is ready when it has been identified.

        Raises:
            Overloaded: there is no room for it.
        """
        share = Share(self._budget, uid)
        share.admit(len(image))
        try:
            memfd = sealed_memfd(image)
        except OSError as error:
            share.leave()
            raise Overloaded(f"no room for the image: {error.strerror}", 1.0) from None
        order = Identify(next(self._tickets), memfd, share.leave)
        self._submit(_OWN, order)
        return order.attachment

    def close_socket(self, uid: int, sock: socket.socket) -> None:
        """Close a client's socket. What it has sent and nobody has read may carry descriptors,
        whose last close that is: then an intake closes it."""
        with suppress(OSError):  # it may have left
            sock.shutdown(socket.SHUT_RDWR)
        if _unread(sock):
            self._submit(("sockets", uid), CloseSockets(next(self._tickets), sock))
        else:
            sock.close()

    def close(self) -> None:
        """Let all leave. An intake that hangs goes when its file system answers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for waiting in self._waiting.values():
            waiting.clear()
        for handles in list(self._handles.values()):
            for handle in list(handles):
                handle.dismiss()

    # --- inside

    def _give_up(self, uid: int, order: Take) -> None:
        """A deadline has passed, and no intake was free: what comes behind it shall be read."""
        waiting = self._waiting.get(("files", uid))
        if waiting is not None and order in waiting:
            waiting.remove(order)
            self._submit(("sockets", uid), Discard(next(self._tickets), order.message))

    def _submit(self, key: _Key, order: Order) -> None:
        self._waiting.setdefault(key, deque()).append(order)
        self._go_on(key)

    def _go_on(self, key: _Key) -> None:
        """Give what waits to those intakes that have nothing to do."""
        waiting = self._waiting.get(key)
        while waiting:
            handles = self._handles.get(key) or self._fork(key)
            free = next((handle for handle in handles if not handle.busy), None)
            if free is not None:
                order = waiting.popleft()
                if isinstance(order, CloseSockets):
                    _fill(order, waiting)
                free.give(order)
            elif not handles:
                waiting.popleft().fail(Overloaded("no process is to be had for the file", 1.0))
            else:
                if (
                    len(handles) < (MOST_CLOSING if key[0] == "sockets" else MOST)
                    and key not in self._timers
                ):
                    self._timers[key] = self._loop.call_later(_SLOW, self._add, key)
                return
        self._waiting.pop(key, None)

    def _add(self, key: _Key) -> None:
        """The intakes there are have been busy for a while: have one more for what waits."""
        del self._timers[key]
        if self._waiting.get(key):
            self._fork(key)
            self._go_on(key)

    def _fork(self, key: _Key) -> list[Handle]:
        """Start an intake; return all that there are for the same."""
        try:
            handle = Handle(
                self._limit,
                on_free=lambda: self._go_on(key),
                on_gone=lambda handle: self._gone(key, handle),
            )
        except OSError as error:
            log.error("no process is to be had for the files of uid %d: %s", key[1], error.strerror)
        else:
            self._handles.setdefault(key, []).append(handle)
        return self._handles.get(key, [])

    def _gone(self, key: _Key, handle: Handle) -> None:
        handles = self._handles[key]
        handles.remove(handle)
        if not handles:
            del self._handles[key]
        self._go_on(key)


def _fill(order: CloseSockets, waiting: deque[Order]) -> None:
    """Have one order close all sockets that wait behind it, up to a batch."""
    while waiting and len(order.sockets) < _BATCH:
        following = waiting[0]
        if not isinstance(following, CloseSockets):
            return
        order.sockets += following.sockets
        waiting.popleft()


def _unread(sock: socket.socket) -> int:
    """Bytes that wait in a socket for us: SIOCINQ, unix(7)."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]
