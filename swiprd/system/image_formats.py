"""The image formats that swipr may read: their names, what their files begin with. Pure.

A file is recognised to be told apart, and to be refused in words that help. What a decoder then
makes of it is the decoder's: swiprd.inference.decoders.
"""

from __future__ import annotations

from collections.abc import Iterable

_TITLES = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WebP",
    "gif": "GIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "avif": "AVIF",
    "heic": "HEIC",
}

FORMATS = tuple(_TITLES)
"""All of them, as a setting names them."""

_BEGINNINGS = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",  # BigTIFF
    b"MM\0+": "tiff",
}

# Of ISO/IEC 14496-12 files: those with AV1 pictures, and those with HEVC pictures (23008-12, B.4).
# `mif1` and `msf1` say nothing of the decoder that is needed: the compatible brands do.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "avif"),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "heic"
    ),
}
_MOST_BOXES = 10_000  # a file has some five
_MOST_BRANDS = 32  # a telephone names a dozen


def recognised(data: bytes) -> str:
    """Name the format that a file is of by its first bytes; empty: none of `FORMATS`."""
    for beginning, name in _BEGINNINGS.items():
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4]), 16 + 4 * _MOST_BRANDS)
        # The major brand, four bytes of its version, the compatible brands.
        for at in (8, *range(16, end - 3, 4)):
            if name := _BRANDS.get(data[at : at + 4], ""):
                return name
    return ""


def is_cut_short(data: bytes) -> bool:
    """Whether a file of boxes (ISO/IEC 14496-12, 4.2), such as a HEIC, ends before its last does.

    libheif makes a picture of what there is of a telephone's tiles. Fewer bytes than a box's header
    behind the last box are not the file's, but such as an editor's line feed.
    """
    at = 0
    for _ in range(_MOST_BOXES):
        if len(data) - at < 8:
            break
        size, header = int.from_bytes(data[at : at + 4]), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16]), 16
        if size == 0:  # it goes on to the file's end, wherever that is
            return False
        at += max(size, header)
    return at > len(data)  # of more boxes than anybody writes nothing is said; the decoder will


def title(name: str) -> str:
    """What people call a format."""
    return _TITLES[name]


def either(names: Iterable[str]) -> str:
    """List formats for a sentence: "JPEG, PNG or WebP"."""
    titles = [_TITLES[name] for name in names]
    return " or ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)
