"""Files of filesystems whose closes come late or never, on root's mount and on a user's own.

The daemon has a uid of its own. What is asserted are rows, their order and that everybody goes on;
never how long anything takes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fuseserver
import pytest
from daemonprocess import PATIENCE, Peer, as_uid, wait_until
from modelfolders import make_folder
from person import Person, Say
from unprivileged import Unprivileged
from vitals import NAMED_DEFECTS, Vitals, send_rights, until_closed

from swiprctl.client import Client
from swiprctl.errors import BadRequest, SwiprError
from swiprctl.protocol import MAX_TIMEOUT

NOBODY, OTHER = 65534, 65533
MANY = 12
AT_ONCE = 24
LATE = 1.5  # seconds: more than the daemon waits for a close before it goes on without

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not fuseserver.possible(), reason="takes root and /dev/fuse"),
]

OWNERS = [
    pytest.param(0, id="root's"),
    pytest.param(
        NOBODY,
        id="a-user's",
        marks=pytest.mark.skipif(
            not fuseserver.possible_for_users(),
            reason="takes fusermount3 (package fuse3) and a /dev/fuse that users may open",
        ),
    ),
]


@pytest.fixture
def place(photos: list[bytes]) -> Iterator[Path]:
    """A folder that every uid can reach; pytest's are 0700."""
    with tempfile.TemporaryDirectory(prefix="swipr") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "photo.jpg").write_bytes(photos[0])
        yield folder


@pytest.fixture
def served(place: Path) -> Iterator[Unprivileged]:
    """A daemon of its own uid, and unharmed afterwards where it still runs."""
    model = make_folder(place / "model")
    daemon = Unprivileged(place / "d", "--workers=2", "--threads=1", "--batch=1", model=model)
    try:
        yield daemon.wait_ready()
        assert not any(defect in daemon.log.read_text() for defect in NAMED_DEFECTS)
    finally:
        daemon.end()


@pytest.fixture(params=OWNERS)
def slow(request: pytest.FixtureRequest, place: Path) -> Iterator[Path]:
    """The folder of such a filesystem, of root's and of the user nobody's."""
    with fuseserver.mounted(
        place / "fuse", place / "photo.jpg", uid=request.param, late=LATE
    ) as folder:
        yield folder


def rows_of_others(daemon: Unprivileged, photo: bytes, count: int = 5) -> None:
    """Another uid asks one after the other, and gets each row."""

    def ask() -> str:
        with Peer(daemon.path) as peer:
            errors = [peer.ask(image=photo).error for _ in range(count)]
            return repr([error for error in errors if error is not None])

    assert as_uid(OTHER, ask) == "[]"


@contextlib.contextmanager
def nobody(slow: Path, act: Callable[[Say], None]) -> Iterator[Person]:
    """The user nobody does something meanwhile; freed and gone after the block."""
    person = Person(NOBODY, act)
    try:
        yield person
    finally:
        fuseserver.release(slow)
        person.end()


@pytest.mark.parametrize("name", ["good", "direct-good"])
def test_a_user_has_rows_of_pictures_on_such_a_filesystem(
    served: Unprivileged, slow: Path, place: Path, name: str
) -> None:
    def ask() -> str:
        with Client(str(served.path)) as client:
            rows = [
                client.predict(file).probabilities for file in (place / "photo.jpg", slow / name)
            ]
        return repr(rows[0] == pytest.approx(rows[1], abs=1e-6))

    assert as_uid(NOBODY, ask) == "True"


def test_a_user_whose_closes_are_late_has_every_row_in_order(
    served: Unprivileged, slow: Path, photos: list[bytes]
) -> None:
    def ask(say: Say) -> None:
        with Client(str(served.path), timeout=PATIENCE) as client:
            files = [slow / name for name in ("late-flush", "good", "late-release") * 2]
            for file, (path, answer) in zip(files, client.predict_many(files), strict=True):
                assert path == file
                say(str(answer) if isinstance(answer, SwiprError) else "row")

    with nobody(slow, ask) as asker:
        rows_of_others(served, photos[0])
        assert asker.wait_over(), asker.raised
        assert asker.said == ["row"] * 6
    rows_of_others(served, photos[0])


