"""One connection to the daemon: frames and descriptors out, replies in, never blocking.

It owns its socket and what is queued on it. It has no clock, opens nothing and retries nothing:
when to poll, resend or give up is the exchange's.
"""

from __future__ import annotations

import _socket
import errno
import struct
from collections import deque

from swiprctl.protocol import MAX_REPLY, Decoder, Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 18
_DESCRIPTOR = struct.Struct("i")


class Disconnected(Exception):
    """The daemon has closed the connection. Never leaves the exchange."""


class _Outgoing:
    __slots__ = ("data", "descriptor", "id", "started")

    def __init__(self, id: int, frame: bytes, descriptor: int | None) -> None:
        self.id = id
        self.data = memoryview(frame)
        self.descriptor = descriptor
        self.started = False


class Connection:
    """A connected, non-blocking socket.

    Attributes:
        broken: whether nothing can be written any more; replies, or the reason, may be there still.
        inline: whether images go inside the frames, because descriptors get lost on the way.
        leaving: whether the daemon said that it takes nothing more.
        first_reply: when the first reply came, on the exchange's clock; None before.
    """

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock
        self._decoder = Decoder(MAX_REPLY)
        self._outgoing: deque[_Outgoing] = deque()
        self.broken = False
        self.inline = False
        self.leaving = False
        self.first_reply: float | None = None

    def fileno(self) -> int:
        """Give the socket's descriptor, for poll(2)."""
        return self._socket.fileno()

    @property
    def backlog(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._outgoing)

    def send(self, id: int, frame: bytes, descriptor: int | None) -> None:
        """Queue a frame. The descriptor stays the caller's, open until the reply or `cancel`."""
        if not self.broken:
            self._outgoing.append(_Outgoing(id, frame, descriptor))

    def cancel(self, id: int) -> bool:
        """Take a frame back. False if a part of it has gone out: the stream is then spoilt."""
        for item in self._outgoing:
            if item.id == id:
                if item.started:
                    return False
                self._outgoing.remove(item)
                break
        return True

    def flush(self) -> bool:
        """Write what the kernel takes. False if too many descriptors are in flight just now."""
        while self._outgoing:
            item = self._outgoing[0]
            rights = []
            if item.descriptor is not None and not item.started:
                # Each frame with a descriptor is a sendmsg(2) of its own: protocol.py says why.
                rights = [
                    (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _DESCRIPTOR.pack(item.descriptor))
                ]
            try:
                sent = self._socket.sendmsg([item.data], rights, _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    return False
                self.broken = True
                self._outgoing.clear()
                return True
            item.started = True
            if sent == len(item.data):
                self._outgoing.popleft()
            else:
                item.data = item.data[sent:]
        return True

    def receive(self) -> Iterator[Reply]:
        """Yield the replies that are there. Descriptors sent to us are dropped by the kernel.

        Raises:
            Disconnected: after the last of them, because the daemon has closed the connection.
            BadRequest: what came is not this protocol.
        """
        while True:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                if self.broken:
                    raise Disconnected("the daemon takes nothing more") from None
                return
            except OSError as error:
                raise Disconnected(error.strerror) from error
            if not data:
                raise Disconnected("the daemon closed the connection")
            self._decoder.feed(data)
            for frame in self._decoder.frames():
                yield Reply.parse(frame.fields)

    def close(self) -> None:
        """Close the socket and drop what was queued."""
        self._outgoing.clear()
        self._socket.close()
