"""Requests in flight over one connection that may break: send, poll, resend, give up in time.

The engine under `Client`. Jobs are put in, `step()` moves all of them as far as they go and waits
in one poll(2) for what comes next, and each job ends with an outcome: the reply's fields or an
error. A connection that ends with requests unanswered is made anew and they are sent again;
every request is idempotent. No threads; the clock is time.monotonic.
"""

from __future__ import annotations

import select
from time import monotonic

from swiprctl.connection import Connection, Disconnected
from swiprctl.dialer import Dialer
from swiprctl.errors import BadRequest, NoDaemon, Overloaded, ShuttingDown, SwiprError, TooLarge
from swiprctl.protocol import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from swiprctl.address import Address
    from swiprctl.jobs import Job
    from swiprctl.protocol import Reply

_PAUSE = 0.05
_LOST_DESCRIPTOR = "no image came with the request"


class Exchange:
    """All requests of one client, over one connection at a time."""

    def __init__(
        self,
        address: Address,
        *,
        autostart: bool,
        notify: Callable[[str], None] | None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self._dialer = Dialer(address, autostart=autostart, notify=notify)
        self._trace = trace
        self._connection: Connection | None = None
        self._write_not_before = 0.0
        self._jobs: dict[int, Job] = {}
        self._next_id = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._jobs

    def submit(self, job: Job) -> None:
        """Take a job in. It moves in the next `step()`."""
        if not self._jobs:
            self._dialer.note_idle()
        self._next_id += 1
        job.id = self._next_id
        if job.outcome is None:
            self._jobs[job.id] = job

    def forget(self, job: Job) -> None:
        """Drop a job, wherever it is, and close its image."""
        self._jobs.pop(job.id, None)
        connection = self._connection
        sent, job.in_flight = job.in_flight, False
        if connection is not None and sent and not connection.cancel(job.id):
            self._lose()  # a part of its frame has gone out, and the rest never will
        job.close()

    def close(self, why: str) -> None:
        """Close the connection and every image; what is under way ends without an answer."""
        for job in list(self._jobs.values()):
            self._end(job, NoDaemon(why))
        self._lose()
        self._dialer.close()

    def step(self, *, wait: bool = True, watch: int = -1) -> None:
        """Send what can be sent, wait for something to happen, and take in what came.

        Returns when a job may have ended or the descriptor `watch` can be read, or, unless
        `wait`, at once.

        Raises:
            NoDaemon: nobody listens, and no daemon could be started.
            Forbidden: the user may not open the socket.
        """
        before = len(self._jobs)
        now = monotonic()
        self._send_waiting(now)
        if self._connection is not None and self._connection.broken:
            self._transfer(select.POLLIN)  # replies may still be there; no more will come
        if len(self._jobs) < before:
            wait = False  # one has ended already
        if any(job.in_flight or job.due(now) for job in self._jobs.values()):
            self._dialer.note_waiting(now)
        else:
            self._dialer.note_idle()
        poll = select.poll()
        streams = self._register(poll, watch, now)
        for descriptor, events in poll.poll(self._patience(now) if wait else 0):
            if descriptor in streams:
                self._pump(streams[descriptor])
            elif descriptor != watch:
                self._transfer(events)
        # Last: an answer that came in time counts, even if the caller lets us read it late.
        self._expire(monotonic())

    # -- sending

    def _send_waiting(self, now: float) -> None:
        if self._connection is not None and not self._busy():
            self._transfer(select.POLLIN)  # the daemon may have closed a connection that idled
        for job in list(self._jobs.values()):
            if not job.due(now) or now >= job.limit(None):
                continue
            connection = self._connected(now, start=job.start)
            if connection is None or connection.leaving or connection.broken:
                return
            if connection.inline and connection.backlog:
                return  # one image at a time in memory
            self._send(connection, job, now)
            if now >= self._write_not_before and not connection.flush():
                self._write_not_before = now + _PAUSE  # too many descriptors are under way

    def _connected(self, now: float, *, start: bool) -> Connection | None:
        """Give the connection, made now if need be; None if that has to be tried again later."""
        if self._connection is None:
            self._connection = self._dialer.dial(now, start=start)
        return self._connection

    def _send(self, connection: Connection, job: Job, now: float) -> None:
        request = Request(job.id, job.op, job.remaining(now))
        request.labels, request.alive = job.labels, True
        descriptor = None
        try:
            if job.image is not None:
                if connection.inline:
                    request.image = job.image.inline()
                else:
                    descriptor = job.image.descriptor
            frame = request.encode()
        except BadRequest as error:
            self._end(job, TooLarge(f"it cannot go without a descriptor: {error}"))
        except SwiprError as error:
            self._end(job, error)
        else:
            connection.send(job.id, frame, descriptor)
            job.passed = descriptor is not None
            job.in_flight = True
            job.sent = now

    def _lose(self) -> None:
        """Drop the connection; what was in flight on it will be sent again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        now = monotonic()
        for job in self._jobs.values():
            if job.in_flight:
                self._resend(job, now + job.pause(), now, "the connection broke before its answer")

    # -- receiving

    def _transfer(self, events: int) -> None:
        """Write queued frames, read replies and handle them."""
        connection = self._connection
        if connection is None:
            return
        if events & select.POLLOUT and not connection.flush():
            self._write_not_before = monotonic() + _PAUSE
        if not events & ~select.POLLOUT and not connection.broken:
            return
        try:
            for reply in connection.receive():
                self._handle_reply(connection, reply)
        except Disconnected:
            self._lose()
        except BadRequest as error:
            # The other side is no swipr daemon, or a broken one; asking again would not help.
            for job in [job for job in self._jobs.values() if job.in_flight]:
                self._end(job, error)
            self._lose()

    def _handle_reply(self, connection: Connection, reply: Reply) -> None:
        now = monotonic()
        if reply.id is None and reply.error is None and "alive" in reply.fields:
            self._dialer.note_heard(now, reply.fields["alive"])
            return
        self._dialer.note_heard(now)
        if connection.first_reply is None:
            connection.first_reply = now
            self._dialer.note_answered()
        if reply.id is None:
            # It could not read a frame, or has too many clients: an error for every request.
            connection.leaving = True
            error = reply.error or BadRequest("the daemon's reply has no id")
            for job in list(self._jobs.values()):
                if job.in_flight:
                    self._handle_error(connection, job, error, now)
            return
        asked = self._jobs.get(reply.id)
        if asked is None or not asked.in_flight:
            return  # an answer that came too late
        if reply.error is None:
            self._end(asked, reply.fields)
        else:
            self._handle_error(connection, asked, reply.error, now)

    def _handle_error(
        self, connection: Connection, job: Job, error: SwiprError, now: float
    ) -> None:
        """Resend a job after an error that another attempt may avoid; end it after any other."""
        if isinstance(error, ShuttingDown):
            connection.leaving = True
            self._resend(job, now + job.pause(), now, str(error))
            return
        if isinstance(error, Overloaded):
            at = job.retry_at(now, error.retry_after, connection.first_reply)
            if at is not None:
                self._resend(job, at, now, f"overloaded: {error}")
                return
        lost = isinstance(error, BadRequest) and str(error).startswith(_LOST_DESCRIPTOR)
        if lost and job.passed:
            connection.inline = True  # ssh(1) forwards bytes, and drops descriptors
            self._resend(job, now, now, str(error))
            return
        self._end(job, error)

    def _resend(self, job: Job, at: float, now: float, why: str) -> None:
        """Have a job sent once more, and tell `trace`."""
        job.again(at)
        if self._trace is not None:
            self._trace(f"request {job.id} is sent again in {at - now:.2g} s: {why}")

    def _pump(self, job: Job) -> None:
        try:
            if job.image is not None:
                job.image.pump()
        except SwiprError as error:
            self._end(job, error)

    def _end(self, job: Job, outcome: dict[str, object] | SwiprError) -> None:
        self._jobs.pop(job.id, None)
        job.finish(outcome)

    def _busy(self) -> bool:
        return any(job.in_flight for job in self._jobs.values())

    # -- time

    def _register(self, poll: select.poll, watch: int, now: float) -> dict[int, Job]:
        """Register the descriptors to poll; return the jobs with streams, by descriptor."""
        if watch >= 0:
            poll.register(watch, select.POLLIN)
        connection = self._connection
        if connection is not None:
            events = select.POLLIN
            if connection.backlog and now >= self._write_not_before:
                events |= select.POLLOUT
            poll.register(connection.fileno(), events)
        streams = {}
        for job in self._jobs.values():
            if job.image is not None and job.image.stream is not None:
                streams[job.image.stream] = job
                poll.register(job.image.stream, select.POLLIN)
        return streams

    def _patience(self, now: float) -> float | None:
        """Milliseconds until the next deadline or attempt; None if there is none."""
        first_reply = None if self._connection is None else self._connection.first_reply
        due = []
        for job in self._jobs.values():
            due.append(job.limit(first_reply))
            if job.limited_by_silence:
                due.append(self._dialer.patience(image=job.image is not None))
            if not job.in_flight and not job.streaming:
                # A moment that has passed is left out: its job waits for the connection.
                due += [at for at in (job.not_before, self._dialer.not_before) if at > now]
        if self._write_not_before > now:
            due.append(self._write_not_before)
        due += self._dialer.due()
        return 1000 * max(0.0, min(due) - now) if due else None

    def _expire(self, now: float) -> None:
        """End the jobs whose time has passed, or whose daemon has been silent for too long."""
        first_reply = None if self._connection is None else self._connection.first_reply
        for job in list(self._jobs.values()):
            if now >= job.limit(first_reply):
                error = job.overdue(now, self._dialer.silence(now))
                self.forget(job)
                job.finish(error)
            elif job.limited_by_silence and now >= self._dialer.patience(
                image=job.image is not None
            ):
                self.forget(job)
                job.finish(self._dialer.stuck(now))
        if self._connection is not None and self._connection.leaving and not self._busy():
            self._lose()
