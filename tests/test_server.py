"""Limits at their edges and peers without manners, against a live front."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import random
import resource
import select
import signal
import socket
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
from conftest import StartDaemon
from daemonprocess import PATIENCE, DaemonProcess, Peer, as_uid, open_to_all, wait_until
from PIL import Image
from vitals import (
    NAMED_DEFECTS,
    Vitals,
    farewell,
    frame,
    framed,
    held,
    resident,
    send_rights,
    until_closed,
)

from swiprctl.errors import BadImage, BadRequest, Overloaded, ShuttingDown, TooLarge
from swiprctl.protocol import MAX_FRAME, Request

pytestmark = pytest.mark.timeout(120)

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


@pytest.fixture(scope="module")
def _narrow(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(
        tmp_path_factory.mktemp("narrow"),
        *ALONE,
        *(f"--connections={CONNECTIONS}", f"--queue={QUEUE}", f"--max-inline={MAX_INLINE}"),
        *("--first-byte=60", "--stall=60"),
        model=tiny_model,
    )
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


@pytest.fixture(scope="module")
def _strict(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(
        tmp_path_factory.mktemp("strict"),
        *ALONE,
        *(f"--first-byte={SECONDS}", f"--stall={SECONDS}", f"--slow-reader={SECONDS}"),
        *(f"--max-image={MAX_IMAGE}", f"--max-pixels={MAX_PIXELS}"),
        model=tiny_model,
    )
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


@pytest.fixture
def roomy(daemon: DaemonProcess, photos: list[bytes]) -> Iterator[DaemonProcess]:
    """The shared daemon, with every limit as shipped; unharmed afterwards."""
    vitals = Vitals(daemon, photos[0])
    yield daemon
    vitals.check()


@pytest.fixture
def narrow(_narrow: DaemonProcess, photos: list[bytes]) -> Iterator[DaemonProcess]:
    """A daemon with few places; unharmed afterwards."""
    vitals = Vitals(_narrow, photos[0])
    yield _narrow
    vitals.check()


@pytest.fixture
def strict(_strict: DaemonProcess) -> Iterator[DaemonProcess]:
    """A daemon with little patience and low limits on images; unharmed afterwards."""
    vitals = Vitals(_strict, png(20, 20))
    yield _strict
    vitals.check()


@pytest.fixture
def nothing() -> Iterator[int]:
    """A descriptor to send around."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def photo_file(tmp_path: Path, photos: list[bytes]) -> Iterator[int]:
    """A descriptor of a file with the first photo."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photos[0])
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 100, 50)).save(stream, "PNG")
    return stream.getvalue()


class TestFrameLimit:
    def test_a_frame_at_the_limit_is_answered(
        self, roomy: DaemonProcess, photos: list[bytes]
    ) -> None:
        room = MAX_FRAME - len(Request(1, "predict", None, b"").encode()) + 4
        room -= 3  # the length of a bin32 takes 4 bytes, that of an empty one 1
        request = Request(1, "predict", None, photos[0].ljust(room, b"\0"))
        data = request.encode()
        assert len(data) == 4 + MAX_FRAME
        with roomy.connect() as peer:
            expected = peer.ask(image=photos[0]).fields["probabilities"]
            peer.socket.sendall(data)
            assert peer.receive().fields["probabilities"] == pytest.approx(expected)

    @pytest.mark.parametrize("size", [MAX_FRAME + 1, 2**31, 2**32 - 1])
    def test_one_over_it_is_refused_by_its_header(self, roomy: DaemonProcess, size: int) -> None:
        with roomy.connect() as peer:
            peer.socket.sendall(size.to_bytes(4))
            error = farewell(peer)
            assert isinstance(error, BadRequest)
            assert str(size) in str(error)

    def test_claims_of_4_gib_take_no_memory(self, roomy: DaemonProcess) -> None:
        before = resident(roomy.pid)
        for _ in range(20):
            with roomy.connect() as peer:
                peer.socket.sendall(b"\xff\xff\xff\xff")
                farewell(peer)
        assert resident(roomy.pid) - before < 4 * MIB

    def test_half_frames_of_those_who_left_take_none_either(self, roomy: DaemonProcess) -> None:
        before = resident(roomy.pid)
        half = MAX_FRAME.to_bytes(4) + bytes(16 * MIB)
        for _ in range(12):
            with roomy.connect() as peer:
                peer.socket.sendall(half)
                peer.socket.shutdown(socket.SHUT_WR)
                assert until_closed(peer) == []
        assert resident(roomy.pid) - before < 48 * MIB


class TestLargeFramesTogether:
    LARGE = 700_000

    def test_one_too_many_is_refused_and_a_place_that_is_left_is_free(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        large = Request(1, "predict", None, photos[0].ljust(self.LARGE, b"\0")).encode()
        with narrow.connect() as first, narrow.connect() as second:
            first.socket.sendall(large[:100_000])
            wait_until(lambda: unread(first.socket) == 0, "the first is being read")
            second.socket.sendall(large[:100_000])
            error = farewell(second)
            assert isinstance(error, Overloaded)
            assert error.retry_after is not None
            first.socket.sendall(large[100_000:])
            assert first.receive().error is None
        with narrow.connect() as third:
            third.socket.sendall(large)
            assert third.receive().error is None

    @as_root
    def test_one_uid_cannot_take_all_of_the_room(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        large = Request(1, "predict", None, photos[0].ljust(400_000, b"\0")).encode()
        narrow.path.chmod(0o666)
        until_told, tell = os.pipe()
        with open_to_all(narrow.path) as path, open(until_told, "rb"):

            def hog() -> str:
                os.close(tell)  # the fork's copy: the end of the other is what we wait for
                with Peer(path) as first, Peer(path) as second:
                    first.socket.sendall(large[:100_000])
                    wait_until(lambda: unread(first.socket) == 0, "the first is being read")
                    second.socket.sendall(large[:100_000])
                    error = farewell(second)
                    os.read(until_told, 1)
                    first.socket.sendall(large[100_000:])
                    return f"{error.code} {first.receive().error}"

            with (
                narrow.connect() as peer,
                in_background(NOBODY, hog) as answer,
                open(tell, "wb"),
            ):
                wait_until(lambda: peer.ask("status").fields["connections"] > 1, "it is there")
                peer.socket.sendall(large)
                assert peer.receive().error is None
                with narrow.connect() as other:  # for this one there is none left in all
                    other.socket.sendall(self.LARGE.to_bytes(4))
                    assert isinstance(farewell(other), Overloaded)
            assert answer == ["overloaded None"]

    def test_a_peer_that_is_thrown_out_leaves_its_place(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        large = Request(1, "predict", None, photos[0].ljust(self.LARGE, b"\0")).encode()
        for _ in range(3):
            with narrow.connect() as peer:
                # In one read: a frame that ends the connection, and the head of a large one.
                peer.socket.sendall(frame(id="?") + large[:1000])
                assert isinstance(farewell(peer), BadRequest)
        with narrow.connect() as peer, narrow.connect() as other:
            peer.socket.sendall(large)
            assert peer.receive().error is None
            other.socket.sendall(large)
            assert other.receive().error is None

    def test_images_that_wait_count_too(self, narrow: DaemonProcess, photos: list[bytes]) -> None:
        image = photos[0].ljust(400_000, b"\0")
        with narrow.connect() as peer:
            with held(narrow):
                for identity in range(3):
                    peer.send(identity, image=image)
                reply = peer.receive()
                assert reply.id == 2
                assert isinstance(reply.error, Overloaded)
                assert reply.error.retry_after is not None
            assert {peer.receive().id, peer.receive().id} == {0, 1}
            peer.send(3, image=image)
            assert peer.receive().error is None

    def test_a_client_that_leaves_gives_their_room_back(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        image = photos[0].ljust(900_000, b"\0")
        with narrow.connect() as other:
            with held(narrow):
                other.send(1, image=photos[0])
                with narrow.connect() as peer:
                    peer.send(1, image=image)
                    narrow.wait_status(lambda s: s["queue"]["total"] == 2)
                narrow.wait_status(lambda s: s["queue"]["total"] == 1)
                with narrow.connect() as peer:
                    peer.send(1, image=image)
                    narrow.wait_status(lambda s: s["queue"]["total"] == 2)
            assert other.receive().error is None


class TestSlowPeers:
    def test_one_that_says_nothing_is_closed_and_one_that_spoke_may_idle(
        self, strict: DaemonProcess
    ) -> None:
        with strict.connect() as spoke, strict.connect() as silent:
            assert spoke.ask("status").error is None
            begun = time.monotonic()
            error = farewell(silent)
            assert time.monotonic() - begun > SECONDS / 2
            assert isinstance(error, BadRequest)
            assert "no request" in str(error)
            with strict.connect() as silent:
                farewell(silent)
            assert spoke.ask("status").error is None

    @pytest.mark.parametrize("part", [1, 4, 15])
    def test_one_that_stops_in_a_frame_is_closed(self, strict: DaemonProcess, part: int) -> None:
        with strict.connect() as peer:
            assert peer.ask("status").error is None
            peer.socket.sendall(Request(1, "status").encode()[:part])
            error = farewell(peer)
            assert isinstance(error, BadRequest)
            assert "half a frame" in str(error)

    def test_one_that_goes_on_in_time_is_answered_however_long_it_takes(
        self, strict: DaemonProcess
    ) -> None:
        data = Request(1, "status", 10.0).encode()
        begun = time.monotonic()
        with strict.connect() as peer:
            for byte in data:
                peer.socket.sendall(bytes([byte]))
                time.sleep(1.5 * SECONDS / len(data))  # slowness is what is being tested
            assert time.monotonic() - begun > SECONDS
            assert peer.receive().error is None

    @pytest.mark.parametrize("op", ["status", "model", "ping", "nonsense"])
    def test_one_that_never_reads_is_closed_and_held_in_bounds(
        self, strict: DaemonProcess, op: str
    ) -> None:
        requests = b"".join(frame(id=identity, op=op) for identity in range(2000))
        highest = before = resident(strict.pid)
        sent = 0
        with strict.connect() as peer:
            try:
                while sent < 1 << 30:
                    sent += peer.socket.send(requests)
                    highest = max(highest, resident(strict.pid))
            except (BrokenPipeError, ConnectionResetError):
                pass  # it was thrown out; a TimeoutError would mean that it was not
        assert len(requests) < sent < 1 << 30
        assert highest - before < 24 * MIB

    def test_one_that_reads_a_little_now_and_then_is_held_in_bounds(
        self, strict: DaemonProcess
    ) -> None:
        requests = b"".join(frame(id=identity, op="nonsense") for identity in range(2000))
        highest = before = resident(strict.pid)
        with strict.connect() as peer:
            peer.socket.setblocking(False)
            until = time.monotonic() + 2.5 * SECONDS
            while time.monotonic() < until:
                if not select.select([], [peer.socket], [], SECONDS / 5)[1]:
                    peer.socket.recv(1 << 15)  # the least that counts as reading
                else:
                    with contextlib.suppress(BlockingIOError):
                        peer.socket.send(requests)
                highest = max(highest, resident(strict.pid))
        assert highest - before < 24 * MIB

    def test_one_that_reads_late_but_in_time_gets_every_answer(self, strict: DaemonProcess) -> None:
        count = 5000
        requests = b"".join(frame(id=identity, op="nonsense") for identity in range(count))
        with strict.connect() as peer:
            writer = threading.Thread(target=peer.socket.sendall, args=[requests])
            writer.start()
            answered = [peer.receive().id for _ in range(count)]
            writer.join()
        assert answered == list(range(count))

    def test_a_flood_does_not_keep_others_waiting(
        self, roomy: DaemonProcess, photos: list[bytes]
    ) -> None:
        """Sixty connections with thousands of requests each; another's deadline is still met."""
        flood = b"".join(frame(id=identity, op="nonsense") for identity in range(3000))
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                peer = stack.enter_context(roomy.connect())
                peer.socket.setblocking(False)
                peer.socket.send(flood)
            polite = stack.enter_context(roomy.connect())
            assert polite.ask(image=photos[0], timeout=5.0).error is None


