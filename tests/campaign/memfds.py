"""Memfds that their sender made: one that grows to a petabyte once it is submitted, then a flood.

The first holds a picture that hangs its decoder, so that the daemon has reason to remember it at
its deadline; by then it has 2^50 bytes, all of them a hole, and is sealed. The flood is legal:
sealed memfds as large as an image may be, and as large as one that is remembered. Whoever reads
them in the front's loop keeps everybody waiting.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from pathlib import Path

from bombs import progressive
from daemonprocess import DaemonProcess, Peer, wait_until
from person import Person, Say, people
from unprivileged import possible

from campaign import bystander
from campaign.outcome import Outcome

SECONDS = 60.0

_SCANS = 400  # some seconds: a decoder is not given more than 500 at all
_GROWN = 1 << 50
_TIMEOUT = 1.0  # of the picture that grows: the front looks at it then
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_TIMES = 10  # that one grows, at scale 1
_FLOOD = 400  # memfds, at scale 1
_WINDOW = 16  # of them under way
_LARGE = 64 << 20  # what an image may have


def run(scale: float, seed: int) -> Outcome:
    """Grow, then flood."""
    if not possible():
        return Outcome(scenario="memfds", held=True, notes="skipped: takes uids, hence root")
    begun = time.monotonic()
    times = max(2, round(_TIMES * scale))
    flood = max(_WINDOW + 4, round(_FLOOD * scale))
    long = scale >= 1
    bomb = progressive(_SCANS)
    errors: Counter[str] = Counter()
    notes = []
    with bystander.scene("--workers=2", "--threads=1", "--batch=1", seed=seed) as scene:
        path, good = scene.daemon.path, scene.pictures.files[0].read_bytes()
        for number in range(times):
            # Each is another picture: what is known to hang would not be tried.
            grower = Person(
                bystander.ATTACKER, lambda say, n=number: _grow(scene.daemon, bomb + bytes(n), say)
            )
            with people(grower):
                if not grower.wait_over() or grower.said[:1] != ["grown"]:
                    notes.append(
                        f"memfd {number} grew, and its request has no end: {grower.raised}"
                    )
                errors.update(grower.said[1:])
            if not scene.bystander.more(10):
                notes.append("the bystander has no answer any more")
                break
        else:
            flooder = Person(bystander.ATTACKER, lambda say: _flood(path, bomb, good, flood, say))
            with people(flooder):
                if not flooder.wait_over():
                    notes.append("the flood has no end")
                errors.update(flooder.said)
        verdict = scene.bystander.verdict(long=long)
        seconds, wrong = bystander.leaves(scene.daemon)
    notes += [*verdict.notes, *filter(None, [wrong])]
    requests = times + flood + 1
    return Outcome(
        scenario="memfds",
        requests=requests + verdict.rows + len(verdict.failed),
        rows=verdict.rows + errors["ok"],
        errors={code: n for code, n in errors.items() if code != "ok"},
        faults=requests,
        wrong=len(verdict.failed) + requests - errors.total(),
        seconds=time.monotonic() - begun,
        figures={**verdict.figures, "leave_seconds": seconds},
        held=verdict.held and not notes and errors.total() == requests,
        notes="; ".join(notes),
    )


def _grow(daemon: DaemonProcess, picture: bytes, say: Say) -> None:
    """Have a picture decoded; while it is, make it larger than anything, and no longer writable."""
    memfd = os.memfd_create("grows", os.MFD_ALLOW_SEALING)
    os.write(memfd, picture)
    with daemon.connect() as peer:
        peer.send(1, descriptor=memfd, timeout=_TIMEOUT)
        # By then it has been read; the deadline is later.
        wait_until(lambda: _runs(daemon), "it runs")
        time.sleep(0.4 * _TIMEOUT)
        os.ftruncate(memfd, _GROWN)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
        say("grown")
        say(_code(peer))


def _runs(daemon: DaemonProcess) -> bool:
    return str(os.geteuid()) in daemon.status()["queue"]["by_uid"]


def _flood(path: Path, bomb: bytes, good: bytes, count: int, say: Say) -> None:
    """First one that is remembered, then others of its size, `_WINDOW` of them at any time."""
    poison, innocent = _sealed(bomb), _sealed(good)
    with Peer(path) as peer:
        peer.send(0, descriptor=poison, timeout=_TIMEOUT)
        say(_code(peer))
        for number in range(1, count + 1):
            peer.send(number, descriptor=innocent)
            if number >= _WINDOW:
                say(_code(peer))
        for _ in range(min(count, _WINDOW - 1)):
            say(_code(peer))


def _code(peer: Peer) -> str:
    reply = peer.receive()
    return "ok" if reply.error is None else reply.error.code


def _sealed(picture: bytes) -> int:
    memfd = os.memfd_create("large", os.MFD_ALLOW_SEALING)
    os.write(memfd, picture)
    os.ftruncate(memfd, _LARGE)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
    return memfd
