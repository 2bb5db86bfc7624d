"""Large frames, one and many at once, against a live front."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from daemonprocess import DaemonProcess, Peer, as_uid, open_to_all, wait_until
from fronts import (
    MIB,
    NOBODY,
    as_root,
    in_background,
    unread,
)
from vitals import (
    farewell,
    frame,
    held,
    resident,
    until_closed,
)

from swiprctl.errors import BadRequest, Overloaded
from swiprctl.protocol import MAX_FRAME, Request

pytestmark = pytest.mark.timeout(120)


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


def waits(path: Path, image: bytes) -> str:
    """What becomes of another user's image while all workers are held."""
    with Peer(path) as peer:
        error = peer.ask(image=image, timeout=0.5).error
        return "" if error is None else error.code


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
        """One user's have half of the room: another's are still taken."""
        image = photos[0].ljust(200_000, b"\0")
        with narrow.connect() as peer:
            with held(narrow):
                for identity in range(3):
                    peer.send(identity, image=image)
                reply = peer.receive()
                assert reply.id == 2
                assert isinstance(reply.error, Overloaded)
                assert reply.error.retry_after is not None
                if os.geteuid() == 0:
                    narrow.path.chmod(0o666)
                    with open_to_all(narrow.path) as path:
                        assert as_uid(NOBODY, lambda: waits(path, image)) == "deadline"
            assert {peer.receive().id, peer.receive().id} == {0, 1}
            peer.send(3, image=image)
            assert peer.receive().error is None

    def test_a_client_that_leaves_gives_their_room_back(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        image = photos[0].ljust(450_000, b"\0")
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
