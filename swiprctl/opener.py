"""Read an image in a process of its own: one on a file system whose server may never answer.

There, open(2), fstat(2), read(2) and even close(2) may hang, and then nothing ends the process, not
even SIGKILL. So this process has no descriptor of such a file: another reads it and passes what it
has read. If that one hangs it is left to init, killed, with nothing of ours held open.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
import struct

from swiprctl.errors import CannotOpen, IsDirectory, NoPermission, NoSuchFile, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from swiprctl.inputs import Image

_DESCRIPTOR = struct.Struct("i")
_LONGEST = 4096  # bytes of an error's text
_SIGINT, _SIGKILL = 2, 9
_ERRORS = {one.__name__: one for one in (IsDirectory, NoPermission, NoSuchFile, TooLarge)}


class Opening:
    """One image on its way here.

    Args:
        open: opens it, in the other process, for reading: files as pipes.
        source: the path or descriptor that it opens. A descriptor stays open there.

    Raises:
        OSError: there is no process or descriptor to be had.
    """

    __slots__ = ("_owner", "_process", "_socket")

    def __init__(self, open: Callable[[], Image], source: str | int) -> None:
        self._owner = os.getpid()
        self._process = -1
        self._socket, theirs = _socket.socketpair(
            _socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
        )
        try:
            pid = os.fork()
            if pid == 0:
                _fork_reader(open, {source, theirs.fileno()}, theirs)
            os.waitpid(pid, 0)  # it leaves at once, and what it has forked to init
            _, self._process = self._receive()
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()

    def fileno(self) -> int:
        """Give what to poll: it can be read when `finish` will not wait."""
        return self._socket.fileno()

    def finish(self) -> int:
        """Give the descriptor, which is the caller's from here.

        Raises:
            CannotOpen: it cannot be opened or read.
            TooLarge: it has too many bytes.
        """
        try:
            text, descriptor = self._receive()
        except OSError as error:
            raise CannotOpen(f"it came without a descriptor: {error.strerror}") from error
        finally:
            self.close()
        if descriptor >= 0:
            return descriptor
        kind, _, why = text.partition(":")
        raise _ERRORS.get(kind, CannotOpen)(why or "the process that was to read it has died")

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

    def _receive(self) -> tuple[str, int]:
        """Take one message: a text, and a descriptor or -1."""
        text, ancillary, _, _ = self._socket.recvmsg(
            _LONGEST, _socket.CMSG_SPACE(_DESCRIPTOR.size), _socket.MSG_CMSG_CLOEXEC
        )
        descriptor = _DESCRIPTOR.unpack(ancillary[0][2])[0] if ancillary else -1
        return text.decode("utf-8", "surrogateescape"), descriptor


def _fork_reader(open: Callable[[], Image], kept: set[str | int], out: _socket.socket) -> NoReturn:
    """Be the child: fork the process that reads, so that it belongs to init, and exit."""
    try:
        if os.fork() == 0:
            _signal.signal(_SIGINT, _signal.SIG_DFL)
            _send(out, "", os.pidfd_open(os.getpid()))
            _close_all_but(kept)
            try:
                _send(out, "", open().copied())
            except (CannotOpen, TooLarge) as error:
                _send(out, f"{type(error).__name__}:{error}", -1)
            except OSError as error:
                _send(out, f"{CannotOpen.__name__}:{error.strerror}", -1)
    finally:
        os._exit(0)


def _send(out: _socket.socket, text: str, descriptor: int) -> None:
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))]
    data = text.encode("utf-8", "surrogateescape")[:_LONGEST]
    out.sendmsg([data or b":"], rights if descriptor >= 0 else [], _socket.MSG_NOSIGNAL)


def _close_all_but(kept: set[str | int]) -> None:
    """Close inherited pipes: their readers wait for EOF, and this process may hang for good."""
    begin = 0
    for descriptor in sorted(one for one in kept if isinstance(one, int)):
        os.closerange(begin, descriptor)
        begin = descriptor + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))
