"""__main__.py: what somebody new is told whose command line is wrong: one line, with what helps."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess, Peer

from swiprctl.errors import LoadingFailed
from swiprctl.version import __version__

pytestmark = pytest.mark.timeout(60)

USAGE, UNAVAILABLE, CONFIG = 64, 69, 78  # sysexits(3)


_PASS = """
import os, sys
passed = int(sys.argv[1])
os.dup2(passed, 3) if passed >= 0 else os.closerange(3, 10)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-P", "-m", "swiprd", "serve", *sys.argv[2:]])
"""


def swiprd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    hidden = ("LISTEN_", "NOTIFY_", "WATCHDOG_", "JOURNAL_")
    return subprocess.run(
        [sys.executable, "-P", "-m", "swiprd", *arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith(hidden)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
    )


def with_output_closed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", 'exec "$0" -P -m swiprd "$@" >&-', sys.executable, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )


def complaint(status: int, *arguments: str) -> str:
    """The one line that a command line is refused with."""
    ended = swiprd(*arguments)
    assert "Traceback" not in ended.stderr
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.endswith("\n")
    (line,) = ended.stderr.splitlines()
    return line


def serve(status: int, *arguments: str) -> str:
    return complaint(status, "serve", "--config", os.devnull, *arguments)


class TestUsage:
    def test_no_command(self) -> None:
        line = complaint(USAGE)
        assert line == ("swiprd: the following arguments are required: COMMAND (see swiprd --help)")

    def test_a_command_that_there_is_not(self) -> None:
        line = complaint(USAGE, "server")
        hint = "did you mean 'swiprd serve'?"
        assert line == f"swiprd: there is no command 'server': {hint} (see swiprd --help)"
        line = complaint(USAGE, "predict")
        assert "there is no command 'predict': there are serve, check, pack, trust" in line

    def test_an_option_that_there_is_not(self) -> None:
        line = serve(USAGE, "--sockets", "s.sock")
        assert line.startswith("swiprd: unrecognized arguments: --sockets s.sock")

    def test_a_value_that_cannot_be(self) -> None:
        line = serve(USAGE, "--queue", "many")
        assert line == (
            "swiprd serve: argument --queue: expected a whole number, found 'many'"
            " (see swiprd serve --help)"
        )
        assert "expected at least 1, found 0" in serve(USAGE, "--workers=0")

    def test_a_value_that_is_missing(self) -> None:
        assert "argument --socket: expected one argument" in serve(USAGE, "--socket")

    def test_no_socket(self) -> None:
        line = serve(USAGE)
        assert "no socket to serve on" in line
        assert "--socket PATH" in line
        assert "systemctl start swiprd.socket" in line

    @pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help")])
    def test_help_is_an_answer(self, arguments: tuple[str, ...]) -> None:
        ended = swiprd(*arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("usage: swiprd ")

    def test_help_in_a_locale_that_lacks_its_characters(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
        ended = swiprd("pack", "--help")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "A,B,\\u2026" in ended.stdout

    def test_help_that_does_not_get_through(self) -> None:
        with open("/dev/full", "w") as full:
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "swiprd", "pack", "--help"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,
            )
        assert ended.returncode == 74
        assert ended.stderr == "swiprd pack: standard output: No space left on device\n"

    @pytest.mark.parametrize("option", ["--version", "--help"])
    def test_what_is_asked_for_with_the_output_closed(self, option: str) -> None:
        ended = with_output_closed(option)
        assert ended.returncode == 74
        assert ended.stderr.endswith("swiprd: standard output: it is closed\n")

    def test_a_mistake_with_the_output_closed(self) -> None:
        ended = with_output_closed("nonsense")
        assert (ended.returncode, ended.stderr.count("\n")) == (USAGE, 1)

    @pytest.mark.parametrize("unbuffered", ["1", ""])
    def test_help_of_which_a_part_gets_through(self, tmp_path: Path, unbuffered: str) -> None:
        with open(tmp_path / "full", "wb") as full:
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "swiprd", "serve", "--help"],
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50)),
            )
        assert (ended.returncode, ended.stderr.count("\n")) == (74, 1)
        assert ended.stderr.endswith("standard output: File too large\n")

    def test_more_digits_than_python_reads(self) -> None:
        line = complaint(USAGE, "pack", "c.pth", "--resize", "9" * 5000)
        assert line == (
            "swiprd pack: argument --resize: expected a whole number from 0 to 4096,"
            f" found '{'9' * 39}…' (see swiprd pack --help)"
        )

    def test_version(self) -> None:
        ended = swiprd("--version")
        assert (ended.returncode, ended.stdout) == (0, f"swiprd {__version__}\n")


class TestConfig:
    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "nosuch.toml"
        line = complaint(CONFIG, "serve", "--config", str(path))
        assert line == f"swiprd: {path}: No such file or directory"

    def test_one_with_a_mistake(self, tmp_path: Path) -> None:
        path = tmp_path / "swiprd.toml"
        path.write_text("queue = 'long'\n")
        line = complaint(CONFIG, "serve", "--config", str(path))
        assert line == f"swiprd: {path}: queue: expected a whole number, found 'long'"

    def test_one_that_is_not_toml(self, tmp_path: Path) -> None:
        path = tmp_path / "swiprd.toml"
        path.write_text("queue: 5\n")
        line = complaint(CONFIG, "serve", "--config", str(path))
        assert line.startswith(f"swiprd: {path}: ")
        assert "line 1" in line


class TestSocket:
    def test_a_path_in_use(self, daemon: DaemonProcess) -> None:
        line = serve(UNAVAILABLE, "--socket", str(daemon.path))
        assert line == (
            f"swiprd: {daemon.path}: another daemon answers there:"
            " stop it first, or name another path"
        )
        assert daemon.status()["state"] == "ready"

    def test_a_path_that_is_too_long(self, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 120)
        line = serve(UNAVAILABLE, "--socket", str(path))
        assert line.startswith(f"swiprd: {path}: cannot listen: ")
        assert "at most 107 bytes" in line

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "nosuch" / "s.sock"
        line = serve(UNAVAILABLE, "--socket", str(path))
        assert line == (
            f"swiprd: {path}: cannot listen: there is no folder {path.parent}: make it first"
        )

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("precious")
        line = serve(UNAVAILABLE, "--socket", str(path))
        assert line.startswith(f"swiprd: {path}: cannot listen: what lies there is not a socket")
        assert path.read_text() == "precious"

    def test_a_folder_in_the_way(self, tmp_path: Path) -> None:
        assert "not a socket" in serve(UNAVAILABLE, "--socket", str(tmp_path))

    def test_a_folder_that_nobody_may_write_to(self) -> None:
        line = serve(UNAVAILABLE, "--socket", "/proc/self/s.sock")
        assert line.startswith("swiprd: /proc/self/s.sock: cannot listen: ")

    @pytest.mark.parametrize("kind", ["file", "nothing", "tcp"])
    def test_what_was_passed_is_none(self, tmp_path: Path, kind: str) -> None:
        openers: dict[str, Callable[[], int]] = {
            "file": lambda: os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT),
            "nothing": lambda: -1,
            "tcp": lambda: socket.create_server(("127.0.0.1", 0)).detach(),
        }
        passed = openers[kind]()
        try:
            ended = subprocess.run(
                [sys.executable, "-c", _PASS, str(passed), "--config", os.devnull],
                pass_fds=[passed] if passed >= 0 else [],
                capture_output=True,
                text=True,
                timeout=30,
            )
        finally:
            if passed >= 0:
                os.close(passed)
        assert ended.returncode == UNAVAILABLE, ended.stderr
        (line,) = ended.stderr.splitlines()
        assert line.startswith("swiprd: descriptor 3 is not a ")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What a service manager listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        yield notify


class TestServing:
    def test_under_a_manager_a_bad_file_is_an_answer_and_its_repair_a_start(
        self, tmp_path: Path, tiny_model: Path, manager: socket.socket
    ) -> None:
        file = tmp_path / "swiprd.toml"
        file.write_text("queue = 'long'\n")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s.sock"))
            listener.listen()
            daemon = subprocess.Popen(
                [
                    *(sys.executable, "-c", _PASS, str(listener.fileno())),
                    *("--config", str(file), "--model", str(tiny_model)),
                    *("--workers=1", "--threads=1", "--batch=1", "--cache", str(tmp_path)),
                ],
                pass_fds=[listener.fileno()],
                env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
                stderr=subprocess.PIPE,
                text=True,
            )
        complaint = f"{file}: queue: expected a whole number, found 'long'"
        try:
            while complaint not in manager.recv(4096).decode():
                pass
            with Peer(tmp_path / "s.sock") as peer:
                error = peer.ask(image=b"").error
                assert isinstance(error, LoadingFailed)
                assert complaint in str(error)
            file.write_text("queue = 5\n")
            while "READY=1" not in (told := manager.recv(4096).decode()):
                assert "STOPPING=1" not in told
            with Peer(tmp_path / "s.sock") as peer:
                queue: Any = peer.ask("status").fields["queue"]
                assert queue["limit"] == 5
            daemon.send_signal(signal.SIGTERM)
            _, words = daemon.communicate(timeout=30)
            assert daemon.returncode == 0
            assert "Traceback" not in words
            assert (tmp_path / "s.sock").is_socket()
        finally:
            daemon.kill()
            daemon.communicate()

    def test_a_model_that_is_not_there_is_said_and_waited_for(
        self, start_daemon: StartDaemon, tmp_path: Path
    ) -> None:
        daemon = start_daemon(model=tmp_path / "nosuch")
        told = daemon.wait_told("STATUS=the model cannot be loaded")
        assert f"{tmp_path}/nosuch" in told
        log = daemon.log.read_text()
        assert f"{tmp_path}/nosuch" in log
        assert "Traceback" not in log
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(30) == 0
        assert "Traceback" not in daemon.log.read_text()

    def test_a_relative_path(self, tmp_path: Path) -> None:
        line = swiprd("serve", "--config", os.devnull, "--socket", "no/s.sock", cwd=tmp_path)
        assert line.stderr == (
            "swiprd: no/s.sock: cannot listen: there is no folder no: make it first\n"
        )
