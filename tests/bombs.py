"""Pictures that are valid, small as files and take a decoder minutes, or gigabytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from PIL import Image

_EDGE = 6000
_SOS, _EOI, _ESCAPED = 0xDA, 0xD9, (0x00, *range(0xD0, 0xD8))


def progressive(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more.

    That scan refines each of half a million blocks by nothing: 59 bytes and 14 ms.
    """
    stream = io.BytesIO()
    Image.new("L", (_EDGE, _EDGE), 128).save(stream, "JPEG", progressive=True)
    *segments, end = _segments(stream.getvalue())
    assert segments[-1][:2] == bytes([0xFF, _SOS])
    return b"".join([b"\xff\xd8", *segments, segments[-1] * scans, end])


def _segments(data: bytes) -> Iterator[bytes]:
    at = 2
    while data[at + 1] != _EOI:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == _SOS:
            while data[end] != 0xFF or data[end + 1] in _ESCAPED:
                end += 1
        yield data[at:end]
        at = end
    yield data[at:]


def heic_metadata(one: bytes, *, images: int = 1, blocks: int = 1, size: int = 1 << 20) -> bytes:
    """Make a HEIC of images that have the same metadata, blocks of Exif that lie at one place.

    Args:
        one: a HEIC of a picture of 64 by 64 pixels, whose pixels all of them have.
        images: how many.
        blocks: of metadata, of each.
        size: of one, in bytes.
    """
    configuration = _found(one, b"hvcC")
    pixels = one[one.rindex(b"mdat") + 4 :]
    exif = b"\0\0\0\6Exif\0\0MM\0*\0\0\0\x08" + bytes(size)
    pictures, metadata = range(1, images + 1), range(5000, 5000 + blocks)
    infe = [_full(b"infe", struct.pack(">HH5s", one, 0, b"hvc1"), version=2) for one in pictures]
    infe += [_full(b"infe", struct.pack(">HH5s", one, 0, b"Exif"), version=2) for one in metadata]
    refers = struct.pack(f">{images}H", *pictures)
    iref = [_box(b"cdsc", struct.pack(">HH", one, images) + refers) for one in metadata]
    properties = _full(b"ispe", struct.pack(">II", 64, 64)) + configuration
    has = b"".join(struct.pack(">HBBB", one, 2, 1, 0x82) for one in pictures)
    ipma = _full(b"ipma", struct.pack(">I", images) + has)

    def head(begin: int) -> bytes:
        places = [(one, begin, len(pixels)) for one in pictures]
        places += [(one, begin + len(pixels), len(exif)) for one in metadata]
        iloc = b"".join(struct.pack(">HHHII", one, 0, 1, at, size) for one, at, size in places)
        return _box(b"ftyp", b"heic\0\0\0\0mif1heic") + _full(
            b"meta",
            _full(b"hdlr", bytes(4) + b"pict" + bytes(13)),
            _full(b"pitm", struct.pack(">H", 1)),
            _full(b"iloc", b"\x44\0", struct.pack(">H", len(places)), iloc),
            _full(b"iinf", struct.pack(">H", len(infe)), *infe),
            _full(b"iref", *iref),
            _box(b"iprp", _box(b"ipco", properties), ipma),
        )

    return head(len(head(0)) + 8) + _box(b"mdat", pixels, exif)


def _box(kind: bytes, *parts: bytes) -> bytes:
    inside = b"".join(parts)
    return struct.pack(">I", 8 + len(inside)) + kind + inside


def _full(kind: bytes, *parts: bytes, version: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24), *parts)


def _found(data: bytes, kind: bytes) -> bytes:
    """The box of this kind, wherever it lies."""
    begin = data.index(kind) - 4
    return data[begin : begin + int.from_bytes(data[begin : begin + 4])]
