"""Frames that make no sense, against a live front."""

from __future__ import annotations

import threading

import msgpack
import pytest
from daemonprocess import DaemonProcess
from fronts import (
    MIB,
)
from vitals import (
    farewell,
    frame,
    framed,
    held,
    resident,
)

from swiprctl.errors import BadRequest
from swiprctl.protocol import Request

pytestmark = pytest.mark.timeout(120)


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
