"""100,000 requests: memory, descriptors and children at the end are what they were early on.

And a model that leaks: its workers are replaced in time, and no request is lost over that.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from daemonprocess import Peer, forkservers, wait_until
from venom import Venom, environment
from vitals import open_descriptors, resident

from campaign.host import Host, end_all, folder
from campaign.outcome import Outcome
from campaign.pictures import Pictures, quick_model
from campaign.progress import Progress

SECONDS = 200.0

_REQUESTS = 100_000
_EARLY = 0.05  # of the requests: then it is looked at first
_LEAST = 1_500
_UNDER_WAY = 16
_GROWTH = 0.05  # of the memory: what it may have more at the end
_LEAKS = 1_000  # of a mebibyte each
_WORN = 64 << 20  # bytes
_SHAPE = ("--workers=1", "--threads=1", "--batch=1")


def run(scale: float, seed: int) -> Outcome:
    """Soak one daemon, then have one with leaks replace its workers."""
    requests = max(_LEAST, round(_REQUESTS * scale))
    leaks = max(400, round(_LEAKS * scale))
    begun = time.monotonic()
    trial = _Trial()
    with folder() as place:
        model = quick_model(place / "model")
        pictures = Pictures(place / "in", model, count=50, seed=seed)
        with _host(place / "soak", model) as host, _opened(pictures.files) as images:
            early = round(requests * _EARLY)
            trial.ask(host, pictures, images, early, seed)
            before = _vitals(host)
            soaked = time.monotonic()
            trial.ask(host, pictures, images, requests - early, seed + 1)
            soaked = time.monotonic() - soaked
            after = _vitals(host)
        trial.compare(before, after)
        site = environment(place / "site")
        bound = f"--max-growth={_WORN}"
        with _host(place / "leak", model, bound, environment=site) as host:
            trial.leak(host, pictures, leaks, place / "leaking")
    trial.figures["requests_per_second"] = (requests - early) / soaked
    return trial.outcome(time.monotonic() - begun)


@contextmanager
def _host(
    place: Path, model: Path, *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[Host]:
    host = Host(place, model, *_SHAPE, *arguments, environment=environment)
    try:
        host.wait_ready()
        yield host
    finally:
        end_all(host)


@contextmanager
def _opened(files: list[Path]) -> Iterator[list[int]]:
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _vitals(host: Host) -> dict[str, Any]:
    """Of a daemon that has nothing to do: memory by process, descriptors, children."""
    (forkserver,) = host.forkservers()
    front = host.pid
    with Peer(host.path) as peer:
        wait_until(lambda: _at_rest(peer.ask("status").fields), "the daemon is at rest")
        return _measure(front, forkserver, host.forked())


def _at_rest(status: dict[str, Any]) -> bool:
    idle = [w["state"] for w in status["workers"]] == ["idle"] * 2
    return idle and status["connections"] == 1


def _measure(front: int, forkserver: int, workers: list[int]) -> dict[str, Any]:
    return {
        "memory": {"front": resident(front), "forkserver": resident(forkserver)}
        | {"workers": sum(resident(pid) for pid in workers)},
        "descriptors": {
            name: len(open_descriptors(pid))
            for name, pid in (("front", front), ("forkserver", forkserver))
        }
        | {"workers": sum(len(open_descriptors(pid)) for pid in workers)},
        "children": {"forkserver": len(workers), "front": len(forkservers(front))},
    }


class _Trial:
    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._requests = self._rows = self._wrong = self._faults = 0
        self._notes: list[str] = []
        self._held = True

    def ask(
        self, host: Host, pictures: Pictures, images: list[int], number: int, seed: int
    ) -> None:
        """Ask so many times over one connection, several at a time; judge each row."""
        rng = random.Random(seed)
        progress = Progress(number)
        ids = count(1)
        asked: dict[int, int] = {}
        left = number

        with Peer(host.path) as peer:

            def send() -> None:
                identity, picture = next(ids), rng.randrange(len(images))
                asked[identity] = picture
                peer.send(identity, descriptor=images[picture], timeout=30.0)

            while left or asked:
                while left and len(asked) < _UNDER_WAY:
                    send()
                    left -= 1
                self._take(peer, asked, pictures.right)
                progress.tell(number - left, "rows")
        self._requests += number

    def leak(self, host: Host, pictures: Pictures, number: int, place: Path) -> None:
        """Ask for images that leak; each gets its row, and workers are replaced."""
        place.mkdir()
        files = []
        for index, file in enumerate(pictures.files):
            leaking = place / file.name
            leaking.write_bytes(file.read_bytes() + Venom.LEAK.value)
            files.append(os.open(leaking, os.O_RDONLY))
            assert index == int(file.stem)
        try:
            self.ask(host, pictures, files, number, seed=number)
        finally:
            for file in files:
                os.close(file)
        self._faults += number
        status = host.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)
        least = number * (1 << 20) // (4 * _WORN)
        self.figures["recycled"] = float(status["recycled"])
        if status["recycled"] < max(1, least):
            self._held = False
            self._notes.append(f"{status['recycled']} workers replaced, {least} expected")
        if status["kills"]["total"]:
            self._held = False
            self._notes.append(f"workers died: {status['kills']['last']}")

    def compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Hold what there is at the end against what there was early on."""
        for name, size in before["memory"].items():
            growth = after["memory"][name] / size - 1
            self.figures[f"{name}_growth_percent"] = 100 * growth
            if growth > _GROWTH:
                self._held = False
                self._notes.append(f"{name}: {size} bytes early, {after['memory'][name]} late")
        for what in ("descriptors", "children"):
            if before[what] != after[what]:
                self._held = False
                self._notes.append(f"{what}: {before[what]} early, {after[what]} late")

    def outcome(self, seconds: float) -> Outcome:
        """All of it."""
        return Outcome(
            scenario="soak",
            requests=self._requests,
            rows=self._rows,
            faults=self._faults,
            wrong=self._wrong,
            seconds=seconds,
            figures=self.figures,
            held=self._held and self._wrong == 0,
            notes="; ".join(self._notes[:3]),
        )

    def _take(
        self, peer: Peer, asked: dict[int, int], right: Callable[[int, object], bool]
    ) -> None:
        reply = peer.receive()
        picture = asked.pop(reply.id, None) if reply.id is not None else None
        if picture is not None and right(picture, reply.fields.get("probabilities")):
            self._rows += 1
        else:
            self._wrong += 1
            self._notes.append(str(reply.error or "a row that is not the picture's"))
