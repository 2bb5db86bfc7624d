"""The process that receives what the clients of one uid pass: the only one to hold it unseen.

A descriptor may be of a file whose file system never answers. FUSE makes any user that file system,
and the reader or closer of such a file then hangs, deaf to SIGKILL, with every other descriptor
that it has. A close can also take half a minute on a local disk, where it is the last of a deleted
file in many pieces. So the front lets a process of the uid's own receive, judge and close: what
hangs there hangs nobody else. It has no other uid's descriptor, and none of the front's sockets but
those of its uid's clients, for as long as it receives from them.

A file on a local disk or in memory goes on to the front as it is, and a duplicate stays here until
the front is done: the last close is here. Of any other file the bytes are copied into a memfd, so
that no worker ever waits for a strange file system either.

Forked from the front. One thread closes what lies on strange file systems, which may hang for good,
another all else, which is over some time. From the front, as frames of the wire:
    {op: take, ticket, size} + socket   receive that many bytes from a client, with what they carry
    {op: discard, ticket, size} + socket    receive that, and close what comes
    {op: identify, ticket} + memfd      tell which image a memfd of the front's is
    {op: drop, tickets}                 close these duplicates
    {op: leave}                         leave, unless a close is under way
    {op: close_socket, ticket} + socket close a client's socket, in which there may be descriptors
To the front:
    {ticket, received: true}            the client's socket can be read again; the file takes longer
    {ticket, copied, size, key} + descriptor    the image, the bytes of memory that it takes where
                                        it is a copy, and its identity (that alone for `identify`)
    {ticket}                            the socket is closed, or the message discarded
    {stays: true}                       the answer to `leave`, where it is not the end
    {ticket, error, broken}             the wire's error; `broken`: the connection cannot go on
"""

from __future__ import annotations

import array
import contextlib
import functools
import gc
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from swiprctl.errors import BadImage, BadRequest, Overloaded, SwiprError
from swiprctl.protocol import Decoder, Frame, encode, error_fields
from swiprd.intake.recognition import recognise
from swiprd.system.attachment import Identity
from swiprd.system.imagefile import check_file, read_image_bytes
from swiprd.system.kernel import die_with_parent, filesystem_type, name_process, statx
from swiprd.system.log import log
from swiprd.system.memfd import sealed_memfd

_MOST_DESCRIPTORS = 253  # in one message: SCM_MAX_FD, linux/net/scm.h
_ROOM = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
_ANCILLARY_FLAGS = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)

NAME = "swiprd-intake"
"""What it is called in ps(1): its command line is the front's."""

_LOCAL = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # btrfs
        0xF2F52010,  # F2FS
        0x2FC12FC1,  # ZFS
        0xCA451A4E,  # bcachefs
        0x01021994,  # tmpfs, and memfds with it
        0x858458F6,  # ramfs
        0x958458F6,  # hugetlbfs
        0x73717368,  # squashfs
        0xE0F5E1E2,  # EROFS
        0x9660,  # ISO 9660
        0x4D44,  # FAT
        0x2011BAB0,  # exFAT
    }
)
"""Types of file systems in the kernel itself (statfs(2), linux/magic.h) that answer to nobody else
and have nothing to say when a descriptor that is not the last is closed."""


def run_intake(front: socket.socket, parent: int, limit: int) -> NoReturn:
    """Be the intake, in a process just forked from the front. Never returns.

    Args:
        front: this process's end of the socketpair.
        parent: the front's pid.
        limit: bytes of an image.
    """
    try:
        # What the front has in memory is never collected here: a socket's finalizer would close a
        # number that may be a client's file by then.
        gc.freeze()
        # Signals are the front's business. A handler of its event loop would wake the front.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _keep_only(front.fileno())
        die_with_parent(parent)
        name_process(NAME)
        Intake(front, limit).run()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the front is gone: the same as its EOF
    except BaseException:
        # Last line of defence: nothing of the front's loop may run on in a child.
        log.critical("an intake failed", exc_info=True)
    finally:
        os._exit(0)


