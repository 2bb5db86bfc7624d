"""Images and descriptors of every kind, against a live front."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from pathlib import Path

import pytest
from daemonprocess import DaemonProcess, wait_until
from fronts import (
    MAX_IMAGE,
    MAX_PIXELS,
    QUEUE,
    png,
    unread,
)
from vitals import (
    farewell,
    frame,
    held,
    send_rights,
    until_closed,
)

from swiprctl.errors import BadImage, BadRequest, TooLarge
from swiprctl.protocol import Request

pytestmark = pytest.mark.timeout(120)


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
