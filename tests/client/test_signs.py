"""Signs of life: a client tells a daemon that loads from one that is stuck, and gives that up."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import StartDaemon
from daemonprocess import Peer as Wire
from daemonprocess import freeze
from peer import Connection, Peer

from swiprctl import Client, dialer
from swiprctl.address import Address
from swiprctl.errors import BadRequest, DeadlineExceeded, NoDaemon
from swiprctl.protocol import Decoder, Reply, encode
from swiprd.front.connection import Connection as ServerConnection

pytestmark = pytest.mark.timeout(120)

LOADING = Reply(None, {"alive": {"state": "loading", "reason": "", "pid": 7}})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little patience with a daemon of which nothing is heard."""
    monkeypatch.setattr(dialer, "SLOW_START", 0.1)
    monkeypatch.setattr(dialer, "SILENT", 0.3)
    monkeypatch.setattr(dialer, "QUESTION_PATIENCE", 0.8)
    monkeypatch.setattr(dialer, "IMAGE_PATIENCE", 1.0)


ASK: dict[str, Callable[[Client], object]] = {
    "predict": lambda client: client.predict(b"x"),
    "predict_many": lambda client: _raised(client.predict_many([b"x", b"y"])),
    "status": Client.status,
    "model": Client.model,
    "ping": Client.ping,
    "reload": Client.reload,
}


def _raised(answers: Iterator[tuple[object, object]]) -> None:
    first, second = (answer for _, answer in answers)
    assert isinstance(first, NoDaemon)
    assert isinstance(second, NoDaemon)
    raise first


# -- the client


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_one_of_which_nothing_is_heard_is_given_up(
    tmp_path: Path, ask: Callable[[Client], object]
) -> None:
    def silent(connection: Connection) -> None:
        while True:
            assert connection.asked().fields["alive"] is True

    told: list[str] = []
    path = f"{tmp_path}/s"
    with (
        Peer(tmp_path / "s", silent),
        Client(path, notify=told.append) as client,
        pytest.raises(NoDaemon, match=rf"nothing .* {path} for [01](\.\d+)? s"),
    ):
        ask(client)
    assert "waiting for the daemon" in told[0]
    assert told[1:] == [
        f"nothing has been heard of the daemon on {path} for 0.3 s: it is being started, or it is"
        " stopped or stuck"
    ]


@pytest.mark.usefixtures("quick")
def test_nobody_accepts(tmp_path: Path) -> None:
    """A listener's queue takes connections for a process that does nothing; it may be full, too."""
    path = str(tmp_path / "s")
    for backlog in (10, 0):
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
            listener.bind(path)
            listener.listen(backlog)
            if not backlog:
                other.connect(path)
            with Client(path) as client:
                with pytest.raises(NoDaemon, match="nothing has been heard"):
                    client.status()
                with pytest.raises(NoDaemon, match="nothing has been heard"):
                    client.predict(b"x")
        Path(path).unlink()


@pytest.mark.usefixtures("quick")
def test_one_that_shows_life_is_waited_for(tmp_path: Path) -> None:
    told: list[str] = []

    def loading(connection: Connection) -> None:
        asked = connection.asked()
        until = time.monotonic() + 2 * dialer.IMAGE_PATIENCE
        while time.monotonic() < until:
            connection.send(LOADING.encode())
            select.select([connection.socket], [], [], 0.05)
        connection.answer(asked, 1.0)

    path = f"{tmp_path}/s"
    with Peer(tmp_path / "s", loading), Client(path, notify=told.append) as client:
        assert client.predict(b"x").probabilities == (1.0,)
    assert told == [
        f"the daemon on {path} is loading its model; the first answer takes a few seconds"
    ]


@pytest.mark.usefixtures("quick")
def test_the_users_own_timeout_counts_and_the_silence_is_told(tmp_path: Path) -> None:
    def silent(connection: Connection) -> None:
        while True:
            connection.asked()

    with (
        Peer(tmp_path / "s", silent),
        Client(f"{tmp_path}/s", timeout=2) as client,
        pytest.raises(DeadlineExceeded, match=r"no answer within 2 s; nothing has been heard"),
    ):
        client.predict(b"x")


