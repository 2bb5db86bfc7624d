"""The client against a peer that misbehaves as daemons, kernels and ssh(1) do."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import io
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peer import Asked, Connection, Peer

from swiprctl import Client, Prediction, SwiprError, jobs
from swiprctl.errors import (
    BadImage,
    BadRequest,
    CannotOpen,
    DeadlineExceeded,
    LoadingFailed,
    NoDaemon,
    Overloaded,
    ShuttingDown,
    TooLarge,
    UsageError,
)
from swiprctl.jobs import Window
from swiprctl.names import Names
from swiprctl.protocol import Reply

pytestmark = pytest.mark.timeout(30)


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Files of 0, 1, 2, … 7 bytes: `size` answers with that."""
    found = []
    for number in range(8):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(b"x" * number)
        found.append(str(file))
    return found


def size(connection: Connection) -> None:
    """Answer each image with its size in bytes."""
    while True:
        asked = connection.asked()
        assert asked.image is not None
        connection.answer(asked, float(len(asked.image)))


def sizes(results: Iterator[tuple[object, Prediction | SwiprError]]) -> list[float | str]:
    """The answers, or the names of the errors."""
    return [
        answer.probabilities[0] if isinstance(answer, Prediction) else type(answer).__name__
        for _, answer in results
    ]


# -- what can be asked


def test_a_prediction_has_all_that_the_daemon_said(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        connection.answer(connection.asked(), 0.75, 0.25, queued=0.5)

    with Peer(path, script), Client(str(path)) as client:
        answer = client.predict(images[0])
        assert client.socket_path == str(path)
    assert answer.probabilities == (0.75, 0.25)
    assert (answer.model, answer.queued, answer.decode, answer.infer) == (
        "peer@1",
        0.5,
        0.001,
        0.002,
    )


def test_every_kind_of_input(path: Path, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(data[:1000]))
    with Peer(path, size), Client(str(path)) as client, contextlib.ExitStack() as stack:
        opened = stack.enter_context(open(file, "rb"))
        part = stack.enter_context(open(file, "rb"))
        part.seek(1 << 20)
        unbuffered = stack.enter_context(open(file, "rb", buffering=0))
        unbuffered.seek(5)
        unpacked = stack.enter_context(gzip.open(packed))
        spooled = stack.enter_context(tempfile.SpooledTemporaryFile())
        spooled.write(b"12345")
        spooled.seek(2)
        inputs = [
            str(file),
            file,
            data,
            bytearray(data),
            memoryview(data)[7:],
            b"",
            opened,
            opened.fileno(),
            part,
            unbuffered,
            unpacked,
            spooled,
            io.BytesIO(data),
        ]
        found = sizes(client.predict_many(inputs))
        assert opened.fileno() > 0  # the caller's files stay open
    n = len(data)
    assert found == [n, n, n, n, n - 7, 0, n, n, n - (1 << 20), n - 5, 1000, 3, n]


def test_a_file_goes_as_its_own_descriptor(path: Path, images: list[str]) -> None:
    seen: list[tuple[int, int]] = []

    def script(connection: Connection) -> None:
        def look(descriptor: int) -> None:
            seen.append((os.fstat(descriptor).st_ino, fcntl.fcntl(descriptor, fcntl.F_GETFL)))

        connection.answer(connection.asked(look=look), 1.0)

    with Peer(path, script), Client(str(path)) as client:
        client.predict(images[3])
    ((inode, flags),) = seen
    assert inode == Path(images[3]).stat().st_ino
    assert flags & os.O_ACCMODE == os.O_RDONLY


def test_bytes_and_pipes_go_as_sealed_memory(path: Path) -> None:
    seen: list[int] = []

    def script(connection: Connection) -> None:
        def look(descriptor: int) -> None:
            seen.append(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS))
            with pytest.raises(PermissionError):
                os.write(descriptor, b"x")
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, 0)

        for _ in range(2):
            connection.answer(connection.asked(look=look), 1.0)

    reading, writing = os.pipe()
    os.write(writing, b"through a pipe")
    os.close(writing)
    with Peer(path, script), Client(str(path)) as client:
        client.predict(b"bytes")
        client.predict(reading)
    os.close(reading)
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert seen == [wanted, wanted]


