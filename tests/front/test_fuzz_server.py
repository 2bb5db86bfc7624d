"""Random and half-sensible streams against a live front; it may refuse them and nothing else.

SWIPR_FUZZ_EXAMPLES says how many streams each test sends.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from daemonprocess import DaemonProcess, Peer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from vitals import Vitals, frame, framed, until_closed

from swiprctl.errors import BadImage, SwiprError
from swiprctl.protocol import MAX_FRAME

EXAMPLES = int(os.environ.get("SWIPR_FUZZ_EXAMPLES", "200"))
BATCH = 50  # streams between two looks at the front's health

pytestmark = pytest.mark.timeout(120 + EXAMPLES)

repeated = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    # A stream that has hurt the front cannot be tried again in a smaller form.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

LAST = 2**62  # the id of a question at the end of a stream

# What a stream's author can name: pieces and descriptors stand for things made by the fixtures.
PHOTOS = 4

ids = st.integers(0, 5) | st.sampled_from([2**31, 2**63 - 1])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner)
    ),
    max_leaves=8,
)
ops = st.sampled_from(["predict", "status", "model", "ping"])

sensible = st.fixed_dictionaries(
    {"id": ids, "op": ops},
    optional={
        "timeout": st.sampled_from([0.001, 1, 5.0, 3600]),
        "image": st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(50)]),
        "more": st.integers(0, 100),
    },
)
senseless = st.dictionaries(
    st.sampled_from(["id", "op", "timeout", "image", "ok", "error"]) | st.text(max_size=5), values
)
mixed = st.builds(lambda a, b: a | b, sensible, senseless)


@st.composite
def damaged(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with some cut, changed, put in or doubled."""
    data = draw(source)
    at = draw(st.integers(0, len(data)))
    until = draw(st.integers(at, min(len(data), at + 8)))
    kind = draw(st.sampled_from(["cut", "change", "insert", "double", "head"]))
    match kind:
        case "cut":
            return data[:at] + data[until:]
        case "change":
            return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + 1 :]
        case "insert":
            return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
        case "double":
            return data[:until] + data[at:]
        case _:
            return draw(headers) + data[4:]


headers = st.sampled_from(
    [0, 1, 2, 100, MAX_FRAME - 1, MAX_FRAME, MAX_FRAME + 1, 2**31, 2**32 - 1]
).map(lambda length: length.to_bytes(4))

pieces = st.one_of(
    sensible.map(lambda fields: frame(**fields)),
    mixed.map(lambda fields: framed(msgpack.packb(fields))),
    values.map(lambda value: framed(msgpack.packb(value))),
    st.binary(max_size=60).map(framed),
    damaged(sensible.map(lambda fields: frame(**fields))),
    damaged(mixed.map(lambda fields: framed(msgpack.packb(fields)))),
    headers,
    st.binary(min_size=1, max_size=100),
)

descriptors = st.lists(st.sampled_from(["photo", "null", "folder", "socket"]), max_size=3)

rude_streams = st.lists(
    st.tuples(pieces, st.just([]) | descriptors, st.integers(1, 200)), min_size=1, max_size=10
)
"""What to send: bytes, the descriptors that go along, and the bytes that each send(2) takes."""

polite_streams = st.lists(
    st.tuples(
        st.sampled_from(["descriptor", "inline", "no image", "status", "model", "later"]),
        st.integers(0, PHOTOS - 1),
        st.integers(1, 100_000),
    ),
    min_size=1,
    max_size=8,
)
"""What to ask, about which photo, and the bytes that each send(2) takes."""


class Front:
    """The daemon under fire, and what can be sent to it."""

    def __init__(self, daemon: DaemonProcess, photos: list[bytes], folder: Path) -> None:
        self.daemon = daemon
        self.photos = photos[:PHOTOS]
        self.vitals = Vitals(daemon, photos[0])
        with daemon.connect() as peer:
            self.rows = [peer.ask(image=photo).fields["probabilities"] for photo in self.photos]
        self.files = []
        for number, photo in enumerate(self.photos):
            (folder / f"{number}.jpg").write_bytes(photo)
            self.files.append(os.open(folder / f"{number}.jpg", os.O_RDONLY))
        self.named = {
            "photo": self.files[0],
            "null": os.open(os.devnull, os.O_RDWR),
            "folder": os.open(folder, os.O_RDONLY),
            "socket": socket.socket(socket.AF_UNIX).detach(),
        }
        self._streams: list[Any] = []

    def close(self) -> None:
        for descriptor in {*self.files, *self.named.values()}:
            os.close(descriptor)

    def survived(self, stream: Any) -> None:
        """Look at its health after each batch."""
        self._streams.append(stream)
        if len(self._streams) == BATCH:
            self.look()

    def look(self) -> None:
        """Fail, with the streams since the last look, if the front is not as it was."""
        try:
            self.vitals.check()
        except AssertionError as error:
            error.add_note("after one of: " + "\n".join(map(repr, self._streams)))
            raise
        self._streams.clear()


