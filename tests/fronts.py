"""The fronts that the server's tests abuse: their limits, and what is sent to them."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import socket
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemonprocess import PATIENCE, DaemonProcess, Peer, as_uid

MIB = 1 << 20
ALONE = ("--workers=1", "--threads=1", "--batch=1")

# The daemon of few places
CONNECTIONS = 8
QUEUE = 8
MAX_INLINE = 1_000_000

# The daemon of little patience
SECONDS = 1.0
MAX_IMAGE = 100_000
MAX_PIXELS = 400 * 300  # room for the canary, which is 341 × 256 once it is resized

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes two uids, hence root")
NOBODY = 65534


def png(width: int, height: int) -> bytes:
    from PIL import Image  # not above: conftest.py is there for the client's tests, too

    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 100, 50)).save(stream, "PNG")
    return stream.getvalue()


def reference(daemon: DaemonProcess, photos: list[bytes]) -> list[list[float]]:
    """The row of each photo; they differ, so that a swapped answer is seen."""
    with daemon.connect() as peer:
        rows = [peer.ask(image=photo).fields["probabilities"] for photo in photos]
    assert all(a != pytest.approx(b, abs=1e-4) for a, b in itertools.pairwise(rows))
    return rows


def unread(sock: socket.socket) -> int:
    """Bytes sent that the other side has not read: SIOCOUTQ, which counts the kernel's overhead."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), "little")


def narrow_while_full(daemon: DaemonProcess, peer: Peer) -> DaemonProcess:
    """A view of the daemon whose `status` goes over a connection that is there already."""

    class View(DaemonProcess):
        def __init__(self) -> None:
            self.__dict__.update(daemon.__dict__)

        def status(self) -> dict[str, object]:
            return peer.ask("status").fields

    return View()


@contextlib.contextmanager
def connected(path: Path, uid: int) -> Iterator[Peer]:
    """A connection of another uid."""
    os.seteuid(uid)
    try:
        peer = Peer(path)
    finally:
        os.seteuid(0)
    with peer:
        yield peer


@contextlib.contextmanager
def in_background(uid: int, ask: Callable[[], str]) -> Iterator[list[str]]:
    """Have another uid ask something meanwhile; its answer is in the list after the block."""
    answer: list[str] = []
    thread = threading.Thread(target=lambda: answer.append(as_uid(uid, ask)))
    thread.start()
    try:
        yield answer
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive()
