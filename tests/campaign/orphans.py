"""SIGKILL any one process of a daemon at work, one of whose workers is stuck in C, deaf to EOF.

Within a second nothing of what hung on that process is left, or it has been replaced.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from daemonprocess import PATIENCE, Peer, is_alive
from venom import Venom, environment

from campaign.host import Host, end_all, folder, kill
from campaign.outcome import Outcome
from campaign.pictures import Pictures, quick_model
from campaign.progress import Progress

SECONDS = 70.0

_ROUNDS = 6
_WITHIN = 1.0  # seconds
_LOOK = 0.005
_STUCK = 1.5  # seconds until the deadline of what hangs
_WORKERS = 2


def run(scale: float, seed: int) -> Outcome:
    """In each round kill each kind of process once."""
    rng = random.Random(seed)
    rounds = max(1, round(_ROUNDS * scale))
    begun = time.monotonic()
    with folder() as place:
        model = quick_model(place / "model")
        image = Pictures(place / "in", model, count=1, seed=seed).files[0].read_bytes()
        host = Host(
            place / "d",
            model,
            *(f"--workers={_WORKERS}", "--threads=1", "--batch=1"),
            environment=environment(place / "site"),
        )
        trial = _Trial(host, image, rng)
        progress = Progress(rounds)
        try:
            host.wait_ready()
            for number in range(rounds):
                trial.worker()
                trial.stuck_worker()
                trial.forkserver()
                trial.front()
                progress.tell(number + 1, "rounds")
        finally:
            end_all(host)
    return trial.outcome(time.monotonic() - begun)


class _Trial:
    def __init__(self, host: Host, image: bytes, rng: random.Random) -> None:
        self._host = host
        self._image = image
        self._rng = rng
        self._killed = self._wrong = self._rows = self._requests = 0
        self._slowest = {"replaced": 0.0, "gone": 0.0}
        self._notes: list[str] = []

    def worker(self) -> None:
        """One that waits for work."""
        with self._at_work():
            self._replaced(self._rng.choice(self._idle()), "an idle worker")
        self._serves()

    def stuck_worker(self) -> None:
        """One that is in C."""
        with self._at_work() as busy:
            self._replaced(busy.pid, "a stuck worker")
        self._serves()

    def forkserver(self) -> None:
        """The workers' parent: they go with it."""
        with self._at_work():
            (parent,) = self._host.forkservers()
            workers = self._host.forked()
            kill(parent)
            self._killed += 1
            self._gone(lambda: any(map(is_alive, workers)), "the forkserver's workers")
        self._serves()

    def front(self) -> None:
        """The process that systemd knows: all others go with it."""
        with self._at_work():
            pid = self._host.pid
            kill(pid)
            self._killed += 1
            self._gone(lambda: bool(_of_front(pid)), "the front's processes")
        self._host.restart()
        self._host.wait_ready()
        self._serves()

    def outcome(self, seconds: float) -> Outcome:
        """All of it."""
        return Outcome(
            scenario="orphans",
            requests=self._requests,
            rows=self._rows,
            faults=self._killed,
            wrong=self._wrong,
            seconds=seconds,
            figures={f"slowest_{name}_seconds": value for name, value in self._slowest.items()},
            held=self._wrong == 0,
            notes="; ".join(self._notes[:3]),
        )

    def _idle(self) -> list[int]:
        status = self._host.wait_status(lambda s: any(w["state"] == "idle" for w in s["workers"]))
        return [w["pid"] for w in status["workers"] if w["state"] == "idle"]

    def _at_work(self) -> _AtWork:
        return _AtWork(self._host, self._image)

    def _replaced(self, pid: int, what: str) -> None:
        number = len(self._host.forked())
        begun = time.monotonic()
        kill(pid)
        self._killed += 1
        self._within(
            begun,
            lambda: is_alive(pid) or sum(map(is_alive, self._host.forked())) < number,
            "replaced",
            what,
        )

    def _gone(self, left: Callable[[], bool], what: str) -> None:
        self._within(time.monotonic(), left, "gone", what)

    def _within(self, begun: float, waiting: Callable[[], bool], kind: str, what: str) -> None:
        while waiting() and time.monotonic() < begun + PATIENCE:
            time.sleep(_LOOK)
        seconds = time.monotonic() - begun
        self._slowest[kind] = max(self._slowest[kind], seconds)
        if seconds > _WITHIN:
            self._wrong += 1
            self._notes.append(f"{what}: {kind} after {seconds:.2f} s")

    def _serves(self) -> None:
        """It answers, and has all its workers again."""
        self._requests += 1
        with Peer(self._host.path) as peer:
            reply = peer.ask(image=self._image)
        if reply.error is None:
            self._rows += 1
        else:
            self._wrong += 1
            self._notes.append(str(reply.error))
        self._host.wait_status(
            lambda s: [w["state"] for w in s["workers"]] == ["idle"] * (_WORKERS + 1)
        )


class _AtWork:
    """A daemon one of whose workers, `pid`, is stuck in C, until the end of the block."""

    def __init__(self, host: Host, image: bytes) -> None:
        self._host = host
        self._image = image
        self.pid = 0

    def __enter__(self) -> _AtWork:
        self._peer = Peer(self._host.path)
        # Each time another image: what hung lately would be refused.
        image = self._image + str(time.monotonic_ns()).encode() + Venom.HANG.value
        self._peer.send(1, image=image, timeout=_STUCK)
        status = self._host.wait_status(lambda s: any(w["state"] == "busy" for w in s["workers"]))
        (self.pid,) = (w["pid"] for w in status["workers"] if w["state"] == "busy")
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.close()


def _of_front(pid: int) -> list[int]:
    """Pids of a front's forkservers and their workers, whoever their parent is by now."""
    mark = b"\0swiprd.inference.forkserver\0%d\0" % pid
    found = []
    for name in Path("/proc").iterdir():
        if name.name.isdigit():
            with suppress(OSError):
                if mark in (name / "cmdline").read_bytes() and is_alive(int(name.name)):
                    found.append(int(name.name))
    return found
