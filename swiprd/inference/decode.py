"""An image file's bytes → normalised crops, under caps.

Runs in a worker, which may be killed at any moment: this is the only module that parses pixels
from strangers. Whatever the bytes hold, its functions end in an array, `BadImage` or `TooLarge`.
It maps no file (the sender could truncate it under us: SIGBUS), follows no path, knows no model,
imports no torch, and decodes only the formats that it is told (swiprd.inference.decoders).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
from PIL import Image, ImageOps

from swiprctl.errors import BadImage, TooLarge
from swiprd.folder.spec import Preprocess
from swiprd.inference.decode_limits import (
    MAX_PIXELS,
    MAX_SCANS,
    has_too_many_scans,
    too_many_pixels,
)
from swiprd.inference.decoders import DRAFTABLE, open_image
from swiprd.inference.preprocess import preprocess, resized
from swiprd.system.image_formats import FORMATS
from swiprd.system.silence import silenced_stderr

_DRAFT = 1.5
"""A drafted picture has at least so many times the edges it is resized to. The decoder halves: with
2 a photo of 4,000 pixels would not be drafted for 1,024, with 1.5 it decodes to 2,000."""

# Pillow logs an error for some of what it also raises; the raised one reaches the sender.
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)


def decode(
    data: bytes,
    recipe: Preprocess,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> np.ndarray:
    """Turn an image file's bytes into float32 crops of shape [crops, 3, crop, crop].

    Args:
        formats: names of those that are decoded.

    Raises:
        BadImage: not an image in one of the formats, or one that cannot be decoded whole.
        TooLarge: more than `max_pixels`, as it comes or once resized.
    """
    image = load_image(data, recipe, max_pixels, formats)
    return preprocess(image, recipe, max_pixels)


def load_image(
    data: bytes,
    recipe: Preprocess,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> Image.Image:
    """Decode the first frame to RGB, as `Image.convert("RGB")` does; upright if `recipe` says so.

    A HEIC is upright in any case: there a turn is a part of the picture (`irot`, `imir`), which
    its decoder carries out. An AVIF's is reported by Pillow as an EXIF orientation.

    Raises:
        BadImage: not an image in one of the formats, one that cannot be decoded whole, or
            one that is made to keep the decoder busy.
        TooLarge: more than `max_pixels`, by its header, before any of it is decoded.
    """
    if has_too_many_scans(data):
        raise BadImage(f"a JPEG of more than {MAX_SCANS} scans, where ten are usual")
    with _decoding(max_pixels):
        image = open_image(data, formats)
        width, height = image.size
        if width * height > max_pixels:
            raise too_many_pixels(width, height, max_pixels)
        if width * height == 0:
            raise BadImage("an image without pixels")
        upright = recipe.exif == "apply"
        if recipe.draft and image.format in DRAFTABLE:
            needed = resized(width, height, recipe)
            if upright and image.getexif().get(0x0112, 1) >= 5:  # Orientation: lies on its side
                needed = resized(height, width, recipe)[::-1]
            image.draft("RGB", (math.ceil(_DRAFT * needed[0]), math.ceil(_DRAFT * needed[1])))
        # libtiff has a line for every fault it meets in a file: anyone who can send a picture
        # could fill the log.
        with silenced_stderr() if image.format == "TIFF" else nullcontext():
            image.load()
        if image.width * image.height > max_pixels:  # libheif finds out as it decodes
            raise too_many_pixels(*image.size, max_pixels)
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


@contextmanager
def _decoding(max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises into `BadImage` or `TooLarge`, and silence its warnings."""
    # Pillow looks at this again where a frame or a tile claims a size of its own, and raises
    # at twice the number. Put back at the end: this may be part of another program.
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, (max_pixels + 1) // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (BadImage, TooLarge):
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(_reason(error).partition(", could be")[0]) from error
    except MemoryError as error:
        raise TooLarge("not enough memory to decode it") from error
    except Exception as error:
        # On hostile data Pillow raises OSError, SyntaxError, ValueError, struct.error, zlib.error,
        # KeyError, OverflowError and what the next release brings: the list would never be whole.
        raise BadImage(f"cannot be decoded: {_reason(error)}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _reason(error: Exception) -> str:
    """Return the error's text as one short printable line."""
    text = "".join(one if one.isprintable() else " " for one in str(error)).strip()
    return text[:120] or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image  # convert() would copy it: 10 ms for a photo of 12 megapixels
    if image.mode == "F":
        raise BadImage("floating-point pixels have no agreed scale")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert() would clip at 255 and leave 16-bit grey nearly all white: scale it instead.
        grey = np.asarray(image)
        if image.mode == "I":
            if grey.min() < 0 or grey.max() > 65535:
                raise BadImage("32-bit grey levels have no agreed scale")
            grey = grey.astype(np.uint16)
        quotient, remainder = np.divmod(grey, 257)
        image = Image.fromarray((quotient + (remainder > 128)).astype(np.uint8))
    return image.convert("RGB")