@pytest.mark.parametrize("name", ["flush", "late-flush", "release"])
def test_the_front_goes_on_while_many_closes_wait(
    served: Unprivileged, slow: Path, photos: list[bytes], name: str
) -> None:
    def send(say: Say) -> None:
        file = os.open(slow / name, os.O_RDONLY)
        for _ in range(MANY):
            with Peer(served.path) as peer:  # refused, and closed
                peer.send(1, "status", descriptor=file)
                until_closed(peer)
            with Peer(served.path) as peer:  # closed when the client leaves
                send_rights(peer.socket, b"\0\0", [file])
        with Peer(served.path) as peer:
            for identity in range(AT_ONCE):
                peer.send(identity, descriptor=file, timeout=1.0)
            for _ in range(AT_ONCE):
                peer.receive()
        say("sent")

    vitals = Vitals(served, photos[0])
    with nobody(slow, send) as sender:
        rows_of_others(served, photos[0])
        assert sender.wait_said(1), sender.raised
        rows_of_others(served, photos[0])
    rows_of_others(served, photos[0])
    vitals.check()


@pytest.mark.parametrize("name", ["flush", "late-flush"])
def test_it_leaves_at_sigterm_and_its_clients_know(
    served: Unprivileged, slow: Path, photos: list[bytes], name: str
) -> None:
    def send(say: Say) -> None:
        file = os.open(slow / name, os.O_RDONLY)
        with Peer(served.path) as peer:
            send_rights(peer.socket, b"\0\0", [file])
        say("sent")
        with Peer(served.path) as peer:
            peer.send(1, descriptor=file, timeout=1.0)
            say("in flight")
            said = until_closed(peer)
            say([reply.id for reply in said])

    with nobody(slow, send) as sender, served.connect() as other:
        assert other.ask(image=photos[0]).error is None
        assert sender.wait_said(2), sender.raised
        rows_of_others(served, photos[0])
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 0
        assert until_closed(other) == []
        with socket.socket(socket.AF_UNIX) as late:
            assert late.connect_ex(str(served.path)) in (errno.ENOENT, errno.ECONNREFUSED)
        assert sender.wait_said(3), sender.raised


def test_workers_that_hang_with_files_of_one_uid_are_not_waited_for_by_another(
    served: Unprivileged, slow: Path, photos: list[bytes]
) -> None:
    """The first uid names an hour: no deadline of its own has to pass before others have rows."""

    def send(say: Say) -> None:
        file = os.open(slow / "read", os.O_RDONLY)
        with Peer(served.path) as peer:
            for identity in range(AT_ONCE):
                peer.send(identity, descriptor=file, timeout=MAX_TIMEOUT)
            say("sent")
            for _ in range(AT_ONCE):
                error = peer.receive().error
                say("row" if error is None else error.code)

    with nobody(slow, send) as sender:
        assert sender.wait_said(1), sender.raised
        rows_of_others(served, photos[0], count=AT_ONCE)
        fuseserver.answer(slow, "read")
        assert sender.wait_over(), sender.raised
        assert len(sender.said) == 1 + AT_ONCE


def test_a_user_whose_file_hangs_has_rows_of_others(
    served: Unprivileged, slow: Path, place: Path, photos: list[bytes]
) -> None:
    def hang(say: Say) -> None:
        file = os.open(slow / "flush", os.O_RDONLY)
        with Peer(served.path) as peer:
            peer.send(1, "status", descriptor=file)
            say(str(isinstance(until_closed(peer)[-1].error, BadRequest)))

    def ask() -> str:
        with Client(str(served.path)) as client:
            return str(len(client.predict(place / "photo.jpg").probabilities))

    with nobody(slow, hang) as hanging:
        assert hanging.wait_said(1), hanging.raised
        assert hanging.said == ["True"]
        assert int(as_uid(NOBODY, ask)) > 1
        rows_of_others(served, photos[0])
    wait_until(lambda: served.status()["connections"] == 1, "everybody has left")
