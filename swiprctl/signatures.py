"""The first bytes of image files: what a walk takes for an image, whatever its name.

One entry for each format that the daemon decodes. A file that begins so may still be broken, which
the daemon says of it; a file that does not is no image.
"""

from __future__ import annotations

HEAD = 32
"""Bytes of a file's beginning that `begins_an_image` needs."""

_BEGINNINGS = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",  # TIFF, little-endian
    b"MM\0*",  # and big-endian
    b"II\0*",  # each with the other's number, as some programs write it: Pillow takes them
    b"MM*\0",
    b"II+\0",  # BigTIFF
    b"MM\0+",
)

_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})
"""Sizes of the header in a BMP: `BM` alone begins many a text."""


def begins_an_image(head: bytes) -> bool:
    """Whether a file with these first bytes, `HEAD` or all that it has, is to be an image."""
    if head.startswith(_BEGINNINGS):
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    return head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS
