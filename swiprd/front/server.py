"""Accepts clients and owns their sockets: bytes in, requests to the service, replies out.

It opens no path, decodes no image and never blocks. The limits on slow and silent clients are
enforced by one sweep over all connections. SO_PEERCRED alone decides what a client may do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from swiprctl.errors import BadRequest, Forbidden, Overloaded, SwiprError
from swiprctl.protocol import Frame, Reply, Request, request_id
from swiprd.config import Settings
from swiprd.front.byte_budget import ByteBudget
from swiprd.front.connection import HIGH_WATER, Connection
from swiprd.front.connection_limit import ConnectionLimit
from swiprd.front.intakes import Intakes
from swiprd.front.owners import Owners
from swiprd.front.read_turns import ReadTurns
from swiprd.front.service import Outcome, Service
from swiprd.system.attachment import Attachment
from swiprd.system.log import log

_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)
_SWEEP = 0.25  # seconds between two sweeps: a limit may be enforced so much later
_ACCEPTS = 16  # connections taken in one go, so that a flood of them does not starve the rest
_QUESTIONS = 16  # ping, reload and model requests of one connection; images have the queue's limit
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_PAUSE = 0.5  # seconds, when there are no descriptors left


class Server:
    """Serves on listening sockets until `stop_accepting()` and `close()`.

    Args:
        on_stop: has the daemon leave, as a client asks for it; None where a service manager keeps
            it, which would start the next.
    """

    def __init__(
        self,
        listeners: list[socket.socket],
        service: Service,
        settings: Settings,
        on_stop: Callable[[], None] | None,
    ) -> None:
        self._listeners = listeners
        self._on_stop = on_stop
        self._service = service
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._limit = ConnectionLimit(settings.connections, {0, os.geteuid()})
        self.turns = ReadTurns()
        self._owners = Owners()
        self.budget = ByteBudget(settings.max_inline)
        self.intakes = Intakes(settings.max_image, self.budget)
        self._accepting = False
        self._resume: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        for listener in listeners:
            listener.setblocking(False)
        self._start_accepting()
        self._sweeper = self._loop.call_later(_SWEEP, self._sweep)

    @property
    def connections(self) -> int:
        """Clients connected."""
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Leave new clients in the sockets' queues. The sockets stay as they are."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener)

    async def flush(self, patience: float) -> None:
        """Wait until every reply is read, `patience` seconds at most."""
        until = self._loop.time() + patience
        while any(c.channel.unsent for c in self._connections) and self._loop.time() < until:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Close every connection."""
        self.stop_accepting()
        self._sweeper.cancel()
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            connection.channel.close()
        self.intakes.close()

    def _start_accepting(self) -> None:
        self._accepting = True
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                log.warning("cannot accept: %s; trying again soon", error.strerror)
                self.stop_accepting()
                self._resume = self._loop.call_later(_ACCEPT_PAUSE, self._start_accepting)
                return
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        _, uid, _ = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        uid = self._owners.of(uid)
        if not self._limit.has_room(uid, self._connections) and not self._make_room(uid):
            full = Overloaded(f"{len(self._connections)} clients are connected already", 1.0)
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # it may have left
                sock.send(Reply(None, None, full).encode())
            self.intakes.close_socket(uid, sock)
            return
        self.turns.join(uid)
        # Bytes "out of band" could carry a descriptor past the look ahead at those in the band.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._connections.add(Connection(self, sock, uid))

    def _make_room(self, uid: int) -> bool:
        """Close a connection for a newcomer of this uid, if there is any that has to go."""
        victim = self._limit.choose(uid, self._connections)
        if victim is None:
            return False
        if victim.idle:
            victim.channel.close()
        else:  # its client sends again what has no answer yet
            victim.channel.refuse(Overloaded("others have fewer connections: make fewer", 1.0))
        return True

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(_SWEEP, self._sweep)
        self._owners.refresh()
        now = self._loop.time()
        limits = self._settings
        for connection in list(self._connections):
            connection.send_heartbeat(now, self._service.model.status)
            channel = connection.channel
            silent = 0.0 if channel.due or channel.taking else now - channel.last_read
            if channel.unsent and now - channel.last_write > limits.slow_reader:
                channel.close()
            elif connection.paused:
                if channel.unsent < HIGH_WATER:
                    connection.paused = False
                    channel.pause(False)
            elif channel.decoder.mid_frame and silent > limits.stall:
                channel.refuse(BadRequest(f"half a frame, and nothing for {limits.stall:g} s"))
            elif not connection.spoke and silent > limits.first_byte:
                channel.refuse(BadRequest(f"no request within {limits.first_byte:g} s"))

    # --- what connections ask for

    def forget(self, connection: Connection) -> None:
        """A connection is closed: drop its waiting requests."""
        self._connections.discard(connection)
        self.turns.leave(connection.uid)
        self._service.cancel(connection)

    def handle(self, connection: Connection, frame: Frame) -> None:
        """Act on one request. The frame's attachment is owned from here."""
        attachment: Attachment | None = frame.attachment
        try:
            identity = request_id(frame.fields)
        except BadRequest as error:
            if attachment is not None:
                attachment.close()
            connection.channel.refuse(error)
            return
        try:
            request = Request.parse(frame.fields)
            connection.wants_heartbeats |= bool(request.alive)
            if identity in connection.in_flight:
                raise BadRequest(f"id {identity} is in use: its request has no answer yet")
            if attachment is not None and (request.op != "predict" or request.image is not None):
                connection.channel.refuse(BadRequest("a descriptor that no request asks for"))
                return
            if request.op == "predict":
                image = self._inline(connection.uid, request) if attachment is None else attachment
                attachment = None
                self._submit(connection, request, image)
                return
            if request.op == "reload" and connection.uid not in (0, os.geteuid()):
                raise Forbidden(
                    "only root and the daemon's own user may reload the model:"
                    " try sudo swiprctl reload"
                )
            if request.op == "stop":
                connection.answer(identity, self._stop(connection.uid))
                return
            if request.op in ("ping", "reload") or (
                request.op == "model" and not self._service.model.settled
            ):
                if connection.questions >= _QUESTIONS:
                    raise Overloaded(f"{connection.questions} questions wait already", 1.0)
                connection.in_flight.add(identity)
                connection.questions += 1
                self._spawn(self._inquire(connection, identity, request.op))
                return
            # At once, without a count: unread replies stop the reading of further requests.
            connection.answer(identity, self._describe(request.op, connection.uid))
        except SwiprError as error:
            connection.send(Reply(identity, None, error))
        finally:
            if attachment is not None:
                attachment.close()

    def _stop(self, uid: int) -> dict[str, object]:
        """Have the daemon leave once what it has accepted is answered.

        Raises:
            Forbidden: this uid may not, or a service manager keeps the daemon.
        """
        if uid not in (0, os.geteuid()):
            raise Forbidden("only root and the daemon's own user may stop it")
        if self._on_stop is None:
            raise Forbidden(
                "a service manager keeps this daemon, and would start the next: stop it there,"
                " its socket first ('systemctl stop swiprd.socket swiprd.service')"
            )
        self._on_stop()
        return {"pid": os.getpid()}

    def _submit(self, connection: Connection, request: Request, image: Attachment) -> None:
        # Of the request nothing else is kept while it waits: its image may lie in it.
        identity, labels = request.id, request.labels

        def done(outcome: Outcome) -> None:
            if not isinstance(outcome, SwiprError):
                outcome = self._service.model.with_labels(outcome, labels)
            connection.answer(identity, outcome)

        connection.in_flight.add(identity)
        self._service.submit(
            uid=connection.uid,
            owner=connection,
            image=image,
            timeout=request.timeout,
            done=done,
        )

    def _describe(self, op: str, uid: int) -> dict[str, object]:
        if op == "model":
            return self._service.model.describe()
        status = self._service.status()
        if uid not in (0, os.geteuid()):  # paths below somebody's home are nobody else's business
            del status["folder"], status["log"]
        return {
            **status,
            "connections": len(self._connections),
            "intakes": {"processes": self.intakes.processes, "waiting": self.intakes.waiting},
        }

    def _inline(self, uid: int, request: Request) -> Attachment:
        if request.image is None:
            # The client recognises this error by its first words, and sends bytes instead.
            raise BadRequest(
                "no image came with the request: neither a descriptor nor bytes"
                " (descriptors do not pass through ssh; bytes do)"
            )
        return self.intakes.keep(uid, request.image)

    async def _inquire(self, connection: Connection, identity: int, op: str) -> None:
        service = self._service
        outcome: Outcome
        try:
            match op:
                case "ping":
                    outcome = await service.ping()
                case "reload":
                    outcome = await service.model.reload()
                case _:
                    await service.model.wait_settled()
                    outcome = service.model.describe()
        except SwiprError as error:
            outcome = error
        except OSError as error:
            outcome = Overloaded(f"the daemon is short of something: {error.strerror}", 1.0)
        connection.questions -= 1
        connection.answer(identity, outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
