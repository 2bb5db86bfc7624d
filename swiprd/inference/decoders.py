"""The decoders that are installed here, by the names of their formats, and what lacks one.

All are imported by name, before any worker is forked: Image.open() would otherwise import every
plugin there is for the first WebP, and MPO (a JPEG that a phone appended a second picture to) only
when one comes. AVIF is Pillow's own since 11.3, where it was built with libavif; HEIC is read by
pillow-heif, an extra. Neither starts a thread here, nor looks at more than the picture itself.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from swiprctl.errors import BadImage
from swiprd.system.image_formats import FORMATS, either, is_cut_short, recognised, title

DRAFTABLE = (JpegImagePlugin.JpegImageFile.format, MpoImagePlugin.MpoImageFile.format)
"""Formats, as Pillow calls them, whose decoder can halve a picture while it decodes."""

_PILLOW = {
    "jpeg": JpegImagePlugin.JpegImageFile.format,
    "png": PngImagePlugin.PngImageFile.format,
    "webp": WebPImagePlugin.WebPImageFile.format,
    "gif": GifImagePlugin.GifImageFile.format,
    "bmp": BmpImagePlugin.BmpImageFile.format,
    "tiff": TiffImagePlugin.TiffImageFile.format,
}
"""What Pillow calls those that it always has."""

_MORE: dict[str, type[ImageFile.ImageFile]] = {}
"""What opens those that it may have."""

VERSIONS: dict[str, str] = {}
"""Of the decoders that come in distributions of their own."""

_MISSING = {
    "avif": "an AVIF image; swiprd reads those with Pillow 11.3 or later:"
    " pip install 'pillow>=11.3'",
    "heic": "a HEIC photograph; swiprd reads those where pillow-heif is installed:"
    " pip install pillow-heif",
}

try:
    from PIL import AvifImagePlugin
except ImportError:
    pass  # of Pillow before 11.3
else:
    # Its own threads would be as many as the host has processors, in each worker.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    if AvifImagePlugin.SUPPORTED:
        _MORE["avif"] = AvifImagePlugin.AvifImageFile
try:
    import pillow_heif
    from pillow_heif import options
except ImportError:
    pass
else:
    # 1 would be one beside its caller's. And nobody asks for what else is in the file.
    options.DECODE_THREADS = 0
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    _MORE["heic"] = pillow_heif.HeifImageFile
    VERSIONS["pillow_heif"] = pillow_heif.__version__


def readable(formats: Sequence[str] = FORMATS) -> tuple[str, ...]:
    """Which of the formats can be decoded here."""
    return tuple(name for name in formats if name in _PILLOW or name in _MORE)


def open_image(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Read an image file's header, with the decoder of one of the formats and no other.

    Raises:
        BadImage: it is of none of them, or its decoder is not installed.
        Exception: whatever a decoder raises on a broken header.
    """
    found = recognised(data)
    if found and found not in formats:
        raise BadImage(
            f"{_a(found)} image, where swiprd is set to read {either(formats)} only"
            " (formats, in swiprd.toml)"
        )
    if found in _MORE:
        if is_cut_short(data):
            raise BadImage("cannot be decoded: the file is cut short")
        return _MORE[found](io.BytesIO(data))
    if found in _MISSING:
        raise BadImage(f"{_MISSING[found]}, then swiprctl reload")
    try:
        known = [name for name in formats if name in _PILLOW]
        return Image.open(io.BytesIO(data), formats=[_PILLOW[name] for name in known])
    except UnidentifiedImageError as error:
        raise BadImage(f"not {_a(*(readable(formats) or formats))} image") from error


def _a(*names: str) -> str:
    """Put the article before formats: a JPEG, an AVIF."""
    return f"{'an' if title(names[0]).startswith('A') else 'a'} {either(names)}"
