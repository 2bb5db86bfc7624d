"""One uid floods with 200 connections; another uid asks meanwhile, one image after the other.

In the long form the other uid's median latency is judged against an idle host's. In the short form
no time is, but order: how many rows the flood gets for each of the other's.

The flood is of three kinds: each connection asks again when it is answered, or keeps eight
requests in flight and asks again at once whatever the answer, or sends nothing but senseless
questions. Two real uids, neither of them ours: takes root.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from daemonprocess import PATIENCE, DaemonProcess, Peer, as_uid
from modelfolders import photo
from vitals import Vitals, frame

from campaign.front import serving
from campaign.outcome import Outcome
from swiprctl.protocol import Decoder, Request

SECONDS = 60.0

MOST = 3.0
"""Times the idle host's median latency that the other uid may see."""

BETWEEN = 32.0
"""Rows of the flood for each of the other uid's, at most: one runs already, and some more come
while the other uid reads its row and asks again. In one queue for all all that waits came: 127."""

_FLOODER, _VICTIM = 65533, 65534
_CONNECTIONS = 200
_KINDS = {"again": 1, "pipelined": 8, "senseless": 32}  # requests that a connection has in flight
_ASKED = 500  # at scale 1, by the other uid, idle and in each flood
_FEWEST = 40


def run(scale: float, seed: int) -> Outcome:
    """Ask on an idle host, and in each of the floods."""
    if os.geteuid():
        return Outcome(scenario="fairness", held=True, notes="skipped: takes two uids, hence root")
    begun = time.monotonic()
    count = max(_FEWEST, round(_ASKED * scale))
    image = photo(seed)
    errors: Counter[str] = Counter()
    figures: dict[str, float] = {}
    flooded: Counter[str] = Counter()
    between = 0.0
    rows = 0
    with serving(architecture="shufflenet_v2_x0_5", quick=False) as daemon:
        vitals = Vitals(daemon, image)
        _ask(daemon.path, image, count)  # warm
        for kind in ("idle", *_KINDS):
            with _flood(daemon, kind, image) as answers:
                first = _rows_given(daemon)
                latencies, failed = _ask(daemon.path, image, count)
                between = max(between, (_rows_given(daemon) - first) / count - 1.0)
            flooded.update(answers)
            rows += len(latencies)
            errors.update(failed)
            figures[f"{kind}_median_seconds"] = statistics.median(latencies or [PATIENCE])
            figures[f"{kind}_p95_seconds"] = sorted(latencies or [PATIENCE])[
                int(len(latencies) * 0.95)
            ]
        vitals.check()
    idle = figures["idle_median_seconds"]
    worst = max(figures[f"{kind}_median_seconds"] for kind in _KINDS) / idle
    return Outcome(
        scenario="fairness",
        requests=count * (1 + len(_KINDS)),
        rows=rows,
        errors=dict(errors),
        faults=flooded.total(),
        wrong=errors.total(),
        seconds=time.monotonic() - begun,
        figures={**figures, "worst_ratio": worst, "flood_rows_between": between},
        held=not errors and between <= BETWEEN and (scale < 1 or worst <= MOST),
        notes="the flood got " + ", ".join(f"{n:,} {code}" for code, n in sorted(flooded.items())),
    )


def _rows_given(daemon: DaemonProcess) -> int:
    """Rows that the worker has given so far, to whomever."""
    workers = daemon.status()["workers"]
    return sum(worker["answered"] for worker in workers)


def _ask(path: Path, image: bytes, count: int) -> tuple[list[float], list[str]]:
    """Have the other uid ask, one after the other; give seconds of each, and codes of errors."""

    def ask() -> str:
        latencies, failed = [], []
        with Peer(path) as peer:
            for _ in range(count):
                begun = time.monotonic()
                reply = peer.ask(image=image)
                if reply.error is None:
                    latencies.append(time.monotonic() - begun)
                else:
                    failed.append(reply.error.code)
        return json.dumps([latencies, failed])

    latencies, failed = json.loads(as_uid(_VICTIM, ask))
    return latencies, failed


@contextlib.contextmanager
def _flood(daemon: DaemonProcess, kind: str, image: bytes) -> Iterator[Counter[str]]:
    """Flood meanwhile; what the flooder was answered, by code, is there after the block."""
    answers: Counter[str] = Counter()
    if kind == "idle":
        yield answers
        return
    until_told, tell = os.pipe()

    def flood() -> str:
        os.close(tell)  # the fork's copy: its end is what the flooder waits for
        return json.dumps(_be_a_flood(daemon.path, kind, image, until_told))

    thread = threading.Thread(target=lambda: answers.update(json.loads(as_uid(_FLOODER, flood))))
    thread.start()
    try:
        daemon.wait_status(lambda s: s["connections"] >= _CONNECTIONS)
        yield answers
    finally:
        os.close(tell)
        thread.join(PATIENCE)
        os.close(until_told)
        daemon.wait_status(lambda s: s["connections"] == 1 and not s["queue"]["total"])


def _be_a_flood(path: Path, kind: str, image: bytes, until: int) -> Counter[str]:
    answers: Counter[str] = Counter()
    selector = selectors.DefaultSelector()
    selector.register(until, selectors.EVENT_READ)
    decoders: dict[int, Decoder] = {}
    identity = 0

    def asked() -> bytes:
        nonlocal identity
        identity += 1
        if kind == "senseless":
            return frame(id=identity, op="nonsense")
        return Request(identity, "predict", None, image).encode()

    sockets = []
    for _ in range(_CONNECTIONS):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sockets.append(sock)
        decoders[sock.fileno()] = Decoder()
        selector.register(sock, selectors.EVENT_READ)
        for _ in range(_KINDS[kind]):
            sock.sendall(asked())
    while True:
        for key, _ in selector.select():
            if key.fd == until:
                for sock in sockets:
                    sock.close()
                return answers
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            data = sock.recv(1 << 16)
            if not data:
                answers["closed"] += 1
                selector.unregister(sock)
                continue
            decoders[key.fd].feed(data)
            more = []
            for answer in decoders[key.fd].frames():
                error = answer.fields.get("error")
                answers[error["code"] if isinstance(error, dict) else "ok"] += 1
                more.append(asked())
            sock.sendall(b"".join(more))
