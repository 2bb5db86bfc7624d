"""Questions that have to wait, by the thousand: what they hold is bounded."""

from __future__ import annotations

import json
import threading

import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess, Peer, as_uid, open_to_all
from fronts import NOBODY, as_root
from vitals import Vitals, frame, held, resident

from swiprctl.errors import Overloaded

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
WAITING = 16  # as swiprd/front/server.py has it


def test_pings_that_wait_are_bounded_for_each_connection(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    count = 60_000  # without a bound they took 160 MiB
    requests = b"".join(frame(id=identity, op="ping") for identity in range(count))
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    before = resident(daemon.pid)
    with daemon.connect() as peer, daemon.connect() as other:
        with held(daemon):
            writer = threading.Thread(target=peer.socket.sendall, args=[requests])
            writer.start()
            refused = [peer.receive() for _ in range(count - WAITING)]
            writer.join()
            assert resident(daemon.pid) - before < 16 * MIB
            assert all(isinstance(reply.error, Overloaded) for reply in refused)
            other.send(1, "ping")
            other.send(2, "status")
            assert other.receive().id == 2, "another connection's ping is taken, and waits"
        assert all(peer.receive().error is None for _ in range(WAITING))
        assert other.receive().id == 1
    vitals.check()


@as_root
def test_where_things_are_is_told_to_root_and_the_daemons_user_only(daemon: DaemonProcess) -> None:
    def ask() -> str:
        with Peer(path) as peer:
            return json.dumps(dict(peer.ask(op="status").fields))

    with open_to_all(daemon.path) as path:
        daemon.path.chmod(0o666)
        own, others = json.loads(ask()), json.loads(as_uid(NOBODY, ask))
    assert own.keys() - others.keys() == {"folder", "log"}
    assert own["folder"].startswith("/")
    assert others["state"] == "ready"
