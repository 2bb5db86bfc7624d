"""systemd's watchdog follows the work: a front whose workers do not answer is silent, too.

Under load WATCHDOG=1 comes in time. With the workers stopped (and the forkserver, which would
replace them) it does not, though the front goes on answering questions; when they go on, so does
it. A manager that acts on the silence has a daemon that answers again.
"""

from __future__ import annotations

import os
import random
import signal
import time

from daemonprocess import Peer, signal_if_there

from campaign.host import Asker, Host, end_all, folder
from campaign.outcome import Outcome
from campaign.pictures import Pictures, quick_model

SECONDS = 45.0

_WATCHDOG = 2.0  # seconds: WatchdogSec=
_ROUNDS = 6
_REQUESTS = 400  # a round
_LATE = 1.0  # seconds that a busy host may be late by


def run(scale: float, seed: int) -> Outcome:
    """In each round see it beat under load, fall silent, and beat again."""
    rng = random.Random(seed)
    rounds = max(1, round(_ROUNDS * scale))
    rows = wrong = faults = beats = 0
    longest = 0.0
    notes = []
    begun = time.monotonic()
    with folder() as place:
        model = quick_model(place / "model")
        pictures = Pictures(place / "in", model, count=20, seed=seed)
        host = Host(
            place / "d",
            model,
            *("--workers=1", "--threads=1", "--batch=1"),
            environment={"WATCHDOG_USEC": str(int(_WATCHDOG * 1e6))},
        )
        askers: list[Asker] = []
        try:
            host.wait_ready()
            for number in range(rounds):
                files = rng.choices(pictures.files, k=_REQUESTS)
                askers.append(Asker(place, f"c{number}", host.path, files, timeout=30.0))
                askers[-1].give(_REQUESTS)
                while askers[-1].asking:
                    before = time.monotonic()
                    host.wait_told("WATCHDOG=1")
                    beats += 1
                    longest = max(longest, time.monotonic() - before)
                rows += sum(
                    pictures.right(int(file.stem), answer.get("row"))
                    for file, answer in zip(files, askers[-1].answers(), strict=False)
                )
                silent, questions = _stop_workers(host)
                faults += 1
                if silent > 1:  # one may have been on its way
                    wrong += 1
                    notes.append(f"{silent} signs of life from dead workers")
                if not questions:
                    wrong += 1
                    notes.append("the front did not answer meanwhile")
            _stop(host)
            faults += 1
            host.kill_and_restart()  # what systemd does when the time is over
            host.wait_ready()
            host.wait_told("WATCHDOG=1")
            with Peer(host.path) as peer:
                ok = pictures.right(
                    0, peer.ask(image=pictures.files[0].read_bytes()).fields.get("probabilities")
                )
        finally:
            end_all(host, *askers)
    rows += ok
    requests = rounds * _REQUESTS + 1
    wrong += requests - rows
    if longest > _WATCHDOG + _LATE:
        notes.append(f"{longest:.1f} s without a sign of life under load")
    return Outcome(
        scenario="watchdog",
        requests=requests,
        rows=rows,
        faults=faults,
        wrong=wrong,
        seconds=time.monotonic() - begun,
        figures={"signs_of_life": float(beats), "longest_silence_seconds": longest},
        held=wrong == 0 and longest <= _WATCHDOG + _LATE,
        notes="; ".join(notes[:3]),
    )


def _stop(host: Host) -> list[int]:
    """Stop the forkserver and the workers; return their pids."""
    host.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)
    pids = [*host.forkservers(), *host.forked()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def _stop_workers(host: Host) -> tuple[int, bool]:
    """Signs of life while the workers are stopped, and whether the front answers meanwhile."""
    pids = _stop(host)
    host.read_told()
    time.sleep(1.5 * _WATCHDOG)  # absence has no event
    told = host.read_told()
    answers = host.status()["state"] == "ready"
    for pid in pids:
        signal_if_there(pid, signal.SIGCONT)
    host.wait_told("WATCHDOG=1")
    return sum("WATCHDOG=1" in line for line in told), answers
