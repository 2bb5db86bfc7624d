"""Files on a filesystem that hangs: whoever reads or closes one cannot even be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import fuseserver
import pytest
from conftest import StartDaemon
from daemonprocess import (
    DaemonProcess,
    Peer,
    forkservers,
    is_alive,
    open_to_all,
    own_children,
    wait_until,
)
from vitals import Vitals, open_descriptors, send_rights, until_closed

from swiprctl.errors import BadRequest, DeadlineExceeded, ShuttingDown
from swiprctl.protocol import Request
from swiprd.front.intakes import MOST

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


def rows(daemon: DaemonProcess, photo: bytes) -> None:
    """Another client is answered."""
    with daemon.connect() as peer:
        assert peer.ask(image=photo, timeout=20.0).error is None


def intakes(daemon: DaemonProcess) -> set[int]:
    return set(own_children(daemon.pid)) - set(forkservers(daemon.pid))


def test_a_file_that_does_not_hang_is_answered(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    for name in ("good", "direct-good", "statfs"):
        with opened(hanging / name) as descriptor, daemon.connect() as peer:
            replies = [peer.ask(descriptor=descriptor, timeout=2.0) for _ in range(3)]
            late = name == "statfs"  # asked for by the intake, so that no worker has to
            assert all(
                isinstance(r.error, DeadlineExceeded if late else type(None)) for r in replies
            )
    fuseserver.release(hanging)
    vitals.check()


@pytest.mark.parametrize("name", ["read", "direct-read", "stat", "statfs"])
def test_a_file_that_hangs_costs_its_own_request_alone(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes], name: str
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    with (
        daemon.connect() as peer,
        opened(hanging / name) as descriptor,
        opened(hanging / "good") as good,
    ):
        # On one connection of one uid: what hangs holds up neither what comes behind it...
        peer.send(1, descriptor=descriptor, timeout=1.5)
        peer.send(2, descriptor=good, timeout=20.0)
        replies = {reply.id: reply.error for reply in (peer.receive() for _ in range(2))}
        assert replies[2] is None
        assert isinstance(replies[1], DeadlineExceeded)
        assert "file system" in str(replies[1])
        # ... nor this uid's next requests, nor another client.
        assert peer.ask(descriptor=good, timeout=20.0).error is None
        rows(daemon, photos[0])
        fuseserver.release(hanging)
    assert daemon.status()["kills"]["total"] == 0, "no worker has met the file"
    vitals.check()


def test_more_hang_than_there_are_intakes_for_a_uid(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(daemon.connect()) for _ in range(MOST + 2)]
        # All opened first: while one is being read, the kernel lets no other open(2) return.
        files = [stack.enter_context(opened(hanging / "read")) for _ in peers]
        for peer, descriptor in zip(peers, files, strict=True):
            peer.send(1, descriptor=descriptor, timeout=3.0)
        # Bytes need none of them, and another uid has its own.
        rows(daemon, photos[0])
        daemon.path.chmod(0o666)
        path = stack.enter_context(open_to_all(daemon.path))
        good = stack.enter_context(opened(hanging / "good"))
        os.seteuid(65534)  # not in a child: it would have what hangs, too, and hang when it ends
        try:
            other = stack.enter_context(Peer(path))
        finally:
            os.seteuid(0)
        assert other.ask(descriptor=good, timeout=20.0).error is None
        for peer in peers:
            assert isinstance(peer.receive().error, DeadlineExceeded)
        fuseserver.release(hanging)
    vitals.check()


def test_each_request_on_a_connection_has_its_end(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes]
) -> None:
    """Also behind one whose file no intake is free for."""
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    with (
        daemon.connect() as peer,
        opened(hanging / "read") as read,
        opened(hanging / "good") as good,
    ):
        for identity in range(MOST + 3):
            peer.send(identity, descriptor=read, timeout=1.0)
        peer.send(99, "status")
        replies = {reply.id: reply.error for reply in (peer.receive() for _ in range(MOST + 4))}
        assert replies.pop(99) is None
        assert all(isinstance(error, DeadlineExceeded) for error in replies.values()), replies
        peer.send(100, descriptor=good, timeout=1.0)
        assert isinstance(peer.receive().error, DeadlineExceeded)
        fuseserver.release(hanging)
        assert peer.ask(descriptor=good, timeout=20.0).error is not None  # its server is gone
        rows(daemon, photos[0])
    vitals.check()


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
        rows(daemon, photos[0])
        with daemon.connect() as other:
            for _ in range(3):
                assert other.ask(descriptor=descriptor, timeout=20.0).error is None, "it is read"
        fuseserver.release(hanging)
    vitals.check()


def test_a_close_that_hangs_keeps_nothing_else_open(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes]
) -> None:
    """Files in memory that came behind it stayed in memory."""
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    with daemon.connect() as peer, opened(hanging / "flush") as flush:
        assert peer.ask(descriptor=flush, timeout=20.0).error is None
        for _ in range(5):
            memfd = os.memfd_create("behind")
            os.write(memfd, photos[0])
            assert peer.ask(descriptor=memfd).error is None
            os.close(memfd)
        wait_until(
            lambda: (
                not any(
                    "memfd:behind" in name
                    for pid in intakes(daemon)
                    for name in open_descriptors(pid)
                )
            ),
            "they are closed",
        )
        fuseserver.release(hanging)
    vitals.check()


def test_a_forkserver_is_replaced_meanwhile(
    start_daemon: StartDaemon, hanging: Path, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    with (
        daemon.connect() as peer,
        opened(hanging / "flush") as flush,
        opened(hanging / "read") as read,
    ):
        send_rights(peer.socket, Request(1, "status").encode(), [flush])
        with daemon.connect() as other:
            other.send(1, descriptor=read, timeout=60.0)
            daemon.wait_status(lambda s: s["intakes"]["waiting"] == 1)
            (forkserver,) = forkservers(daemon.pid)
            os.kill(forkserver, signal.SIGKILL)
            daemon.wait_status(lambda s: s["forkserver"]["pid"] not in (0, forkserver))
            rows(daemon, photos[0])
        fuseserver.release(hanging)
    vitals.check()


def test_nothing_of_a_killed_front_holds_its_clients(
    start_daemon: StartDaemon, hanging: Path
) -> None:
    daemon = start_daemon().wait_ready()
    with (
        daemon.connect() as peer,
        daemon.connect() as bystander,
        opened(hanging / "read") as read,
        opened(hanging / "flush") as flush,
    ):
        bystander.ask("status")
        assert peer.ask(descriptor=flush).error is None
        peer.send(1, descriptor=read, timeout=60.0)
        daemon.wait_status(lambda s: s["intakes"]["waiting"] == 1)
        hung = intakes(daemon)
        wait_until(
            lambda: any("fuse/read" in name for pid in hung for name in open_descriptors(pid)),
            "an intake has received it, and reads",
        )
        daemon.process.kill()
        daemon.process.wait(20)
        with pytest.raises((EOFError, ConnectionResetError)):
            bystander.receive()
        with pytest.raises((EOFError, ConnectionResetError)):
            peer.receive()
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(str(daemon.path))
        assert any(is_alive(pid) for pid in hung), "or this test shows nothing"
        fuseserver.release(hanging)
    wait_until(lambda: not any(is_alive(pid) for pid in hung), "nobody hangs any more")


def test_it_leaves_when_it_is_told_to(start_daemon: StartDaemon, hanging: Path) -> None:
    daemon = start_daemon().wait_ready()
    with (
        daemon.connect() as peer,
        opened(hanging / "flush") as flush,
        opened(hanging / "read") as read,
    ):
        assert peer.ask(descriptor=flush).error is None
        peer.send(1, descriptor=read, timeout=60.0)
        daemon.wait_status(lambda s: s["intakes"]["waiting"] == 1)
        daemon.process.send_signal(signal.SIGTERM)
        assert isinstance(peer.receive().error, ShuttingDown)
        assert daemon.process.wait(20) == 0
        fuseserver.release(hanging)
