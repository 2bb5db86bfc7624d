"""A daemon started by the client: as systemd would, one for all who ask, and told of if it dies."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standin
from daemonprocess import own_children

from swiprctl import Client
from swiprctl.errors import NoDaemon, SwiprError

pytestmark = pytest.mark.timeout(30)


class Home:
    """A user's runtime folder, and a stand-in for the daemon."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o700)
        self.socket = self.runtime / "swipr" / "default.sock"
        self.log = self.runtime / "swipr" / "default.log"
        self.record = folder / "record"
        self.environment = {
            "XDG_RUNTIME_DIR": str(self.runtime),
            "STANDIN_RECORD": str(self.record),
            "PYTHONPATH": os.pathsep.join(
                [str(standin.make(folder / "python")), os.environ.get("PYTHONPATH", "")]
            ),
            "NOTIFY_SOCKET": "/not/for/the/child",
        }
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        # Behind the real ones, if they are installed: nothing is imported, only looked for.
        monkeypatch.setattr(sys, "path", [*sys.path, str(folder / "python")])
        monkeypatch.delenv("SWIPR_SOCKET", raising=False)
        monkeypatch.setattr("swiprctl.address.SYSTEM_FOLDER", str(folder / "no-system"))

    def started(self) -> list[dict[str, Any]]:
        """How each daemon was started, in order."""
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def end(self) -> None:
        """End what is still there, and wait for it, whoever its parent is."""
        for one in self.started():
            try:
                descriptor = os.pidfd_open(one["pid"])
            except ProcessLookupError:
                continue
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], 10)
            os.close(descriptor)
            try:
                os.waitpid(one["pid"], 0)
            except ChildProcessError:
                continue


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    home = Home(tmp_path, monkeypatch)
    yield home
    home.end()


def test_it_is_started_as_systemd_would(home: Home) -> None:
    told: list[str] = []
    kept_open = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept_open, True)
    with Client(notify=told.append) as client:
        assert client.socket_path == str(home.socket)
        assert client.predict(b"12345").probabilities == (5,)
    os.close(kept_open)
    (one,) = home.started()
    assert one["arguments"] == ["serve", "--private", "--idle-timeout", "300"]
    assert one["environment"] == {
        "LISTEN_FDS": "1",
        "LISTEN_PID": str(one["pid"]),
        "LISTEN_FDNAMES": "swipr",
    }
    assert one["descriptors"]["0"] == "/dev/null"
    assert one["descriptors"]["1"] == one["descriptors"]["2"] == str(home.log)
    assert one["descriptors"]["3"].startswith("socket:")
    assert one["more"] == []
    assert one["session"] == one["pid"]
    assert one["folder"] == "/"
    assert one["mask"] == 0o077
    assert stat.S_IMODE(home.socket.parent.stat().st_mode) == 0o700
    assert {*home.socket.parent.iterdir()} == {home.socket, home.log}, "the lock is gone"
    for file in (home.socket, home.log):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_one_for_a_models_folder_is_told_which(home: Home, tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "model.toml").touch()
    with Client(model=f"{tmp_path}/pets") as client, Client() as default:
        for asked in (client, default):
            assert asked.predict(b"12345").probabilities == (5,)
        assert client.socket_path != default.socket_path
    pets, other = home.started()
    assert pets["arguments"][-2:] == ["--model", str(tmp_path / "pets")]
    assert "--model" not in other["arguments"]


def test_a_client_that_lives_on_has_no_child_and_no_zombie(home: Home) -> None:
    before = own_children()
    with Client() as client:
        client.predict(b"12345")
        assert own_children() == before
        (one,) = home.started()
        with open(f"/proc/{one['pid']}/stat") as file:
            assert int(file.read().rpartition(")")[2].split()[1]) != os.getpid()
        ended = os.pidfd_open(one["pid"])
        os.kill(one["pid"], signal.SIGKILL)
        assert select.select([ended], [], [], 10)[0]
        os.close(ended)
        assert own_children() == before
        assert client.predict(b"123").probabilities == (3,), "another is started"
    assert len(home.started()) == 2
    assert own_children() == before


@pytest.mark.usefixtures("home")
def test_a_client_that_is_closed_before_the_answer_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDIN_MUTE", "1")
    before = own_children()
    with Client(timeout=1.0) as client, pytest.raises(SwiprError):
        client.predict(b"12345")
    assert own_children() == before


def test_many_at_once_start_one(home: Home, tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(bytes(7))
    command = [sys.executable, "-m", "swiprctl", "predict", str(image)]
    clients = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    found = [(*client.communicate(timeout=20), client.returncode) for client in clients]
    assert found == [("7\n", "", 0)] * 8
    assert len(home.started()) == 1


def test_one_that_has_left_is_started_again(home: Home) -> None:
    with Client() as client:
        first = client.predict(b"1").model
        leave(home)
        second = client.predict(b"12")
        assert second.probabilities == (2,)
        assert second.model != first
    assert len(home.started()) == 2


def leave(home: Home) -> None:
    """Have the daemon go, without a word to anybody."""
    pid = home.started()[-1]["pid"]
    descriptor = os.pidfd_open(pid)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    select.select([descriptor], [], [], 10)
    os.close(descriptor)


def test_one_that_leaves_with_requests_in_hand_is_started_again(home: Home) -> None:
    with Client(timeout=10) as client, Client() as other:
        other.predict(b"1")
        client.predict(b"1")
        results = client.predict_many([bytes(n) for n in range(20)])
        next(results)
        leave(home)
        assert [answer.probabilities[0] for _, answer in results] == list(range(1, 20))  # type: ignore[union-attr]
        assert other.predict(b"123").probabilities == (3,)
    assert len(home.started()) == 2


def test_a_stale_socket_is_replaced_but_no_other_file(home: Home) -> None:
    home.socket.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(home.socket))
    with Client() as client:
        assert client.predict(b"1").probabilities == (1,)
    leave(home)
    home.socket.unlink()
    home.socket.write_text("precious")
    with Client() as client, pytest.raises(NoDaemon, match="it is not a socket"):
        client.predict(b"1")
    assert home.socket.read_text() == "precious"


def test_one_that_dies_is_told_of(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_DIES", "swiprd: the reason")
    with Client() as client:
        for _ in range(2):
            with pytest.raises(NoDaemon) as told:
                client.predict(b"1")
            assert "exited with 1 before it answered" in str(told.value)
            assert str(told.value).endswith(f"its log is {home.log} and ends: swiprd: the reason")
    assert home.log.read_text().count("the reason") == 2
    monkeypatch.delenv("STANDIN_DIES")
    with Client() as client:
        assert client.predict(b"1").probabilities == (1,)


def test_a_log_is_not_written_through_a_link(home: Home, tmp_path: Path) -> None:
    home.socket.parent.mkdir(mode=0o700)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    home.log.symlink_to(precious)
    with Client() as client, pytest.raises(NoDaemon, match="cannot start"):
        client.predict(b"1")
    assert precious.read_text() == "precious"
    home.log.unlink()
    with Client() as client:
        assert client.predict(b"1").probabilities == (1,)


def test_without_a_daemon_installed_the_remedy_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    without = lambda name, *more: None if name == "torch" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with Client() as client, pytest.raises(NoDaemon, match=r"torch not found.*apt install swiprd"):
        client.predict(b"1")
    assert not home.socket.parent.exists()


def test_none_is_started_where_that_is_not_wanted(home: Home, tmp_path: Path) -> None:
    with Client(autostart=False) as client, pytest.raises(NoDaemon, match="would start one"):
        client.predict(b"1")
    with Client() as client, pytest.raises(NoDaemon, match="would start one"):
        client.status()
    with Client(str(tmp_path / "other.sock")) as client, pytest.raises(NoDaemon):
        client.predict(b"1")
    assert home.started() == []


def test_what_is_in_the_current_folder_is_not_imported(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = standin.make(tmp_path / "trap")
    (trap / "swiprd" / "__main__.py").write_text("print('caught')")
    (trap / "socket.py").write_text("print('caught')")
    monkeypatch.chdir(trap)
    with Client() as client:
        assert client.predict(b"1").probabilities == (1,)
    assert "caught" not in home.log.read_text()


def test_a_relative_python_path_still_leads_there(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, rest = home.environment["PYTHONPATH"].split(os.pathsep, 1)
    monkeypatch.chdir(Path(python).parent)
    monkeypatch.setenv("PYTHONPATH", f"{Path(python).name}{os.pathsep}{rest}")
    with Client() as client:
        assert client.predict(b"1").probabilities == (1,)
