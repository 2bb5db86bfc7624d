"""What a host runs short of, one thing after the other, under load: memory, disk, descriptors …

Each time the daemon degrades as swiprd(8) says, and is itself again afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import resource
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from daemonprocess import Peer, signal_if_there, wait_until
from venom import Venom, environment
from vitals import open_descriptors

from campaign.host import Asker, Host, end_all, folder
from campaign.outcome import Outcome
from campaign.pictures import Pictures, quick_model

SECONDS = 60.0

_REQUESTS = 1_500  # beside each fault
_RATE = 150.0  # a second
_TIMEOUT = 20.0
_STOPPED = 1.5  # seconds
_EATERS = 8
_SHAPE = ("--workers=1", "--threads=1", "--batch=1")
_MEMORY = 256 << 20


def run(scale: float, seed: int) -> Outcome:
    """Try each shortage with a daemon of its own."""
    begun = time.monotonic()
    with folder() as place:
        model = quick_model(place / "model")
        pictures = Pictures(place / "in", model, count=20, seed=seed)
        trial = _Trial(place, model, pictures, max(60, round(_REQUESTS * scale)), seed)
        site = environment(place / "site")
        with trial.host("one", *_SHAPE, f"--worker-memory={_MEMORY}", environment=site) as host:
            trial.memory(host)
            trial.descriptors(host)
            trial.stopped(host)
        trial.disk()
        trial.journal()
    return trial.outcome(time.monotonic() - begun)


class _Trial:
    def __init__(
        self, place: Path, model: Path, pictures: Pictures, requests: int, seed: int
    ) -> None:
        self._place = place
        self._model = model
        self._pictures = pictures
        self._each = requests
        self._rng = random.Random(seed)
        self._requests = self._rows = self._wrong = self._faults = 0
        self._errors: Counter[str] = Counter()
        self._notes: list[str] = []

    def memory(self, host: Host) -> None:
        """Images for which a worker has not enough: each is told so, and the worker goes on."""
        image = self._pictures.files[0].read_bytes() + Venom.EAT.value
        with self._load(host), Peer(host.path) as peer:
            for _ in range(_EATERS):
                self._expect(peer, image, "too-large")
        self._check(host.status()["kills"]["total"] == 0, "a worker died of too little memory")

    def disk(self) -> None:
        """No room in the cache's folder: the calibration is used, and not kept."""
        cache = self._place / "disk" / "cache"
        cache.mkdir(parents=True)
        with _full(cache) as full, self.host("disk", "--workers=1", "--threads=1") as host:
            end = "could not be kept" if full else "calibrated"
            wait_until(lambda: end in host.log.read_text(), "the calibration's end")
            self._faults += full
            with self._load(host):
                pass

    def descriptors(self, host: Host) -> None:
        """EMFILE: clients wait to be accepted, workers to be forked; both come when it is over."""
        with contextlib.ExitStack() as stack:
            with self._load(host):
                soft, hard = resource.prlimit(host.pid, resource.RLIMIT_NOFILE)
                here = len(open_descriptors(host.pid)) + 2
                resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (here, hard))
                self._faults += 1
                for _ in range(8):
                    waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                    waiting.connect(str(host.path))
                wait_until(lambda: "cannot accept" in host.log.read_text(), "EMFILE is told")
                os.kill(host.forked()[0], signal.SIGKILL)
                self._faults += 1
                time.sleep(1.0)  # in want of descriptors meanwhile
                resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (soft, hard))
            self._settled(host, "descriptors")

    def stopped(self, host: Host) -> None:
        """SIGSTOP and SIGCONT on each process: nothing is lost."""
        for find in (host.forked, host.forkservers, lambda: [host.pid]):
            with self._load(host):
                pid = self._rng.choice(find())
                signal_if_there(pid, signal.SIGSTOP)
                self._faults += 1
                time.sleep(_STOPPED)
                signal_if_there(pid, signal.SIGCONT)
            self._settled(host, "SIGCONT")

    def journal(self) -> None:
        """Nobody reads what it logs: it goes on, and tells how much was missed."""
        place = self._place / "journal"
        place.mkdir()
        os.mkfifo(place / "log")
        reader = os.open(place / "log", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(place / "log", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, reader)
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * 512)
            os.close(writer)
            host = stack.enter_context(self.host("journal", *_SHAPE))
            with self._load(host):
                for _ in range(3):
                    os.kill(host.forked()[0], signal.SIGKILL)
                    self._faults += 1
                    time.sleep(0.5)
            while self._read(reader):
                pass
            os.kill(host.forked()[0], signal.SIGKILL)
            wait_until(
                lambda: b"lines were dropped" in self._read(reader), "it tells what was missed"
            )

    def outcome(self, seconds: float) -> Outcome:
        """All of it."""
        return Outcome(
            scenario="degraded",
            requests=self._requests,
            rows=self._rows,
            errors=dict(self._errors),
            faults=self._faults,
            wrong=self._wrong,
            seconds=seconds,
            held=self._wrong == 0,
            notes="; ".join(self._notes[:3]),
        )

    @contextlib.contextmanager
    def host(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> Iterator[Host]:
        """A daemon, for the block."""
        host = Host(self._place / name, self._model, *arguments, environment=environment)
        try:
            yield host.wait_ready()
        finally:
            end_all(host)

    @contextlib.contextmanager
    def _load(self, host: Host) -> Iterator[None]:
        """Clients that ask meanwhile, and must get every row."""
        files = self._rng.choices(self._pictures.files, k=self._each)
        name = f"load{time.monotonic_ns()}"
        asker = Asker(self._place, name, host.path, files, timeout=_TIMEOUT)
        try:
            asker.give(len(files) // 2)
            wait_until(lambda: asker.answered or not asker.asking, "the first row")
            begun = time.monotonic()
            yield
            while asker.asking:
                asker.give(len(files) // 2 + int((time.monotonic() - begun) * _RATE) + 1)
                time.sleep(0.02)
        finally:
            asker.end()
        answers = asker.answers()
        self._requests += len(files)
        self._wrong += abs(len(files) - len(answers))
        for file, answer in zip(files, answers, strict=False):
            if self._pictures.right(int(file.stem), answer.get("row")):
                self._rows += 1
            else:
                self._wrong += 1
                self._notes.append(f"{answer.get('code')}: {answer.get('message')}")
        if asker.words():
            self._notes.append(asker.words().splitlines()[-1])

    def _expect(self, peer: Peer, image: bytes, code: str) -> None:
        error = peer.ask(image=image, timeout=_TIMEOUT).error
        found = error.code if error else "a row"
        self._requests += 1
        self._faults += 1
        self._errors[found] += 1
        self._check(found == code, f"{found} where {code} was expected: {error}")

    def _settled(self, host: Host, what: str) -> None:
        host.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)
        words = host.log.read_text()
        for defect in ("Traceback", "Exception in callback", "never retrieved"):
            self._check(defect not in words, f"after {what} the log has a {defect}")

    def _check(self, good: bool, note: str) -> None:
        if not good:
            self._wrong += 1
            self._notes.append(note)

    @staticmethod
    def _read(reader: int) -> bytes:
        try:
            return os.read(reader, 1 << 16)
        except BlockingIOError:
            return b""


@contextlib.contextmanager
def _full(place: Path) -> Iterator[bool]:
    """A full file system on a folder; False where that cannot be had (it takes root)."""
    options = ["-t", "tmpfs", "-o", "size=4k", "swipr-full", str(place)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        if mounted:
            (place / "filler").write_bytes(bytes(4096))
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