class TestConnections:
    def test_a_newcomer_takes_the_place_of_who_was_idle_longest(
        self, narrow: DaemonProcess
    ) -> None:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(narrow.connect()) for _ in range(CONNECTIONS)]
            for peer in [*peers[1:], peers[0], peers[3]]:
                assert peer.ask("status").error is None
            peers.append(stack.enter_context(narrow.connect()))
            assert peers[-1].ask("status").fields["connections"] == CONNECTIONS
            assert until_closed(peers[1]) == []
            for peer in [peers[0], *peers[2:]]:
                assert peer.ask("status").error is None

    def test_half_a_request_is_not_idle(self, narrow: DaemonProcess) -> None:
        data = Request(7, "status").encode()
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(narrow.connect()) for _ in range(CONNECTIONS)]
            peers[0].socket.sendall(data[:9])
            wait_until(lambda: unread(peers[0].socket) == 0, "the half is read")
            for peer in peers[1:]:
                assert peer.ask("status").error is None
            peers.append(stack.enter_context(narrow.connect()))
            assert peers[-1].ask("status").error is None
            peers[0].socket.sendall(data[9:])
            assert peers[0].receive().id == 7
            assert until_closed(peers[1]) == []

    def test_nobody_with_an_answer_to_come_makes_room(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(narrow.connect()) for _ in range(CONNECTIONS)]
            with held(narrow_while_full(narrow, peers[0])):
                for peer in peers:
                    peer.send(2, image=photos[0])
                    assert peer.ask("status").id == 1  # so the one before has been read
                with narrow.connect() as newcomer:
                    error = farewell(newcomer)
                    assert isinstance(error, Overloaded)
                    assert error.retry_after is not None
            for peer in peers:
                reply = peer.receive()
                assert reply.id == 2
                assert reply.error is None

    @as_root
    def test_the_greediest_uid_makes_room(self, narrow: DaemonProcess) -> None:
        narrow.path.chmod(0o666)
        with open_to_all(narrow.path) as path, contextlib.ExitStack() as stack:
            ours = [stack.enter_context(narrow.connect()) for _ in range(3)]
            for peer in ours:  # all of them idle for longer than any of the other's
                assert peer.ask("status").error is None

            def hold() -> str:
                peers = []
                for _ in range(CONNECTIONS - 3):  # each has spoken before the last is counted
                    peers.append(Peer(path))
                    peers[-1].ask("status")
                sockets = [peer.socket for peer in peers]
                closed = select.select(sockets, [], [], PATIENCE)[0]
                return str([sockets.index(sock) for sock in closed])

            with in_background(NOBODY, hold) as answer:
                wait_until(
                    lambda: ours[0].ask("status").fields["connections"] == CONNECTIONS, "all in"
                )
                ours.append(stack.enter_context(narrow.connect()))
                assert ours[-1].ask("status").error is None
            assert answer == ["[0]"]
            for peer in ours:
                assert peer.ask("status").error is None

    def test_a_thousand_come_and_go(self, roomy: DaemonProcess) -> None:
        part = Request(1, "status").encode()
        for number in range(1000):
            with socket.socket(socket.AF_UNIX) as sock:  # blocking: the listener's queue fills
                sock.connect(str(roomy.path))
                sock.sendall(part[: number % len(part)])

    def test_with_no_descriptor_left_they_wait_for_one(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        vitals = Vitals(daemon, photos[0])
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        taken = max(int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd"))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (taken + 3, hard))
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(daemon.connect()) for _ in range(12)]
            wait_until(lambda: "cannot accept" in daemon.log.read_text(), "it runs out of them")
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
            for peer in peers:
                assert peer.ask(image=photos[0]).error is None
        vitals.check()

    def test_a_daemon_that_leaves_accepts_nobody_once_there_are_descriptors_again(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        with contextlib.ExitStack() as stack:
            peer = stack.enter_context(daemon.connect())
            with held(daemon):
                peer.send(1, image=photos[0])
                daemon.wait_status(lambda s: s["queue"]["total"] == 1)
                _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
                taken = max(int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd"))
                resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (taken + 1, hard))
                others = [stack.enter_context(daemon.connect()) for _ in range(4)]
                wait_until(lambda: "cannot accept" in daemon.log.read_text(), "it runs out")
                for other in others:
                    other.send(1, "status")
                outside = [
                    o.socket for o in others if not select.select([o.socket], [], [], 0.5)[0]
                ]
                assert outside
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_told("STOPPING=1")
                resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
                # It would try again within half a second.
                assert not select.select(outside, [], [], 1.0)[0], "somebody was let in"
            assert peer.receive().error is None
        assert daemon.process.wait(PATIENCE) == 0
        words = daemon.log.read_text()
        assert not any(defect in words for defect in NAMED_DEFECTS), words


class TestQueue:
    def test_its_limit_counts_what_runs(self, narrow: DaemonProcess, photos: list[bytes]) -> None:
        with narrow.connect() as peer:
            with held(narrow):
                for identity in range(QUEUE + 1):
                    peer.send(identity, image=photos[0])
                refused = peer.receive()
                assert refused.id == QUEUE
                assert isinstance(refused.error, Overloaded)
                assert refused.error.retry_after is not None
                assert refused.error.retry_after > 0
                queue = narrow.status()["queue"]
                assert queue["total"] == QUEUE
                assert queue["waiting"] == QUEUE - 1
            replies = [peer.receive() for _ in range(QUEUE)]
            assert sorted(reply.id or 0 for reply in replies) == list(range(QUEUE))
            assert all(reply.error is None for reply in replies)

    def test_a_client_that_leaves_takes_its_work_along(
        self, narrow: DaemonProcess, photos: list[bytes], photo_file: int
    ) -> None:
        with narrow.connect() as stays:
            with held(narrow):
                stays.send(0, image=photos[0])
                narrow.wait_status(lambda s: s["queue"]["total"] == 1)
                with narrow.connect() as leaves:
                    for identity in range(QUEUE - 1):
                        leaves.send(identity, descriptor=photo_file)
                    narrow.wait_status(lambda s: s["queue"]["total"] == QUEUE)
                narrow.wait_status(lambda s: s["queue"]["total"] == 1)
                for identity in range(1, QUEUE):
                    stays.send(identity, image=photos[0])
                narrow.wait_status(lambda s: s["queue"]["total"] == QUEUE)
            assert all(stays.receive().error is None for _ in range(QUEUE))

    def test_what_runs_for_one_who_left_ends_unheard(
        self, narrow: DaemonProcess, photo_file: int
    ) -> None:
        with held(narrow):
            with narrow.connect() as leaves:
                leaves.send(0, descriptor=photo_file)
                narrow.wait_status(lambda s: s["queue"]["total"] == 1)
            narrow.wait_status(lambda s: s["connections"] == 1)
            assert narrow.status()["queue"]["total"] == 1
        narrow.wait_status(lambda s: s["queue"]["total"] == 0)

    @as_root
    def test_a_uid_below_its_share_takes_a_place_of_the_greediest(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        narrow.path.chmod(0o666)

        def ask() -> str:
            with Peer(path) as peer:
                return str(peer.ask(image=photos[1]).error)

        with open_to_all(narrow.path) as path, narrow.connect() as peer:
            with contextlib.ExitStack() as stack:
                with held(narrow):
                    for identity in range(QUEUE):
                        peer.send(identity, image=photos[0])
                    narrow.wait_status(lambda s: s["queue"]["total"] == QUEUE)
                    answer = stack.enter_context(in_background(NOBODY, ask))
                    evicted = peer.receive()
                    assert evicted.id == QUEUE - 1, "the newest goes"
                    assert isinstance(evicted.error, Overloaded)
                    assert narrow.status()["queue"]["by_uid"] == {
                        "0": QUEUE - 1,
                        str(NOBODY): 1,
                    }
                assert all(peer.receive().error is None for _ in range(QUEUE - 1))
            assert answer == ["None"]

    def test_a_named_deadline_ends_the_wait_and_frees_the_place(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        with narrow.connect() as peer:
            with held(narrow):
                peer.send(0, image=photos[0])
                for identity in range(1, QUEUE):
                    peer.send(identity, image=photos[0], timeout=1.0)
                late = [peer.receive() for _ in range(QUEUE - 1)]
                assert {reply.error.code for reply in late if reply.error} == {"deadline"}
                assert narrow.status()["queue"]["total"] == 1
            assert peer.receive().error is None


class TestImages:
    def test_bytes_at_the_limit_and_one_over(self, strict: DaemonProcess) -> None:
        image = png(20, 20)
        with strict.connect() as peer:
            assert peer.ask(image=image.ljust(MAX_IMAGE, b"\0")).error is None
            assert isinstance(peer.ask(image=image.ljust(MAX_IMAGE + 1, b"\0")).error, TooLarge)

    def test_pixels_at_the_limit_and_over(self, strict: DaemonProcess) -> None:
        with strict.connect() as peer:
            assert peer.ask(image=png(400, 300)).error is None
            assert isinstance(peer.ask(image=png(MAX_PIXELS + 1, 1)).error, TooLarge)

    def test_inline_descriptor_memfd_and_unlinked_file_give_the_same_row(
        self, roomy: DaemonProcess, photos: list[bytes], photo_file: int
    ) -> None:
        memfd = os.memfd_create("photo")
        with (
            tempfile.TemporaryFile() as unlinked,
            open(memfd, "wb") as stream,
            roomy.connect() as peer,
        ):
            for file in (unlinked, stream):
                file.write(photos[0])
                file.flush()
            rows = [peer.ask(image=photos[0]).fields["probabilities"]] + [
                peer.ask(descriptor=descriptor).fields["probabilities"]
                for descriptor in (photo_file, memfd, unlinked.fileno())
            ]
        for row in rows[1:]:
            assert row == pytest.approx(rows[0], abs=1e-6)

    @pytest.mark.parametrize(
        "kind",
        ["fifo", "directory", "device", "zero", "socket", "path", "write-only", "eventfd", "empty"],
    )
    def test_what_is_no_readable_file_is_refused(
        self, roomy: DaemonProcess, tmp_path: Path, kind: str
    ) -> None:
        def opened() -> int:
            file = tmp_path / "file"
            file.touch()
            match kind:
                case "fifo":
                    os.mkfifo(tmp_path / "fifo")
                    return os.open(tmp_path / "fifo", os.O_RDWR)
                case "directory":
                    return os.open(tmp_path, os.O_RDONLY)
                case "device":
                    return os.open(os.devnull, os.O_RDONLY)
                case "zero":
                    return os.open("/dev/zero", os.O_RDONLY)
                case "socket":
                    return socket.socket(socket.AF_UNIX).detach()
                case "path":
                    return os.open(file, os.O_PATH)
                case "write-only":
                    file.write_bytes(png(20, 20))
                    return os.open(file, os.O_WRONLY)
                case "eventfd":
                    return os.eventfd(0)
                case _:
                    return os.open(file, os.O_RDONLY)

        descriptor = opened()
        try:
            with roomy.connect() as peer:
                assert isinstance(peer.ask(descriptor=descriptor).error, BadImage)
                assert peer.ask("status").error is None, "the connection goes on"
        finally:
            os.close(descriptor)

    def test_a_file_cut_while_it_waits_is_a_bad_image(
        self, narrow: DaemonProcess, photos: list[bytes], photo_file: int
    ) -> None:
        with narrow.connect() as peer:
            with held(narrow):
                peer.send(1, descriptor=photo_file)
                peer.send(2, image=photos[0])
                narrow.wait_status(lambda s: s["queue"]["total"] == 2)
                os.ftruncate(photo_file, 100)
            replies = {reply.id: reply.error for reply in (peer.receive(), peer.receive())}
            assert isinstance(replies[1], BadImage)
            assert replies[2] is None


class TestDescriptors:
    """One that no request asks for closes the connection, and is closed."""

    def test_in_the_middle_of_a_frame(self, roomy: DaemonProcess, nothing: int) -> None:
        data = Request(1, "predict").encode()
        with roomy.connect() as peer:
            peer.socket.sendall(data[:9])
            wait_until(lambda: unread(peer.socket) == 0, "the first half is read")
            send_rights(peer.socket, data[9:12], [nothing])
            assert isinstance(farewell(peer), BadRequest)

    def test_at_the_end_of_a_frame_that_has_one(self, narrow: DaemonProcess, nothing: int) -> None:
        """It must not become the next frame's, either."""
        data = Request(1, "predict").encode()
        with narrow.connect() as peer:
            send_rights(peer.socket, data[:9], [nothing])
            wait_until(lambda: unread(peer.socket) == 0, "the first half is read")
            send_rights(peer.socket, data[9:], [nothing])
            with contextlib.suppress(BrokenPipeError):
                peer.socket.sendall(Request(2, "predict").encode())
            *_, last = until_closed(peer)
            assert last.id is None
            assert isinstance(last.error, BadRequest)

    @pytest.mark.parametrize("count", [2, 4, 5, 100, 253])
    def test_more_than_one(self, roomy: DaemonProcess, nothing: int, count: int) -> None:
        with roomy.connect() as peer:
            send_rights(peer.socket, Request(1, "predict").encode(), [nothing] * count)
            assert isinstance(farewell(peer), BadRequest)

    @pytest.mark.parametrize("op", ["status", "model", "ping", "reload"])
    def test_with_a_question(self, roomy: DaemonProcess, nothing: int, op: str) -> None:
        with roomy.connect() as peer:
            send_rights(peer.socket, Request(1, op).encode(), [nothing])
            assert isinstance(farewell(peer), BadRequest)

    def test_with_an_inline_image(
        self, roomy: DaemonProcess, nothing: int, photos: list[bytes]
    ) -> None:
        with roomy.connect() as peer:
            send_rights(peer.socket, Request(1, "predict", None, photos[0]).encode(), [nothing])
            assert isinstance(farewell(peer), BadRequest)

    def test_with_a_request_that_is_wrong(self, roomy: DaemonProcess, nothing: int) -> None:
        with roomy.connect() as peer:
            for fields in ({"op": "paint"}, {"op": "predict", "timeout": -1}):
                send_rights(peer.socket, frame(id=1, **fields), [nothing])
                reply = peer.receive()
                assert reply.id == 1
                assert isinstance(reply.error, BadRequest)
            assert peer.ask("status").error is None

    def test_with_half_a_frame_and_no_more(self, roomy: DaemonProcess, nothing: int) -> None:
        data = Request(1, "predict").encode()
        for part in range(1, len(data)):
            with roomy.connect() as peer:
                send_rights(peer.socket, data[:part], [nothing])

    def test_behind_the_frame_that_ends_the_connection(
        self, roomy: DaemonProcess, nothing: int
    ) -> None:
        with roomy.connect() as peer:
            send_rights(peer.socket, frame(id="?") + Request(1, "predict").encode(), [nothing])
            assert isinstance(farewell(peer), BadRequest)

    def test_with_a_deadline_that_has_passed(self, narrow: DaemonProcess, photo_file: int) -> None:
        with narrow.connect() as peer, held(narrow):
            peer.send(0, descriptor=photo_file)
            for identity in range(1, QUEUE):
                peer.send(identity, descriptor=photo_file, timeout=0.001)
            for _ in range(1, QUEUE):
                error = peer.receive().error
                assert error is not None
                assert error.code in ("deadline", "overloaded")

    def test_its_owner_may_close_it_at_once(
        self, narrow: DaemonProcess, tmp_path: Path, photos: list[bytes]
    ) -> None:
        with narrow.connect() as peer:
            with held(narrow):
                for identity, photo in enumerate(photos):
                    path = tmp_path / f"{identity}.jpg"
                    path.write_bytes(photo)
                    descriptor = os.open(path, os.O_RDONLY)
                    peer.send(identity, descriptor=descriptor)
                    os.close(descriptor)
                    path.unlink()
            assert all(peer.receive().error is None for _ in photos)


NESTED = b"\x81\xa1a" + b"\x81\xa1a" * 20_000 + b"\xc0"

UNREADABLE = {
    "empty": b"",
    "no map": msgpack.packb([1, 2, 3]),
    "a number": msgpack.packb(1),
    "nil": b"\xc0",
    "never used by msgpack": b"\xc1",
    "cut": msgpack.packb({"id": 1, "op": "status"})[:-1],
    "more behind it": msgpack.packb({"id": 1, "op": "status"}) + b"\0",
    "not UTF-8": b"\x82\xa2id\x01\xa2op\xa2\xff\xfe",
    "number keys": msgpack.packb({1: 2}),
    "byte keys": msgpack.packb({b"id": 1, b"op": "status"}),
    "list keys": b"\x81\x91\x01\x01",
    "extension": msgpack.packb({"id": 1, "op": msgpack.ExtType(5, b"x")}),
    "a list that claims 2^32 - 1": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a map that claims 2^32 - 1": b"\xdf\xff\xff\xff\xff\xa1a\x01",
    "bytes that claim 2^32 - 1": b"\x81\xa5image\xc6\xff\xff\xff\xffx",
    "nested maps": NESTED,
    "nested lists": b"\x81\xa1a" + b"\x91" * 60_000 + b"\xc0",
    "a bush of lists": b"\x81\xa1a" + (b"\xdd" + (50_000).to_bytes(4)) * 1000 + bytes(45_000),
    "many keys": msgpack.packb({str(number): 0 for number in range(1000)}),
    "no id": msgpack.packb({"op": "status"}),
    "a reply to nothing": msgpack.packb({"id": None, "ok": True}),
    "an id of text": msgpack.packb({"id": "1", "op": "status"}),
    "an id below 0": msgpack.packb({"id": -1, "op": "status"}),
    "an id of 2^63": msgpack.packb({"id": 2**63, "op": "status"}),
    "an id of 1.0": msgpack.packb({"id": 1.0, "op": "status"}),
    "an id of true": msgpack.packb({"id": True, "op": "status"}),
    "an id that is a time": b"\x82\xa2id\xd6\xff\0\0\0\0\xa2op\xa6status",
}

WRONG = {
    "no op": {},
    "an unknown op": {"op": "paint"},
    "an op of bytes": {"op": b"status"},
    "an op of numbers": {"op": 5},
    "a list of ops": {"op": ["status"]},
    "a reply": {"ok": True, "probabilities": [0.5, 0.5]},
    "an error": {"ok": False, "error": {"code": "bad-image", "message": "no"}},
    "a timeout of text": {"op": "predict", "timeout": "10"},
    "a timeout of 0": {"op": "predict", "timeout": 0},
    "a timeout below 0": {"op": "predict", "timeout": -1.0},
    "a timeout that is no number": {"op": "predict", "timeout": float("nan")},
    "a timeout without end": {"op": "predict", "timeout": float("inf")},
    "a timeout over the limit": {"op": "predict", "timeout": 3600.1},
    "a timeout of true": {"op": "predict", "timeout": True},
    "an image of text": {"op": "predict", "image": "photo.jpg"},
    "a list for an image": {"op": "predict", "image": [1, 2, 3]},
    "no image": {"op": "predict"},
}


class TestNonsense:
    @pytest.mark.parametrize("what", UNREADABLE)
    def test_what_cannot_be_read_closes_the_connection(
        self, roomy: DaemonProcess, what: str
    ) -> None:
        with roomy.connect() as peer:
            peer.socket.sendall(framed(UNREADABLE[what]) + Request(2, "status").encode())
            assert isinstance(farewell(peer), BadRequest)

    @pytest.mark.parametrize("what", WRONG)
    def test_a_wrong_request_is_answered_by_its_id(self, roomy: DaemonProcess, what: str) -> None:
        with roomy.connect() as peer:
            peer.socket.sendall(frame(id=2**63 - 1, **WRONG[what]))
            reply = peer.receive()
            assert reply.id == 2**63 - 1
            assert isinstance(reply.error, BadRequest)
            assert peer.ask("status").error is None, "the connection goes on"

    def test_keys_that_a_later_client_may_send_are_ignored(self, roomy: DaemonProcess) -> None:
        with roomy.connect() as peer:
            peer.socket.sendall(frame(id=5, op="status", trace={"span": [1, 2]}, colour="red"))
            assert peer.receive().error is None

    @pytest.mark.parametrize(
        "data",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"*1\r\n$4\r\nPING\r\n",
        ],
        ids=["tls", "http", "ssh", "redis"],
    )
    def test_another_protocol_is_refused(self, roomy: DaemonProcess, data: bytes) -> None:
        with roomy.connect() as peer:
            peer.socket.sendall(data)
            assert isinstance(farewell(peer), BadRequest)

    @pytest.mark.parametrize("shape", ["row", "bush"])
    def test_a_frame_of_a_million_maps_takes_neither_time_nor_memory(
        self, roomy: DaemonProcess, photos: list[bytes], shape: str
    ) -> None:
        """64 MiB of empty maps would stop the front for 11 s and be 4.7 GB."""
        if shape == "row":
            count = 60 * MIB
            payload = b"\x81\xa1a\xdd" + count.to_bytes(4) + b"\x80" * count
        else:
            payload = b"\x80"
            for _ in range(4):
                payload = b"\xdc" + (60).to_bytes(2) + payload * 60
            payload = b"\x81\xa1a" + payload
        bomb = framed(payload)
        before = resident(roomy.pid)
        highest = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal highest
            while not done.wait(0.005):
                highest = max(highest, resident(roomy.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with roomy.connect() as peer, roomy.connect() as other:
                peer.socket.sendall(bomb)
                assert other.ask(image=photos[0], timeout=5.0).error is None
                assert isinstance(farewell(peer), BadRequest)
        finally:
            done.set()
            watcher.join()
        assert highest - before < 3 * len(bomb), "the frame, and what it takes to let it grow"

    def test_an_id_in_flight_is_not_taken_twice(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        with narrow.connect() as peer, narrow.connect() as other:
            with held(narrow):
                peer.send(1, image=photos[0])
                peer.send(1, image=photos[1])
                reply = peer.receive()
                assert reply.id == 1
                assert isinstance(reply.error, BadRequest)
                other.send(1, image=photos[1])  # ids are a connection's own
                narrow.wait_status(lambda s: s["queue"]["total"] == 2)
            assert peer.receive().error is None
            assert other.receive().error is None
            assert peer.ask(image=photos[0]).error is None, "free again once it is answered"


class TestManners:
    """What a well-behaved peer may count on."""

    def test_a_request_that_comes_byte_by_byte_is_answered(self, roomy: DaemonProcess) -> None:
        small = png(8, 8)
        with roomy.connect() as peer:
            for byte in Request(1, "predict", 5.0, small).encode():
                peer.socket.send(bytes([byte]))
            assert peer.receive().error is None

    def test_six_requests_in_one_send_are_answered(
        self, roomy: DaemonProcess, photos: list[bytes]
    ) -> None:
        with roomy.connect() as peer:
            peer.socket.sendall(
                b"".join(
                    Request(n, op, None, photos[n] if op == "predict" else None).encode()
                    for n, op in enumerate(
                        ["predict", "status", "predict", "model", "predict", "ping"]
                    )
                )
            )
            replies = [peer.receive() for _ in range(6)]
        assert {reply.id for reply in replies} == set(range(6))
        assert all(reply.error is None for reply in replies)

    def test_replies_come_as_they_are_ready(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        with narrow.connect() as peer:
            with held(narrow):
                peer.send(1, image=photos[0])
                peer.send(2, "status")
                peer.send(3, "model")
                assert [peer.receive().id, peer.receive().id] == [2, 3]
            assert peer.receive().id == 1

    def test_descriptors_stay_with_their_requests(
        self, narrow: DaemonProcess, tmp_path: Path, photos: list[bytes]
    ) -> None:
        """Mixed on one connection, however the kernel glues what is sent."""
        rows = reference(narrow, photos)
        with contextlib.ExitStack() as stack:
            files = []
            for number, photo in enumerate(photos):
                (tmp_path / f"{number}").write_bytes(photo)
                files.append(stack.enter_context(open(tmp_path / f"{number}", "rb")).fileno())
            with narrow.connect() as peer:
                for start in range(5):
                    order = [(start * 3 + n) % len(photos) for n in range(QUEUE)]
                    for identity, number in enumerate(order):
                        if (identity + start) % 3:
                            peer.send(identity, descriptor=files[number])
                        else:
                            peer.send(identity, image=photos[number])
                        peer.send(100 + identity, "status")
                    for _ in range(2 * QUEUE):
                        reply = peer.receive()
                        assert reply.error is None
                        assert reply.id is not None
                        if reply.id < 100:
                            row = reply.fields["probabilities"]
                            assert row == pytest.approx(rows[order[reply.id]], abs=1e-5)

    def test_fifty_pipelining_clients_get_their_own_answers(
        self, roomy: DaemonProcess, photos: list[bytes], photo_file: int
    ) -> None:
        rows = reference(roomy, photos)
        rng = random.Random(7)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(roomy.connect()) for _ in range(50)]
            asked: list[dict[int, int]] = [{} for _ in peers]
            for _ in range(2):
                for peer, mine in zip(peers, asked, strict=True):
                    identity, number = rng.randrange(2**63), rng.randrange(len(photos))
                    mine[identity] = number
                    if number == 0:
                        peer.send(identity, descriptor=photo_file, timeout=PATIENCE)
                    else:
                        peer.send(identity, image=photos[number], timeout=PATIENCE)
            for peer, mine in zip(peers, asked, strict=True):
                for _ in range(len(mine)):
                    reply = peer.receive()
                    assert reply.error is None, reply.error
                    assert reply.id is not None
                    row = reply.fields["probabilities"]
                    assert row == pytest.approx(rows[mine.pop(reply.id)], abs=1e-5)
                assert not select.select([peer.socket], [], [], 0)[0], "one answer each"

    def test_a_new_request_while_it_leaves_is_told_so(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            with held(daemon):
                peer.send(1, image=photos[0])
                daemon.wait_status(lambda s: s["queue"]["total"] == 1)
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_told("STOPPING=1")
                peer.send(2, image=photos[0])
                reply = peer.receive()
                assert reply.id == 2
                assert isinstance(reply.error, ShuttingDown)
            assert peer.receive().error is None
            assert until_closed(peer) == []
        assert daemon.process.wait(PATIENCE) == 0


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
