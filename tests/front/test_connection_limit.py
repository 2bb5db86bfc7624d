"""Places for connections, when a uid keeps all of its own busy: who makes room for whom.

Real uids, on real sockets: a connection has the effective uid of whoever made it.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess, Peer, open_to_all, wait_until
from fronts import as_root, connected, unread
from vitals import farewell, held

from swiprctl.errors import Overloaded
from swiprctl.protocol import Request

pytestmark = [pytest.mark.timeout(120), as_root]

PLACES = 32
KEPT = 2
GREEDY, MODEST = 54_321, 54_322
FIRST = 7_000_000


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> DaemonProcess:
    daemon = start_daemon(f"--connections={PLACES}", "--queue=64").wait_ready()
    daemon.path.chmod(0o666)
    return daemon


@pytest.fixture
def stack(daemon: DaemonProcess) -> Iterator[contextlib.ExitStack]:
    """The daemon's workers are held: an image that is sent is in flight from then on."""
    with contextlib.ExitStack() as stack, held(daemon):
        yield stack


@pytest.fixture
def path(daemon: DaemonProcess) -> Iterator[Path]:
    with open_to_all(daemon.path) as path:
        yield path


def busy(stack: contextlib.ExitStack, path: Path, uid: int, photo: bytes) -> Peer:
    peer = stack.enter_context(connected(path, uid))
    peer.send(2, image=photo)
    assert peer.ask("status").id == 1  # so the image has been read
    return peer


def test_a_newcomer_below_its_share_takes_the_place_of_a_busy_one(
    stack: contextlib.ExitStack, path: Path, photos: list[bytes]
) -> None:
    theirs = [busy(stack, path, GREEDY, photos[0]) for _ in range(PLACES - KEPT)]
    for peer in theirs[:2]:  # served later than the third
        assert peer.ask("status").id == 1
    newcomer = busy(stack, path, MODEST, photos[0])
    assert newcomer.ask("status").fields["connections"] == PLACES - KEPT
    error = farewell(theirs[2])
    assert isinstance(error, Overloaded)
    assert error.retry_after
    for _ in range((PLACES - KEPT) // 2 - 1):
        busy(stack, path, MODEST, photos[0])
    last = stack.enter_context(connected(path, MODEST))
    assert isinstance(farewell(last), Overloaded), "both have the same by now"
    assert theirs[0].ask("status").id == 1


def test_a_newcomer_takes_the_place_of_one_that_does_not_read(
    stack: contextlib.ExitStack, path: Path
) -> None:
    flood = b"".join(Request(number, "status").encode() for number in range(300))
    theirs = [stack.enter_context(connected(path, GREEDY)).socket for _ in range(PLACES)]
    for sock in theirs:
        sock.setblocking(False)
    while writable := select.select([], theirs, [], 0.5)[1]:
        for sock in writable:
            try:
                sock.send(flood)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                theirs.remove(sock)  # of those that are kept for root
    assert len(theirs) >= PLACES - KEPT
    newcomer = stack.enter_context(connected(path, MODEST))
    assert newcomer.ask("status").error is None


def test_a_uid_with_its_share_is_refused_and_drives_nobody_out(
    stack: contextlib.ExitStack, path: Path, photos: list[bytes]
) -> None:
    for _ in range(PLACES - KEPT - 1):
        busy(stack, path, GREEDY, photos[0])
    modest = stack.enter_context(connected(path, MODEST))
    assert modest.ask("status").error is None
    assert isinstance(farewell(stack.enter_context(connected(path, GREEDY))), Overloaded)
    modest.socket.sendall(Request(1, "status").encode()[:9])  # it looks idle, and is not
    wait_until(lambda: unread(modest.socket) == 0, "the half is read")
    assert isinstance(farewell(stack.enter_context(connected(path, GREEDY))), Overloaded)
    modest.socket.sendall(Request(1, "status").encode()[9:])
    assert modest.receive().error is None


def test_some_places_are_kept_for_root(
    daemon: DaemonProcess, stack: contextlib.ExitStack, path: Path, photos: list[bytes]
) -> None:
    for number in range(PLACES - KEPT):
        busy(stack, path, FIRST + number, photos[0])
    last = stack.enter_context(connected(path, FIRST + PLACES))
    assert isinstance(farewell(last), Overloaded)
    roots = [stack.enter_context(daemon.connect()) for _ in range(KEPT)]
    for root in roots:
        assert root.ask("status").error is None
    assert roots[0].ask("status").fields["connections"] == PLACES
