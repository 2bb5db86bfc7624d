"""The front's handles on the processes it has: the forkserver and its workers.

Each handle owns its socket and its pidfd and lets go of both exactly once. What to do about a
death is the pool's to decide; here it is only told.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from swiprctl.errors import BadRequest
from swiprctl.protocol import Frame, Reply, encode
from swiprd.pool import forkserver_process
from swiprd.pool.deaths import Death
from swiprd.pool.states import Event, State, after
from swiprd.system.attachment import Attachment
from swiprd.system.channel import Channel
from swiprd.system.messages import (
    Answer,
    Fork,
    Forked,
    Limits,
    Load,
    Order,
    Report,
    Row,
    parse_report,
)

_STATUS_WAIT = 1.0  # seconds that a dead worker's exit status may take, before it is "unknown"


class Giver(Protocol):
    """Gives a worker images, and gets each of them back: the pool, a health check or a trial."""

    def replied(self, worker: Worker, id: int, answer: Answer) -> None:
        """The worker has answered an image."""

    def left(self, ids: list[int], death: Death) -> None:
        """The worker is dead, and has not answered these."""


class Worker:
    """One worker process, from the order to fork it until its exit status is known.

    Attributes:
        number: unique in this daemon's life.
        unanswered: images that it has been given and has not answered, by id.
        born, heard: loop times of the order to fork it, and of its last answer.
        probing: it runs the canary, not a client's image.
        stuck: what it has takes far longer than is usual.
        memory: bytes of its own after its first answer; 0 before.
        condemned: why this daemon killed it; empty if it did not.
        status: as of waitpid(2), None where it is not known.
    """

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        *,
        on_forked: Callable[[Worker], None],
        on_answered: Callable[[Worker], None],
        on_gone: Callable[[Worker], None],
    ) -> None:
        self.number = number
        self.state = State.SPAWNING
        self.pid = 0
        self.unanswered: dict[int, Attachment] = {}
        self._giver: Giver | None = None
        self.born = self.heard = asyncio.get_running_loop().time()
        self.answered = 0
        self.probing = self.stuck = False
        self.memory = 0
        self.condemned = ""
        self.status: int | None = None
        self._pidfd = -1
        self._exited = False
        self._on_forked = on_forked
        self._on_answered = on_answered
        self._on_gone = on_gone
        self._patience: asyncio.TimerHandle | None = None
        self._channel = Channel(sock, on_frame=self._replied, on_closed=self._closed)

    def forked(self, pid: int, pidfd: int) -> None:
        """The forkserver has made the process; own its pidfd."""
        self.pid = pid
        self._pidfd = pidfd
        if self.condemned:
            self._kill()
        elif self.state is State.SPAWNING:
            self.state = after(self.state, Event.FORKED)
            self._on_forked(self)

    def give(
        self, images: Mapping[int, Attachment], giver: Giver, limits: Limits, threads: int
    ) -> None:
        """Hand over a batch, by ids that the giver will know. `limits` are those of each image."""
        self._giver = giver
        if self.state is not State.WARMING:
            self.state = after(self.state, Event.GIVEN)
        for id, image in images.items():
            self.unanswered[id] = image
            order = Order(id=id, size=len(images), threads=threads, limits=limits)
            self._channel.send(encode(order.fields()), image)

    def give_back(self, death: Death) -> None:
        """Leave what it has not answered to the giver."""
        ids = list(self.unanswered)
        self.unanswered.clear()
        if ids and self._giver is not None:
            self._giver.left(ids, death)

    def kill(self, why: str) -> None:
        """SIGKILL the process, by pidfd, so that no other process can be hit."""
        if self.state is State.GONE:
            return
        self.state = after(self.state, Event.LOST)
        self.condemned = why
        self._kill()
        self._channel.close()

    def retire(self) -> None:
        """Let an idle worker leave by itself, on EOF."""
        self.condemned = "retired"
        self.state = after(self.state, Event.LOST)
        self._channel.close()

    def exited(self, status: int | None) -> None:
        """The forkserver reaped it, or is gone itself (None). What it had sent is read first."""
        if self._exited:
            return
        self.status = status
        self._exited = True
        self._release()
        if self._channel.closed:
            self._settle()
        elif self.pid == 0:
            self._channel.close()  # never forked: no EOF will come, nothing was sent

    def _replied(self, frame: Frame) -> None:
        reply = Reply.parse(frame.fields)
        if reply.id is None or reply.id not in self.unanswered or frame.attachment is not None:
            if frame.attachment is not None:
                os.close(frame.attachment)
            # Not `kill()`: that is for the daemon's own reasons.
            self._channel.close(BadRequest("it answered what it was not asked"))
            return
        answer = Row.parse(reply.fields) if reply.error is None else reply.error
        del self.unanswered[reply.id]
        if not self.unanswered:
            self.state = after(self.state, Event.ANSWERED)
            self.stuck = False
        self.answered += 1
        self.heard = asyncio.get_running_loop().time()
        assert self._giver is not None
        self._giver.replied(self, reply.id, answer)
        self._on_answered(self)

    def _closed(self, _error: Exception | None) -> None:
        if self.state is not State.GONE:
            self.state = after(self.state, Event.LOST)
        if self._exited:
            self._settle()
        else:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(_STATUS_WAIT, self.exited, None)
            if not self.condemned:
                self._kill()  # EOF without death would be a stray; make sure

    def _kill(self) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _release(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _settle(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._on_gone(self)


class Forkserver:
    """The forkserver process, had at once; reports through the callbacks.

    Args:
        on_report: called with each message, and the pidfd that comes with `Forked`, else None.
        on_gone: called once, when its end of the socket is closed and the process is reaped.

    Attributes:
        killed: whether somebody else's SIGKILL ended it (an operator's, the OOM killer's).
    """

    def __init__(
        self, *, on_report: Callable[[Report, int | None], None], on_gone: Callable[[], None]
    ) -> None:
        self._process, ours = forkserver_process.start()
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.killed = False
        self._on_report = on_report
        self._on_gone = on_gone
        self._channel = Channel(ours, on_frame=self._told, on_closed=self._closed)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._died)

    def load(self, command: Load) -> None:
        """Have it load the model; answered by `Loaded` or `Failed`."""
        self._channel.send(encode(command.fields()))

    def fork(self, worker: int) -> socket.socket:
        """Order a worker; return the front's end of its socket. Answered by `Forked`."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._channel.send(encode(Fork(worker=worker).fields()), theirs.fileno())
        return ours

    def kill(self) -> None:
        """SIGKILL it, and by the kernel's doing its workers."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let it leave by itself, on EOF, taking its workers along."""
        self._channel.close()

    def _told(self, frame: Frame) -> None:
        try:
            report = parse_report(frame.fields)
            if isinstance(report, Forked) is (frame.attachment is None):
                raise BadRequest("a pidfd comes with a worker that was forked, and only then")
        except BadRequest:
            if frame.attachment is not None:
                os.close(frame.attachment)
            raise
        self._on_report(report, frame.attachment)

    def _closed(self, _error: Exception | None) -> None:
        self._gone_if_both()

    def _died(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        # A zombie by now: this does not block.
        self.killed = self._process.wait() == -signal.SIGKILL
        self._gone_if_both()

    def _gone_if_both(self) -> None:
        if self._channel.closed and self._pidfd < 0:
            self._on_gone()
