"""The protocol of the service manager: the only reader of LISTEN_*, NOTIFY_SOCKET and WATCHDOG_*.

The variables are removed from the environment when they are read, so that no child of the daemon
takes them for its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time

import sdnotify

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)


def listen_sockets() -> list[socket.socket]:
    """Take the listening sockets that were passed at start, per sd_listen_fds(3).

    Raises:
        ValueError: a passed descriptor is not a listening Unix stream socket.
    """
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        try:
            os.set_inheritable(descriptor, False)
            listener = socket.socket(fileno=descriptor)
        except OSError as error:
            raise ValueError(f"descriptor {descriptor} is not a socket: {error}") from error
        if (
            listener.family != socket.AF_UNIX
            or listener.type != socket.SOCK_STREAM
            or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            listener.close()
            raise ValueError(f"descriptor {descriptor} is not a listening Unix stream socket")
        sockets.append(listener)
    return sockets


class Manager:
    """Reports the daemon's state to the service manager, per sd_notify(3), where there is one.

    It never blocks. While the manager is busy and its socket is full, the latest message of each
    kind is kept and sent when the manager reads again. WATCHDOG=1 is not kept: it would say that
    the daemon was alive once.

    Attributes:
        watchdog: seconds within which WATCHDOG=1 must be sent, None where nobody waits for it.
    """

    def __init__(self) -> None:
        self._notifier = _notifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._pending: list[str] = []
        os.environ.pop("NOTIFY_SOCKET", None)
        usec = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        mine = usec.isdigit() and int(usec) > 0 and pid == str(os.getpid())
        self.watchdog = int(usec) / 1e6 if mine else None

    def ready(self, status: str) -> None:
        """The model has answered the canary: requests are served."""
        self._tell(f"READY=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """A reload begins; `reloaded()` ends it. MONOTONIC_USEC is for notify-reload."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={usec}")

    def reloaded(self, status: str) -> None:
        """A reload is over, with a new model or the old one."""
        self._tell(f"READY=1\nSTATUS={_line(status)}")

    def stopping(self, status: str) -> None:
        """The daemon is draining and will leave."""
        self._tell(f"STOPPING=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._tell(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """A worker has answered the canary lately."""
        self._flush()
        if not self._pending:
            self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for that much more time from now to start or to stop."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _tell(self, state: str) -> None:
        kind = state.partition("=")[0]
        self._pending = [kept for kept in self._pending if kept.partition("=")[0] != kind]
        self._pending.append(state)
        self._flush()

    def _flush(self) -> None:
        while self._pending and self._send(self._pending[0]):
            del self._pending[0]
        if self._notifier is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next thing to tell is the next try
        if self._pending:
            loop.add_writer(self._notifier.socket, self._flush)
        else:
            loop.remove_writer(self._notifier.socket)

    def _send(self, state: str) -> bool:
        """Send a message, or drop it where no manager listens; False if its socket is full."""
        if self._notifier is None:
            return True
        try:
            # sdnotify encodes as Latin-1 and drops what that cannot: READY=1 along with a status
            # in Greek. The manager reads UTF-8, so the text is made to come out as that.
            self._notifier.notify(state.encode(errors="replace").decode("latin-1"))
        except BlockingIOError:
            return False
        except OSError:
            pass  # the manager has gone
        return True


def _notifier() -> sdnotify.SystemdNotifier | None:
    """Connect to the manager; None where that cannot be done."""
    try:
        notifier = sdnotify.SystemdNotifier(debug=True)  # it raises what it would hide
    except OSError:
        return None
    notifier.socket.setblocking(False)
    return notifier


def _line(text: str) -> str:
    return " ".join(text.split())
