"""A real daemon in a real process, as a service manager would run it, and a bare-bones client."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from swiprctl.protocol import Decoder, Reply, Request

PATIENCE = 30.0
"""Seconds that anything may take before a test fails. Nothing is asserted to be quicker."""


class Peer:
    """One connection to a daemon, speaking the wire by hand."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))  # blocking: with a timeout it fails where the queue is full
        self.socket.settimeout(PATIENCE)
        self._decoder = Decoder()
        self._replies: list[Reply] = []

    def send(
        self,
        id: int,
        op: str = "predict",
        *,
        timeout: float | None = None,
        image: bytes | None = None,
        descriptor: int | None = None,
    ) -> None:
        frame = Request(id, op, timeout, image).encode()
        if descriptor is None:
            self.socket.sendall(frame)
        else:
            socket.send_fds(self.socket, [frame], [descriptor])

    def receive(self) -> Reply:
        """The next reply.

        Raises:
            EOFError: the daemon closed the connection.
        """
        while not self._replies:
            self.take()
        return self._replies.pop(0)

    def take(self) -> None:
        """Read what is there, for `receive()` to give later."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError
        self._decoder.feed(data)
        self._replies += [Reply.parse(frame.fields) for frame in self._decoder.frames()]

    def ask(self, op: str = "predict", **arguments: Any) -> Reply:
        self.send(1, op, **arguments)
        return self.receive()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DaemonProcess:
    """`python -m swiprd serve --socket …` with a recording of what it tells its manager."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        model: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.path = folder / "s.sock"
        self._start(
            folder,
            [
                *(sys.executable, "-P", "-m", "swiprd", "serve"),
                *("--socket", str(self.path), "--model", str(model)),
                *("--cache", str(folder / "cache"), "--config", os.devnull),
                "--max-timeout=3600",  # tests have patience, on a busy host
                "--engine=torch",  # a change of engines in the middle is for its own tests
                *arguments,
            ],
            environment=environment,
        )

    def _start(
        self,
        folder: Path,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(folder / "notify"))
        self.told: list[str] = []
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), **(environment or {})},
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_listening(self) -> DaemonProcess:
        """Wait until it can be connected to: its socket's path is there a moment before."""

        def listens() -> bool:
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(self.path)) == 0

        wait_until(listens, "it listens")
        return self

    def wait_told(self, what: str) -> str:
        """Wait until the daemon tells its manager something that contains `what`, from now on."""
        until = time.monotonic() + PATIENCE
        while (rest := until - time.monotonic()) > 0 and self.process.poll() is None:
            if select.select([self._notify], [], [], min(rest, 0.2))[0]:
                self.told.append(self._notify.recv(4096).decode())
                if what in self.told[-1]:
                    return self.told[-1]
        raise AssertionError(f"never told {what!r}; told {self.told}; log:\n{self.log.read_text()}")

    def read_told(self) -> list[str]:
        """What has been told and not been read yet."""
        fresh = []
        while select.select([self._notify], [], [], 0)[0]:
            fresh.append(self._notify.recv(4096).decode())
        self.told += fresh
        return fresh

    def wait_ready(self) -> DaemonProcess:
        self.wait_told("READY=1")
        return self

    def connect(self) -> Peer:
        return Peer(self.path)

    def status(self) -> dict[str, Any]:
        with self.connect() as peer:
            return peer.ask("status").fields

    def wait_status(self, condition: Any) -> dict[str, Any]:
        """Poll `status` until the condition holds of it: it has no event to wait for."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            status = self.status()
            if condition(status):
                return status
            time.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE} s: {status}")

    def workers(self, state: str | None = None) -> list[int]:
        """Pids of the workers, those in one state or all that are alive."""
        return [
            w["pid"]
            for w in self.status()["workers"]
            if w["pid"] and (w["state"] == state if state else w["state"] != "gone")
        ]

    def family(self) -> list[int]:
        """Pids of the daemon and of all its descendants."""
        return [self.pid, *descendants(self.pid)]

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        family = self.family() if self.process.poll() is None else []
        for pid in family:
            signal_if_there(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        self._notify.close()


def descendants(pid: int) -> list[int]:
    """Pids of a process's children, and theirs."""
    return [found for child in own_children(pid) for found in (child, *descendants(child))]


def own_children(pid: int | None = None) -> list[int]:
    """Pids of the children of a process, this one's by default, zombies included."""
    pid = pid or os.getpid()
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found


def forkservers(front: int) -> list[int]:
    """Pids of a front's forkservers. Its other children are intakes, forked and not executed."""
    return [pid for pid in own_children(front) if b"swiprd.inference.forkserver" in _words(pid)]


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []  # it has gone meanwhile


def serving(front: int) -> list[int]:
    """Pids of a front's forkservers and their workers."""
    return [pid for parent in forkservers(front) for pid in (parent, *descendants(parent))]


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until it stands still: kill(2) returns before that."""

    def stands_still() -> bool:
        stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    os.kill(pid, signal.SIGSTOP)
    wait_until(stands_still, f"process {pid} stands still")


def is_intake(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "swiprd-intake"
    except OSError:
        return True  # it has gone meanwhile


@contextlib.contextmanager
def open_to_all(path: Path) -> Iterator[Path]:
    """The socket under a path that every uid can reach: pytest's folders are 0700."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.link(path, folder / "s.sock")
        yield folder / "s.sock"


def as_uid(uid: int, ask: Callable[[], str]) -> str:
    """Call something in a forked child of another uid; return what it returns. Takes root.

    A fork, not an exec: the interpreter may lie where that uid cannot reach it.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(write, ask().encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as stream:
        answer = stream.read().decode()
    os.waitpid(pid, 0)
    return answer


def signal_if_there(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Any, what: str) -> None:
    """Poll for what has no event to wait for."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"not within {PATIENCE} s: {what}"
        time.sleep(0.01)
