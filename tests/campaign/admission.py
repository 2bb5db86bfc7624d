"""Deadlines include the queue: who cannot be answered in time is told so at once, and when to ask.

A flood keeps the queue full while others ask with deadlines of all lengths: each is answered, or
refused at once with `overloaded` and a `retry_after`. Clients of the library that have the time
come back by themselves, and get every row.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter

from daemonprocess import Peer

from campaign.host import Asker, Host, end_all, folder
from campaign.outcome import Outcome
from campaign.pictures import Pictures, small_model
from campaign.progress import Progress

SECONDS = 40.0

_ASKED = 400  # requests with a deadline of their own
_REQUESTS = 3_000  # of the clients that come back
_CLIENTS = 4
_QUEUE = 64
_FLOOD = 48  # requests that are always under way
_TIMEOUT = 30.0
_AT_ONCE = 0.25  # seconds; the front shares two cores with the workers and the flood
_MISJUDGED = 0.05  # of the requests with a deadline: taken, and not answered in time


def run(scale: float, seed: int) -> Outcome:
    """Flood, ask with deadlines, and have clients come back."""
    rng = random.Random(seed)
    share = max(40, round(_REQUESTS * scale / _CLIENTS))
    begun = time.monotonic()
    with folder() as place:
        model = small_model(place / "model")
        pictures = Pictures(place / "in", model, count=50, seed=seed)
        image = pictures.files[0].read_bytes()
        host = Host(
            place / "d",
            model,
            *("--workers=1", "--threads=1", "--batch=1", f"--queue={_QUEUE}"),
        )
        askers: list[Asker] = []
        try:
            host.wait_ready()
            with _Flood(host, image):
                host.wait_status(lambda s: s["queue"]["total"] >= _FLOOD // 2)
                asked = _ask(host, image, max(40, round(_ASKED * scale)), rng)
            for number in range(_CLIENTS):
                files = rng.choices(pictures.files, k=share)
                askers.append(Asker(place, f"c{number}", host.path, files, timeout=_TIMEOUT))
                askers[-1].give(share)
            progress = Progress(_CLIENTS * share)
            while any(asker.asking for asker in askers):
                time.sleep(0.05)
                progress.tell(sum(asker.answered for asker in askers), "rows")
            refused = host.status()["requests"]["refused"]
        finally:
            end_all(host, *askers)
        return _judge(asked, askers, pictures, refused, time.monotonic() - begun, long=scale >= 1)


class _Flood:
    """A peer that always has so many requests under way."""

    def __init__(self, host: Host, image: bytes) -> None:
        self._peer = Peer(host.path)
        self._image = image
        self._going = True
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()
        self._peer.close()

    def _run(self) -> None:
        for number in range(_FLOOD):
            self._peer.send(number, image=self._image, timeout=_TIMEOUT)
        while self._going:
            reply = self._peer.receive()
            assert reply.id is not None
            self._peer.send(reply.id, image=self._image, timeout=_TIMEOUT)


class _Asked:
    """What became of one request with a deadline."""

    def __init__(self, timeout: float, code: str, hint: float | None, seconds: float) -> None:
        self.timeout = timeout
        self.code = code
        self.hint = hint
        self.seconds = seconds


def _ask(host: Host, image: bytes, count: int, rng: random.Random) -> list[_Asked]:
    """One after the other, with deadlines from hopeless to easy."""
    found = []
    with Peer(host.path) as peer:
        for _ in range(count):
            timeout = rng.choice((0.02, 0.05, 0.1, 5.0))
            begun = time.monotonic()
            error = peer.ask(image=image, timeout=timeout).error
            seconds = time.monotonic() - begun
            hint = getattr(error, "retry_after", None)
            found.append(_Asked(timeout, error.code if error else "", hint, seconds))
    return found


def _judge(
    asked: list[_Asked],
    askers: list[Asker],
    pictures: Pictures,
    refused: int,
    seconds: float,
    *,
    long: bool,
) -> Outcome:
    """Times and estimates of times are judged in the long form alone, which has the host."""
    errors = Counter(one.code for one in asked if one.code)
    notes = []
    wrong = 0
    rows = sum(not one.code for one in asked)
    told = [one for one in asked if one.code == "overloaded"]
    for one in asked:
        if one.code not in ("", "overloaded", "deadline") or (
            one.code == "overloaded" and not one.hint
        ):
            wrong += 1
            notes.append(f"{one.code}, retry_after {one.hint}")
    for asker in askers:
        answers = asker.answers()
        wrong += abs(len(asker.files) - len(answers))
        for file, answer in zip(asker.files, answers, strict=False):
            right = pictures.right(int(file.stem), answer.get("row"))
            rows += right
            if not right:
                wrong += 1
                errors[answer.get("code", "row")] += 1
                notes.append(str(answer.get("message")))
    waits = sorted(one.seconds for one in told)
    slowest = waits[int(0.95 * len(waits))] if waits else 0.0
    misjudged = errors["deadline"] / len(asked)
    if long and slowest > _AT_ONCE:
        notes.append(f"refusals took {slowest:.2f} s")
    if long and misjudged > _MISJUDGED:
        notes.append("too many were taken and not answered in time")
    return Outcome(
        scenario="admission",
        requests=len(asked) + sum(len(asker.files) for asker in askers),
        rows=rows,
        errors=dict(errors),
        faults=len(asked),
        wrong=wrong,
        seconds=seconds,
        figures={
            "refused_by_the_daemon": float(refused),
            "refusal_p95_seconds": slowest,
            "median_retry_after_seconds": statistics.median([one.hint or 0.0 for one in told])
            if told
            else 0.0,
            "misjudged_share": misjudged,
        },
        held=not notes and wrong == 0 and bool(told),
        notes="; ".join(notes[:3]),
    )