def test_what_cannot_be_opened(path: Path, tmp_path: Path, images: list[str]) -> None:
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(tmp_path / "x.sock"))
    other.close()
    terminal, other_end = os.openpty()
    cases: list[tuple[str | int, str]] = [
        (str(tmp_path / "missing"), "No such file or directory"),
        (str(tmp_path), "it is a directory"),
        ("/dev/null", "it is a device"),
        (other_end, "it is a terminal"),
        (f"{images[0]}/below", "Not a directory"),
        ("a\0b", "not a path"),
        ("", "No such file or directory"),
        (str(tmp_path / "x.sock"), "No such device or address"),
        (-1, "not an open descriptor"),
        (1_000_000, "not an open descriptor"),
        (2**70, "not an open descriptor"),
    ]
    with Peer(path, size), Client(str(path)) as client:
        for source, why in cases:
            with pytest.raises(CannotOpen, match=why):
                client.predict(source)
        every = [images[1], *(c for c, _ in cases), images[2]]
        found = [answer for _, answer in client.predict_many(every)]
    assert all(isinstance(one, CannotOpen) for one in found[1:-1])
    ends = [one.probabilities[0] for one in found if isinstance(one, Prediction)]
    assert (len(found), ends) == (len(cases) + 2, [1, 2])
    os.close(terminal)
    os.close(other_end)


def test_what_is_no_input_at_all(path: Path) -> None:
    with Peer(path, size), Client(str(path)) as client:
        with pytest.raises(TypeError):
            client.predict(1.5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="binary"):
            client.predict(io.StringIO("text"))  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            Client(str(path), timeout=0)
        with pytest.raises(UsageError):
            Client(str(path), timeout=3601)


def test_a_stream_has_a_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiprctl.inputs.MAX_STREAM", 1000)
    reading, writing = os.pipe()
    os.write(writing, bytes(1001))
    with Peer(path, size), Client(str(path)) as client:
        assert client.predict(bytes(1000)).probabilities == (1000,)
        for source in (bytes(1001), io.BytesIO(bytes(1001)), reading):
            with pytest.raises(TooLarge, match="1000"):
                client.predict(source)
    os.close(reading)
    os.close(writing)


def test_the_other_questions(path: Path) -> None:
    def script(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            if asked.op == "reload":
                connection.refuse(asked.id, LoadingFailed("no weights", 1.0))
            else:
                connection.reply(asked.id, op=asked.op, labels=["a"])

    with Peer(path, script), Client(str(path)) as client:
        assert client.model() == {"op": "model", "labels": ["a"]}
        assert client.status() == {"op": "status", "labels": ["a"]}
        assert client.ping() == {"op": "ping", "labels": ["a"]}
        with pytest.raises(LoadingFailed, match="no weights"):
            client.reload()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"probabilities": "0.5", "model": "m"},
        {"probabilities": [0.5, "x"], "model": "m"},
        {"probabilities": [True], "model": "m"},
        {"probabilities": [0.5], "model": 3},
        {"probabilities": [0.5], "model": "m", "queued": "long"},
    ],
)
def test_a_reply_that_is_no_prediction(path: Path, fields: dict[str, object]) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.reply(connection.asked().id, **fields)

    with Peer(path, script), Client(str(path)) as client:
        with pytest.raises(BadRequest):
            client.predict(b"x")
        assert sizes(client.predict_many([b"x", b"y"])) == ["BadRequest"] * 2


# -- order, and connections that break


