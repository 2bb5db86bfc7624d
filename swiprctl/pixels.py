"""Pictures in memory: numpy arrays and Pillow images, known by what they can do. Neither library is
imported, and this module only for them.

A picture becomes a TIFF that is not compressed: a header, and the pixels as they are. What the
daemon decodes from it is exactly what was given.
"""

from __future__ import annotations

import struct
import sys

from swiprctl.errors import CannotOpen, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from typing_extensions import TypeIs

    class Pixels(Protocol):
        """A numpy array, a Pillow image, or what has its pixels in memory as those do."""

        @property
        def __array_interface__(self) -> dict[str, Any]: ...


_SHORT, _LONG = 3, 4
_ORIENTATION = 0x0112
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3

# By Pillow's mode: samples, bits of each, and what they are. Other modes become RGB first, as the
# daemon would have them.
_MODES = {
    "L": (1, 8, _UNSIGNED),
    "RGB": (3, 8, _UNSIGNED),
    "I;16": (1, 16, _UNSIGNED),
    "I;16L": (1, 16, _UNSIGNED),
    "I;16B": (1, 16, _UNSIGNED),
    "I;16N": (1, 16, _UNSIGNED),
    "I": (1, 32, _SIGNED),
    "F": (1, 32, _FLOAT),
}
_ORDERS = {"I;16": "<", "I;16L": "<", "I;16B": ">"}
_HOST = "<" if sys.byteorder == "little" else ">"


def are_pixels(source: object) -> TypeIs[Pixels]:
    """Whether an input is a picture in memory: an array or a Pillow image."""
    # Of its type: to ask a Pillow image itself would copy its pixels.
    return hasattr(type(source), "__array_interface__")


def dimensions(source: Any) -> int:
    """Count the dimensions of an array; of a Pillow image, 2."""
    return 2 if _is_pillow(source) else len(source.__array_interface__["shape"])


def file_of(source: Any, most: int) -> list[memoryview]:
    """Give the pieces of an image file that holds a picture's pixels exactly.

    Args:
        source: an array of uint8, [h, w, 3] in the order red, green, blue, [h, w, 4] with an alpha
            that is dropped, as a PNG's is, [h, w] or [h, w, 1] of grey levels; or a Pillow image.
            An orientation in the EXIF of that goes along.
        most: bytes that the pixels may have. A Pillow image that has more, or is to be turned,
            becomes a PNG, which takes longer.

    Raises:
        TypeError: the array's numbers are not uint8, or it is none that has them in memory.
        ValueError: it has another shape, or no pixels.
        CannotOpen: the Pillow image is closed, or of a file that cannot be read whole.
        TooLarge: they are more than `most`.
    """
    if not _is_pillow(source):
        return _of_array(source, most)
    try:
        return _of_pillow(source, most)
    except (OSError, SyntaxError) as error:  # Pillow reads the file only now
        raise CannotOpen(f"cannot read the image: {error}") from error


def _is_pillow(source: Any) -> bool:
    return hasattr(source, "mode") and hasattr(source, "convert")


def _of_array(array: Any, most: int) -> list[memoryview]:
    told = array.__array_interface__
    shape, kind = tuple(told["shape"]), told["typestr"]
    if kind[1:] != "u1":
        raise TypeError(
            f"an array of {getattr(array, 'dtype', kind)}: expected uint8, from 0 to 255"
        )
    samples = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or samples not in (1, 3, 4):
        hint = ""
        if len(shape) == 3 and shape[0] in (1, 3, 4):
            hint = "; transpose(1, 2, 0) moves the channels to the end"
        elif len(shape) == 4:
            hint = "; predict_many() takes several"
        raise ValueError(
            f"an array of shape {shape}: expected [h, w, 3], [h, w, 4] or [h, w]{hint}"
        )
    if 0 in shape:
        raise ValueError(f"an array of shape {shape} has no pixels")
    height, width = shape[:2]
    _check_size(f"an array of shape {shape}", height * width * samples, most)
    try:
        view = memoryview(array)
    except TypeError as error:
        raise TypeError(
            f"a {type(array).__name__} does not show its memory: give numpy.asarray(…) of it"
        ) from error
    pixels = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    header = _tiff(width, height, samples=samples, bits=8, kind=_UNSIGNED, order=_HOST)
    return [memoryview(header), pixels]


def _check_size(what: str, size: int, most: int) -> None:
    if size > most:
        raise TooLarge(f"{what}: more than {most} bytes, the limit for what is not a file")


def _of_pillow(image: Any, most: int) -> list[memoryview]:
    try:
        image.load()
    except (ValueError, AssertionError) as error:  # of Pillow's, the latter without a word
        raise CannotOpen(
            f"cannot read the image: {str(error) or 'its file is closed'}; open it again"
        ) from error
    width, height = image.size
    if width * height == 0:
        raise ValueError(f"an image of {width}x{height} has no pixels")
    turned = _orientation(image)
    if image.mode not in _MODES:
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise ValueError(
                f"an image of mode {image.mode}: {error}; convert it to RGB or L"
            ) from error
    samples, bits, kind = _MODES[image.mode]
    size = width * height * samples * bits // 8
    large = size > most - 512
    # Pillow turns a TIFF in any case, and a PNG only where it is told to.
    if (large or turned != 1) and image.mode in ("L", "RGB", "I;16"):
        return [_png(image, turned)]
    _check_size(f"an image of {width}x{height}", size, most)
    order = _ORDERS.get(image.mode, _HOST)
    header = _tiff(width, height, samples=samples, bits=bits, kind=kind, order=order)
    return [memoryview(header), memoryview(image.tobytes())]


def _orientation(image: Any) -> int:
    """Which of EXIF's eight it is to be turned by; 1, not at all, where it says nothing of that."""
    found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _png(image: Any, orientation: int) -> memoryview:
    import io

    exif = image.getexif()
    exif.clear()
    exif[_ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, exif=exif)
    return file.getbuffer()


def _tiff(width: int, height: int, *, samples: int, bits: int, kind: int, order: str) -> bytes:
    """Make the header of a TIFF (revision 6.0) whose pixels follow it in one strip.

    Args:
        samples: of a pixel: 1 for grey, 3 for RGB, 4 with alpha.
        bits, kind: of a sample.
        order: "<" or ">", of all numbers, also of the pixels'.
    """
    tags = {
        256: (_LONG, [width]),
        257: (_LONG, [height]),
        258: (_SHORT, [bits] * samples),
        259: (_SHORT, [1]),  # not compressed
        262: (_SHORT, [1 if samples == 1 else 2]),  # 0 is black, or RGB
        273: (_LONG, [0]),  # where the strip begins
        277: (_SHORT, [samples]),
        278: (_LONG, [height]),  # rows of the strip
        279: (_LONG, [width * height * samples * bits // 8]),
        339: (_SHORT, [kind] * samples),
    }
    if samples == 4:
        tags[338] = _SHORT, [2]  # the fourth is alpha, and nothing is multiplied by it
    directory = 8 + 2 + 12 * len(tags) + 4
    strip = directory + 16  # room for two lists that do not fit into their entries
    tags[273] = _LONG, [strip]
    entries, more = b"", b""
    for tag, (type, numbers) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}{'H' if type == _SHORT else 'I'}", *numbers)
        if len(value) > 4:
            value, more = struct.pack(f"{order}I", directory + len(more)), more + value
        entries += struct.pack(f"{order}HHI", tag, type, len(numbers)) + value.ljust(4, b"\0")
    begin = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    body = begin + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + more
    return body.ljust(strip, b"\0")
