"""One image in fifty hangs its decoder in C, spins there, eats memory or crashes the process.

Mixed into good ones, batches included. Each poisoned one gets its named error by its deadline, each
good one its row. Then each comes again, and is refused at once; one that has been mended is not.
What waited for most of its time on a busy host, and hung for a small part of it, has not been found
out yet: it may be tried once more, and that is counted.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections import Counter
from pathlib import Path

from daemonprocess import Peer
from venom import Venom, environment

from campaign.host import Asker, Host, end_all, folder
from campaign.outcome import Outcome
from campaign.pictures import Pictures, quick_model
from campaign.progress import Progress
from swiprctl.errors import SwiprError

SECONDS = 65.0

_REQUESTS = 3_000
_POISONED = 50  # one in so many
_CLIENTS = 4
_RATE = 60.0  # requests a second, of all clients: one hang or more a second, of five seconds each
_TIMEOUT = 5.0
_LATE = 1.5  # seconds by which an answer may come after its deadline, on a busy host
_AT_ONCE = 1.0  # seconds within which what is remembered is refused
_LOOK = 0.02
_MEMORY = 256 << 20

_CODES = {
    Venom.HANG: "deadline",
    Venom.SPIN: "deadline",
    Venom.CRASH: "worker-crashed",
    Venom.EAT: "too-large",
}
_REMEMBERED = {Venom.HANG, Venom.SPIN, Venom.CRASH}


def run(scale: float, seed: int) -> Outcome:
    """Mix them, judge every answer, and come again."""
    rng = random.Random(seed)
    count = max(200, round(_REQUESTS * scale))
    with folder() as place:
        model = quick_model(place / "model")
        pictures = Pictures(place / "in", model, count=min(100, count), seed=seed)
        venoms = _poison(place / "venom", pictures, count // _POISONED, rng)
        files = rng.choices(pictures.files, k=count - len(venoms))
        for file in venoms:
            files.insert(rng.randrange(len(files)), file)
        host = Host(
            place / "d",
            model,
            *("--workers=2", "--threads=1", "--batch=4"),
            *(f"--timeout={_TIMEOUT:g}", f"--worker-memory={_MEMORY}"),
            environment=environment(place / "site"),
        )
        askers: list[Asker] = []
        try:
            host.wait_ready()
            begun = time.monotonic()
            for number in range(_CLIENTS):
                share = files[number::_CLIENTS]
                askers.append(Asker(place, f"c{number}", host.path, share, timeout=0))
            _pace(askers, count)
            seconds = time.monotonic() - begun
            verdict = _Verdict(pictures, venoms)
            for asker in askers:
                verdict.judge(asker)
            _come_again(host, verdict)
            kills = host.status()["kills"]["total"]
        finally:
            end_all(host, *askers)
        return verdict.outcome(kills, seconds)


def _poison(place: Path, pictures: Pictures, count: int, rng: random.Random) -> dict[Path, Venom]:
    place.mkdir()
    venoms = {}
    for number in range(max(len(_CODES), count)):
        venom = list(_CODES)[number % len(_CODES)]
        file = place / f"{number:05}.png"
        file.write_bytes(rng.choice(pictures.files).read_bytes() + venom.value)
        venoms[file] = venom
    return venoms


def _pace(askers: list[Asker], count: int) -> None:
    progress = Progress(count)
    begun = time.monotonic()
    while any(asker.asking for asker in askers):
        time.sleep(_LOOK)
        for asker in askers:
            asker.give(math.ceil((time.monotonic() - begun) * _RATE / _CLIENTS))
        progress.tell(sum(asker.answered for asker in askers), "answers")


def _come_again(host: Host, verdict: _Verdict) -> None:
    """Ask for each poisoned image once more, then for one that has been mended."""
    with Peer(host.path) as peer:
        for file, venom in verdict.venoms.items():
            if venom in _REMEMBERED:
                tries = 0
                error, seconds = _ask(peer, file)
                if "remembered" not in str(error):
                    tries = 1
                    error, seconds = _ask(peer, file)
                verdict.again(file, getattr(error, "code", ""), str(error), seconds, tries)
        mended = next(iter(verdict.venoms))
        mended.write_bytes(verdict.pictures.files[0].read_bytes())
        with open(mended, "rb") as image:
            verdict.mended(peer.ask(descriptor=image.fileno()).fields.get("probabilities"))


def _ask(peer: Peer, file: Path) -> tuple[SwiprError | None, float]:
    """Ask once; give the error and the seconds it took."""
    begun = time.monotonic()
    with open(file, "rb") as image:
        error = peer.ask(descriptor=image.fileno()).error
    return error, time.monotonic() - begun


class _Verdict:
    """What was right and what was wrong."""

    def __init__(self, pictures: Pictures, venoms: dict[Path, Venom]) -> None:
        self.pictures = pictures
        self.venoms = venoms
        self._requests = self._rows = self._wrong = self._refused = self._tried = 0
        self._errors: Counter[str] = Counter()
        self._notes: list[str] = []
        self._latest = self._slowest = 0.0

    def judge(self, asker: Asker) -> None:
        """Compare a client's answers with what each had to be."""
        answers = asker.answers()
        self._requests += len(asker.files)
        self._wrong += abs(len(asker.files) - len(answers))
        for file, answer in zip(asker.files, answers, strict=False):
            code = answer.get("code", "")
            if code:
                self._errors[code] += 1
            if file not in self.venoms:
                right = self.pictures.right(int(file.stem), answer.get("row"))
                self._rows += right
            else:
                right = code == _CODES[self.venoms[file]] and self._in_time(answer["message"])
            if not right or answer["path"] != str(file):
                self._fail(f"{file.name}: {answer.get('code')} {answer.get('message')}")
        if asker.words():
            self._fail(asker.words().splitlines()[-1])

    def again(self, file: Path, code: str, message: str, seconds: float, tries: int) -> None:
        """A poisoned image came again, after so many tries that ran to the deadline."""
        self._tried += tries
        self._requests += 1
        self._errors[code] += 1
        self._refused += 1
        self._slowest = max(self._slowest, seconds)
        if code != _CODES[self.venoms[file]] or "remembered" not in message or seconds > _AT_ONCE:
            self._fail(f"{file.name} again: {code} {message} after {seconds:.2f} s")

    def mended(self, row: object) -> None:
        """A poisoned file has been made a copy of the first picture."""
        self._requests += 1
        if self.pictures.right(0, row):
            self._rows += 1
        else:
            self._fail("the mended file did not get its row")

    def outcome(self, kills: int, seconds: float) -> Outcome:
        """All of it."""
        return Outcome(
            scenario="poison",
            requests=self._requests,
            rows=self._rows,
            errors=dict(self._errors),
            faults=len(self.venoms),
            wrong=self._wrong,
            seconds=seconds,
            figures={
                "workers_killed": float(kills),
                "latest_deadline_seconds": self._latest,
                "refused_again": float(self._refused),
                "tried_once_more": float(self._tried),
                "slowest_refusal_seconds": self._slowest,
            },
            held=self._wrong == 0,
            notes="; ".join(self._notes[:3]),
        )

    def _in_time(self, message: str) -> bool:
        found = re.search(r"within ([\d.]+) s", message)
        waited = float(found[1]) if found else 0.0
        self._latest = max(self._latest, waited)
        return waited <= _TIMEOUT + _LATE

    def _fail(self, note: str) -> None:
        self._wrong += 1
        self._notes.append(note)
