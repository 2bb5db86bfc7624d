"""A million frames, sensible, half-sensible and random, against a live front.

They go in streams of some dozens on a connection each. What a stream must be answered is known
beforehand from the wire's own decoder: every frame that can be read and has an id once and by its
id, and the first that cannot ends the connection. Only frames up to that one are counted.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
from daemonprocess import PATIENCE
from modelfolders import photo
from vitals import Vitals, frame, framed, resident

from campaign.front import serving
from campaign.outcome import Outcome
from swiprctl.errors import BadRequest
from swiprctl.protocol import MAX_FRAME, Decoder, request_id

SECONDS = 300.0

MOST_GROWTH = 16 << 20
"""Bytes that the front may have grown by in the end."""

_FRAMES = 1_000_000  # at scale 1
_STREAM = 80  # frames in a stream, at most
_LOOK = 100_000  # frames between two looks at the front's health
_ITEMS = 64  # what a front allows in a request's map: swiprd/front/connection.py
_LAST = 2**62  # the id of the question at the end of a stream that can be read to its end
_HALF = (b"", b"\0", b"\0\0\0\x20half a frame")  # what may come behind it
_KINDS = ("sensible",) * 40 + ("wrong",) * 40 + ("mixed",) * 20 + ("damaged", "random", "header")
_OPS = ("status", "model", "predict", "ping", "reload", "paint", "", "predict" * 20)
_KEYS = ("id", "op", "timeout", "image", "ok", "error", "trace", "")


def run(scale: float, seed: int) -> Outcome:
    """Send them all; look at the front's health now and then."""
    begun = time.monotonic()
    rng = random.Random(seed)
    wanted = max(5000, round(_FRAMES * scale))
    errors: Counter[str] = Counter()
    frames = rows = wrong = streams = 0
    notes: list[str] = []
    with (
        serving("--first-byte=5", "--stall=2", "--queue=32") as daemon,
        contextlib.ExitStack() as stack,
    ):
        vitals = Vitals(daemon, photo(seed))
        named = [os.open(os.devnull, os.O_RDONLY), os.open("/", os.O_RDONLY)]
        for descriptor in named:
            stack.callback(os.close, descriptor)
        _fire(daemon.path, rng, named)  # warm, so that what grows is a leak
        before = highest = resident(daemon.pid)
        next_look = _LOOK
        while frames < wanted:
            read, answered, complaints = _fire(daemon.path, rng, named)
            streams += 1
            frames += read
            rows += answered.pop("ok", 0)
            errors.update(answered)
            wrong += len(complaints)
            notes += complaints[: 5 - len(notes)]
            if not streams % 256:
                highest = max(highest, resident(daemon.pid))
            if frames >= next_look:
                vitals.check()
                next_look += _LOOK
        vitals.check()
        growth = resident(daemon.pid) - before
    return Outcome(
        scenario="fuzz",
        requests=frames,
        rows=rows,
        errors=dict(errors),
        faults=frames,
        wrong=wrong,
        seconds=time.monotonic() - begun,
        figures={
            "streams": streams,
            "growth_bytes": growth,
            "highest_growth_bytes": highest - before,
        },
        held=not wrong and growth < MOST_GROWTH,
        notes="; ".join(notes),
    )


def _fire(path: Path, rng: random.Random, named: list[int]) -> tuple[int, Counter[str], list[str]]:
    """Send one stream; give the frames of it that were read, the answers by code, complaints."""
    data = b"".join(_frame(rng) for _ in range(rng.randint(1, _STREAM)))
    read, owed, sound = _expected(data)
    leave = rng.random() < 0.1  # without waiting for any answer
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.settimeout(PATIENCE)
        broken = rng.random() < 0.03
        sound = sound and not broken
        if sound:
            data += frame(id=_LAST, op="status") + rng.choice(_HALF)
        answers: list[dict[str, Any]] = []
        try:
            if broken:  # a descriptor or more with some of the bytes: ends it, or does not
                rights = rng.choices(named, k=rng.choice((1, 1, 3)))
                sent = rng.randrange(len(data))
                sock.sendall(data[:sent])
                sent += socket.send_fds(sock, [data[sent:]], rights)
                sock.sendall(data[sent:])
            else:
                sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it did not like what came first
        if leave:
            return read, Counter(left=read), []
        if not sound:
            with contextlib.suppress(OSError):  # it has closed the connection already
                sock.shutdown(socket.SHUT_WR)
        decoder = Decoder()
        with contextlib.suppress(ConnectionResetError):  # it left bytes of ours unread
            # A worker's answer may come behind that to the last question, or not any more.
            while not (sound and any(one["id"] == _LAST for one in answers)):
                more = sock.recv(1 << 16)
                if not more:
                    break
                decoder.feed(more)
                answers += [one.fields for one in decoder.frames()]
    return read, _codes(answers), ([] if broken else _complaints(answers, owed, sound=sound))


