"""A daemon that a service manager started: what it tells of reloads, and what it does where the
settings or the model cannot be used. An exit would be counted, so there is none."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemonprocess import DaemonProcess
from modelfolders import make_folder

from swiprctl.errors import Forbidden, LoadingFailed
from swiprctl.protocol import Reply

pytestmark = pytest.mark.timeout(120)

_LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-P", "-m", "swiprd", "serve", *sys.argv[2:]])
"""


class Managed(DaemonProcess):
    """Started with a socket that was passed to it and the settings in `config`."""

    def __init__(self, folder: Path, config: Path, *arguments: str) -> None:
        self.path = folder / "s.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen()
            command = [sys.executable, "-c", _LAUNCH, str(listener.fileno())]
            command += ["--config", str(config), "--cache", str(folder / "cache"), *arguments]
            self._start(folder, command, pass_fds=(listener.fileno(),))

    def predict(self, image: bytes) -> Reply:
        with self.connect() as peer:
            return peer.ask(image=image)

    def reload(self) -> None:
        with self.connect() as peer:
            assert peer.ask("reload").error is None


StartManaged = Callable[..., Managed]


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[StartManaged]:
    """Start one with this text of settings; it is gone when the test ends."""
    started: list[Managed] = []

    def start(settings: str, *arguments: str) -> Managed:
        config = tmp_path / "swiprd.toml"
        config.write_text(settings)
        started.append(Managed(tmp_path, config, *arguments))
        return started[-1]

    yield start
    for daemon in started:
        daemon.end()


def small(model: Path) -> str:
    return f"model = '{model}'\nworkers = 1\nthreads = 1\nbatch = 1\n"


class TestSettingsThatCannotBeUsed:
    def test_are_answered_until_they_are_mended(
        self, managed: StartManaged, tiny_model: Path, tmp_path: Path, photos: list[bytes]
    ) -> None:
        daemon = managed("queue = 'long'\n")
        fault = f"{tmp_path}/swiprd.toml: queue: expected a whole number, found 'long'"
        assert daemon.wait_told(fault).startswith("STATUS=")
        error = daemon.predict(photos[0]).error
        assert isinstance(error, LoadingFailed)
        assert str(error).endswith(fault)

        (tmp_path / "swiprd.toml").write_text("queue = 0\n")
        daemon.wait_told("queue: expected at least 1, found 0")
        (tmp_path / "swiprd.toml").write_text(small(tiny_model))
        daemon.wait_ready()
        assert daemon.predict(photos[0]).error is None
        assert not any("STOPPING" in told for told in daemon.told)
        assert "Traceback" not in daemon.log.read_text()
        assert daemon.stop() == 0

    def test_do_not_load_another_model_on_reload(
        self, managed: StartManaged, photos: list[bytes]
    ) -> None:
        daemon = managed("", "--instance=nosuch")
        daemon.wait_told("no model named nosuch")
        with daemon.connect() as peer:
            assert isinstance(peer.ask("reload").error, LoadingFailed)
        daemon.process.send_signal(signal.SIGHUP)
        error = daemon.predict(photos[0]).error
        assert isinstance(error, LoadingFailed)
        assert "/etc/swipr/models/nosuch" in str(error)
        assert not any("READY" in told for told in [*daemon.told, *daemon.read_told()])
        assert daemon.stop() == 0


class TestStop:
    def test_is_refused_as_the_manager_would_start_the_next(
        self, managed: StartManaged, tiny_model: Path
    ) -> None:
        daemon = managed(small(tiny_model))
        daemon.wait_ready()
        with daemon.connect() as peer:
            error = peer.ask("stop").error
            assert isinstance(error, Forbidden)
            assert "systemctl stop swiprd.socket" in str(error)
            assert peer.ask("status").fields["state"] == "ready"


class TestReload:
    def test_is_told_whoever_asked_for_it(self, managed: StartManaged, tmp_path: Path) -> None:
        model = make_folder(tmp_path / "model", seed=1)
        daemon = managed(small(model))
        daemon.wait_ready()
        for ask in (daemon.reload, lambda: daemon.process.send_signal(signal.SIGHUP)):
            daemon.read_told()
            ask()
            assert "MONOTONIC_USEC=" in daemon.wait_told("RELOADING=1")
            assert "STATUS=serving" in daemon.wait_told("READY=1")

    def test_that_fails_is_in_the_status_until_one_succeeds(
        self, managed: StartManaged, tmp_path: Path, photos: list[bytes]
    ) -> None:
        model = make_folder(tmp_path / "model", seed=1)
        daemon = managed(small(model))
        daemon.wait_ready()
        labels = (model / "labels.txt").read_text()
        (model / "labels.txt").write_text("one\ntwo\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_told("RELOADING=1")
        told = daemon.wait_told("READY=1")
        assert "STATUS=serving tiny@" in told
        assert "as before: reload failed: " in told
        assert daemon.predict(photos[0]).error is None
        status = daemon.status()
        assert status["state"] == "ready"
        assert status["reload_error"] in status["reason"]
        assert "reload failed: " in daemon.log.read_text()
        (model / "labels.txt").write_text(labels)
        daemon.reload()
        status = daemon.status()
        assert (status["reload_error"], "failed" in status["reason"]) == ("", False)
