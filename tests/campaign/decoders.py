"""Broken images of every format: each gets a row or a named error, and no process dies of one.

The corpus is made on the spot by mutation of small sound images. `SWIPR_IMAGES` names a folder
with more, all of which are tried at scale 1: `Tests/images` of Pillow's source, for one, which the
installed package does not have.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from imagefiles import bmp, claiming, encoded, heic, picture, png
from modelfolders import photo
from vitals import Vitals

from campaign.front import serving
from campaign.outcome import Outcome
from swiprd.inference.decoders import readable

SECONDS = 120.0

_MUTANTS = 6000  # at scale 1
_IN_FLIGHT = 16
_NAMED = {"bad-image", "too-large"}  # what may come of a broken image
_LARGEST = 32 << 20  # bytes of a file of the folder that is tried


def run(scale: float, seed: int) -> Outcome:
    """Have each image of the corpus decoded, a few at a time."""
    begun = time.monotonic()
    rng = random.Random(seed)
    corpus = list(mutants(rng, max(120, round(_MUTANTS * scale))))
    folder = os.environ.get("SWIPR_IMAGES")
    if folder and scale >= 1:
        corpus += [
            (str(file.name), file.read_bytes())
            for file in sorted(Path(folder).rglob("*"))
            if file.is_file() and 0 < file.stat().st_size <= _LARGEST
        ]
    codes: Counter[str] = Counter()
    strange = []
    with serving() as daemon:
        vitals = Vitals(daemon, photo(seed))
        killed = daemon.status()["kills"]["total"]
        with daemon.connect() as peer:
            waiting: dict[int, str] = {}
            todo = enumerate(corpus)
            while True:
                while len(waiting) < _IN_FLIGHT and (one := next(todo, None)) is not None:
                    identity, (name, data) = one
                    waiting[identity] = name
                    peer.send(identity, image=data, timeout=60.0)
                if not waiting:
                    break
                reply = peer.receive()
                name = waiting.pop(reply.id)
                code = "ok" if reply.error is None else reply.error.code
                codes[code] += 1
                if code != "ok" and code not in _NAMED:
                    strange.append(f"{name}: {reply.error}")
        kills = daemon.status()["kills"]["total"] - killed
        vitals.check()
    rows = codes.pop("ok", 0)
    return Outcome(
        scenario="decoders",
        requests=len(corpus),
        rows=rows,
        errors=dict(codes),
        faults=len(corpus),
        wrong=len(strange),
        seconds=time.monotonic() - begun,
        figures={"workers_lost": kills},
        held=not strange and not kills and rows + codes.total() == len(corpus),
        notes="; ".join(strange[:10]),
    )


def mutants(rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield named broken images, as many of each seed; the same for the same `rng`."""
    seeds = _seeds()
    for number in range(count):
        name, data = seeds[number % len(seeds)]
        changed = bytearray(data)
        tried = [rng.choice(_WAYS) for _ in range(rng.choice((1, 1, 2, 4)))]
        for way in tried:
            way(changed, rng)
        ways = "+".join(way.__name__.strip("_") for way in tried)
        yield f"{name} {ways} {number}", bytes(changed) or b"\0"


def _seeds() -> list[tuple[str, bytes]]:
    small = (40, 32)
    return [
        *(
            (f"jpeg {mode}", encoded(picture(*small, mode), "JPEG"))
            for mode in ("L", "RGB", "CMYK")
        ),
        ("jpeg progressive", encoded(picture(*small), "JPEG", progressive=True)),
        *(
            (f"png {mode}", encoded(picture(*small, mode), "PNG"))
            for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
        ),
        ("webp", encoded(picture(*small), "WEBP")),
        ("webp lossless", encoded(picture(*small, "RGBA"), "WEBP", lossless=True)),
        ("gif", encoded(picture(*small, "P"), "GIF")),
        *((f"bmp {mode}", encoded(picture(*small, mode), "BMP")) for mode in ("1", "P", "RGB")),
        *(
            (f"tiff {how}", encoded(picture(*small), "TIFF", compression=how))
            for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ),
        ("tiff g4", encoded(picture(*small, "1"), "TIFF", compression="group4")),
        *(
            (
                f"animated {format}",
                encoded(
                    picture(*small),
                    format,
                    save_all=True,
                    append_images=[picture(*small, seed=1), picture(*small, seed=2)],
                ),
            )
            for format in ("GIF", "PNG", "WEBP", "TIFF")
        ),
        ("bomb png", png(30_000, 30_000)),
        ("bomb bmp", bmp(30_000, 30_000)),
        *_phones(small),
    ]


def _phones(size: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """What telephones take, where it is read here: with tiles, with alpha, of several pictures."""
    if "avif" in readable():
        several = {"save_all": True, "append_images": [picture(*size, seed=1)]}
        yield "avif", encoded(picture(*size), "AVIF")
        yield "avif alpha", encoded(picture(*size, "RGBA"), "AVIF")
        yield "animated AVIF", encoded(picture(*size), "AVIF", **several)
        yield "bomb avif", claiming(encoded(picture(64, 64), "AVIF"), 30_000, 30_000)
        yield "swollen avif", claiming(encoded(picture(64, 64), "AVIF"), 4_000, 4_000)
        yield "shrunk avif", claiming(encoded(picture(2000, 2000), "AVIF"), 8, 8)
    if "heic" in readable():
        yield "heic", heic(picture(*size))
        yield "heic alpha", heic(picture(*size, "RGBA"))
        yield "heic of two", heic(picture(*size), picture(*size, seed=1))
        yield "heic tiles", heic(picture(256, 192), tile_size=64)
        yield "bomb heic", claiming(heic(picture(64, 64)), 30_000, 30_000)
        yield "bomb heic tiles", claiming(heic(picture(256, 192), tile_size=64), 30_000, 30_000)
        yield "shrunk heic", claiming(heic(picture(2000, 2000)), 8, 8)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _head(data: bytearray, rng: random.Random) -> None:
    """In the first bytes, where sizes and offsets are, a number at its edge."""
    edge = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
    raw = struct.pack(rng.choice("<>") + "I", edge)[: rng.choice((1, 2, 4))]
    at = rng.randrange(min(len(data), 96) + 1)
    data[at : at + len(raw)] = raw


def _number(data: bytearray, rng: random.Random) -> None:
    """Anywhere, a random number of four bytes."""
    at = rng.randrange(len(data) + 1)
    data[at : at + 4] = rng.randbytes(4)


def _double(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.randint(1, 64)]


def _cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.randint(1, 64)]


def _zeros(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    run = data[at : at + rng.randint(1, 64)]
    data[at : at + len(run)] = bytes(len(run))


def _append(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.randint(1, 64))


_WAYS = (_truncate, _flip, _flip, _head, _head, _number, _double, _cut, _zeros, _append)
