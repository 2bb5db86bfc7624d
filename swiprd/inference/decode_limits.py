"""What decoding a picture may cost: pixels, a JPEG's scans, processor time.

decode.py and worker.py apply them. The bytes of its file are bounded before it is read
(system/imagefile.py), the time on the clock by the request's deadline (front/deadlines.py).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from swiprctl.errors import TooLarge

MAX_PIXELS = 178_956_970
"""Pixels by default: where Pillow itself gives up, twice its `Image.MAX_IMAGE_PIXELS`."""

MAX_SCANS = 500
"""Scans that a JPEG may have: as many as libjpeg-turbo's own fuzzers let through."""

_BEGIN = b"\xff\xda"
_NEXT = re.compile(rb"\xff+([^\x00\xff])")  # what the decoder takes for a marker, as it looks on
_BARE = {0x01, *range(0xD0, 0xD8)}  # TEM and RST: nothing belongs to them
_SOS, _SOI, _EOI = 0xDA, 0xD8, 0xD9


def too_many_pixels(width: int, height: int, limit: int, what: str = "") -> TooLarge:
    """Make the error for a picture of more than `limit` pixels."""
    number = width * height
    return TooLarge(f"{what}{width}x{height} = {number} pixels, where {limit} is the limit")


def has_too_many_scans(data: bytes) -> bool:
    """Whether a file that begins as JPEGs do has more than `MAX_SCANS`.

    Each scan makes the decoder go over the whole picture again. An encoder makes ten of a
    progressive JPEG. But 95 bytes suffice for a scan that changes nothing, so that a file of 10 MB
    can hold a hundred thousand of them, and keep a decoder busy for 20 minutes.

    Follows the file from marker to marker only where there may be so many: previews, profiles
    and films that a telephone appends have the bytes of such a marker now and then.
    """
    if not data.startswith(b"\xff\xd8") or data.count(_BEGIN) <= MAX_SCANS:
        return False
    scans = 0
    at = 2
    while (found := _NEXT.search(data, at)) is not None:
        marker = found[1][0]
        at = found.end()
        if marker in (_EOI, _SOI):
            break
        if marker in _BARE:
            continue
        scans += marker == _SOS
        if scans > MAX_SCANS:
            return True
        length = int.from_bytes(data[at : at + 2])
        if length < 2:
            break
        at += length
    return False


@contextmanager
def processor_time(seconds: float) -> Iterator[None]:
    """End this process by SIGPROF where the block computes for longer; SIGPROF's action must be
    the default.

    Of this process alone, and of no wall clock: a host that is busy makes nobody hurry.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
