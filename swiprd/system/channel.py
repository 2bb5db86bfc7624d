"""One connected stream socket of the event loop: frames in, frames out, descriptors with both.

The front has one to each client, intake, forkserver and worker. A channel owns its socket, and each
attachment that arrives until it is passed to `on_frame` with its frame. It knows frames, not their
meaning.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from swiprctl.errors import BadRequest, Overloaded, SwiprError
from swiprctl.protocol import MAX_FRAME, MAX_ITEMS, Decoder, Frame
from swiprd.system.attachment import Attachment

_READ = 1 << 16  # bytes a read: a request is a hundred; an inline image comes in many
_ROOM = socket.CMSG_SPACE(4 * 4)  # room for more descriptors than allowed, to see and close them
_RETRY = 0.02  # seconds until the next try, while too many descriptors of this uid are in flight
_TURN = 32  # frames passed on in one turn of the event loop: a read can hold thousands
# Plain numbers: each operation on the enum's members takes some 2 µs of every request.
_ANCILLARY_FLAGS = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_PEEK_FLAGS = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_TRUNCATED = int(socket.MSG_CTRUNC)
_PEEKED = bytearray(_READ)  # for MSG_PEEK; shared, as the process has one loop at a time

Take = Callable[[socket.socket, int, Callable[[SwiprError | None], None]], object]


class Channel:
    """Frames over one socket.

    Args:
        sock: connected, SOCK_STREAM, AF_UNIX; the channel owns it from here on.
        on_frame: called with each frame; the receiver owns its attachment.
        on_closed: called once, with None on the peer's EOF or own `close()`, else with the reason.
        farewell: what to send, if it can be sent at once, before closing on a peer that broke the
            protocol.
        reserve: called with a number of bytes before a frame larger than a read is buffered, and
            with the same number negated when it no longer is. If it returns False, the frame is
            refused.
        ask: called with a function that works for this peer; calls it at once or has it called
            later, see `ReadTurns.ask`. Without it, all work is done at once.
        take: receives a message that carries a descriptor, where this process must not. Called
            with the socket, the number of bytes up to the end of the message, and a function to
            call when the socket can be read again, or with the error that ends the connection.
            Returns the attachment. Without it descriptors are received here: for peers that are
            processes of the daemon.
        discard: closes an attachment that arrived and belongs to no frame.
        release: closes the socket.
        limit: bytes of a frame's payload.
        items: things in its lists and maps, all together.

    Attributes:
        unsent: bytes that wait for the peer to read.
        due: there is something to read or to pass on, and `ask` has not given it a turn yet.
        last_read: loop time of the last bytes that came in.
        last_write: loop time when the last bytes went out, or when output began to wait.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_frame: Callable[[Frame], None],
        on_closed: Callable[[Exception | None], None],
        farewell: Callable[[SwiprError], bytes] | None = None,
        reserve: Callable[[int], bool] | None = None,
        ask: Callable[[Callable[[], None]], bool] | None = None,
        take: Take | None = None,
        discard: Callable[[Any], None] = os.close,
        release: Callable[[socket.socket], None] = socket.socket.close,
        limit: int = MAX_FRAME,
        items: int = MAX_ITEMS,
    ) -> None:
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        # What the loop knows it by: for a socket object that it does not know yet, the selector
        # makes an error message, with two system calls in it. That took 40 µs of each request.
        self._number = sock.fileno()
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._farewell = farewell
        self.decoder = Decoder(limit, items)
        self._take = take
        self.taking = False  # bytes that are known already wait in the socket for their descriptor
        self._reserve = reserve
        self._reserved = 0
        self._discard = discard
        self._release = release
        self._out: deque[tuple[memoryview, Attachment | None]] = deque()
        self.unsent = 0
        self.closed = False
        self._paused = False
        self._listening = True
        self._backlog = False  # whole frames may wait in the decoder
        self._ask = ask
        self.due = False
        self.last_read = self.last_write = self._loop.time()
        self._loop.add_reader(self._number, self._readable)

    def send(self, data: bytes, passed: Attachment | int | None = None) -> None:
        """Send a frame, now or when the peer reads. The caller keeps its descriptor and may close
        it at once: while the frame waits, the channel has a hold or a duplicate of it."""
        if self.closed:
            return
        if not self._out:
            self.last_write = self._loop.time()
            try:
                sent = self._push(memoryview(data), passed)
            except BlockingIOError:
                sent = 0
                self._loop.add_writer(self._number, self._writable)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    self._fail_soon(error)
                    return
                sent = 0
                self._loop.call_later(_RETRY, self._writable)
            else:
                if sent == len(data):
                    return
                data, passed = data[sent:], None
                self._loop.add_writer(self._number, self._writable)
        if isinstance(passed, int):
            passed = Attachment.of(os.dup(passed))
        elif passed is not None:
            passed = passed.hold()
        self._out.append((memoryview(data), passed))
        self.unsent += len(data)

    def pause(self, paused: bool) -> None:
        """Stop reading, or go on: flow control for a peer that does not read its answers.

        Called from within `on_frame`, it takes effect before the next frame.
        """
        if self.closed or paused == self._paused:
            return
        self._paused = paused
        if not paused:
            self.last_read = self._loop.time()  # until now it could not have been heard
        self._schedule()

    def close(self, error: Exception | None = None) -> None:
        """Close the socket and every descriptor still held. Calls `on_closed`, once."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._number)
        self._loop.remove_writer(self._number)
        self._release(self._socket)
        self._hold(0)
        for _, passed in self._out:
            if passed is not None:
                passed.close()
        self._out.clear()
        self.unsent = 0
        for attachment in self.decoder.abandon():
            self._discard(attachment)
        self._on_closed(error)

    def refuse(self, error: SwiprError) -> None:
        """Say farewell to a peer that broke the protocol, and close."""
        if self._farewell is not None and not self.closed and not self._out:
            with contextlib.suppress(OSError):
                self._socket.send(self._farewell(error))
        self.close(error)

    def _readable(self) -> None:
        if self._ask is None:
            self._read()
            return
        self.due = True
        if not self._ask(self._take_turn):
            self._schedule()  # unregister: the loop would report the socket again and again

    def _take_turn(self) -> None:
        self.due = False
        if not self.closed and not self._paused:
            if self._backlog:
                self._deliver()
            elif not self.taking:
                self._read()
        self._schedule()

    def _read(self) -> None:
        attachment: object
        try:
            if self._take is None:
                data, attachment = self._receive()
            else:
                data, attachment = self._receive_bytes(self._take)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(error)
            return
        except (BadRequest, Overloaded) as error:
            self.refuse(error)
            return
        if self.closed:  # by `take`, which could not receive it
            if attachment is not None:
                self._discard(attachment)
            return
        if not data:
            self.close()
            return
        self.last_read = self._loop.time()
        self.decoder.feed(data, attachment)
        self._deliver()

    def _receive_bytes(self, take: Take) -> tuple[bytes, object]:
        """Read bytes up to the next descriptor; have `take` receive a message that carries one.

        MSG_PEEK without room for descriptors shows that one is there (MSG_CTRUNC) and installs
        none. A recv(2) without that look would make the kernel close the descriptor, in this
        process.
        """
        count, _, flags, _ = self._socket.recvmsg_into([_PEEKED], 0, _PEEK_FLAGS)
        if not flags & _TRUNCATED:
            return self._socket.recv(count), None
        self.taking = True
        return bytes(_PEEKED[:count]), take(self._socket, count, self._taken)

    def _taken(self, error: SwiprError | None) -> None:
        """`take` has received its message."""
        self.taking = False
        if error is not None and not self.closed:
            self.refuse(error)
        self.last_read = self._loop.time()
        self._schedule()

    def _receive(self) -> tuple[bytes, int | None]:
        """Read bytes and the descriptor among them.

        Raises:
            BadRequest, Overloaded: there were several, or none could be had.
        """
        data, ancillary, flags, _ = self._socket.recvmsg(_READ, _ROOM, _ANCILLARY_FLAGS)
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        if len(descriptors) == 1 and not flags & _TRUNCATED:
            return data, descriptors[0]
        for descriptor in descriptors:
            os.close(descriptor)
        if len(descriptors) > 1:
            raise BadRequest("more than one descriptor came with a frame")
        if flags & _TRUNCATED:  # the kernel had one for us, and no place in our table to put it
            raise Overloaded("no descriptor is left for the image", 1.0)
        return data, None

    def _deliver(self) -> None:
        """Pass on whole frames until there are no more, the turn is over or the receiver pauses."""
        self._backlog = True
        frames = self.decoder.frames()
        try:
            for _ in range(_TURN):
                frame = next(frames, None)
                if frame is None:
                    self._backlog = False
                    announced = self.decoder.announced
                    if not self._hold(announced if announced > _READ else 0):
                        raise Overloaded(
                            f"too many large frames at once; this one has {announced} bytes", 1.0
                        )
                    break
                self._on_frame(frame)
                if self.closed or self._paused:
                    break
        except (BadRequest, Overloaded) as error:
            self.refuse(error)
        finally:
            self._schedule()

    def _schedule(self) -> None:
        """Choose what comes next: read, pass on frames that have been read, or wait."""
        if self.closed:
            return
        listening = not self._paused and not self._backlog and not self.due and not self.taking
        if listening != self._listening:
            self._listening = listening
            if listening:
                self._loop.add_reader(self._number, self._readable)
            else:
                self._loop.remove_reader(self._number)
        if self._backlog and not self._paused and not self.due:
            self.due = True
            # By way of the loop: called from here, all frames would be passed on in one turn.
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._ask is None or self.closed:
            self._take_turn()
        else:
            self._ask(self._take_turn)

    def _hold(self, size: int) -> bool:
        """Reserve bytes for the frame being read, in place of those for the frame before."""
        if self._reserve is None or size == self._reserved:
            return True
        if self._reserved:
            self._reserve(-self._reserved)
        self._reserved = size if not size or self._reserve(size) else 0
        return self._reserved == size

    def _writable(self) -> None:
        if self.closed:
            return
        try:
            while self._out:
                data, passed = self._out[0]
                sent = self._push(data, passed)
                if passed is not None:
                    passed.close()
                self.unsent -= sent
                self.last_write = self._loop.time()
                if sent < len(data):
                    self._out[0] = (data[sent:], None)
                    raise BlockingIOError
                self._out.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._number, self._writable)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                self.close(error)
                return
            self._loop.call_later(_RETRY, self._writable)
        self._loop.remove_writer(self._number)

    def _push(self, data: memoryview, passed: Attachment | int | None) -> int:
        if passed is None:
            return self._socket.send(data)
        descriptor = passed if isinstance(passed, int) else passed.fileno()
        return socket.send_fds(self._socket, [data], [descriptor])

    def _fail_soon(self, error: OSError) -> None:
        # Not at once: the caller of send() may be in the middle of changing what on_closed reads.
        self._loop.call_soon(self.close, error)
