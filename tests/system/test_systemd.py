"""systemd.py: real descriptors and variables in a real program, and a real socket that listens."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(30)

_LAUNCH = """
import fcntl, os, sys
pid, count, script, *passed = sys.argv[1:]
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 50) for number in passed]
for target, source in enumerate(high, start=3):
    os.dup2(source, target)
os.environ.update(LISTEN_FDS=count, LISTEN_FDNAMES="a:b", LISTEN_PID=pid or str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-P", "-c", script])
"""

_LISTEN = """
import json, os, subprocess, sys
from swiprd.system.systemd import listen_sockets
told = {}
try:
    sockets = listen_sockets()
    told["found"] = [[s.fileno(), str(s.getsockname())] for s in sockets]
    told["inheritable"] = [os.get_inheritable(s.fileno()) for s in sockets]
except ValueError as error:
    told["error"] = str(error)
told["left"] = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps(told))
"""


def listen(*passed: int, pid: str = "", count: str | None = None) -> dict[str, Any]:
    """What a program finds that was executed with these descriptors from 3 up."""
    ended = subprocess.run(
        [
            *(sys.executable, "-I", "-S", "-c", _LAUNCH),
            *(pid, str(len(passed)) if count is None else count, _LISTEN),
            *map(str, passed),
        ],
        pass_fds=passed,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[socket.socket]]:
    sockets = []
    for name in ("a", "b"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / name))
        listener.listen()
        sockets.append(listener)
    yield sockets
    for listener in sockets:
        listener.close()


class TestListening:
    def test_sockets_are_found_in_order(
        self, listeners: list[socket.socket], tmp_path: Path
    ) -> None:
        told = listen(*(listener.fileno() for listener in listeners))
        assert told["found"] == [[3, str(tmp_path / "a")], [4, str(tmp_path / "b")]]
        assert told["inheritable"] == [False, False], "a worker must not get them"
        assert told["left"] == []

    @pytest.mark.parametrize(
        ("pid", "count"),
        [("1", "1"), ("", "0"), ("", ""), ("", "one"), ("", "-1"), ("x", "1")],
    )
    def test_what_is_meant_for_another_is_left_alone(
        self, listeners: list[socket.socket], pid: str, count: str
    ) -> None:
        told = listen(listeners[0].fileno(), pid=pid, count=count)
        assert told["found"] == []
        assert told["left"] == [], "no child may believe they are for it"

    def test_nothing_passed(self) -> None:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", _LISTEN],
            env={k: v for k, v in os.environ.items() if not k.startswith("LISTEN_")},
            capture_output=True,
            check=True,
            timeout=20,
        )
        assert json.loads(ended.stdout) == {"found": [], "inheritable": [], "left": []}

    def test_a_file_is_not_a_socket(self, tmp_path: Path) -> None:
        with open(tmp_path / "file", "w") as file:
            told = listen(file.fileno())
        assert told["error"].startswith("descriptor 3 is not a socket: ")
        assert told["left"] == []

    def test_a_descriptor_that_is_not_there(self, listeners: list[socket.socket]) -> None:
        told = listen(listeners[0].fileno(), count="2")
        assert told["error"].startswith("descriptor 4 is not a socket: ")

    def test_a_connection_does_not_listen(self) -> None:
        with socket.socket(socket.AF_UNIX) as fresh:
            told = listen(fresh.fileno())
        assert told["error"] == "descriptor 3 is not a listening Unix stream socket"

    def test_a_datagram_socket(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            told = listen(datagrams.fileno())
        assert told["error"] == "descriptor 3 is not a listening Unix stream socket"

    def test_tcp(self, listeners: list[socket.socket]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as network:
            told = listen(listeners[0].fileno(), network.fileno())
        assert told["error"] == "descriptor 4 is not a listening Unix stream socket"


_NOTIFY = """
import json, os
from swiprd.system.systemd import Manager
manager = Manager()
{calls}
left = [n for n in os.environ if n == "NOTIFY_SOCKET" or n.startswith("WATCHDOG_")]
print(json.dumps([manager.watchdog, left]))
"""


def notify(calls: str, **environment: str) -> tuple[float | None, list[str]]:
    """Run a program that makes these calls; return its watchdog and the variables it left."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOTIFY", "WATCHDOG"))}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", _NOTIFY.format(calls=calls)],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 0, ended.stderr
    watchdog, left = json.loads(ended.stdout)
    return watchdog, left