@pytest.fixture(scope="module")
def _front(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, photos: list[bytes]
) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("fuzz")
    daemon = DaemonProcess(
        folder / "daemon",
        *("--workers=1", "--threads=1", "--batch=1"),
        *("--first-byte=1", "--stall=1", "--slow-reader=1", "--queue=16"),
        model=tiny_model,
    )
    try:
        front = Front(daemon.wait_ready(), photos, folder)
        yield front
        front.close()
    finally:
        daemon.end()


@pytest.fixture
def front(_front: Front) -> Iterator[Front]:
    yield _front
    _front.look()


def send_pieces(sock: socket.socket, data: bytes, rights: list[int], size: int) -> None:
    """Send in pieces of `size` bytes, the descriptors with the first."""
    sent = 0
    while sent < len(data):
        piece = data[sent : sent + size]
        sent += socket.send_fds(sock, [piece], rights) if rights else sock.send(piece)
        rights = []


class TestRude:
    def test_a_rude_stream_is_refused_and_nothing_else(self, front: Front) -> None:
        @repeated
        @given(stream=rude_streams)
        def send(stream: list[tuple[bytes, list[str], int]]) -> None:
            with front.daemon.connect() as peer:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for data, names, size in stream:
                        send_pieces(peer.socket, data, [front.named[n] for n in names], size)
                    peer.socket.sendall(frame(id=LAST, op="status"))
                    peer.socket.shutdown(socket.SHUT_WR)
                replies = until_closed(peer)
            for reply in replies:
                assert reply.error is None or type(reply.error) is not SwiprError, reply.error
            told = [reply.id for reply in replies]
            assert told.count(None) <= 1
            assert None not in told[:-1], "nothing follows a farewell"
            assert told.count(LAST) <= 1
            front.survived(stream)

        send()

    def test_one_that_leaves_at_any_point_costs_nothing(self, front: Front) -> None:
        @repeated
        @given(stream=rude_streams)
        def send(stream: list[tuple[bytes, list[str], int]]) -> None:
            with (
                front.daemon.connect() as peer,
                contextlib.suppress(BrokenPipeError, ConnectionResetError),
            ):
                for data, names, size in stream:
                    send_pieces(peer.socket, data, [front.named[n] for n in names], size)
            front.survived(stream)

        send()


class TestPolite:
    def test_each_request_gets_its_own_answer_and_no_other(self, front: Front) -> None:
        """However the stream is cut, whatever it mixes."""

        @settings(repeated, max_examples=max(1, EXAMPLES // 2))  # each has work for the workers
        @given(stream=polite_streams)
        def send(stream: list[tuple[str, int, int]]) -> None:
            with front.daemon.connect() as peer:
                for identity, (kind, number, size) in enumerate(stream):
                    fields: dict[str, Any] = {"id": identity, "op": "predict"}
                    rights: list[int] = []
                    match kind:
                        case "descriptor":
                            rights = [front.files[number]]
                        case "inline":
                            fields["image"] = front.photos[number]
                        case "no image":
                            fields["image"] = b"not an image"
                        case "later":
                            fields |= {"op": "status", "trace": [number, {"span": size}]}
                        case _:
                            fields["op"] = kind
                    send_pieces(peer.socket, frame(**fields), rights, size)
                self._compare(peer, front, stream)
            front.survived(stream)

        send()

    def _compare(self, peer: Peer, front: Front, stream: list[tuple[str, int, int]]) -> None:
        seen: Counter[int | None] = Counter()
        for _ in stream:
            reply = peer.receive()
            seen[reply.id] += 1
            assert reply.id is not None
            kind, number, _ = stream[reply.id]
            match kind:
                case "descriptor" | "inline":
                    assert reply.error is None, reply.error
                    row = reply.fields["probabilities"]
                    assert row == pytest.approx(front.rows[number], abs=1e-5)
                case "no image":
                    assert isinstance(reply.error, BadImage)
                case "model":
                    assert reply.fields["name"] == "tiny"
                case _:
                    assert reply.fields["state"] == "ready"
        assert seen == Counter(range(len(stream)))
        peer.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.socket.recv(1)
