"""A process for what may hang for good, in open(2), read(2) or close(2), and which nothing ends
then, not even SIGKILL: a process of its own, which is left to init and sends what it has.

It has none of this process's descriptors, and this one none of its own, but for their socket.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    Send = Callable[[bytes, int], None]

_DESCRIPTOR = struct.Struct("i")
LONGEST = 1 << 14
"""Bytes of a message: a path has at most 4,096, an error's text is cut."""

_SIGINT, _SIGKILL = 2, 9


class Detached:
    """Work in another process, and the messages that it sends, each with a descriptor or without.

    Args:
        work: called there, with what sends a message and a descriptor, or -1. When it returns the
            process ends.
        kept: descriptors that stay open there.

    Raises:
        OSError: there is no process or descriptor to be had.
    """

    __slots__ = ("_owner", "_process", "_socket")

    def __init__(self, work: Callable[[Send], None], kept: set[int]) -> None:
        self._owner = os.getpid()
        self._process = -1
        self._socket, theirs = _socket.socketpair(
            _socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
        )
        try:
            pid = os.fork()
            if pid == 0:
                _fork_worker(work, kept, theirs)
            os.waitpid(pid, 0)  # it leaves at once, and what it has forked to init
            _, self._process = self.receive()
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()

    def fileno(self) -> int:
        """Give what to poll: it can be read when `receive` will not wait."""
        return self._socket.fileno()

    def receive(self, *, wait: bool = True) -> tuple[bytes, int]:
        """Take one message, and its descriptor or -1. An empty one: the process has ended.

        Raises:
            BlockingIOError: none has come, and `wait` is false.
            OSError: there is no descriptor to be had.
        """
        data, ancillary, _, _ = self._socket.recvmsg(
            LONGEST,
            _socket.CMSG_SPACE(_DESCRIPTOR.size),
            _socket.MSG_CMSG_CLOEXEC | (0 if wait else _socket.MSG_DONTWAIT),
        )
        return data, _DESCRIPTOR.unpack(ancillary[0][2])[0] if ancillary else -1

    def close(self) -> None:
        """End the other process, whatever it does. Can be called again."""
        self._socket.close()
        if self._process < 0:
            return
        try:
            if os.getpid() == self._owner:  # not in a child that drops what is its parent's
                _signal.pidfd_send_signal(self._process, _SIGKILL)
        except ProcessLookupError:
            pass  # it has done its work
        os.close(self._process)
        self._process = -1


def _fork_worker(work: Callable[[Send], None], kept: set[int], out: _socket.socket) -> NoReturn:
    """Be the child: fork the process that works, so that it belongs to init, and exit."""

    def send(data: bytes, descriptor: int) -> None:
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))]
        out.sendmsg([data], rights if descriptor >= 0 else [], _socket.MSG_NOSIGNAL)

    try:
        if os.fork() == 0:
            _signal.signal(_SIGINT, _signal.SIG_DFL)
            send(b":", os.pidfd_open(os.getpid()))
            _close_all_but({*kept, out.fileno()})
            work(send)
    finally:
        os._exit(0)


def _close_all_but(kept: set[int]) -> None:
    """Close inherited pipes: their readers wait for EOF, and this process may hang for good."""
    begin = 0
    for descriptor in sorted(kept):
        os.closerange(begin, descriptor)
        begin = descriptor + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))
