"""What a scenario runs on: a daemon whose manager keeps its socket, and clients in processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from daemonprocess import PATIENCE, DaemonProcess, forkservers, own_children, signal_if_there

from campaign import engine

_LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-P", "-m", "swiprd", "serve", *sys.argv[2:]])
"""

_BACKLOG = 128  # as swiprd.socket has it
_ASKER = Path(__file__).parent / "asker.py"


class Host(DaemonProcess):
    """A daemon under a manager of few words, which keeps the listening socket over restarts."""

    def __init__(
        self, folder: Path, model: Path, *arguments: str, environment: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._environment = environment
        self.path = folder / "s.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(_BACKLOG)
        self._command = [
            *(sys.executable, "-c", _LAUNCH, str(self._listener.fileno())),
            *("--config", os.devnull, "--cache", str(folder / "cache"), "--model", str(model)),
            "--max-timeout=3600",
            engine.argument(),
            *arguments,
        ]
        self._begin()

    def _begin(self) -> None:
        self._start(
            self._folder,
            self._command,
            environment=self._environment,
            pass_fds=(self._listener.fileno(),),
        )

    def restart(self) -> None:
        """Begin anew after the daemon has died."""
        self.process.wait(PATIENCE)
        self._notify.close()
        (self._folder / "notify").unlink()
        self._begin()

    def kill_and_restart(self) -> None:
        """SIGKILL the front, as an operator or the kernel may, and start another at once."""
        self.process.send_signal(signal.SIGKILL)
        self.restart()

    def forkservers(self) -> list[int]:
        """Pids of the front's children that are no intakes."""
        return forkservers(self.pid)

    def forked(self) -> list[int]:
        """Pids of the workers, asked of the kernel."""
        return [pid for parent in self.forkservers() for pid in own_children(parent)]

    def end(self) -> None:
        """Leave nothing behind."""
        super().end()
        self._listener.close()


class Asker:
    """A client process, which asks for `files` in their order, as fast as `give()` lets it."""

    def __init__(
        self, folder: Path, name: str, address: Path, files: Sequence[Path], *, timeout: float
    ) -> None:
        self.files = files
        self._given = 0
        self._answers = folder / f"{name}.answers"
        self._words = folder / f"{name}.words"
        with open(self._answers, "wb") as answers, open(self._words, "wb") as words:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(_ASKER), str(address), str(timeout)],
                stdin=subprocess.PIPE,
                stdout=answers,
                stderr=words,
            )

    def give(self, upto: int) -> None:
        """Let it ask for the first so many files; with the last of them its list ends."""
        assert self.process.stdin is not None
        if self.process.stdin.closed:
            return
        fresh = self.files[self._given : upto]
        with contextlib.suppress(BrokenPipeError):  # it has died: too few answers will say so
            self.process.stdin.write(b"".join(os.fsencode(file) + b"\n" for file in fresh))
            self.process.stdin.flush()
        self._given += len(fresh)
        if self._given == len(self.files):
            self.process.stdin.close()

    @property
    def asking(self) -> bool:
        """Whether it is still at it."""
        return self.process.poll() is None

    @property
    def answered(self) -> int:
        """Answers so far."""
        return self._answers.read_bytes().count(b"\n")

    def answers(self) -> list[dict[str, Any]]:
        """What came, one for each line."""
        return [json.loads(line) for line in self._answers.read_text().splitlines()]

    def words(self) -> str:
        """What it said on standard error."""
        return self._words.read_text()

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with TemporaryDirectory(prefix="swipr") as name:
        yield Path(name)


def end_all(*things: Host | Asker | None) -> None:
    """End what there is, the daemons last."""
    for thing in sorted(filter(None, things), key=lambda one: isinstance(one, Host)):
        thing.end()


def working(pids: Sequence[int]) -> list[int]:
    """Those that the kernel runs or would run just now."""
    return [pid for pid in pids if _state(pid) == "R"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def kill(pid: int) -> bool:
    """SIGKILL a process; whether it was there."""
    if not Path(f"/proc/{pid}").exists():
        return False
    signal_if_there(pid, signal.SIGKILL)
    return True
