"""128 uids hold a place each, and the queue is full: others must still be answered.

First the uids are those of one user, who has them as subordinate uids: they count as that user's,
and everybody else's rows go on. Then they are nobody's but their own; who comes then may be told
to come back, except root and the daemon's own uid, for whom places are kept.
"""

from __future__ import annotations

import os
import pwd
import selectors
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from daemonprocess import Peer
from person import Person, Say, people
from unprivileged import UID as DAEMON
from unprivileged import possible
from vitals import held

from campaign import bystander
from campaign.bystander import Scene
from campaign.host import folder
from campaign.outcome import Outcome
from swiprctl.protocol import Reply

SECONDS = 45.0

_QUEUE = 128  # as shipped
_FIRST = 3_000_000  # of the uids
_STRANGER = 65532
_ARGUMENTS = ("--workers=2", "--threads=1", "--batch=1")
_FLOOD = 15.0  # seconds at scale 1 in which all of them ask on and on
_ROUNDS = 4  # at scale 1: the queue is filled while the workers stand still
_TIMEOUT = 60.0  # of what fills the queue
_RETURNS = ("overloaded",)  # what a stranger may be told while the queue is full


def run(scale: float, seed: int) -> Outcome:
    """Fill it with one user's uids, then with many users'."""
    if not (possible() and Path("/etc/subuid").exists()):
        return Outcome(scenario="crowd", held=True, notes="skipped: takes root, and /etc/subuid")
    begun = time.monotonic()
    trial = _Trial(seed, long=scale >= 1)
    rounds = max(1, round(_ROUNDS * scale))
    with folder() as place:
        place.chmod(0o755)
        subuids = place / "subuid"
        subuids.write_text(f"{pwd.getpwuid(bystander.ATTACKER).pw_name}:{_FIRST}:65536\n")
        trial.one_users(subuids, rounds, max(1.0, _FLOOD * scale))
        subuids.write_text("")
        trial.many_users(subuids, rounds)
    return trial.outcome(time.monotonic() - begun)


class _Trial:
    def __init__(self, seed: int, *, long: bool) -> None:
        self._seed = seed
        self._long = long
        self._requests = self._rows = self._wrong = self._faults = 0
        self._errors: Counter[str] = Counter()
        self._notes: list[str] = []
        self._figures: dict[str, float] = {}

    def one_users(self, subuids: Path, rounds: int, flood: float) -> None:
        """The uids are one user's: nobody else notices."""
        with bystander.scene(*_ARGUMENTS, seed=self._seed, subuids=subuids) as scene:
            for _ in range(rounds):
                self._fill(scene, strangers=True)
            crowd = Person(0, lambda say: _ask_on(scene, flood, say))
            with people(crowd):
                if not crowd.wait_over():
                    self._notes.append(f"the crowd has no end: {crowd.raised}")
                for told in crowd.said:
                    self._faults += sum(told.values())
            self._judge(scene)

    def many_users(self, subuids: Path, rounds: int) -> None:
        """The uids are strangers to each other: root and the daemon's uid have their places."""
        with bystander.scene(*_ARGUMENTS, seed=self._seed, subuids=subuids) as scene:
            for _ in range(rounds):
                self._fill(scene, strangers=False)
            scene.bystander.more(1)
            self._judge(scene, may=_RETURNS)

    def outcome(self, seconds: float) -> Outcome:
        """All of it."""
        return Outcome(
            scenario="crowd",
            requests=self._requests,
            rows=self._rows,
            errors={code: n for code, n in self._errors.items() if code != "ok"},
            faults=self._faults,
            wrong=self._wrong,
            seconds=seconds,
            figures=self._figures,
            held=not self._wrong and not self._notes and self._rows > 0,
            notes="; ".join(dict.fromkeys(self._notes)),
        )

    def _fill(self, scene: Scene, *, strangers: bool) -> None:
        """While no worker moves 128 uids ask, and then the others; then each gets its answer."""
        with held(scene.daemon):
            asked = Person(0, lambda say: _ask_all(scene, say))
            asked.wait_said(1)
        with people(asked):
            if not asked.wait_over():
                self._notes.append(f"not everybody has an answer: {asked.raised}")
            answers = dict(asked.said[1:])
        self._faults += _QUEUE
        for uid in range(_FIRST, _FIRST + _QUEUE):
            self._count(uid, answers.pop(uid, "none"), {"ok", *_RETURNS})
        for uid, code in answers.items():
            may = {"ok", *_RETURNS} if uid == _STRANGER and not strangers else {"ok"}
            self._count(uid, code, may)

    def _count(self, uid: int, code: str, may: set[str]) -> None:
        self._requests += 1
        self._rows += code == "ok"
        self._errors[code] += 1
        if code not in may:
            self._wrong += 1
            self._notes.append(f"uid {uid} got {code}")

    def _judge(self, scene: Scene, *, may: Sequence[str] = ()) -> None:
        verdict = scene.bystander.verdict(long=self._long and not may, may=may)
        self._rows += verdict.rows
        self._requests += verdict.rows + len(verdict.failed)
        self._wrong += len(verdict.failed)
        self._notes += verdict.notes
        self._figures = self._figures or verdict.figures
        _, wrong = bystander.leaves(scene.daemon)
        self._notes += filter(None, [wrong])


def _connected(path: Path, uid: int) -> Peer:
    """A connection of that uid. Takes a process of root's that has one thread."""
    os.seteuid(uid)
    try:
        return Peer(path)
    finally:
        os.seteuid(0)


def _ask_all(scene: Scene, say: Say) -> None:
    """Say when each has been taken or refused, and then what each got."""
    image = scene.pictures.files[0].read_bytes()
    crowd = range(_FIRST, _FIRST + _QUEUE)
    peers = {uid: _connected(scene.daemon.path, uid) for uid in crowd}
    answers: dict[int, Reply] = {}
    for uid in (*crowd, _STRANGER, DAEMON, 0):
        peer = peers.get(uid) or _connected(scene.daemon.path, uid)
        peers[uid] = peer
        peer.send(1, image=image, timeout=_TIMEOUT)
        # Answered at once, and after the image has been taken. Or refused: that comes before.
        peer.send(2, "status")
        while (reply := peer.receive()).id != 2:
            answers[uid] = reply
    say("asked")
    for uid, peer in peers.items():
        reply = answers.get(uid) or peer.receive()
        say([uid, "ok" if reply.error is None else reply.error.code])


def _ask_on(scene: Scene, seconds: float, say: Say) -> None:
    """Each asks again as soon as it is answered, whatever the answer."""
    image = scene.pictures.files[0].read_bytes()
    codes: Counter[str] = Counter()
    selector = selectors.DefaultSelector()
    for uid in range(_FIRST, _FIRST + _QUEUE):
        peer = _connected(scene.daemon.path, uid)
        selector.register(peer.socket, selectors.EVENT_READ, peer)
        peer.send(1, image=image, timeout=_TIMEOUT)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for key, _ in selector.select(1.0):
            reply = key.data.receive()
            codes["ok" if reply.error is None else reply.error.code] += 1
            key.data.send(1, image=image, timeout=_TIMEOUT)
    say(codes)
