"""One uid has eight valid pictures decoded that take minutes each, and names an hour as its time.

Another uid's rows must go on, all of them; and each of the eight must end, in a row or a named
error, when the daemon's own patience does. Then the same again, from memfds and as bytes.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

from bombs import progressive
from daemonprocess import Peer
from person import Person, Say, people
from unprivileged import possible

from campaign import bystander
from campaign.outcome import Outcome
from swiprctl.protocol import MAX_TIMEOUT

SECONDS = 90.0

_PICTURES = 8
_SCANS = 10_000  # more than two minutes, and 700 KB
_ROUNDS = 6  # at scale 1
_TIMEOUT = {False: 3.0, True: 10.0}  # the daemon's own, in the short and in the long form


def run(scale: float, seed: int) -> Outcome:
    """Send them, round after round."""
    if not possible():
        return Outcome(scenario="scans", held=True, notes="skipped: takes uids, hence root")
    begun = time.monotonic()
    rounds = max(1, round(_ROUNDS * scale))
    long = scale >= 1
    bomb = progressive(_SCANS)
    errors: Counter[str] = Counter()
    notes = []
    ways = ("file", "bytes", "memfd")
    with bystander.scene(
        "--workers=2", "--threads=1", "--batch=1", f"--timeout={_TIMEOUT[long]:g}", seed=seed
    ) as scene:
        file = scene.place / "bomb.jpg"
        file.write_bytes(bomb)
        for number in range(rounds):
            way = ways[number % len(ways)]

            def ask(say: Say, way: str = way) -> None:
                _ask(scene.daemon.path, file, way, say)

            attacker = Person(bystander.ATTACKER, ask)
            with people(attacker):
                if not attacker.wait_over():
                    notes.append(f"{_PICTURES - len(attacker.said)} pictures have no end")
                errors.update(attacker.said)
        if not scene.bystander.more(10):
            notes.append("the bystander has no answer any more")
        verdict = scene.bystander.verdict(long=long)
        seconds, wrong = bystander.leaves(scene.daemon)
    notes += [*verdict.notes, *filter(None, [wrong])]
    return Outcome(
        scenario="scans",
        requests=verdict.rows + len(verdict.failed) + rounds * _PICTURES,
        rows=verdict.rows,
        errors=dict(errors),
        faults=rounds * _PICTURES,
        wrong=len(verdict.failed) + rounds * _PICTURES - errors.total(),
        seconds=time.monotonic() - begun,
        figures={**verdict.figures, "leave_seconds": seconds},
        held=verdict.held and not notes,
        notes="; ".join(notes),
    )


def _ask(path: Path, file: Path, way: str, say: Say) -> None:
    with Peer(path) as peer:
        for identity in range(_PICTURES):
            if way == "bytes":
                peer.send(identity, image=file.read_bytes(), timeout=MAX_TIMEOUT)
                continue
            descriptor = os.open(file, os.O_RDONLY)
            if way == "memfd":
                os.close(descriptor)
                descriptor = os.memfd_create("bomb")
                os.write(descriptor, file.read_bytes())
            peer.send(identity, descriptor=descriptor, timeout=MAX_TIMEOUT)
            os.close(descriptor)
        for _ in range(_PICTURES):
            reply = peer.receive()
            say("ok" if reply.error is None else reply.error.code)
