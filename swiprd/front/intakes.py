"""The front's intake processes: how many each uid has, and the orders that wait for them.

A uid gets an intake when it first passes a descriptor, and more only while its intakes are busy
with files that take long. A file whose file system hangs costs its own request, at the deadline of
that, and other uids nothing: so no uid has to be barred.
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
from swiprd.front.intake_handle import CloseSocket, Handle, Identify, Order, Take
from swiprd.system.attachment import Attachment
from swiprd.system.log import log
from swiprd.system.memfd import sealed_memfd

MOST = 4
"""Intakes of one uid: so many of its files may hang before its other files have to wait."""

MOST_SOCKETS = 1024
"""Sockets of one uid that wait to be closed by an intake; the front itself closes any more."""

_SLOW = 0.25  # seconds that an order waits for the uid's intakes before it gets another

_Key = tuple[str, int]
_INLINE: _Key = ("bytes", 0)  # for images that came as bytes: a memfd of the front's, no file


class Intakes:
    """All intakes of the front.

    Sockets are closed by separate intakes: those for files may be blocked for good.

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
        """How many intake processes there are."""
        return sum(map(len, self._handles.values()))

    @property
    def waiting(self) -> int:
        """How many orders are waiting or under way: files to receive, sockets to close."""
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
        order = Take(next(self._tickets), sock, size, received, self._budget)
        self._submit(("files", uid), order)
        return order.attachment

    def keep(self, image: bytes) -> Attachment:
        """Hold an image that came as bytes in a memfd, ready once its identity is known.

        Raises:
            Overloaded: the byte budget or the host's memory is used up.
        """
        self._budget.admit(len(image))
        try:
            memfd = sealed_memfd(image)
        except OSError as error:
            self._budget.leave(len(image))
            raise Overloaded(f"no room for the image: {error.strerror}", 1.0) from None
        order = Identify(next(self._tickets), memfd, lambda: self._budget.leave(len(image)))
        self._submit(_INLINE, order)
        return order.attachment

    def close_socket(self, uid: int, sock: socket.socket) -> None:
        """Close a client's socket. Messages in it that nobody has read may carry descriptors, which
        the kernel closes with the socket, and that may block: then an intake does it."""
        with suppress(OSError):  # it may have left
            sock.shutdown(socket.SHUT_RDWR)
        key = ("sockets", uid)
        if not _unread(sock) or len(self._waiting.get(key, ())) >= MOST_SOCKETS:
            sock.close()
        else:
            self._submit(key, CloseSocket(next(self._tickets), sock))

    def close(self) -> None:
        """Dismiss all intakes. One that is blocked ends when its file system answers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for waiting in self._waiting.values():
            waiting.clear()
        for handles in list(self._handles.values()):
            for handle in list(handles):
                handle.dismiss()

    # --- inside

    def _submit(self, key: _Key, order: Order) -> None:
        self._waiting.setdefault(key, deque()).append(order)
        self._dispatch(key)

    def _dispatch(self, key: _Key) -> None:
        """Give waiting orders to idle intakes; fork an intake where the uid has none."""
        waiting = self._waiting.get(key)
        while waiting:
            handles = self._handles.get(key) or self._fork(key)
            free = next((handle for handle in handles if not handle.busy), None)
            if free is not None:
                free.give(waiting.popleft())
            elif not handles:
                waiting.popleft().fail(Overloaded("no process is to be had for the file", 1.0))
            else:
                if len(handles) < MOST and key not in self._timers:
                    self._timers[key] = self._loop.call_later(_SLOW, self._add_intake, key)
                return
        self._waiting.pop(key, None)

    def _add_intake(self, key: _Key) -> None:
        """Fork one more intake, if orders still wait after `_SLOW` seconds."""
        del self._timers[key]
        if self._waiting.get(key):
            self._fork(key)
            self._dispatch(key)

    def _fork(self, key: _Key) -> list[Handle]:
        """Fork an intake; return all intakes of this key."""
        try:
            handle = Handle(
                self._limit,
                on_free=lambda: self._dispatch(key),
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
        self._dispatch(key)


def _unread(sock: socket.socket) -> int:
    """Bytes that wait in a socket for us: SIOCINQ, unix(7)."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]
