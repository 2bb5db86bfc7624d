"""`swiprctl list`: every daemon there is, whatever state it is in, and none started by looking."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import freeze, is_alive, wait_until
from peer import Connection, Peer
from surroundings import Surroundings

from swiprctl.listing import Entry, table

pytestmark = pytest.mark.timeout(60)

FIELDS = {
    *("socket", "kind", "unit", "state", "reason", "model", "folder", "pid", "uptime", "memory"),
    "log",
}


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return Surroundings(tmp_path)


def well(connection: Connection) -> None:
    """A daemon that is well, of an earlier version: it does not tell its folder, memory or log."""
    while True:
        asked = connection.asked()
        assert asked.op == "status"
        connection.reply(asked.id, state="ready", model="peer@1", uptime=7500.0, pid=12)


def test_a_daemon_of_ones_own(
    around: Surroundings, tiny_model: Path, photos: list[bytes], tmp_path: Path
) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(photos[0])
    assert around.listed() == {}
    assert around.swiprctl("predict", "--model", str(tiny_model), str(picture)).returncode == 0
    ((path, entry),) = around.listed().items()
    try:
        assert set(entry) == FIELDS
        assert Path(path).parent == around.private
        assert (entry["kind"], entry["state"], entry["unit"]) == ("private", "ready", None)
        assert entry["model"].startswith("tiny@")
        assert entry["folder"] == str(tiny_model)
        assert entry["log"] == path.removesuffix(".sock") + ".log"
        assert Path(entry["log"]).is_file()
        assert entry["memory"] > 10_000_000
        assert entry["uptime"] > 0
        assert is_alive(entry["pid"])
        shown = around.swiprctl("list").stdout.splitlines()
        assert shown[0].split() == ["model", "state", "uptime", "memory", "pid"]
        assert shown[1].split()[:2] == [entry["model"], "ready"]
        assert shown[2:] == [
            f"  socket  {path}",
            f"  folder  {tiny_model}",
            f"  log     {entry['log']}",
        ]
    finally:
        os.kill(entry["pid"], signal.SIGTERM)
        wait_until(lambda: not is_alive(entry["pid"]), "the daemon is gone")


def test_one_that_hangs_does_not_hang_the_list(
    around: Surroundings, start_daemon: StartDaemon
) -> None:
    hung = start_daemon().wait_ready()
    with Peer(around.make_private() / "default.sock", well) as peer:
        freeze(hung.pid)
        listed = around.listed("--timeout=0.5", SWIPR_SOCKET=str(hung.path))
        os.kill(hung.pid, signal.SIGCONT)
    assert list(listed) == [peer.path, str(hung.path)]
    assert listed[peer.path]["model"] == "peer@1"
    assert listed[peer.path]["folder"] is listed[peer.path]["memory"] is None
    entry = listed[str(hung.path)]
    assert (entry["kind"], entry["state"], entry["model"]) == ("explicit", "silent", None)
    assert f"pid {hung.pid}, which is stopped" in entry["reason"]


def test_one_that_is_gone_or_is_no_daemon(around: Surroundings, tmp_path: Path) -> None:
    def strange(connection: Connection) -> None:
        connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.asked()

    private = around.make_private()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(private / "gone.sock"))
    (private / "other.log").touch()
    with Peer(tmp_path / "s", strange) as peer:
        listed = around.listed(SWIPR_SOCKET=peer.path)
        assert around.swiprctl("list", SWIPR_SOCKET=peer.path).returncode == 0
    assert list(listed) == [str(private / "gone.sock"), peer.path]
    assert [entry["state"] for entry in listed.values()] == ["stale", "unusable"]
    assert listed[str(private / "gone.sock")]["reason"] == "nobody listens: its daemon is gone"


def test_the_systems_come_first_and_each_once(around: Surroundings) -> None:
    around.system.mkdir()
    with (
        Peer(around.system / "birds.sock", well) as birds,
        Peer(around.system / "default.sock", well) as default,
        Peer(around.make_private() / "default.sock", well) as own,
    ):
        listed = around.listed(SWIPR_SOCKET=str(around.system / ".." / "system" / "birds.sock"))
    assert list(listed) == [default.path, birds.path, own.path]
    assert [one["kind"] for one in listed.values()] == ["system", "system", "private"]


def test_a_folder_that_others_can_write_to_is_not_looked_into(around: Surroundings) -> None:
    around.make_private()
    with Peer(around.private / "default.sock", well):
        around.private.chmod(0o755)
        assert around.listed() == {}
    done = around.swiprctl("list")
    assert (done.stdout, done.returncode) == ("", 0)
    assert "'swiprctl predict' starts one" in done.stderr


def test_what_a_daemon_says_does_nothing_to_a_terminal(around: Surroundings) -> None:
    def rude(connection: Connection) -> None:
        asked = connection.asked()
        connection.reply(
            asked.id, state="ready\x1b[2J", model=17, uptime="long", pid=True, folder="/a\nb"
        )

    with Peer(around.make_private() / "default.sock", rude):
        done = around.swiprctl("list")
    assert "\x1b" not in done.stdout
    assert "ready\\x1b[2J" in done.stdout
    assert "  folder  /a\\nb\n" in done.stdout


ENTRY: Entry = {
    "socket": "/run/user/1000/swipr/0123456789abcdef.sock",
    "folder": "/home/somebody/with a long name/" + "and many folders/" * 9 + "pets",
    "model": "a-name-of-a-model-that-has-sixty-four-characters-as-long-as-can-be@0123456789ab",
    "state": "loading-failed",
    "reason": "weights.pth: " + "a word " * 30,
    "uptime": 86399.0,
    "memory": 12_345_678_901,
    "pid": 4194304,
    "log": "journalctl --user -u swiprd.service",
    "unit": None,
}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits(width: int) -> None:
    lines = list(table([ENTRY, {**ENTRY, "model": None}], width))
    assert max(map(len, lines)) <= width
    assert any(line.endswith("/pets") for line in lines), "of a path the end is kept"
    told = " ".join(line.strip() for line in lines)
    assert told.count("a word") == 60, "a reason is not cut"


def test_where_nobody_looks_nothing_is_cut() -> None:
    assert f"  folder  {ENTRY['folder']}" in list(table([ENTRY], None))


SYSTEMCTL = """\
#!/bin/sh
# What systemctl 252 was seen to print.
[ "$*" = "$EXPECTED" ] || exit 1
cat <<END
Listen=/run/user/0/gnupg/S.dirmngr (Stream)
Id=dirmngr.socket
Triggers=dirmngr.service
SubState=listening