def test_answers_in_any_order_come_out_in_order(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        for _ in range(2):
            asked = [connection.asked() for _ in range(4)]
            for one in reversed(asked):
                assert one.image is not None
                connection.answer(one, float(len(one.image)), queued=2.0)  # the window stays

    with Peer(path, script), Client(str(path)) as client:
        results = list(client.predict_many(images))
    assert [source for source, _ in results] == images
    assert sizes(iter(results)) == list(range(8))


def test_one_bad_image_is_one_error(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            assert asked.image is not None
            if len(asked.image) == 3:
                connection.refuse(asked.id, BadImage("not an image"))
            elif len(asked.image) == 5:
                connection.refuse(asked.id, BadRequest("a key"))
            else:
                connection.answer(asked, float(len(asked.image)))

    with Peer(path, script) as peer, Client(str(path)) as client:
        found = sizes(client.predict_many(images))
        assert peer.connections == 1
    assert found == [0, 1, 2, "BadImage", 4, "BadRequest", 6, 7]


def test_what_a_broken_connection_left_unanswered_is_sent_again(
    path: Path, images: list[str]
) -> None:
    answered: list[int] = []

    def script(connection: Connection) -> None:
        for turn in range(1000):
            asked = connection.asked()
            assert asked.image is not None
            if connection.number < 3 and turn == 2:
                return  # one in hand and others on the way
            answered.append(len(asked.image))
            connection.answer(asked, float(len(asked.image)))

    with Peer(path, script) as peer, Client(str(path)) as client:
        assert sizes(client.predict_many(images)) == list(range(8))
        assert peer.connections == 4
    assert sorted(answered) == list(range(8))


def test_a_reset_is_a_broken_connection_too(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        if connection.number == 0:
            time.sleep(0.1)  # let requests arrive: closing with unread data is a reset
            return
        size(connection)

    with Peer(path, script), Client(str(path)) as client:
        assert sizes(client.predict_many(images)) == list(range(8))


def test_a_peer_that_will_not_be_written_to_is_left(path: Path) -> None:
    def script(connection: Connection) -> None:
        if connection.number > 0:
            size(connection)
        connection.answer(connection.asked(), 1.0)
        connection.socket.shutdown(socket.SHUT_RD)
        closed.set()
        done.wait(20)

    closed, done = threading.Event(), threading.Event()
    with Peer(path, script) as peer, Client(str(path), timeout=5) as client:
        client.predict(b"x")
        closed.wait(20)
        assert client.predict(b"333").probabilities == (3,)
        assert peer.connections == 2
        done.set()


def test_a_daemon_that_leaves_answers_what_it_took(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        if connection.number > 0:
            size(connection)
        first, *others = [connection.asked() for _ in range(4)]
        for asked in others:
            connection.refuse(asked.id, ShuttingDown("leaving", 0.1))
        assert first.image is not None
        connection.answer(first, float(len(first.image)))
        with contextlib.suppress(TimeoutError):
            connection.socket.settimeout(0.3)
            connection.asked()
            raise AssertionError("asked a daemon that leaves")

    with Peer(path, script) as peer, Client(str(path)) as client:
        assert sizes(client.predict_many(images)) == list(range(8))
        assert peer.connections == 2


def test_an_idle_connection_may_be_closed(path: Path) -> None:
    def script(connection: Connection) -> None:
        connection.answer(connection.asked(), 1.0)

    with Peer(path, script) as peer, Client(str(path)) as client:
        for _ in range(3):
            client.predict(b"x")
        assert peer.connections == 3


def test_a_connection_can_be_used_again_after_close(path: Path) -> None:
    with Peer(path, size), Client(str(path)) as client:
        assert client.predict(b"1").probabilities == (1,)
        client.close()
        assert client.predict(b"12").probabilities == (2,)


def test_a_daemon_that_comes_back_is_waited_for(path: Path) -> None:
    class Between(threading.Thread):
        def run(self) -> None:
            time.sleep(0.3)
            second.__enter__()

    def once(connection: Connection) -> None:
        connection.answer(connection.asked(), 1.0)
        connection.asked()  # and goes without an answer

    first, second = Peer(path, once), Peer(path, size)
    with Client(str(path)) as client:
        with first:
            client.predict(b"1")
        between = Between()
        between.start()
        try:
            assert client.predict(b"22").probabilities == (2,)
        finally:
            between.join()
            second.__exit__()


def test_a_peer_that_speaks_something_else(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        connection.asked()
        connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.asked()

    with Peer(path, script) as peer, Client(str(path)) as client:
        with pytest.raises(BadRequest, match="the limit is"):
            client.predict(images[1])
        assert peer.connections == 1


def test_a_daemon_that_cannot_read_us_is_not_asked_again(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        connection.asked()
        connection.refuse(None, BadRequest("a frame that is not msgpack"))

    with Peer(path, script) as peer, Client(str(path)) as client:
        with pytest.raises(BadRequest, match="not msgpack"):
            client.predict(images[1])
        assert peer.connections == 1


def test_an_answer_that_nobody_asked_for_is_ignored(path: Path) -> None:
    def script(connection: Connection) -> None:
        asked = connection.asked()
        connection.reply(999_999, probabilities=[0.0], model="m")
        connection.answer(asked, 1.0)
        connection.answer(asked, 0.0)
        connection.answer(connection.asked(), 2.0)

    with Peer(path, script), Client(str(path)) as client:
        assert client.predict(b"").probabilities == (1,)
        assert client.predict(b"").probabilities == (2,)


# -- an overloaded daemon


def test_an_overloaded_daemon_is_asked_again_when_it_says(path: Path, images: list[str]) -> None:
    times: list[float] = []

    def script(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            assert asked.image is not None
            if len(asked.image) == 2:
                times.append(time.monotonic())
                if len(times) == 1:
                    connection.refuse(asked.id, Overloaded("the queue is full", 0.3))
                    continue
            connection.answer(asked, float(len(asked.image)))

    with Peer(path, script) as peer, Client(str(path)) as client:
        assert sizes(client.predict_many(images)) == list(range(8))
        assert peer.connections == 1
    assert times[1] - times[0] >= 0.29


def test_overload_beyond_the_deadline_is_told(path: Path) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.refuse(connection.asked().id, Overloaded("the queue is full", 0.2))

    began = time.monotonic()
    with (
        Peer(path, script),
        Client(str(path), timeout=0.5) as client,
        pytest.raises(Overloaded, match="the queue is full") as told,
    ):
        client.predict(b"x")
    assert told.value.retry_after == 0.2
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("retry_after", [29.2, None])
def test_overload_that_outlasts_the_deadline_is_no_reason_to_give_up_before_it(
    path: Path, retry_after: float | None
) -> None:
    """An estimate may be wrong: one slow picture made it, and the daemon is idle by now."""

    def script(connection: Connection) -> None:
        for attempt in range(3):
            asked = connection.asked()
            assert asked.image is not None
            if attempt < 2:
                connection.refuse(asked.id, Overloaded("takes about 29.2 s", retry_after))
            else:
                connection.answer(asked, float(len(asked.image)))

    with Peer(path, script), Client(str(path), timeout=5) as client:
        assert client.predict(b"123").probabilities == (3,)


def test_without_a_timeout_it_is_tried_again_within_the_daemons_usual_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "DEFAULT_TIMEOUT", 1.0)
    attempts = 0

    def script(connection: Connection) -> None:
        nonlocal attempts
        while True:
            asked = connection.asked()
            attempts += 1
            connection.refuse(asked.id, Overloaded("takes about 29.2 s", 29.2))

    with (
        Peer(path, script),
        Client(str(path)) as client,
        pytest.raises(Overloaded, match=r"29\.2 s"),
    ):
        client.predict(b"x")
    assert 2 <= attempts < 10


def test_a_daemon_with_too_many_clients_is_asked_again(path: Path) -> None:
    def script(connection: Connection) -> None:
        if connection.number == 0:
            connection.refuse(None, Overloaded("256 clients are connected already", 0.1))
            return
        size(connection)

    with Peer(path, script) as peer, Client(str(path)) as client:
        assert client.predict(b"123").probabilities == (3,)
        assert peer.connections >= 2


# -- deadlines


def test_a_timeout_is_sent_and_kept(path: Path) -> None:
    asked: list[Asked] = []

    def script(connection: Connection) -> None:
        while True:
            asked.append(connection.asked())

    began = time.monotonic()
    with (
        Peer(path, script),
        Client(str(path), timeout=0.3) as client,
        pytest.raises(DeadlineExceeded, match=r"no answer within 0\.3 s"),
    ):
        client.predict(b"x")
    assert 0.3 <= time.monotonic() - began < 2
    assert 0.2 < asked[0].fields["timeout"] <= 0.3


def test_the_daemons_own_word_on_the_deadline_counts(path: Path) -> None:
    def script(connection: Connection) -> None:
        asked = connection.asked()
        time.sleep(asked.fields["timeout"])
        connection.refuse(asked.id, DeadlineExceeded("killed while decoding"))

    with (
        Peer(path, script),
        Client(str(path), timeout=0.2) as client,
        pytest.raises(DeadlineExceeded, match="killed while decoding"),
    ):
        client.predict(b"x")


def test_without_a_timeout_a_silent_daemon_may_be_loading(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "START_ALLOWANCE", 0.6)
    monkeypatch.setattr(jobs, "DEFAULT_TIMEOUT", 0.2)
    monkeypatch.setattr(jobs, "GRACE", 0.1)

    def script(connection: Connection) -> None:
        first = connection.asked()
        assert "timeout" not in first.fields
        if connection.number == 0:
            time.sleep(0.5)  # loading
        connection.answer(first, 1.0)
        connection.asked()
        connection.asked()

    with Peer(path, script), Client(str(path)) as client:
        assert client.predict(b"x").probabilities == (1,)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.predict(b"x")
        assert 0.25 < time.monotonic() - began < 0.55


def test_a_daemon_that_never_answers_is_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "START_ALLOWANCE", 0.3)
    monkeypatch.setattr(jobs, "DEFAULT_TIMEOUT", 0.1)
    monkeypatch.setattr(jobs, "GRACE", 0.1)

    def script(connection: Connection) -> None:
        connection.asked()  # and goes

    began = time.monotonic()
    with Peer(path, script) as peer, Client(str(path)) as client:
        with pytest.raises(DeadlineExceeded, match=r"asked [3-9] times"):
            client.predict(b"x")
        assert 3 <= peer.connections < 10
    assert 0.4 < time.monotonic() - began < 2


def test_what_came_while_the_caller_was_away_is_an_answer(path: Path, images: list[str]) -> None:
    with Peer(path, size), Client(str(path), timeout=0.3) as client:
        results = client.predict_many(images[:4])
        found = [next(results)]
        time.sleep(0.8)
        found += results
    assert sizes(iter(found)) == [0, 1, 2, 3]


def test_a_pipe_that_nobody_writes_to_ends_at_the_deadline(
    path: Path, tmp_path: Path, images: list[str]
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Peer(path, size), Client(str(path), timeout=0.4) as client:
        found = client.predict_many([images[1], str(fifo), images[2]])
        assert sizes(found) == [1, "DeadlineExceeded", 2]
        with pytest.raises(DeadlineExceeded, match=r"the pipe did not come to its end within 0\.4"):
            client.predict(str(fifo))


def test_a_pipe_is_read_as_it_is_written(path: Path, tmp_path: Path, images: list[str]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def write() -> None:
        with open(fifo, "wb", buffering=0) as stream:
            for _ in range(40):
                stream.write(bytes(10_000))
                time.sleep(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    with Peer(path, size), Client(str(path)) as client:
        found = sizes(client.predict_many([images[1], str(fifo), images[2]]))
    writer.join()
    assert found == [1, 400_000, 2]


# -- many


def test_thousands_of_inputs_take_a_window_of_everything(path: Path, images: list[str]) -> None:
    pulled = 0
    under_way = 0
    most = 0

    def busy(connection: Connection) -> None:
        while True:
            asked = connection.asked()
            assert asked.image is not None
            time.sleep(0.0003)
            connection.answer(asked, float(len(asked.image)))

    def inputs() -> Iterator[str]:
        nonlocal pulled
        for index in range(2000):
            pulled += 1
            yield images[index % 8]

    before = descriptors()
    with Peer(path, busy), Client(str(path)) as client:
        for index, (source, answer) in enumerate(client.predict_many(inputs())):
            assert source == images[index % 8]
            assert isinstance(answer, Prediction)
            assert answer.probabilities == (index % 8,)
            under_way = max(under_way, pulled - index)
            if index % 10 == 0:
                most = max(most, descriptors() - before)
    assert index == 1999
    assert Window.FIRST < under_way <= Window.LARGEST
    # The client's 32, the one in the peer's hands, and the sockets.
    assert Window.FIRST < most <= Window.LARGEST + 6


def test_the_window_follows_the_queue() -> None:
    window = Window(10.0)
    assert window.size == 4
    for _ in range(100):
        window.learn(0.1, 0)
    assert window.size == 32
    window.learn(2.0, 0)
    assert window.size == 32
    window.learn(3.0, 0)
    assert window.size == 16
    for _ in range(9):
        window.learn(0.0, 1)
    assert window.size == 2


def test_leaving_in_the_middle_closes_everything(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        connection.answer(connection.asked(), 1.0)
        while True:
            connection.asked()

    with Peer(path, script), Client(str(path)) as client:
        results = client.predict_many(images * 10)
        next(results)
        results.close()  # type: ignore[attr-defined]


def test_closing_in_the_middle_ends_what_is_under_way(path: Path, images: list[str]) -> None:
    def script(connection: Connection) -> None:
        first, *_ = [connection.asked() for _ in range(4)]
        connection.answer(first, 1.0)
        connection.asked()

    with Peer(path, script), Client(str(path)) as client:
        results = client.predict_many(images[:4])
        next(results)
        client.close()
        assert sizes(results) == ["NoDaemon"] * 3


def test_none_is_an_input_only_where_it_can_be_waited_for(path: Path) -> None:
    with Peer(path, size), Client(str(path)) as client, pytest.raises(TypeError):
        list(client.predict_many([None]))


def test_one_may_ask_while_many_are_under_way(path: Path, images: list[str]) -> None:
    with Peer(path, size), Client(str(path)) as client:
        found = []
        for _, answer in client.predict_many(images):
            assert isinstance(answer, Prediction)
            found.append(answer.probabilities[0])
            assert client.predict(b"x" * 99).probabilities == (99,)
    assert found == list(range(8))


def test_answers_come_out_while_the_next_name_is_awaited(path: Path, images: list[str]) -> None:
    reading, writing = os.pipe()
    with Peer(path, size), Client(str(path)) as client:
        names = Names(f"/dev/fd/{reading}")
        results = client.predict_many(names)
        for number in (3, 5, 7):
            # The next name is half there, and stays so until this answer is out.
            os.write(writing, images[number].encode() + b"\n" + images[0][:5].encode())
            source, answer = next(results)
            assert source == images[number]
            assert isinstance(answer, Prediction)
            assert answer.probabilities == (number,)
            os.write(writing, images[0][5:].encode() + b"\n")
            assert next(results)[0] == images[0]
        os.close(writing)
        assert list(results) == []
        names.close()
    os.close(reading)


# -- descriptors that get lost, and large frames


def lossy(connection: Connection) -> None:
    """Answer as the daemon does behind ssh(1)."""
    while True:
        asked = connection.asked()
        if asked.image is None:
            connection.refuse(
                asked.id, BadRequest("no image came with the request: neither … nor bytes")
            )
        else:
            assert not asked.by_descriptor
            connection.answer(asked, float(len(asked.image)))


def test_images_go_inline_where_descriptors_get_lost(path: Path, images: list[str]) -> None:
    with Peer(path, lossy, drop_descriptors=True) as peer, Client(str(path)) as client:
        assert sizes(client.predict_many(images * 3)) == list(range(8)) * 3
        assert client.predict(b"x" * 500).probabilities == (500,)
        assert client.predict(b"x" * (9 << 20)).probabilities == (9 << 20,)
        assert peer.connections == 1


def test_inline_images_have_a_limit(path: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with Peer(path, lossy, drop_descriptors=True), Client(str(path)) as client:
        for too_large in ((64 << 20) + 1, (64 << 20) - 10):  # the second with its frame around it
            with open(large, "wb") as file:
                file.truncate(too_large)
            with pytest.raises(TooLarge, match="without a descriptor"):
                client.predict(large)
        assert client.predict(b"12").probabilities == (2,)


def test_a_peer_that_writes_before_it_reads_is_no_deadlock(path: Path) -> None:
    def script(connection: Connection) -> None:
        asked = connection.asked()
        connection.refuse(asked.id, BadRequest("no image came with the request"))
        filler = Reply(10**9, {"filler": "x" * 100_000}).encode()
        while not connection.socket.recv(1, socket.MSG_PEEK):
            pass
        for _ in range(40):  # 4 MB: far more than the socket holds
            connection.send(filler)
        asked = connection.asked()
        assert asked.image is not None
        connection.answer(asked, float(len(asked.image)))

    with Peer(path, script, drop_descriptors=True), Client(str(path)) as client:
        assert client.predict(b"x" * (8 << 20)).probabilities == (8 << 20,)


def test_a_peer_that_does_not_read_costs_one_deadline(path: Path) -> None:
    done = threading.Event()

    def script(connection: Connection) -> None:
        if connection.number == 0:
            asked = connection.asked()
            connection.refuse(asked.id, BadRequest("no image came with the request"))
            done.wait(20)  # half of the frame stays in the client
        else:
            lossy(connection)

    with Peer(path, script, drop_descriptors=True) as peer:
        with Client(str(path), timeout=0.5) as client:
            with pytest.raises(DeadlineExceeded):
                client.predict(b"x" * (8 << 20))
            assert client.predict(b"x" * 10).probabilities == (10,)
            assert peer.connections == 2
        done.set()


# -- nobody there


def test_a_socket_that_is_not_there(path: Path, tmp_path: Path) -> None:
    with Client(str(path)) as client, pytest.raises(NoDaemon, match="No such file"):
        client.predict(b"x")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with Client(str(path)) as client, pytest.raises(NoDaemon, match="Connection refused"):
        list(client.predict_many([b"x", b"y"]))
    with Client(str(tmp_path / ("x" * 120))) as client, pytest.raises(NoDaemon, match="107 bytes"):
        client.predict(b"x")
    with Client("a\0b") as client, pytest.raises(NoDaemon, match="NUL"):
        client.predict(b"x")
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path.unlink()
    datagrams.bind(str(path))
    with Client(str(path)) as client, pytest.raises(NoDaemon, match="wrong type"):
        client.predict(b"x")
    datagrams.close()


def test_the_user_is_told_once_if_the_first_answer_takes_long(path: Path) -> None:
    told: list[str] = []

    def script(connection: Connection) -> None:
        asked = connection.asked()
        while not told:
            time.sleep(0.01)
        time.sleep(0.6)
        connection.answer(asked, 1.0)
        asked = connection.asked()
        time.sleep(0.7)
        connection.answer(asked, 1.0)

    with Peer(path, script), Client(str(path), notify=told.append) as client:
        client.predict(b"x")
        client.predict(b"x")
    assert len(told) == 1
    assert "may be loading" in told[0]


def test_a_quick_answer_tells_nothing(path: Path) -> None:
    with Peer(path, size), Client(str(path), notify=pytest.fail) as client:
        client.predict(b"x")
