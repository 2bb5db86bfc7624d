"""The forkserver is killed while a client's file hangs whoever closes it.

Each time the front holds such files: with half a frame, and with images that wait. It must go on,
have another forkserver and serve the other uid's rows; a process started meanwhile must not have to
close what clients passed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

import fuseserver
from daemonprocess import DaemonProcess, Peer
from person import Person, Say
from vitals import send_rights

from campaign import bystander
from campaign.outcome import Outcome

SECONDS = 45.0

_KILLS = 10  # at scale 1
_HALVES = 8  # connections with half a frame, each with a file
_WAITING = 24  # images that hang, or wait behind those
_TIMEOUT = 20.0  # of those
_ROWS = 10  # of the bystander, after each kill


def run(scale: float, seed: int) -> Outcome:
    """Kill, round after round."""
    if not fuseserver.possible():
        return Outcome(scenario="forkservers", held=True, notes="skipped: takes root and /dev/fuse")
    begun = time.monotonic()
    kills = max(2, round(_KILLS * scale))
    long = scale >= 1
    errors: Counter[str] = Counter()
    notes: list[str] = []
    killed = 0
    users = fuseserver.possible_for_users()
    owner = bystander.ATTACKER if users else 0
    with bystander.scene(
        "--workers=2", "--threads=1", "--batch=1", "--stall=60", seed=seed
    ) as scene:
        for number in range(kills):
            place = scene.place / f"fuse{number}"
            source = scene.pictures.files[0]
            with fuseserver.mounted(place, source, uid=owner) as folder:
                holder = Person(
                    bystander.ATTACKER, lambda say, f=folder: _hold(scene.daemon.path, f, say)
                )
                try:
                    if not holder.wait_said(1):
                        notes.append(f"nothing is held: {holder.raised}")
                    _kill_forkserver(scene.daemon)
                    killed += 1
                    if not scene.bystander.more(_ROWS):
                        notes.append("the bystander has no answer any more")
                except (AssertionError, OSError) as error:
                    notes.append(f"forkserver {number} was killed, and no other came: {error!r}")
                finally:
                    fuseserver.release(folder)  # or else the holder cannot end
                    if not holder.wait_over():
                        notes.append(f"what was held has no end: {holder.raised}")
                    holder.end()
                errors.update(holder.said[1:])
            if notes:
                break
        verdict = scene.bystander.verdict(long=long)
        seconds, wrong = bystander.leaves(scene.daemon)
    notes += [*verdict.notes, *filter(None, [wrong])]
    return Outcome(
        scenario="forkservers",
        requests=verdict.rows + len(verdict.failed) + errors.total(),
        rows=verdict.rows,
        errors=dict(errors),
        faults=killed,
        wrong=len(verdict.failed),
        seconds=time.monotonic() - begun,
        figures={**verdict.figures, "leave_seconds": seconds},
        held=verdict.held and not notes,
        notes="; ".join(notes),
    )


def _kill_forkserver(daemon: DaemonProcess) -> None:
    """Kill it as the OOM killer would; wait for another, and for workers of it.

    Raises:
        AssertionError, OSError: no other comes.
    """
    before = daemon.status()["forkserver"]["pid"]
    os.kill(before, signal.SIGKILL)
    daemon.wait_status(lambda s: s["forkserver"]["pid"] not in (0, before))
    daemon.wait_status(lambda s: any(w["state"] == "idle" for w in s["workers"]))


def _hold(path: Path, folder: Path, say: Say) -> None:
    """Have the front hold files that hang, in half frames and as images that wait."""
    flush = os.open(folder / "flush", os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        for _ in range(_HALVES):
            peer = stack.enter_context(Peer(path))
            send_rights(peer.socket, b"\0\0", [flush])
        peer = stack.enter_context(Peer(path))
        for identity in range(_WAITING):
            peer.send(identity, descriptor=flush, timeout=_TIMEOUT)
        # Answered at once, so by then it has read what came before on this connection.
        peer.send(_WAITING, "status")
        early = []
        while (reply := peer.receive()).id != _WAITING:
            early.append(reply)
        say("held")
        for number in range(_WAITING):
            reply = early[number] if number < len(early) else peer.receive()
            say("ok" if reply.error is None else reply.error.code)