class Told:
    """A datagram socket such as a service manager has."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def read(self) -> list[str]:
        told = []
        while True:
            try:
                told.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return told


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    manager = Told(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


class TestNotifying:
    def test_what_each_call_says(self, told: Told, tmp_path: Path) -> None:
        before = time.monotonic_ns() // 1000
        notify(
            "manager.status('loading the model')\n"
            "manager.extend(30)\n"
            "manager.ready('serving m@1')\n"
            "manager.alive()\n"
            "manager.reloading()\n"
            "manager.reloaded('serving m@2')\n"
            "manager.stopping('bye')\n",
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        status, extend, ready, alive, reloading, reloaded, stopping = told.read()
        assert status == "STATUS=loading the model"
        assert extend == "EXTEND_TIMEOUT_USEC=30000000"
        assert ready == "READY=1\nSTATUS=serving m@1"
        assert alive == "WATCHDOG=1"
        first, usec = reloading.split("\n")
        assert first == "RELOADING=1"
        name, _, usec = usec.partition("=")
        assert name == "MONOTONIC_USEC"
        assert before < int(usec) < time.monotonic_ns() // 1000
        assert reloaded == "READY=1\nSTATUS=serving m@2"
        assert stopping == "STOPPING=1\nSTATUS=bye"

    def test_a_status_is_one_line(self, told: Told, tmp_path: Path) -> None:
        notify("manager.ready('a\\nREADY=0\\r b')", NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert told.read() == ["READY=1\nSTATUS=a READY=0 b"]

    @pytest.mark.parametrize("text", ["/srv/café", "/srv/μοντέλο", "/srv/模型", "\\udce9"])
    def test_a_status_in_any_script_loses_nothing(
        self, told: Told, tmp_path: Path, text: str
    ) -> None:
        notify(f"manager.ready('{text}')", NOTIFY_SOCKET=str(tmp_path / "notify"))
        expected = "?" if text == "\\udce9" else text
        assert told.read() == [f"READY=1\nSTATUS={expected}"]

    def test_an_abstract_socket(self) -> None:
        name = f"swipr-test-{os.getpid()}"
        manager = Told(f"\0{name}")
        try:
            notify("manager.ready('here')", NOTIFY_SOCKET=f"@{name}")
            assert manager.read() == ["READY=1\nSTATUS=here"]
        finally:
            manager.socket.close()

    @pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens-here", "relative"])
    def test_nobody_there_is_no_error(self, address: str) -> None:
        assert notify("manager.ready('here')", NOTIFY_SOCKET=address) == (None, [])

    def test_no_manager_at_all(self) -> None:
        assert notify("manager.ready('here'); manager.alive()") == (None, [])

    def test_the_variables_are_gone_afterwards(self, told: Told, tmp_path: Path) -> None:
        watchdog, left = notify(
            "", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="5", WATCHDOG_PID="1"
        )
        assert left == []
        assert watchdog is None
        assert told.read() == []


class TestWatchdog:
    def test_seconds(self) -> None:
        assert notify("", WATCHDOG_USEC="2500000")[0] == 2.5

    @pytest.mark.parametrize("usec", ["", "0", "-1", "soon", "1.5"])
    def test_none_where_nobody_waits(self, usec: str) -> None:
        assert notify("", WATCHDOG_USEC=usec)[0] is None

    def test_another_processes_is_not_ours(self) -> None:
        assert notify("", WATCHDOG_USEC="2500000", WATCHDOG_PID="1")[0] is None


_FULL = """
import asyncio, os, socket, sys
from swiprd.system.systemd import Manager
filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
filler.setblocking(False)
filler.connect(os.environ["NOTIFY_SOCKET"])
try:
    while True:
        filler.send(b"FILLER=1")
except BlockingIOError:
    pass
manager = Manager()

async def main():
    manager.status("loading the model")
    for _ in range(50):
        manager.alive()
        manager.extend(30)
    manager.ready("serving m@1")
    manager.reloading()
    manager.status("one")
    manager.reloaded("serving m@2")
    print("not blocked", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    manager.status("the last")

asyncio.run(main())
"""


def test_a_full_socket_blocks_nobody_and_loses_no_state(told: Told, tmp_path: Path) -> None:
    """A manager that reads nothing for a while hears, when it reads again, how things stand."""
    daemon = subprocess.Popen(
        [sys.executable, "-P", "-c", _FULL],
        env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert daemon.stdout is not None
        assert select.select([daemon.stdout], [], [], 20)[0], "it is blocked"
        assert daemon.stdout.readline() == "not blocked\n"
        heard: list[str] = []
        while "READY=1\nSTATUS=serving m@2" not in heard:
            assert select.select([told.socket], [], [], 20)[0], heard
            heard += [one for one in told.read() if one != "FILLER=1"]
        assert "WATCHDOG=1" not in heard, "that was then"
        firsts = [one.split("\n")[0] for one in heard]
        assert firsts == ["EXTEND_TIMEOUT_USEC=30000000", "RELOADING=1", "STATUS=one", "READY=1"]
        daemon.communicate("\n", timeout=20)
        assert daemon.returncode == 0
        assert told.read() == ["STATUS=the last"]
    finally:
        daemon.kill()
        daemon.communicate()