class Intake:
    """The state of this process: the duplicates that it keeps, and the threads that close."""

    def __init__(self, front: socket.socket, limit: int) -> None:
        self._front = front
        self._limit = limit
        self._kept: dict[int, int] = {}  # by ticket
        self._local = frozenset({_device_of("/"), _device_of_memfds()})  # for good
        self._telling = threading.Lock()
        self._closer = _Closer()
        self._strange_closer = _Closer()

    def run(self) -> None:
        """Serve the front until it closes its end."""
        for frame in self._receive():
            fields: Any = frame.fields
            descriptor = frame.attachment
            match fields["op"]:
                case "take" if descriptor is not None:
                    self._attempt(fields["ticket"], self._take, descriptor, fields["size"])
                case "discard" if descriptor is not None:
                    self._attempt(fields["ticket"], self._discard, descriptor, fields["size"])
                case "identify" if descriptor is not None:
                    self._attempt(fields["ticket"], self._identify, descriptor)
                case "drop":
                    for ticket in fields["tickets"]:
                        self._closer.close(self._kept.pop(ticket))
                case "close_socket" if descriptor is not None:
                    closed = functools.partial(self._tell, {"ticket": fields["ticket"]})
                    self._closer.close(descriptor, closed)
                case "leave":
                    if not self._kept and self._closer.idle and self._strange_closer.idle:
                        return
                    self._tell({"stays": True})
                case _:
                    raise BadRequest(f"the front sent {fields}")

    def _receive(self) -> Iterator[Frame]:
        decoder = Decoder()
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._front, 1 << 16, 1)
            if not data:
                return
            decoder.feed(data, descriptors[0] if descriptors else None)
            yield from decoder.frames()

    def _attempt(self, ticket: int, work: Callable[..., None], *arguments: int) -> None:
        """Do a piece of work; tell the front what it failed of, if it did."""
        try:
            work(ticket, *arguments)
        except _Broken as error:
            self._refuse(ticket, error.error, broken=True)
        except SwiprError as error:
            self._refuse(ticket, error)
        except OSError as error:
            self._refuse(ticket, BadImage(f"cannot be read: {error.strerror}"))

    def _take(self, ticket: int, client: int, size: int) -> None:
        """Receive a client's message of `size` bytes, and judge the descriptor that it carries."""
        with socket.socket(fileno=client) as sock:
            descriptor = self._received(sock, size)
        try:
            local = self._is_local(ticket, descriptor)
        except OSError:
            self._strange_closer.close(descriptor)
            raise
        if not local:
            self._copy(ticket, descriptor)
            return
        try:
            check_file(descriptor, self._limit)
            identity = recognise(descriptor, self._limit)
        except BaseException:
            self._closer.close(descriptor)
            raise
        self._kept[ticket] = descriptor
        self._hand_on(ticket, descriptor, 0, identity)

    def _copy(self, ticket: int, strange: int) -> None:
        """Read a file whose file system may never answer, and hand its bytes on."""
        try:
            data = read_image_bytes(strange, self._limit)
        finally:
            self._strange_closer.close(strange)
        copy = sealed_memfd(data)
        try:
            self._hand_on(ticket, copy, len(data), recognise(copy, self._limit))
        finally:
            os.close(copy)

    def _hand_on(self, ticket: int, file: int, copied: int, identity: Identity | None) -> None:
        answer = encode({"ticket": ticket, "copied": copied, **_told(identity)})
        with self._telling:
            # A frame of a few dozen bytes: the kernel takes it whole or not at all.
            socket.send_fds(self._front, [answer], [file])

    def _discard(self, ticket: int, client: int, size: int) -> None:
        with socket.socket(fileno=client) as sock:
            self._strange_closer.close(self._received(sock, size))
        self._tell({"ticket": ticket})

    def _received(self, client: socket.socket, size: int) -> int:
        """Receive exactly what the front has seen to be there.

        Raises:
            _Broken: not one descriptor came with it.
        """
        data, ancillary, flags, _ = client.recvmsg(size, _ROOM, _ANCILLARY_FLAGS)
        found = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
        if len(found) == 1 and len(data) == size and not flags & socket.MSG_CTRUNC:
            return found[0]
        for descriptor in found:
            self._strange_closer.close(descriptor)
        if len(found) > 1:
            raise _Broken(BadRequest("more than one descriptor came with a frame"))
        # The kernel had one for us, and no place in our table to put it.
        raise _Broken(Overloaded("no descriptor is left for the image", 1.0))

    def _identify(self, ticket: int, descriptor: int) -> None:
        try:
            identity = recognise(descriptor, self._limit)
        finally:
            os.close(descriptor)
        self._tell({"ticket": ticket, **_told(identity)})

    def _is_local(self, ticket: int, descriptor: int) -> bool:
        """Whether nobody but the kernel answers for this file. A container's root counts as such:
        only root lays file systems over one another there."""
        try:
            device = statx(descriptor).device
        except OSError:  # a user's own FUSE mount tells nobody else anything, but can be read
            device = (0, 0)
        if device in self._local:
            return True
        # To ask what it lies on may take long already, or for ever, and then to read it: the
        # client's next requests need not wait for that.
        self._tell({"ticket": ticket, "received": True})
        # The answer is not kept: the same device number may be another file system's by the next.
        return filesystem_type(descriptor) in _LOCAL

    def _refuse(self, ticket: int, error: SwiprError, *, broken: bool = False) -> None:
        self._tell({"ticket": ticket, "error": error_fields(error), "broken": broken})

    def _tell(self, fields: dict[str, object]) -> None:
        with self._telling:
            self._front.sendall(encode(fields))


class _Closer:
    """Closes descriptors in a thread, which may hang with one."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[int, Callable[[], None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._left = 0  # changed by the main thread and by this one, under the lock
        self._lock = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether all is closed."""
        with self._lock:
            return not self._left

    def close(self, descriptor: int, closed: Callable[[], None] = lambda: None) -> None:
        """Own a descriptor; call `closed`, in the thread, when it is closed."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        with self._lock:
            self._left += 1
        self._queue.put((descriptor, closed))

    def _run(self) -> None:
        while True:
            descriptor, closed = self._queue.get()
            with contextlib.suppress(OSError):  # closed it is, whatever the file system says
                os.close(descriptor)
            with self._lock:
                self._left -= 1
            with contextlib.suppress(OSError):  # the front has gone
                closed()


class _Broken(Exception):
    """The connection cannot be read any further."""

    def __init__(self, error: SwiprError) -> None:
        self.error = error


def _keep_only(descriptor: int) -> None:
    """Close all that the front has, but for the standard streams and one descriptor."""
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))


def _device_of(path: str) -> tuple[int, int]:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return statx(descriptor).device
    finally:
        os.close(descriptor)


def _device_of_memfds() -> tuple[int, int]:
    descriptor = sealed_memfd(b"")
    try:
        return statx(descriptor).device
    finally:
        os.close(descriptor)


def _told(identity: Identity | None) -> dict[str, object]:
    return {} if identity is None else {"size": identity.size, "key": identity.key}