def _complaints(answers: list[dict[str, Any]], owed: Counter[int], *, sound: bool) -> list[str]:
    ids = Counter(one["id"] for one in answers)
    said = [
        f"id {i} was answered {n} times, of {owed[i]}"
        for i, n in ids.items()
        if i is not None and i != _LAST and n > owed[i]
    ]
    if sound:
        if ids[_LAST] != 1:
            said.append(f"a stream that can be read was not read to its end: {answers[-1:]}")
        elif answers[-1]["id"] is not None and ids[None]:  # one for the half frame may be the last
            said.append("a farewell, and the connection went on")
    elif ids[None] > 1 or (None in ids and answers[-1]["id"] is not None):
        said.append("something came behind a farewell")
    return said


def _codes(answers: list[dict[str, Any]]) -> Counter[str]:
    return Counter("ok" if one["ok"] else one["error"]["code"] for one in answers)


def _expected(data: bytes) -> tuple[int, Counter[int], bool]:
    """Frames that will be read, how often each id is owed an answer, and whether all can be."""
    decoder = Decoder(items=_ITEMS)
    decoder.feed(data)
    read = 0
    owed: Counter[int] = Counter()
    try:
        for one in decoder.frames():
            read += 1
            owed[request_id(one.fields)] += 1
    except BadRequest:
        return read + 1, owed, False
    return read, owed, not decoder.mid_frame


def _frame(rng: random.Random) -> bytes:
    match rng.choice(_KINDS):
        case "sensible":
            fields: dict[Any, Any] = {"id": rng.getrandbits(rng.choice((3, 62))), "op": "status"}
            if rng.random() < 0.3:
                fields["op"] = rng.choice(("model", "predict", "predict"))
            if rng.random() < 0.02:
                fields |= {"op": "predict", "image": rng.randbytes(rng.choice((1, 40, 500)))}
            if rng.random() < 0.002:
                fields["op"] = "ping"
            return frame(**fields)
        case "wrong":
            return frame(id=rng.getrandbits(40), op=rng.choice(_OPS[5:]), timeout=_value(rng, 0))
        case "mixed":
            fields = {rng.choice(_KEYS): _value(rng, 0) for _ in range(rng.randint(0, 4))}
            return frame(**(fields | {"id": rng.getrandbits(rng.choice((3, 62))), "op": "paint"}))
        case "damaged":
            data = bytearray(frame(id=rng.getrandbits(20), op="status", trace=_value(rng, 0)))
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(4, len(data))] = rng.getrandbits(8)
            return bytes(data)
        case "random":
            if rng.random() < 0.5:
                return framed(rng.randbytes(rng.randint(0, 60)))
            return framed(msgpack.packb(_value(rng, 0)))
        case _:
            length = rng.choice((MAX_FRAME + 1, 2**31, 2**32 - 1, rng.getrandbits(32)))
            return length.to_bytes(4) + rng.randbytes(rng.randint(0, 20))


def _value(rng: random.Random, depth: int) -> Any:
    """Anything that msgpack has."""
    match rng.randrange(10 if depth < 3 else 7):
        case 0:
            return rng.choice((None, True, False))
        case 1:
            return rng.getrandbits(64)
        case 2:
            return -rng.getrandbits(63)
        case 3:
            return rng.choice((0.0, -1.5, 1e308, float("nan"), float("inf"), -float("inf")))
        case 4:
            return rng.choice(("", "predict", "\0", "ü" * 20, "x" * 300))
        case 5:
            return rng.randbytes(rng.randint(0, 40))
        case 6:
            if rng.random() < 0.98:
                return 0
            return msgpack.ExtType(rng.randrange(128), rng.randbytes(4))
        case 7:
            return [_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
        case 8:
            return {rng.choice(_KEYS): _value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
        case _:
            nested: Any = None
            for _ in range(rng.choice((1, 10, 10, 10, 10, 10, 80))):
                nested = [nested]
            return nested
