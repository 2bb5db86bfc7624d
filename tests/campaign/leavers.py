"""Clients that leave take their queued work along, and nobody else's.

Round after round with the workers held still: some clients ask, some of those leave, abruptly or
by closing only their sending side; the queue must then hold exactly what the others asked, and
each of those gets its own row.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from daemonprocess import Peer
from modelfolders import photo
from vitals import Vitals, held

from campaign.front import photo_files, serving
from campaign.outcome import Outcome

SECONDS = 60.0

_ROUNDS = 200  # at scale 1
_CLIENTS = 8
_EACH = 12  # requests of a client, at most: all of them fit into the queue
_PHOTOS = 8
_NEAR = 1e-5


def run(scale: float, seed: int) -> Outcome:
    """Play the rounds."""
    begun = time.monotonic()
    rng = random.Random(seed)
    photos = [photo(number) for number in range(_PHOTOS)]
    requests = rows = left = wrong = leavers = 0
    with serving() as daemon, TemporaryDirectory() as name:
        files = photo_files(Path(name), photos)
        vitals = Vitals(daemon, photos[0])
        with daemon.connect() as peer:
            right = [peer.ask(image=data).fields["probabilities"] for data in photos]
        for _ in range(max(2, round(_ROUNDS * scale))):
            with contextlib.ExitStack() as stack:
                asked: list[tuple[Peer, dict[int, int]]] = []
                with held(daemon):
                    for _ in range(_CLIENTS):
                        peer = stack.enter_context(daemon.connect())
                        mine = {n: rng.randrange(_PHOTOS) for n in range(rng.randint(1, _EACH))}
                        asked.append((peer, mine))
                        for identity, number in mine.items():
                            how = {"descriptor": files[number]}
                            if rng.random() < 0.5:
                                how = {"image": photos[number]}
                            peer.send(identity, timeout=60.0, **how)
                        if len(asked) == 1:  # what runs is the first one's, then
                            daemon.wait_status(lambda s: s["queue"]["total"] > 0)
                    total = sum(len(mine) for _, mine in asked)
                    daemon.wait_status(lambda s, total=total: s["queue"]["total"] == total)
                    requests += total
                    leaving = rng.sample(range(_CLIENTS), rng.randint(1, _CLIENTS - 1))
                    for number in leaving:
                        peer, mine = asked[number]
                        left += len(mine)
                        if rng.random() < 0.5:
                            peer.socket.shutdown(socket.SHUT_WR)
                        else:
                            peer.close()
                    leavers += len(leaving)
                    runs = 1 if 0 in leaving else 0  # unheard, but to its end
                    rest = total - sum(len(asked[number][1]) for number in leaving) + runs
                    daemon.wait_status(
                        lambda s: s["connections"] == 1 + _CLIENTS - len(leaving)  # noqa: B023
                    )
                    wrong += abs(daemon.status()["queue"]["total"] - rest)
                for number, (peer, mine) in enumerate(asked):
                    if number in leaving:
                        continue
                    for _ in range(len(mine)):
                        reply = peer.receive()
                        row = reply.fields.get("probabilities", [])
                        expected = right[mine.pop(reply.id)]
                        if all(abs(a - b) < _NEAR for a, b in zip(row, expected, strict=True)):
                            rows += 1
                        else:
                            wrong += 1
        vitals.check()
        for descriptor in files:
            os.close(descriptor)
    wrong += abs(requests - rows - left)
    return Outcome(
        scenario="leavers",
        requests=requests,
        rows=rows,
        errors={"left": left},
        faults=leavers,
        wrong=wrong,
        seconds=time.monotonic() - begun,
        held=not wrong,
    )