@pytest.mark.usefixtures("quick")
def test_who_does_not_wait_for_the_daemon_does_not_mind_its_silence(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def script(connection: Connection) -> None:
        asked = connection.asked()
        connection.answer(asked, 1.0)
        asked = connection.asked()
        connection.answer(asked, 2.0)

    def later() -> None:
        time.sleep(1.5 * dialer.IMAGE_PATIENCE)  # somebody's slow program
        os.close(writing)

    writer = threading.Thread(target=later)
    with Peer(tmp_path / "s", script), Client(f"{tmp_path}/s") as client:
        writer.start()
        assert client.predict(reading).probabilities == (1.0,)
        time.sleep(1.5 * dialer.IMAGE_PATIENCE)
        assert client.predict(b"x").probabilities == (2.0,)
    writer.join()
    os.close(reading)


def test_a_sign_that_makes_no_sense(tmp_path: Path) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.asked()
            connection.send(encode({"id": None, "ok": True}))

    with (
        Peer(tmp_path / "s", script),
        Client(f"{tmp_path}/s") as client,
        pytest.raises(BadRequest, match="no id"),
    ):
        client.status()

    def odd(connection: Connection) -> None:
        asked = connection.asked()
        for sign in (None, 7, {}, {"state": ["x"], "pid": "y"}):
            connection.send(encode({"id": None, "ok": True, "alive": sign}))
        connection.answer(asked, 1.0)

    with Peer(tmp_path / "s", odd), Client(f"{tmp_path}/s") as client:
        assert client.predict(b"x").probabilities == (1.0,)


def test_what_helps_is_said(tmp_path: Path) -> None:
    from swiprctl.stuck import advice

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        pid = f"pid {os.getpid()}"
        text = advice(Address(str(tmp_path / "s.sock"), "explicit"))
        assert pid in text
        text = advice(Address(str(tmp_path / "s.sock"), "private"))
        assert pid in text
        assert f"{tmp_path}/s.log" in text
        assert f"kill -KILL {os.getpid()}" in text
    text = advice(Address("/run/swipr/birds.sock", "system", "swiprd@birds"))
    assert "systemctl status swiprd@birds.service" in text
    assert "systemctl restart swiprd@birds.service" in text
    assert "pid" not in advice(Address(str(tmp_path / "gone"), "explicit"))


# -- the daemon


def ask(peer: Wire, **fields: object) -> None:
    peer.socket.sendall(encode({"id": 1, **fields}))


def test_one_that_loads_says_so_to_whoever_asks_for_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon().wait_listening()
    with daemon.connect() as asks, daemon.connect() as older:
        ask(asks, op="ping", alive=True)
        ask(older, op="ping")
        sign = asks.receive()
        assert (sign.id, sign.error) == (None, None)
        alive = sign.fields["alive"]
        assert isinstance(alive, dict)
        assert (alive["state"], alive["pid"]) == ("loading", daemon.pid)
        replies = [asks.receive()]
        while replies[-1].id is None:
            replies.append(asks.receive())
        assert replies[-1].error is None
        assert older.receive().id == 1, "nothing else comes to who has not asked for it"


def test_a_stopped_one_is_told_from_one_that_loads(
    start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch, photos: list[bytes]
) -> None:
    monkeypatch.setattr(dialer, "QUESTION_PATIENCE", 3.0)
    monkeypatch.setattr(dialer, "IMAGE_PATIENCE", 3.0)
    told: list[str] = []
    with Client(str(start_daemon().wait_listening().path), notify=told.append) as client:
        client.predict(photos[0])
    assert "stuck" not in "".join(told)
    daemon = start_daemon().wait_ready()
    with Client(str(daemon.path), notify=told.append) as client:
        client.predict(photos[0])
        freeze(daemon.pid)
        try:
            for question in (client.status, lambda: client.predict(photos[0])):
                del told[:]
                with pytest.raises(NoDaemon) as error:
                    question()
                assert re.search(r"stopped or stuck", told[-1])
                assert f"pid {daemon.pid}, which is stopped" in str(error.value)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        assert client.predict(photos[0]).probabilities
        assert client.status()["state"] == "ready"


def test_a_sign_that_is_not_read_is_not_followed_by_another() -> None:
    """Else a client that is away for long, its caller busy, would be one that does not read."""

    class Host:
        intakes = SimpleNamespace(close_socket=lambda _uid, sock: sock.close())

        def __getattr__(self, name: str) -> object:
            return lambda *_: None

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        connection = ServerConnection(Host(), ours, 0)  # type: ignore[arg-type]
        described: list[int] = []

        def state() -> dict[str, object]:
            described.append(1)
            return {"state": "loading"}

        connection.send_heartbeat(0.0, state)
        connection.in_flight.add(1)
        connection.send_heartbeat(0.0, state)
        assert not described, "nobody asked for it"
        connection.wants_heartbeats = True
        for now in (0.0, 0.5, 2.0, 4.0):
            connection.send_heartbeat(now, state)
        assert len(described) == 1
        decoder = Decoder()
        decoder.feed(theirs.recv(1000))
        (frame,) = decoder.frames()
        assert frame.fields["alive"] == {"state": "loading", "pid": os.getpid()}
        connection.send_heartbeat(4.5, state)
        assert len(described) == 2
        theirs.recv(1000)
        connection.send_heartbeat(4.75, state)
        assert len(described) == 2, "once a second is enough"
        connection.in_flight.clear()
        connection.send_heartbeat(9.0, state)
        assert len(described) == 2
        connection.channel.close()
        connection.send_heartbeat(19.0, state)
        theirs.close()

    asyncio.run(scene())
