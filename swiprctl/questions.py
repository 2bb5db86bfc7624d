"""One question to several daemons at once, none of which can hold up the others.

Unlike the exchange this starts no daemon, sends nothing a second time and gives up soon: it is for
looking around, and for ending what is there. Nothing that a daemon sends is trusted but its form.
"""

from __future__ import annotations

import _socket
import select
import struct
from time import monotonic

from swiprctl.address import NotListening
from swiprctl.connection import Connection, Disconnected
from swiprctl.errors import Forbidden, SwiprError
from swiprctl.protocol import Request
from swiprctl.stuck import advice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from swiprctl.address import Address

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7)


class Question:
    """One daemon, and what became of the question to it.

    Attributes:
        fields: its answer; None without one.
        state: empty while it is asked and once it has answered, else why it has not: "stale"
            (nobody listens), "forbidden", "silent" (it says nothing), "refused" (it gave an error),
            "unusable" (no daemon of swipr's can be reached there).
        reason: a line that says more.
        owner: the uid of who listens; None where that is not known.
        closed: whether it has closed the connection.
    """

    def __init__(self, address: Address, op: str) -> None:
        self.address = address
        self.fields: dict[str, object] | None = None
        self.state = self.reason = ""
        self.owner: int | None = None
        self.closed = True
        self._connection: Connection | None = None
        try:
            sock = address.connect()
        except NotListening:
            self._fail("stale", "nobody listens: its daemon is gone")
        except Forbidden as error:
            self._fail("forbidden", str(error))
        except SwiprError as error:
            self._fail("unusable", str(error))
        except OSError as error:
            self._fail("unusable", f"cannot make a socket: {error.strerror}")
        else:
            if sock is None:
                self._silent("it takes no connections")
                return
            found = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
            self.owner = _CREDENTIALS.unpack(found)[1]
            self.closed = False
            self._connection = Connection(sock)
            self._connection.send(1, Request(1, op).encode(), None)

    @property
    def open(self) -> bool:
        """Whether its answer is awaited."""
        return self.fields is None and not self.state

    def register(self, poll: select.poll) -> int:
        """Have a poll wait for the next thing to come; return its descriptor."""
        assert self._connection is not None
        more = select.POLLOUT if self._connection.backlog else 0
        poll.register(self._connection.fileno(), select.POLLIN | more)
        return self._connection.fileno()

    def go_on(self) -> None:
        """Write what can be written, and take in what came."""
        assert self._connection is not None
        self._connection.flush()
        try:
            for reply in self._connection.receive():
                if reply.error is not None:
                    self._fail("refused", str(reply.error))
                elif reply.id == 1:
                    self.fields = reply.fields
        except Disconnected as error:
            self.closed = True
            if self.open:
                self._fail("silent", str(error))
        except SwiprError as error:
            self.closed = True
            self._fail("unusable", f"it does not speak swipr's protocol: {error}")

    def give_up(self) -> None:
        """No answer came in time."""
        self._silent("it is stopped or stuck, or just being started")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _silent(self, why: str) -> None:
        self._fail("silent", f"{why}: {advice(self.address)}")

    def _fail(self, state: str, reason: str) -> None:
        self.state, self.reason = state, reason


def ask(addresses: Sequence[Address], op: str, patience: float) -> list[Question]:
    """Ask all of them, for `patience` seconds together. Close each of what is returned."""
    questions = [Question(address, op) for address in addresses]
    until = monotonic() + patience
    while waiting := [one for one in questions if one.open]:
        if not progress(waiting, until):
            break
    for one in waiting:
        one.give_up()
    return questions


def progress(waiting: Sequence[Question], until: float) -> bool:
    """Wait for something to come from any of them, and take it in; False when the time is over."""
    poll = select.poll()
    by_descriptor = {one.register(poll): one for one in waiting}
    ready = poll.poll(max(0.0, 1000 * (until - monotonic())))
    for descriptor, _ in ready:
        by_descriptor[descriptor].go_on()
    return bool(ready)
