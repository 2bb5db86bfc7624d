"""The wire, byte by byte: golden frames, descriptors over real sockets, and whatever bytes."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiprctl.errors import (
    BadImage,
    BadRequest,
    DeadlineExceeded,
    Forbidden,
    LoadingFailed,
    Overloaded,
    ShuttingDown,
    SwiprError,
    TooLarge,
    TryLater,
    WorkerCrashed,
    from_wire,
)
from swiprctl.protocol import MAX_FRAME, MAX_REPLY, Decoder, Frame, Reply, Request, encode

pytestmark = pytest.mark.timeout(30)

# Written out by hand from the msgpack specification: these bytes are what other versions speak.
GOLDEN: list[tuple[dict[str, object], bytes]] = [
    ({"id": 1, "op": "predict"}, b"\x00\x00\x00\x10\x82\xa2id\x01\xa2op\xa7predict"),
    (
        {"id": 300, "op": "predict", "timeout": 2.5},
        b"\x00\x00\x00\x23\x83\xa2id\xcd\x01\x2c\xa2op\xa7predict"
        b"\xa7timeout\xcb\x40\x04\x00\x00\x00\x00\x00\x00",
    ),
    (
        {"id": 2, "op": "predict", "image": b"\xff\xd8"},
        b"\x00\x00\x00\x1a\x83\xa2id\x02\xa2op\xa7predict\xa5image\xc4\x02\xff\xd8",
    ),
    ({"id": 3, "op": "status"}, b"\x00\x00\x00\x0f\x82\xa2id\x03\xa2op\xa6status"),
    (
        {"id": 1, "ok": True, "probabilities": [0.5, 0.25]},
        b"\x00\x00\x00\x2a\x83\xa2id\x01\xa2ok\xc3\xadprobabilities"
        b"\x92\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00\xcb\x3f\xd0\x00\x00\x00\x00\x00\x00",
    ),
    (
        {"id": None, "ok": False, "error": {"code": "bad-request", "message": "op"}},
        b"\x00\x00\x00\x2c\x83\xa2id\xc0\xa2ok\xc2\xa5error"
        b"\x82\xa4code\xabbad-request\xa7message\xa2op",
    ),
]


def fed(data: bytes, step: int, limit: int = MAX_FRAME) -> list[Frame]:
    decoder = Decoder(limit)
    frames = []
    for begin in range(0, len(data), step):
        decoder.feed(data[begin : begin + step])
        frames += decoder.frames()
    assert not decoder.mid_frame
    return frames


@pytest.mark.parametrize(("fields", "wire"), GOLDEN)
def test_golden_frames_are_what_is_written_and_read(fields: dict[str, object], wire: bytes) -> None:
    assert encode(fields) == wire
    assert [frame.fields for frame in fed(wire, len(wire))] == [fields]
    assert [frame.fields for frame in fed(wire, 1)] == [fields]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 1 << 16])
def test_six_frames_together_however_they_are_cut(step: int) -> None:
    frames = fed(b"".join(wire for _, wire in GOLDEN), step)
    assert [frame.fields for frame in frames] == [fields for fields, _ in GOLDEN]


def test_messages_make_and_read_the_golden_frames() -> None:
    assert Request(1, "predict").encode() == GOLDEN[0][1]
    assert Request(300, "predict", 2.5).encode() == GOLDEN[1][1]
    assert Request(2, "predict", None, b"\xff\xd8").encode() == GOLDEN[2][1]
    assert Reply(None, None, BadRequest("op")).encode() == GOLDEN[5][1]
    request = Request.parse(GOLDEN[1][0])
    assert (request.id, request.op, request.timeout, request.image) == (300, "predict", 2.5, None)
    reply = Reply.parse(GOLDEN[4][0])
    assert (reply.id, reply.error, reply.fields["probabilities"]) == (1, None, [0.5, 0.25])
    reply = Reply.parse(GOLDEN[5][0])
    assert reply.id is None
    assert isinstance(reply.error, BadRequest)


def test_what_a_request_may_ask_for_besides() -> None:
    request = Request(1, "predict")
    request.labels, request.alive = "pets@1", True
    (frame,) = fed(request.encode(), 1000)
    assert frame.fields == {"id": 1, "op": "predict", "labels": "pets@1", "alive": True}
    found = Request.parse(frame.fields)
    assert (found.labels, found.alive) == ("pets@1", True)
    found = Request.parse({"id": 1, "op": "predict", "alive": "yes"})
    assert (found.labels, found.alive) == (None, False)
    with pytest.raises(BadRequest, match="labels: expected a model's id, found 7"):
        Request.parse({"id": 1, "op": "predict", "labels": 7})


ids = st.integers(0, 2**63 - 1)


@given(
    ids,
    st.sampled_from(["predict", "model", "status", "ping", "reload"]),
    st.none() | st.floats(0, 3600, exclude_min=True),
    st.none() | st.binary(max_size=200),
    st.integers(1, 20),
)
def test_requests_come_back_as_they_were(
    id: int, op: str, timeout: float | None, image: bytes | None, step: int
) -> None:
    (frame,) = fed(Request(id, op, timeout, image).encode(), step)
    request = Request.parse(frame.fields)
    assert (request.id, request.op, request.timeout, request.image) == (id, op, timeout, image)


@given(
    ids,
    st.dictionaries(
        st.text(max_size=10).filter(lambda key: key not in ("id", "ok", "error")),
        st.floats(allow_nan=False) | st.text(max_size=10) | st.lists(ids, max_size=3),
        max_size=5,
    ),
)
def test_replies_come_back_as_they_were(id: int, fields: dict[str, object]) -> None:
    (frame,) = fed(Reply(id, fields).encode(), 5)
    reply = Reply.parse(frame.fields)
    assert reply.id == id
    assert reply.error is None
    assert reply.fields == {**fields, "id": id, "ok": True}


ERRORS: list[SwiprError] = [
    BadImage("not an image"),
    TooLarge("too many pixels"),
    WorkerCrashed("twice"),
    Overloaded("the queue is full", 0.25),
    ShuttingDown("leaving", None),
    LoadingFailed("no weights", 1.0),
    BadRequest("op"),
    Forbidden("not you"),
    DeadlineExceeded("10 s"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_errors_keep_their_class_over_the_wire(error: SwiprError) -> None:
    (frame,) = fed(Reply(7, None, error).encode(), 1000)
    told = Reply.parse(frame.fields).error
    assert type(told) is type(error)
    assert str(told) == str(error)
    if isinstance(error, TryLater):
        assert isinstance(told, TryLater)
        assert told.retry_after == error.retry_after


def test_an_unknown_code_is_kept_in_the_text() -> None:
    error = from_wire("on-fire", "the host burns", None)
    assert type(error) is SwiprError
    assert str(error) == "on-fire: the host burns"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"op": "predict"}, "id"),
        ({"id": "1", "op": "predict"}, "id"),
        ({"id": True, "op": "predict"}, "id"),
        ({"id": -1, "op": "predict"}, "id"),
        ({"id": 2**63, "op": "predict"}, "id"),
        ({"id": msgpack.Timestamp(0), "op": "predict"}, "id"),
        ({"id": 1}, "op"),
        ({"id": 1, "op": "explode"}, "op"),
        ({"id": 1, "op": ["predict"]}, "op"),
        ({"id": 1, "op": "predict", "timeout": 0}, "timeout"),
        ({"id": 1, "op": "predict", "timeout": -1.0}, "timeout"),
        ({"id": 1, "op": "predict", "timeout": 3601}, "timeout"),
        ({"id": 1, "op": "predict", "timeout": float("nan")}, "timeout"),
        ({"id": 1, "op": "predict", "timeout": float("inf")}, "timeout"),
        ({"id": 1, "op": "predict", "timeout": True}, "timeout"),
        ({"id": 1, "op": "predict", "timeout": "1"}, "timeout"),
        ({"id": 1, "op": "predict", "image": "text"}, "image"),
    ],
)
def test_a_bad_request_names_its_key(fields: dict[str, object], named: str) -> None:
    with pytest.raises(BadRequest, match=f"^{named}: "):
        Request.parse(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 1},
        {"id": 1, "ok": 1},
        {"id": 1, "ok": False},
        {"id": 1, "ok": False, "error": "bad"},
        {"id": 1, "ok": False, "error": {"code": "bad-image"}},
        {"id": 1, "ok": False, "error": {"code": 3, "message": "x"}},
        {"id": "x", "ok": True},
    ],
)
def test_what_is_no_reply_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        Reply.parse(fields)


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",  # the one byte that msgpack never uses
        b"\x93\x01\x02\x03",  # an array
        b"\x2a",
        msgpack.packb("text"),
        msgpack.packb({1: 2}),
        msgpack.packb({b"id": 1}),
        msgpack.packb({"id": 1}) + b"\x00",  # something behind the map
        msgpack.packb({"id": 1})[:-1],
        msgpack.packb({"id": msgpack.ExtType(4, b"data")}),
        b"\x81\xa2id\xa2\xff\xfe",  # text that is not UTF-8
        b"\x81\xa2id\xdd\xff\xff\xff\xff",  # an array said to have 2^32 - 1 elements
        b"\xdf\xff\xff\xff\xff\xa2id\x01",  # a map said to have as many
        b"\x81\xa2id" + b"\x91" * 100_000 + b"\x01",  # arrays in arrays
        b"\x81\xa2id" * 50_000 + b"\x01",
    ],
    ids=range(15),
)
def test_what_is_no_map_with_text_keys_is_refused(payload: bytes) -> None:
    decoder = Decoder()
    decoder.feed(framed(payload))
    with pytest.raises(BadRequest):
        list(decoder.frames())


@pytest.mark.parametrize("limit", [MAX_FRAME, MAX_REPLY])
def test_a_frame_over_the_limit_is_refused_at_its_header(limit: int) -> None:
    decoder = Decoder(limit)
    decoder.feed(struct.pack(">I", limit))
    assert list(decoder.frames()) == []  # at the edge: it is waited for
    assert decoder.mid_frame
    assert decoder.announced == limit + 4
    decoder = Decoder(limit)
    decoder.feed(struct.pack(">I", limit + 1))
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="the limit is"):
            list(decoder.frames())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_at_the_limit_is_read() -> None:
    limit = 100
    fields = {"id": 1, "op": "x" * (limit - len(msgpack.packb({"id": 1, "op": ""})) - 1)}
    wire = encode(fields)
    assert len(wire) == 4 + limit
    assert fed(wire, 9, limit)[0].fields == fields


def test_an_image_that_makes_the_frame_too_large_is_not_encoded() -> None:
    with pytest.raises(BadRequest, match="the limit is"):
        Request(1, "predict", None, bytes(MAX_FRAME)).encode()


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_any_bytes_end_in_frames_or_bad_request(pieces: list[bytes]) -> None:
    decoder = Decoder(1 << 16)
    with contextlib.suppress(BadRequest):
        for piece in pieces:
            decoder.feed(piece)
            for frame in decoder.frames():
                assert all(isinstance(key, str) for key in frame.fields)


@given(st.data())
def test_a_damaged_frame_ends_in_frames_or_bad_request(data: st.DataObject) -> None:
    wire = bytearray(b"".join(wire for _, wire in GOLDEN))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    step = data.draw(st.integers(1, len(wire)))
    decoder = Decoder(1 << 16)
    with contextlib.suppress(BadRequest):
        for begin in range(0, len(wire), step):
            decoder.feed(bytes(wire[begin : begin + step]))
            for frame in decoder.frames():
                with contextlib.suppress(BadRequest):
                    Request.parse(frame.fields)
                with contextlib.suppress(BadRequest):
                    Reply.parse(frame.fields)


# -- descriptors, over real sockets


class Pair:
    """A client's end to send on, and a decoder that is fed from the other."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.decoder = Decoder()
        self.kept: list[int] = []

    def send(self, data: bytes, *descriptors: int) -> None:
        if descriptors:
            assert socket.send_fds(self.near, [data], list(descriptors)) == len(data)
        else:
            self.near.sendall(data)

    def receive(self, size: int = 1 << 16) -> list[Frame]:
        """One recvmsg(2), and the frames it completes."""
        data, descriptors, _, _ = socket.recv_fds(self.far, size, 4)
        self.kept += descriptors
        assert len(descriptors) <= 1
        self.decoder.feed(data, descriptors[0] if descriptors else None)
        return list(self.decoder.frames())


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.near.close()
    pair.far.close()
    for descriptor in pair.kept:
        os.close(descriptor)


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Descriptors of memfds that hold their own index."""
    made = []
    for index in range(3):
        descriptor = os.memfd_create(f"test-{index}")
        os.write(descriptor, str(index).encode())
        made.append(descriptor)
    yield made
    for descriptor in made:
        os.close(descriptor)


def content(frame: Frame) -> bytes | None:
    return None if frame.attachment is None else os.pread(frame.attachment, 10, 0)


def request(id: int) -> bytes:
    return Request(id, "predict").encode()


def test_a_descriptor_belongs_to_its_frame(pair: Pair, files: list[int]) -> None:
    pair.send(request(1))
    pair.send(request(2), files[0])
    pair.send(request(3))
    pair.send(request(4), files[1])
    pair.send(request(5), files[2])
    pair.send(request(6))
    found = []
    while len(found) < 6:
        found += [(frame.fields["id"], content(frame)) for frame in pair.receive()]
    assert found == [(1, None), (2, b"0"), (3, None), (4, b"1"), (5, b"2"), (6, None)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 19, 21])
def test_a_descriptor_belongs_to_its_frame_in_small_reads(
    pair: Pair, files: list[int], size: int
) -> None:
    pair.send(request(1), files[0])
    pair.send(request(2))
    pair.send(request(3), files[1])
    found = []
    while len(found) < 3:
        found += [(frame.fields["id"], content(frame)) for frame in pair.receive(size)]
    assert found == [(1, b"0"), (2, None), (3, b"1")]


def test_a_descriptor_waits_for_the_rest_of_its_frame(pair: Pair, files: list[int]) -> None:
    wire = request(1)
    pair.send(wire[:1], files[0])
    assert pair.receive() == []
    pair.send(wire[1:] + request(2))
    first, second = pair.receive()
    assert (content(first), content(second)) == (b"0", None)
    assert pair.decoder.abandon() == []


def test_a_descriptor_in_the_middle_of_a_frame_is_refused(pair: Pair, files: list[int]) -> None:
    wire = request(1)
    pair.send(wire[:5])
    assert pair.receive() == []
    pair.send(wire[5:], files[0])
    with pytest.raises(BadRequest, match="middle of a frame"):
        pair.receive()
    assert pair.decoder.abandon() == pair.kept
    assert pair.decoder.abandon() == []


def test_a_descriptor_in_the_middle_is_refused_before_the_frame_ends(
    pair: Pair, files: list[int]
) -> None:
    wire = request(1)
    pair.send(wire[:5])
    pair.receive()
    pair.send(wire[5:7], files[0])
    with pytest.raises(BadRequest, match="middle of a frame"):
        pair.receive()
    assert pair.decoder.abandon() == pair.kept


def test_a_second_descriptor_for_one_frame_is_refused(pair: Pair, files: list[int]) -> None:
    wire = request(1)
    pair.send(wire[:4], files[0])
    assert pair.receive() == []
    pair.send(wire[4:], files[1])
    with pytest.raises(BadRequest, match="middle of a frame"):
        pair.receive()
    assert pair.decoder.abandon() == pair.kept


def test_the_rest_of_a_frame_may_come_with_the_next_ones_descriptor(
    pair: Pair, files: list[int]
) -> None:
    wire = request(1)
    pair.send(wire[:1], files[0])
    assert pair.receive() == []
    pair.send(wire[1:])
    pair.send(request(2), files[1])
    assert [content(frame) for frame in pair.receive()] == [b"0", b"1"]


def test_the_descriptor_of_a_frame_that_never_ends_is_given_back(
    pair: Pair, files: list[int]
) -> None:
    pair.send(request(1)[:-1], files[0])
    assert pair.receive() == []
    assert pair.decoder.mid_frame
    assert pair.decoder.abandon() == pair.kept


def test_all_of_this_holds_for_msgpack_in_pure_python() -> None:
    if os.environ.get("MSGPACK_PUREPYTHON"):
        pytest.skip("this is that run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", __file__],
        env={**os.environ, "MSGPACK_PUREPYTHON": "1"},
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
