"""Files on a filesystem that hangs: whoever reads or closes one cannot even be killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import fuseserver
import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess, Peer, open_to_all, own_children, wait_until
from vitals import NAMED_DEFECTS, Vitals, send_rights, until_closed

from swiprctl.client import Client
from swiprctl.errors import BadRequest, DeadlineExceeded
from swiprctl.protocol import Request

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not fuseserver.possible(), reason="takes root and /dev/fuse"),
]


@pytest.fixture
def hanging(tmp_path: Path, photos: list[bytes]) -> Iterator[Path]:
    """The folder of a filesystem that hangs in one way for each of its files."""
    (tmp_path / "photo.jpg").write_bytes(photos[0])
    with fuseserver.mounted(tmp_path / "fuse", tmp_path / "photo.jpg") as folder:
        yield folder


@contextlib.contextmanager
def opened(file: Path) -> Iterator[int]:
    """A descriptor. It is closed by a child: closing it may hang us, too."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        _LEFT.append(descriptor)


_LEFT: list[int] = []


@pytest.fixture(autouse=True)
def _closed_when_it_cannot_hang(hanging: Path) -> Iterator[None]:
    yield
    fuseserver.release(hanging)
    while _LEFT:
        with contextlib.suppress(OSError):
            os.close(_LEFT.pop())


def answers(daemon: DaemonProcess, photo: bytes) -> None:
    with daemon.connect() as peer:
        assert peer.ask(image=photo, timeout=20.0).error is None


def test_one_that_does_not_hang_is_answered(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    for name in ("good", "direct-good", "statfs"):
        with opened(hanging / name) as descriptor, daemon.connect() as peer:
            for _ in range(3):
                assert peer.ask(descriptor=descriptor).error is None
    assert daemon.status()["barred"] == []
    vitals.check()


@pytest.mark.parametrize("name", ["read", "direct-read", "stat"])
def test_whoever_hangs_a_worker_is_asked_for_bytes(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes], name: str
) -> None:
    daemon = start_daemon().wait_ready()
    with daemon.connect() as peer, opened(hanging / name) as descriptor:
        for identity in range(4):
            peer.send(identity, descriptor=descriptor, timeout=1.5 + identity)
        replies = {reply.id: reply.error for reply in (peer.receive() for _ in range(4))}
        assert isinstance(replies[0], DeadlineExceeded)
        assert all(isinstance(replies[n], BadRequest) for n in (1, 2, 3)), replies
        assert daemon.status()["barred"] == [0]
        assert isinstance(peer.ask(descriptor=descriptor).error, BadRequest)
        answers(daemon, photos[0])
        fuseserver.release(hanging)
    wait_until(lambda: len(own_children(daemon.pid)) == 1, "nobody hangs any more")
    assert not any(defect in daemon.log.read_text() for defect in NAMED_DEFECTS)


def test_closing_hangs_neither_the_front_nor_the_others(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    with daemon.connect() as peer, opened(hanging / "flush") as descriptor:
        # With a question it is refused, and closed; with half a frame, when the client leaves.
        send_rights(peer.socket, Request(1, "status").encode(), [descriptor])
        assert isinstance(until_closed(peer)[-1].error, BadRequest)
        with daemon.connect() as other:
            send_rights(other.socket, b"\0\0", [descriptor] * 3)
        with daemon.connect() as other:
            send_rights(other.socket, b"\0\0", [descriptor])
        answers(daemon, photos[0])
        daemon.wait_status(lambda s: s["barred"] == [0])
        answers(daemon, photos[0])
        with daemon.connect() as other:
            assert isinstance(other.ask(descriptor=descriptor).error, BadRequest)
        fuseserver.release(hanging)
    vitals.check()


def test_another_uid_is_not_barred(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    daemon.path.chmod(0o666)
    with (
        open_to_all(daemon.path) as path,
        daemon.connect() as peer,
        opened(hanging / "flush") as flush,
        opened(hanging / "good") as good,
    ):
        os.seteuid(65534)  # not in a child: it would have `flush`, too, and hang when it ends
        try:
            other = Peer(path)
        finally:
            os.seteuid(0)
        send_rights(peer.socket, Request(1, "status").encode(), [flush])
        daemon.wait_status(lambda s: s["barred"] == [0])
        with other:
            assert other.ask(descriptor=good).error is None
        assert daemon.status()["barred"] == [0]
        fuseserver.release(hanging)
    vitals.check()


def test_the_client_sends_bytes_when_it_is_asked_for_them(
    start_daemon: StartDaemon, hanging: Path, tmp_path: Path
) -> None:
    daemon = start_daemon().wait_ready()
    with daemon.connect() as peer, opened(hanging / "flush") as descriptor:
        send_rights(peer.socket, Request(1, "status").encode(), [descriptor])
        daemon.wait_status(lambda s: s["barred"] == [0])
        with Client(str(daemon.path)) as client:
            assert client.predict(tmp_path / "photo.jpg").probabilities
        fuseserver.release(hanging)


def test_it_leaves_when_it_is_told_to(start_daemon: StartDaemon, hanging: Path) -> None:
    daemon = start_daemon().wait_ready()
    with daemon.connect() as peer, opened(hanging / "flush") as descriptor:
        send_rights(peer.socket, Request(1, "status").encode(), [descriptor])
        daemon.wait_status(lambda s: s["barred"] == [0])
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
        fuseserver.release(hanging)
