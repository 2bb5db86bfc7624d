"""The decoders that are installed here, by the names of their formats, and what lacks one.

All are imported by name, before any worker is forked: Image.open() would otherwise import every
plugin there is for the first WebP, and MPO (a JPEG that a phone appended a second picture to) only
when one comes. AVIF is Pillow's own since 11.3, where it was built with libavif; HEIC is read by
pillow-heif, an extra. Neither starts a thread here, nor looks at more than the picture itself.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any

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


class _WithoutMetadata:
    """An image of libheif's that shows no metadata: a turn is a part of the picture in a HEIC."""

    metadata: tuple[()] = ()

    def __init__(self, image: Any) -> None:
        self._image = image

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image, name)


def _primary_only(load_file: Callable[..., Any]) -> Callable[..., Any]:
    """Have pillow-heif look at the primary image only, and copy no metadata.

    It has no option for that, and copies the metadata of all images: those of a hundred may lie at
    the same place of the file, and take a hundred times its size.
    """

    def load(*arguments: Any) -> Any:
        found = load_file(*arguments)
        # Earlier versions return the images alone.
        images = found[0] if isinstance(found, tuple) else found
        primary = [_WithoutMetadata(one) for one in images if one is not None and one.primary]
        if not primary:
            raise ValueError("it has no primary image")
        return (primary, *([] for _ in found[1:])) if isinstance(found, tuple) else primary

    return load


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
    _libheif: Any = importlib.import_module("_pillow_heif")
    _libheif.load_file = _primary_only(_libheif.load_file)
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