Listen=/run/user/0/a b (Stream)
Listen=$SOCKET (Stream)
Listen=/run/user/0/queue (Datagram)
Id=swiprd.socket
Triggers=swiprd.service
SubState=$STATE
END
"""
SHOW = "show --property=Id,Listen,SubState,Triggers -- *.socket"


@pytest.fixture
def systemctl(tmp_path: Path, around: Surroundings) -> dict[str, str]:
    """The environment in which systemctl knows a socket unit of the user's, and no other's."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    (around.runtime / "systemd").mkdir()
    (around.runtime / "systemd" / "private").touch()
    around.booted.mkdir()
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "EXPECTED": f"--user {SHOW}",
        "SOCKET": str(around.make_private() / "default.sock"),
    }


def test_one_that_systemd_would_start_is_not_started(
    around: Surroundings, systemctl: dict[str, str]
) -> None:
    around.system.mkdir()
    with (
        Peer(Path(systemctl["SOCKET"]), well) as own,
        Peer(around.system / "birds.sock", well) as birds,
    ):
        system, user = around.listed(**systemctl, STATE="listening").values()
        stopped = around.swiprctl("stop", **systemctl, STATE="listening")
        everything = around.swiprctl("stop", "--all", **systemctl, STATE="running")
        assert (own.connections, birds.connections) == (0, 0)
        system_again, user_again = around.listed(**systemctl, STATE="running").values()
        assert (own.connections, birds.connections) == (1, 0)
    assert (user["socket"], user["state"]) == (own.path, "not-started")
    assert user["unit"] == "swiprd.service"
    assert user["log"] == "journalctl --user -u swiprd.service"
    assert (user_again["state"], user_again["model"]) == ("ready", "peer@1")
    # systemctl fails for the system's manager: whether to ask starts anything cannot be known.
    assert system == system_again
    assert (system["socket"], system["state"]) == (birds.path, "unknown")
    assert (stopped.stderr, stopped.returncode) == (
        f"swiprctl: systemd keeps the daemon on {own.path}:"
        " 'systemctl --user stop swiprd.socket swiprd.service' stops it\n",
        77,
    )
    assert (everything.stdout, everything.returncode) == ("no daemon of your own runs\n", 0)


def test_a_system_without_systemctl_is_not_asked(around: Surroundings, tmp_path: Path) -> None:
    around.system.mkdir()
    around.booted.mkdir()
    with Peer(around.system / "default.sock", well) as peer:
        listed = around.listed(PATH=str(tmp_path))
        stopped = around.swiprctl("stop", PATH=str(tmp_path))
        assert peer.connections == 0
    assert listed[peer.path]["state"] == "unknown"
    assert "'sudo systemctl stop swiprd.socket swiprd.service' stops it" in stopped.stderr
    assert stopped.returncode == 77
