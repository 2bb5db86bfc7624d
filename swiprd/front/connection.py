"""One client of the front: its socket, what it has in flight, and whether it reads its answers.

It knows how answers go out, not what requests mean: each goes to the server as it comes.
"""

from __future__ import annotations

import fcntl
import os
import socket
import termios
from collections.abc import Callable
from typing import Protocol

from swiprctl.errors import SwiprError
from swiprctl.protocol import Frame, Reply
from swiprd.front.byte_budget import ByteBudget
from swiprd.front.intakes import Intakes
from swiprd.front.read_turns import ReadTurns
from swiprd.front.service import Outcome
from swiprd.system.attachment import Attachment
from swiprd.system.channel import Channel

HIGH_WATER = 1 << 18
"""Bytes of unread replies at which a client is not read from any more. With 256 clients that read
just enough not to be thrown out, the front holds 64 MiB for them."""

_REQUEST_ITEMS = 64  # things in a request's map; five mean something, the rest is for later clients


_HEARTBEAT = 1.0  # seconds between two heartbeats
_NOTHING_UNREAD = bytes(4)  # the answer of SIOCOUTQ, an int


class Host(Protocol):
    """What a connection asks of the server, and tells it."""

    turns: ReadTurns
    intakes: Intakes
    budget: ByteBudget

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""

    def handle(self, connection: Connection, frame: Frame) -> None:
        """Act on one request. The frame's attachment is owned from here."""


class Connection:
    """One client.

    Attributes:
        in_flight: ids of requests without an answer yet.
        questions: how many of those are questions that wait for a worker or the model.
        spoke: whether a whole request has come.
        paused: whether no requests are read from it, because it leaves too many replies unread.
        wants_heartbeats: whether a request has asked for them.
    """

    def __init__(self, host: Host, sock: socket.socket, uid: int) -> None:
        self.uid = uid
        self.in_flight: set[int] = set()
        self.questions = 0
        self.spoke = False
        self.paused = False
        self.wants_heartbeats = False
        self._last_heartbeat = float("-inf")
        self._host = host
        self._socket = sock
        self.channel = Channel(
            sock,
            on_frame=self._received,
            on_closed=lambda _error: host.forget(self),
            farewell=lambda error: Reply(None, None, error).encode(),
            reserve=lambda size: host.budget.reserve(uid, size),
            ask=lambda work: host.turns.ask(uid, work),
            take=lambda sock, size, received: host.intakes.take(uid, sock, size, received),
            discard=Attachment.close,
            release=lambda sock: host.intakes.close_socket(uid, sock),
            items=_REQUEST_ITEMS,
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is to be answered, and every answer is read."""
        return not self.in_flight and not self.channel.unsent

    def answer(self, identity: int, outcome: Outcome) -> None:
        """Answer a request in flight."""
        self.in_flight.discard(identity)
        if isinstance(outcome, SwiprError):
            self.send(Reply(identity, None, outcome))
        else:
            self.send(Reply(identity, outcome))

    def send(self, reply: Reply) -> None:
        """Send a reply; read no further requests from a client that leaves too many unread."""
        self.channel.send(reply.encode())
        if self.channel.unsent > HIGH_WATER and not self.paused:
            self.paused = True
            self.channel.pause(True)

    def send_heartbeat(self, now: float, describe: Callable[[], dict[str, object]]) -> None:
        """Tell a client that waits for an answer that the daemon is alive, and its state.

        Not while earlier replies are unread: a client whose program is busy with something else
        would collect heartbeats, and be closed as a slow reader.
        """
        if (
            not self.wants_heartbeats
            or not self.in_flight
            or now - self._last_heartbeat < _HEARTBEAT
        ):
            return
        if (
            self.channel.closed
            or fcntl.ioctl(self._socket, termios.TIOCOUTQ, _NOTHING_UNREAD) != _NOTHING_UNREAD
        ):
            return
        self._last_heartbeat = now
        self.send(Reply(None, {"alive": {**describe(), "pid": os.getpid()}}))

    def _received(self, frame: Frame) -> None:
        self.spoke = True
        self._host.handle(self, frame)
