"""What a front must have again after any abuse, and how to hold its workers still meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from daemonprocess import DaemonProcess, Peer, forkservers, freeze, wait_until

from swiprctl.errors import SwiprError
from swiprctl.protocol import Reply

NAMED_DEFECTS = ("Traceback", "Task exception", "Exception in callback", "never retrieved")


class Vitals:
    """A daemon as it is at rest. `check()` fails unless it is so again.

    Args:
        photo: an image that it can answer.
    """

    def __init__(self, daemon: DaemonProcess, photo: bytes) -> None:
        self.daemon = daemon
        self.photo = photo
        with daemon.connect() as peer:
            self.row = peer.ask(image=photo).fields["probabilities"]
        self._descriptors = len(self._settled())
        self._children = len(forkservers(daemon.pid))

    def check(self) -> None:
        """Alive, answering rightly, its descriptors and children as they were, nothing in its log.

        Raises:
            AssertionError: something is not so.
        """
        assert self.daemon.process.poll() is None, self.daemon.log.read_text()[-4000:]
        with self.daemon.connect() as peer:
            status = peer.ask("status").fields
            assert status["state"] == "ready"
            assert status["pid"] == self.daemon.pid
            reply = peer.ask(image=self.photo)
            assert reply.error is None, reply.error
            assert reply.fields["probabilities"] == pytest.approx(self.row, abs=1e-6)
        words = self.daemon.log.read_text()
        for defect in NAMED_DEFECTS:
            assert defect not in words, words[-4000:]
        wait_until(lambda: len(forkservers(self.daemon.pid)) == self._children, "the same children")
        descriptors = self._settled()
        assert len(descriptors) == self._descriptors, sorted(descriptors)

    def _settled(self) -> list[str]:
        """What the front has open when its workers are idle and nobody but us is connected.

        Without what is open for intakes, which stay a while: a socket and a pidfd each.
        """
        with self.daemon.connect() as peer:
            wait_until(lambda: _at_rest(peer.ask("status").fields), "the daemon is at rest")
            intakes = peer.ask("status").fields["intakes"]["processes"]
            found = sorted(open_descriptors(self.daemon.pid))
        for kind in ("socket:", "anon_inode:[pidfd]"):
            of_kind = [name for name in found if name.startswith(kind)]
            for name in of_kind[:intakes]:
                found.remove(name)
        return found


def _at_rest(status: dict[str, Any]) -> bool:
    return (
        [w["state"] for w in status["workers"]] == ["idle"] * (status["shape"]["workers"] + 1)
        and status["queue"]["total"] == 0
        and status["connections"] == 1
        and status["intakes"]["waiting"] == 0
    )


def open_descriptors(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def held(daemon: DaemonProcess) -> Iterator[None]:
    """Stop every worker: what is asked meanwhile runs and waits until the end of the block.

    And the forkserver, or else it replaces what stands still, as it should.
    """
    status = daemon.wait_status(lambda s: all(w["state"] == "idle" for w in s["workers"]))
    stopped = [status["forkserver"]["pid"], *(w["pid"] for w in status["workers"])]
    for pid in stopped:
        freeze(pid)
    try:
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def framed(payload: bytes) -> bytes:
    """A frame of these bytes, whatever they are."""
    return struct.pack(">I", len(payload)) + payload


def frame(**fields: Any) -> bytes:
    """A frame of a map, however senseless."""
    return framed(msgpack.packb(fields))


def send_rights(sock: socket.socket, data: bytes, descriptors: list[int]) -> None:
    """One sendmsg(2) with these descriptors."""
    assert socket.send_fds(sock, [data], descriptors) == len(data)


def until_closed(peer: Peer) -> list[Reply]:
    """The replies that come before the daemon closes the connection."""
    replies = []
    try:
        while True:
            replies.append(peer.receive())
    except (EOFError, ConnectionResetError):  # a reset: it left bytes of ours unread
        return replies


def farewell(peer: Peer) -> SwiprError:
    """The error that the daemon sent for none of the requests before it closed the connection."""
    *_, last = until_closed(peer)
    assert last.id is None
    assert last.error is not None
    return last.error
