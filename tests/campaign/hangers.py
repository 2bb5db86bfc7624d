"""One uid has twelve pictures in flight that hang their decoders, and forty good ones behind them.

There are two workers. Each good one gets its row within the daemon's own deadline, each hanging one
its named error. Then the same pictures come again: what hung is refused and hangs nobody anew.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from daemonprocess import Peer
from person import Person, Say, people
from unprivileged import possible
from venom import Venom, environment

from campaign import bystander
from campaign.host import folder
from campaign.outcome import Outcome
from campaign.pictures import Pictures

SECONDS = 70.0

_HANGING, _GOOD = 12, 40
_AGAIN = 2  # times that the same pictures come
_ROUNDS = 5  # at scale 1, with other pictures each
_ENDS = ("hanging: deadline", "hanging: worker-crashed")


def run(scale: float, seed: int) -> Outcome:
    """Send them, twice, round after round."""
    if not possible():
        return Outcome(scenario="hangers", held=True, notes="skipped: takes uids, hence root")
    begun = time.monotonic()
    rounds = max(1, round(_ROUNDS * scale))
    long = scale >= 1
    counts: Counter[str] = Counter()
    notes: list[str] = []
    with folder() as site:
        site.chmod(0o755)
        environ = environment(site / "venom")
        with bystander.scene(
            "--workers=2", "--threads=1", "--batch=4", seed=seed, environment=environ
        ) as scene:
            for number in range(rounds):
                files = _hanging(scene.place / f"hang{number}", scene.pictures)
                for again in range(_AGAIN):
                    before = scene.daemon.status()["kills"]["total"]
                    told = _send(scene.daemon.path, files, scene.pictures, notes)
                    killed = scene.daemon.status()["kills"]["total"] - before
                    counts.update(told)
                    if told["row"] != _GOOD:
                        notes.append(f"{told['row']} of {_GOOD} rows in round {number}.{again}")
                    if again and killed:
                        notes.append(f"what had hung was tried again: {killed} workers were killed")
            verdict = scene.bystander.verdict(long=long)
            seconds, wrong = bystander.leaves(scene.daemon)
    notes += [*verdict.notes, *filter(None, [wrong])]
    rows = counts.pop("row", 0)
    requests = rounds * _AGAIN * (_HANGING + _GOOD)
    lost = requests - rows - sum(n for what, n in counts.items() if what in _ENDS)
    return Outcome(
        scenario="hangers",
        requests=requests + verdict.rows + len(verdict.failed),
        rows=rows + verdict.rows,
        errors=dict(counts),
        faults=rounds * _AGAIN * _HANGING,
        wrong=lost + len(verdict.failed),
        seconds=time.monotonic() - begun,
        figures={**verdict.figures, "leave_seconds": seconds},
        held=verdict.held and not notes and not lost,
        notes="; ".join(notes),
    )


def _hanging(place: Path, pictures: Pictures) -> list[Path]:
    place.mkdir()
    files = []
    for number in range(_HANGING):
        good = pictures.files[number % len(pictures.files)].read_bytes()
        files.append(place / f"{number}.png")
        files[-1].write_bytes(good + Venom.HANG.value)
    return files


def _send(path: Path, files: list[Path], pictures: Pictures, notes: list[str]) -> Counter[str]:
    """Give what became of them: `row`, or kind and code."""
    sender = Person(bystander.ATTACKER, lambda say: _all_at_once(path, files, pictures, say))
    with people(sender):
        if not sender.wait_over():
            notes.append(f"{len(sender.said)} of {_HANGING + _GOOD} have an end: {sender.raised}")
        return Counter(sender.said)


def _all_at_once(path: Path, files: list[Path], pictures: Pictures, say: Say) -> None:
    with Peer(path) as peer:
        numbers = [number % len(pictures.files) for number in range(_GOOD)]
        for identity, file in enumerate([*files, *(pictures.files[n] for n in numbers)]):
            with open(file, "rb") as image:
                peer.send(identity, descriptor=image.fileno())
        for _ in range(_HANGING + _GOOD):
            reply = peer.receive()
            assert reply.id is not None
            if reply.id < _HANGING:
                say("hanging: " + ("a row" if reply.error is None else reply.error.code))
            elif reply.error is not None:
                say(f"good: {reply.error.code}")
            else:
                row = reply.fields["probabilities"]
                right = pictures.right(numbers[reply.id - _HANGING], row)
                say("row" if right else "good: a wrong row")
