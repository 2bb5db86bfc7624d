"""10,000 predictions by 8 clients, while workers, forkservers and the daemon itself are SIGKILLed.

A worker every 0.3 s (one that works just then, if any does), the forkserver every 3 s, the daemon
every 10 s. To load a model takes some two seconds of those on two quiet cores, and more on busy
ones, where nothing would ever be answered by that clock: a forkserver is let live until rows have
come for a second. The clients spread what they ask over the time, so that all of it meets kills.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter

from campaign.host import Asker, Host, end_all, folder, kill, working
from campaign.outcome import Outcome
from campaign.pictures import Pictures, quick_model
from campaign.progress import Progress

SECONDS = 110.0

_REQUESTS = 10_000
_CLIENTS = 8
_RATE = 100.0  # requests a second, of all clients
_PICTURES = 250
_TIMEOUT = 60.0
_WORKER, _FORKSERVER, _DAEMON = 0.3, 3.0, 10.0  # seconds between kills
_SERVED = 1.0  # seconds between the first row of a forkserver and its end, at least
_LOOK = 0.02


def run(scale: float, seed: int) -> Outcome:
    """Have every client get each of its rows, in order, whatever dies meanwhile."""
    rng = random.Random(seed)
    share = max(20, round(_REQUESTS * scale / _CLIENTS))
    with folder() as place:
        model = quick_model(place / "model")
        pictures = Pictures(place / "in", model, count=min(_PICTURES, 2 * share), seed=seed)
        host = Host(place / "d", model, "--workers=2", "--threads=1", "--batch=4")
        askers: list[Asker] = []
        try:
            host.wait_ready()
            begun = time.monotonic()
            for number in range(_CLIENTS):
                files = rng.choices(pictures.files, k=share)
                askers.append(Asker(place, f"c{number}", host.path, files, timeout=_TIMEOUT))
            kills = _Chaos(host, askers, rng).run()
            seconds = time.monotonic() - begun
        finally:
            end_all(host, *askers)
        return _judge(askers, pictures, kills, seconds)


class _Chaos:
    """Kills by the clock for as long as any client asks."""

    def __init__(self, host: Host, askers: list[Asker], rng: random.Random) -> None:
        self._host = host
        self._askers = askers
        self._rng = rng
        self._kills: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        """Return how many of each were killed."""
        begun = now = time.monotonic()
        due = {"worker": now, "forkserver": now + _FORKSERVER, "daemon": now + _DAEMON}
        progress = Progress(sum(len(asker.files) for asker in self._askers))
        answered = 0  # when the forkserver was killed last,
        serving: float | None = None  # and since when rows have come again
        while any(asker.asking for asker in self._askers):
            time.sleep(_LOOK)
            now = time.monotonic()
            for asker in self._askers:
                asker.give(math.ceil((now - begun) * _RATE / _CLIENTS))
            rows = sum(asker.answered for asker in self._askers)
            progress.tell(rows, f"rows, {self._kills.total()} kills")
            if serving is None and rows > answered:
                serving = now
            if now >= due["worker"]:
                due["worker"] = now + _WORKER
                workers = self._host.forked()
                self._kill("worker", working(workers) or workers)
            if serving is None or now < serving + _SERVED:
                continue
            if now >= due["daemon"]:
                self._host.kill_and_restart()
                self._kills["daemon"] += 1
                due["daemon"] = now + _DAEMON
            elif now >= due["forkserver"]:
                self._kill("forkserver", self._host.forkservers())
            else:
                continue
            due["forkserver"] = now + _FORKSERVER
            answered, serving = rows, None
        return self._kills

    def _kill(self, what: str, pids: list[int]) -> None:
        if pids and kill(self._rng.choice(pids)):
            self._kills[what] += 1


def _judge(askers: list[Asker], pictures: Pictures, kills: Counter[str], seconds: float) -> Outcome:
    rows = wrong = 0
    errors: Counter[str] = Counter()
    notes = []
    for asker in askers:
        answers = asker.answers()
        wrong += abs(len(asker.files) - len(answers))  # lost, or doubled
        for file, answer in zip(asker.files, answers, strict=False):
            if "code" in answer:
                errors[answer["code"]] += 1
                notes.append(answer["message"])
            if answer["path"] == str(file) and pictures.right(int(file.stem), answer.get("row")):
                rows += 1
            else:
                wrong += 1
        if asker.words():
            notes.append(asker.words().splitlines()[-1])
    return Outcome(
        scenario="kills",
        requests=sum(len(asker.files) for asker in askers),
        rows=rows,
        errors=dict(errors),
        faults=kills.total(),
        wrong=wrong,
        seconds=seconds,
        figures={
            **{f"{what}s_killed": float(count) for what, count in kills.items()},
            "forkserver_kills_apart_seconds": seconds / max(1, kills["forkserver"]),
        },
        held=wrong == 0 and rows > 0 and kills["worker"] > 0,
        notes="; ".join(sorted(set(notes))[:3]),
    )
