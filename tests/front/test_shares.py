"""Shares of the queue when many uids ask: whose subordinate ones they are, and who is kept a place.

Real uids, on real sockets: a connection has the effective uid of whoever made it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess, Peer, open_to_all
from fronts import as_root, connected
from vitals import held

from swiprctl.errors import Overloaded

pytestmark = [pytest.mark.timeout(120), as_root]

QUEUE = 32
KEPT = 2
OWNER, OTHER = 54_321, 54_322
FIRST = 7_000_000

_SITE = """
import pathlib
import swiprd.front.owners
swiprd.front.owners.SUBUID = pathlib.Path({subuid!r})
"""


@pytest.fixture
def subuid(tmp_path: Path) -> Path:
    """What the daemon reads in place of /etc/subuid."""
    file = tmp_path / "subuid"
    file.write_text("")
    return file


@pytest.fixture
def daemon(start_daemon: StartDaemon, tmp_path: Path, subuid: Path) -> DaemonProcess:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_SITE.format(subuid=str(subuid)))
    daemon = start_daemon(
        f"--queue={QUEUE}", environment={"PYTHONPATH": str(tmp_path / "site")}
    ).wait_ready()
    daemon.path.chmod(0o666)
    return daemon


@pytest.fixture
def fill(daemon: DaemonProcess, photos: list[bytes]) -> Iterator[list[Peer]]:
    """A uid after the other asks, until there are so many that the queue could not hold them."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(open_to_all(daemon.path))
        stack.enter_context(held(daemon))
        peers = [stack.enter_context(connected(path, FIRST + n)) for n in range(QUEUE + 8)]
        for peer in peers:
            peer.send(1, image=photos[0])
        yield peers


def test_some_places_are_kept_for_root(
    daemon: DaemonProcess, fill: list[Peer], photos: list[bytes]
) -> None:
    with daemon.connect() as root:
        status = daemon.wait_status(lambda s: s["requests"]["refused"] == 8 + KEPT)
        assert status["queue"]["total"] == QUEUE - KEPT
        for number in range(KEPT):
            root.send(number, image=photos[0])
        daemon.wait_status(lambda s: s["queue"]["total"] == QUEUE)
        assert all(isinstance(peer.receive().error, Overloaded) for peer in fill[QUEUE - KEPT :])


def test_subordinate_uids_have_their_owners_share(
    daemon: DaemonProcess, subuid: Path, photos: list[bytes]
) -> None:
    subuid.write_text(f"nonsense\n{OWNER}:{FIRST}:65536\n")
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(open_to_all(daemon.path))
        # The file has been read when one of its uids is known as its owner's.
        while True:
            with connected(path, FIRST) as peer:
                assert peer.ask(image=photos[0]).error is None
            if str(OWNER) in daemon.status()["requests"]["by_uid"]:
                break
        stack.enter_context(held(daemon))
        peers = [stack.enter_context(connected(path, FIRST + n)) for n in range(QUEUE)]
        for peer in peers:
            peer.send(1, image=photos[0])
        daemon.wait_status(lambda s: s["queue"]["by_uid"] == {str(OWNER): QUEUE - KEPT})
        other = stack.enter_context(connected(path, OTHER))
        other.send(1, image=photos[0])
        daemon.wait_status(
            lambda s: s["queue"]["by_uid"] == {str(OWNER): QUEUE - KEPT - 1, str(OTHER): 1}
        )
