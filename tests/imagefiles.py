"""Image files for tests, made on the spot: every format, mode and kind of damage by name."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return smooth coloured noise, so that resizing and JPEG both have something to do."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode == "RGBa":
        return image.convert("RGBA").convert("RGBa")
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode in ("I;16", "I;16B"):
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return Image.frombytes(
            mode, image.size, grey.astype("<u2" if mode == "I;16" else ">u2").tobytes()
        )
    converted = image.convert(mode)
    if mode in ("LA", "RGBA"):
        converted.putalpha(image.convert("L"))
    return converted


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """Return the picture as a file of this format."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def heic(*images: Image.Image, **options: Any) -> bytes:
    """Return pictures, of which the first is the primary one, as a HEIC file."""
    pillow_heif = pytest.importorskip("pillow_heif")
    holder = pillow_heif.HeifFile()
    for image in images:
        holder.add_from_pillow(image)
    file = io.BytesIO()
    holder.save(file, primary_index=0, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """Return a PNG whose header claims what it is told, whatever `data` (compressed) holds."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND")


def bmp(width: int, height: int) -> bytes:
    """Return a BMP's header without any pixels behind it."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, *[0] * 6)


def _chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def claiming(data: bytes, width: int, height: int) -> bytes:
    """Return an AVIF or a HEIC whose boxes claim this size, of each of its pictures."""
    box = b"\0\0\0\x14ispe\0\0\0\0"  # of ISO/IEC 23008-12: two numbers follow
    assert box in data
    first, *others = data.split(box)
    size = struct.pack(">II", width, height)
    return first + b"".join(box + size + one[8:] for one in others)


def many_scans(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """Return a progressive JPEG with its last scan repeated so many times."""
    data = encoded(picture(*size), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    # The tables of that scan come before it, and may be repeated with it or not.
    return data[:-2] + data[last:-2] * number + data[-2:]
