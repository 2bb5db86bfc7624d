"""The intake process: receives, checks and closes the descriptors that one uid's clients pass.

A descriptor may be of a file whose file system never answers. With FUSE any user can be that file
system, and a process that reads or closes such a file then hangs, deaf to SIGKILL, with every other
descriptor that it has. A close can also take half a minute on a local disk, where it is the last of
a deleted file in many pieces. So the front never handles a client's descriptor that has not been
checked: an intake of the uid's own does that, and if it hangs, no other uid's request hangs with
it. An intake holds no descriptor of another uid, and of the front's sockets only those of its uid's
clients, while it receives from them.

A file on a local disk or in memory is passed on to the front as it is. The intake keeps a duplicate
until the front is done with the file, so that the last close happens here. Any other file is copied
into a memfd, so that no worker ever waits for an unknown file system either.

Forked from the front; a thread closes. From the front, as frames of the wire:
    {op: take, ticket, size} + socket   receive that many bytes from a client, with what they carry
    {op: identify, ticket} + memfd      tell which image a memfd of the front's is
    {op: drop, ticket}                  close the duplicate
    {op: close_socket, ticket} + socket close a client's socket, in which there may be descriptors
To the front:
    {ticket, received: true}            the client's socket can be read again; the file takes longer
    {ticket, copied, size, key} + descriptor    the image, the bytes of memory that it takes where
                                        it is a copy, and its identity (that alone for `identify`)
    {ticket}                            the socket is closed
    {ticket, error, broken}             the wire's error; `broken`: the connection cannot go on
"""

from __future__ import annotations

import array
import contextlib
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
"""Its name in ps(1), where its command line is the front's."""

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
"""Types of file systems (statfs(2), linux/magic.h) that live in the kernel alone: no server can
keep a read waiting, and closing a descriptor that is not the last does nothing."""


def run_intake(front: socket.socket, parent: int, limit: int) -> NoReturn:
    """Run as an intake, in a process just forked from the front. Never returns.

    Args:
        front: this process's end of the socketpair.
        parent: the front's pid.
        limit: bytes of an image.
    """
    try:
        # The front alone handles signals. The wakeup descriptor of its loop would wake the front.
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
    """The state of this process: the duplicates that it keeps, and the thread that closes."""

    def __init__(self, front: socket.socket, limit: int) -> None:
        self._front = front
        self._limit = limit
        self._kept: dict[int, int] = {}  # by ticket
        self._local = {_device_of("/"), _device_of_memfds()}
        self._to_close: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._closer: threading.Thread | None = None

    def run(self) -> None:
        """Serve the front until it closes its end."""
        for frame in self._receive():
            fields: Any = frame.fields
            descriptor = frame.attachment
            match fields["op"]:
                case "take" if descriptor is not None:
                    self._attempt(fields["ticket"], self._take, descriptor, fields["size"])
                case "identify" if descriptor is not None:
                    self._attempt(fields["ticket"], self._identify, descriptor)
                case "drop":
                    self._close(self._kept.pop(fields["ticket"]))
                case "close_socket" if descriptor is not None:
                    os.close(descriptor)
                    self._tell({"ticket": fields["ticket"]})
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
        """Do one order; report its error to the front, if it fails."""
        try:
            work(ticket, *arguments)
        except _ConnectionBroken as error:
            self._refuse(ticket, error.error, broken=True)
        except SwiprError as error:
            self._refuse(ticket, error)
        except OSError as error:
            self._refuse(ticket, BadImage(f"cannot be read: {error.strerror}"))

    def _take(self, ticket: int, client: int, size: int) -> None:
        """Receive a client's message of `size` bytes, and judge the descriptor that it carries."""
        with socket.socket(fileno=client) as sock:
            descriptor = self._received(sock, size)
        copied = 0
        try:
            if not self._is_local(ticket, descriptor):
                strange = descriptor
                data = read_image_bytes(strange, self._limit)
                descriptor, copied = sealed_memfd(data), len(data)
                self._close(strange)
            check_file(descriptor, self._limit)
            identity = recognise(descriptor, self._limit)
        except BaseException:
            self._close(descriptor)
            raise
        self._kept[ticket] = descriptor
        # A frame of a few dozen bytes: the kernel takes it whole or not at all.
        answer = encode({"ticket": ticket, "copied": copied, **_identity_fields(identity)})
        socket.send_fds(self._front, [answer], [descriptor])

    def _received(self, client: socket.socket, size: int) -> int:
        """Receive exactly what the front has seen to be there.

        Raises:
            _ConnectionBroken: not one descriptor came with it.
        """
        data, ancillary, flags, _ = client.recvmsg(size, _ROOM, _ANCILLARY_FLAGS)
        found = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
        if len(found) == 1 and len(data) == size and not flags & socket.MSG_CTRUNC:
            return found[0]
        for descriptor in found:
            self._close(descriptor)
        if len(found) > 1:
            raise _ConnectionBroken(BadRequest("more than one descriptor came with a frame"))
        # MSG_CTRUNC: a descriptor came, and our table of descriptors is full.
        raise _ConnectionBroken(Overloaded("no descriptor is left for the image", 1.0))

    def _identify(self, ticket: int, descriptor: int) -> None:
        try:
            identity = recognise(descriptor, self._limit)
        finally:
            self._close(descriptor)
        self._tell({"ticket": ticket, **_identity_fields(identity)})

    def _is_local(self, ticket: int, descriptor: int) -> bool:
        """Whether the file lies on a file system that lives in the kernel alone. The root of a
        container counts as local: only root can have mounted an overlay there."""
        try:
            device = statx(descriptor).device
        except OSError:  # FUSE without allow_other: no attributes for us, but reading is allowed
            device = (0, 0)
        if device in self._local:
            return True
        # fstatfs(2) may take long already, or for ever, and then reading the file: the client's
        # next requests need not wait for that.
        self._tell({"ticket": ticket, "received": True})
        local = filesystem_type(descriptor) in _LOCAL
        if local and device[0]:  # numbers without a device are given to other file systems, later
            self._local.add(device)
        return local

    def _refuse(self, ticket: int, error: SwiprError, *, broken: bool = False) -> None:
        self._tell({"ticket": ticket, "error": error_fields(error), "broken": broken})

    def _tell(self, fields: dict[str, object]) -> None:
        self._front.sendall(encode(fields))

    def _close(self, descriptor: int) -> None:
        """Close a descriptor, in the thread that may hang with it."""
        if self._closer is None:
            self._closer = threading.Thread(target=self._keep_closing, daemon=True)
            self._closer.start()
        self._to_close.put(descriptor)

    def _keep_closing(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # even with an error the descriptor is closed
                os.close(self._to_close.get())


class _ConnectionBroken(Exception):
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


def _identity_fields(identity: Identity | None) -> dict[str, object]:
    return {} if identity is None else {"size": identity.size, "key": identity.key}
