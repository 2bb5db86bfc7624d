"""`swiprctl stop`: a daemon of one's own answers what it has accepted, and is gone."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import PATIENCE, DaemonProcess, Peer, as_uid, freeze, is_alive, open_to_all
from fronts import NOBODY, as_root
from peer import Connection
from peer import Peer as StandIn
from surroundings import Surroundings
from vitals import held

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return Surroundings(tmp_path)


def test_it_answers_what_it_has_and_is_gone(
    around: Surroundings, start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    family = daemon.family()
    stop = around.command("stop", "--socket", str(daemon.path))
    with daemon.connect() as peer:
        with held(daemon):
            peer.send(7, image=photos[0])
            daemon.wait_status(lambda s: s["queue"]["total"] == 1)
            with subprocess.Popen(stop, stdout=subprocess.PIPE, text=True) as process:
                daemon.wait_told("STOPPING=1")
                assert process.poll() is None, "it waits until the daemon is gone"
                for pid in family[1:]:
                    os.kill(pid, signal.SIGCONT)
                assert peer.receive().fields["probabilities"]
                assert process.stdout is not None
                told = process.stdout.read()
        assert process.returncode == 0
    assert told == f"stopped the daemon on {daemon.path} (pid {daemon.pid})\n"
    assert daemon.process.wait(PATIENCE) == 0
    assert not any(map(is_alive, family[1:]))
    assert not daemon.path.exists()
    again = around.swiprctl("stop", "--socket", str(daemon.path))
    assert (again.stdout, again.returncode) == ("", 69)
    assert again.stderr == f"swiprctl: nothing to stop: no daemon listens on {daemon.path}\n"


def private(around: Surroundings, model: Path, picture: Path) -> str:
    """Have a daemon of the user's own started for a model; give its socket."""
    before = set(around.listed())
    done = around.swiprctl("predict", "--model", str(model), str(picture))
    assert done.returncode == 0, done.stderr
    (path,) = set(around.listed()) - before
    return path


def test_all_of_ones_own_and_no_others(
    around: Surroundings, start_daemon: StartDaemon, tiny_model: Path, photos: list[bytes]
) -> None:
    def other(connection: Connection) -> None:
        connection.asked()

    picture = around.runtime / "a.jpg"
    picture.write_bytes(photos[0])
    around.system.mkdir()
    own = private(around, tiny_model, picture)
    named = start_daemon().wait_ready()
    with StandIn(around.private / "mute.sock", other):
        done = around.swiprctl("stop", "--all", "--timeout=5", SWIPR_SOCKET=str(named.path))
    assert done.returncode == 1
    assert sorted(line.split()[4] for line in done.stdout.splitlines()) == sorted(
        [own, str(named.path)]
    )
    assert done.stderr.startswith(f"swiprctl: {around.private}/mute.sock: ")
    assert named.process.wait(PATIENCE) == 0
    assert list(around.private.iterdir()) == [], "its socket and its log have gone with it"
    done = around.swiprctl("stop", "--all")
    assert (done.stdout, done.stderr, done.returncode) == ("no daemon of your own runs\n", "", 0)


def test_one_that_hangs_is_told_with_what_ends_it(
    around: Surroundings, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon().wait_ready()
    freeze(daemon.pid)
    try:
        done = around.swiprctl("stop", "--timeout=0.3", "--socket", str(daemon.path))
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert (done.stdout, done.returncode) == ("", 69)
    assert f"pid {daemon.pid}, which is stopped" in done.stderr


def test_one_that_takes_too_long_is_told_with_what_ends_it(
    around: Surroundings, start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    with daemon.connect() as peer, held(daemon):
        peer.send(1, image=photos[0])
        daemon.wait_status(lambda s: s["queue"]["total"] == 1)
        done = around.swiprctl("stop", "--timeout=0.3", "--socket", str(daemon.path))
    assert (done.stdout, done.returncode) == ("", 124)
    assert done.stderr.endswith(f"'kill -KILL {daemon.pid}' ends it\n")


@as_root
def test_another_uid_may_not(start_daemon: StartDaemon) -> None:
    daemon = start_daemon().wait_ready()
    daemon.path.chmod(0o666)
    with open_to_all(daemon.path) as path:

        def ask() -> str:
            with Peer(path) as peer:
                error = peer.ask("stop").error
                assert error is not None
                return f"{error.code} {peer.ask('status').fields['state']}"

        assert as_uid(NOBODY, ask) == "forbidden ready"


def test_options_that_contradict_each_other(around: Surroundings) -> None:
    for words in (("--all", "--socket=/s"), ("--model=a", "--all")):
        done = around.swiprctl("stop", *words)
        assert done.returncode == 64
        assert "--all stops every daemon of your own" in done.stderr


def test_the_status_tells_where_things_are(daemon: DaemonProcess, tiny_model: Path) -> None:
    status = daemon.status()
    assert status["folder"] == str(tiny_model)
    assert status["log"] == str(daemon.log)
    processes = [int(line) for pid in daemon.family() for line in [_resident(pid)]]
    assert max(processes) < status["memory"] < sum(processes)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
