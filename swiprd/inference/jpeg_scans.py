"""How many scans a JPEG has: each makes the decoder go over the whole picture again. Pure.

An encoder makes ten of a progressive one. But 95 bytes suffice for a scan that changes nothing, so
that a file of 10 MB can hold a hundred thousand of them, and keep a decoder busy for 20 minutes.
"""

from __future__ import annotations

import re

MOST = 500
"""Scans that a picture may have: as many as libjpeg-turbo's own fuzzers let through."""

_BEGIN = b"\xff\xda"
_NEXT = re.compile(rb"\xff+([^\x00\xff])")  # what the decoder takes for a marker, as it looks on
_BARE = {0x01, *range(0xD0, 0xD8)}  # TEM and RST: nothing belongs to them
_SOS, _SOI, _EOI = 0xDA, 0xD8, 0xD9


def too_many(data: bytes) -> bool:
    """Whether a file that begins as JPEGs do has more than `MOST` scans.

    Follows the file from marker to marker only where there may be so many: previews, profiles
    and films that a telephone appends have the bytes of such a marker now and then.
    """
    if not data.startswith(b"\xff\xd8") or data.count(_BEGIN) <= MOST:
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
        if scans > MOST:
            return True
        length = int.from_bytes(data[at : at + 2])
        if length < 2:
            break
        at += length
    return False
