"""Slow peers and many of them, against a live front."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import threading
import time

import pytest
from conftest import StartDaemon
from daemonprocess import PATIENCE, DaemonProcess, Peer, open_to_all, wait_until
from fronts import (
    CONNECTIONS,
    MIB,
    NOBODY,
    SECONDS,
    as_root,
    in_background,
    narrow_while_full,
    unread,
)
from vitals import (
    NAMED_DEFECTS,
    Vitals,
    farewell,
    frame,
    held,
    resident,
    until_closed,
)

from swiprctl.errors import BadRequest, Overloaded
from swiprctl.protocol import Request

pytestmark = pytest.mark.timeout(120)


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

    def test_with_none_left_for_an_image_its_sender_is_told_to_come_back(
        self, start_daemon: StartDaemon, photos: list[bytes], photo_file: int
    ) -> None:
        daemon = start_daemon().wait_ready()
        vitals = Vitals(daemon, photos[0])
        with daemon.connect() as peer:
            assert peer.ask(image=photos[0]).error is None
            _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, hard))
            peer.send(2, descriptor=photo_file)
            error = farewell(peer)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert isinstance(error, Overloaded)
        assert error.retry_after
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
                # It would try again within half a second. The end of a listener of its own is
                # heard: the client goes to the successor.
                for sock in select.select(outside, [], [], 1.0)[0]:
                    with contextlib.suppress(ConnectionResetError):
                        assert sock.recv(1) == b"", "somebody was let in"
            assert peer.receive().error is None
        assert daemon.process.wait(PATIENCE) == 0
        words = daemon.log.read_text()
        assert not any(defect in words for defect in NAMED_DEFECTS), words
