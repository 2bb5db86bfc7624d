"""preprocessor_config.json of a Hugging Face folder → `[preprocess]`, or why there is none.

An image processor of transformers resizes, crops, rescales and normalises, and some have a way of
their own. Translated is what gives the same pixels; everything else is refused by its name. A class
has two forms, one of Pillow's resizing and one of torchvision's, which rounds otherwise. Source:
image_processing_backends.py and the classes named below in transformers 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swiprd.folder.spec import Interpolation, Preprocess
from swiprd.folder.toml_table import SpecError, Table
from swiprd.pack.errors import NotWeights
from swiprd.pack.hf_classes import CLASSES, OF_TYPES, ProcessorClass, Three
from swiprd.pack.hf_folder import PROCESSOR, read_json
from swiprd.pack.options import LARGEST
from swiprd.pack.told import Recipe

Size = dict[str, int]

# Pillow's numbers of its filters, which the file has.
_FILTERS: tuple[Interpolation, ...] = (
    *("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"),
)
_TORCHVISIONS: dict[Interpolation, Interpolation] = {
    "bilinear": "torch_bilinear",
    "bicubic": "torch_bicubic",
    "lanczos": "torch_lanczos",
}
"""Of those, the filters that torchvision's form rounds otherwise."""

_SINCE = 5  # of transformers: a class without a form in its name is torchvision's


_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order"}
_IDLE = {"do_convert_rgb", "do_reduce_labels"}
"""Steps that change nothing here: pictures are RGB already, and there are no maps of labels."""

_SQUASHED_FROM = 384  # pixels from which on ConvNext's resizes both edges, and does not crop


@dataclass(frozen=True, kw_only=True)
class Processor:
    """An image processor, translated.

    Attributes:
        recipe: the preprocessing.
        flipped: whether the network takes blue, green and red, in this order.
        backend: which form of the class it is, as transformers calls it.
    """

    recipe: Recipe
    flipped: bool
    backend: Literal["pil", "torchvision"]


def read_processor(folder: Path, model_type: str, version: int) -> Processor:
    """Read `folder`/preprocessor_config.json.

    Args:
        model_type: as config.json has it: names the class where this file names none.
        version: of transformers, its first number: decides the form where the name does not.

    Raises:
        CannotOpen: it cannot be read.
        NotWeights: it has a step that swipr does not take; says which.
    """
    file = folder / PROCESSOR
    table = read_json(
        file,
        "how are pictures prepared? processor.save_pretrained(FOLDER) writes it, of the image"
        " processor that the model was trained with",
    )
    try:
        return _translate(table, model_type, version)
    except SpecError as error:
        raise NotWeights(str(error)) from None


def _translate(table: Table, model_type: str, version: int) -> Processor:
    name, form = _class_name(table, model_type)
    torchvision = form == "Fast" or (not form and version >= _SINCE)
    kind = CLASSES[name]
    for key in table.keys():  # noqa: SIM118 - a table is no dictionary
        if key.startswith("do_") and key not in _STEPS | _IDLE and table.value(key) is not False:
            raise table.fail(key, "false, a step that swipr does not take", table.value(key))
    resize, edge, crop = _geometry(table, name, kind)
    mean, std = _scale(table, name, kind)
    number = table.whole("resample", 0, len(_FILTERS) - 1)
    interpolation = _FILTERS[kind.resample if number is None else number]
    # Of the other filters torchvision has none, or at times the other of two nearest pixels.
    torchvision &= interpolation in _TORCHVISIONS
    if torchvision:
        interpolation = _TORCHVISIONS[interpolation]
    preprocess = Preprocess(
        resize=resize,
        edge="both" if edge == "both" else "short",
        crop=crop,
        # Where the middle lies between two pixels, transformers takes the left and upper one.
        middle="down",
        interpolation=interpolation,
        exif="apply",  # as load_image has it
        mean=mean,
        std=std,
    )
    which = "torchvision's" if torchvision else "Pillow's"
    flips = name == "MobileViTImageProcessor"
    return Processor(
        recipe=Recipe(preprocess=preprocess, source=f"{PROCESSOR} has it: {name}, {which} form"),
        flipped=flips and table.flag("do_flip_channel_order", True),
        backend="torchvision" if torchvision else "pil",
    )


def _class_name(table: Table, model_type: str) -> tuple[str, str]:
    """Return the class's name as transformers 5 has it, without its form, and that.

    Raises:
        SpecError: it is unknown here.
    """
    key = "image_processor_type"
    if not table.has(key) and table.has("feature_extractor_type"):
        key = "feature_extractor_type"
    if table.has(key):
        told = table.text(key)
        name = re.sub("FeatureExtractor$", "ImageProcessor", told)
        name, form, _ = re.split("(Fast|Pil|)$", name, maxsplit=1)
    else:
        told = name = OF_TYPES.get(model_type, "")
        form = ""
    if name not in CLASSES:
        expected = "an image processor that can be translated: " + ", ".join(
            one.removesuffix("ImageProcessor") for one in CLASSES
        )
        if table.has("auto_map"):
            expected += " (this one is code of its own, which is not run)"
        raise table.fail(key, expected, told or None)
    return name, form


def _geometry(table: Table, name: str, kind: ProcessorClass) -> tuple[int | None, str, int]:
    """Return what the picture is resized to, which edge that is, and the edge of the crop."""
    size = _size(table, "size", kind)
    crops = table.flag("do_center_crop", kind.crop is not None)
    crop = _crop(table, kind) if crops else None
    if not table.flag("do_resize", True):
        if crop is None:
            raise table.fail("do_resize", "true: without a crop pictures differ in size", False)
        return None, "short", crop
    if "height" in size:
        resize, edge = _square(table, "size", size), "both"
    else:
        resize, edge = size["shortest_edge"], "short"
    match name:
        case "ConvNextImageProcessor":
            if edge != "short":
                raise table.fail("size", "shortest_edge", size)
            if crop not in (None, resize):
                raise table.fail("crop_size", f"{resize}, what it crops by itself", crop)
            if resize >= _SQUASHED_FROM:
                return resize, "both", resize
            crop, resize = resize, _enlarged(table, resize, 224 / 256)
        case "PoolFormerImageProcessor":
            resize, edge = _enlarged(table, resize, 0.9), "short"
        case "LevitImageProcessor" if edge == "short":
            resize = int(256 / 224 * resize)
        case _ if table.has("crop_pct"):
            raise table.fail("crop_pct", f"none, which {name} has not", table.value("crop_pct"))
    if crop is None and edge == "short":
        raise table.fail(
            "size", "height and width, or do_center_crop: swipr's pictures are square", size
        )
    crop = crop or resize
    if crop > resize:
        raise table.fail("crop_size", f"no more than the {resize} pixels resized to", crop)
    if resize > LARGEST:
        raise table.fail("size", f"up to {LARGEST} pixels", resize)
    return resize, edge, crop


def _size(table: Table, key: str, kind: ProcessorClass) -> Size:
    """Return a size as a dictionary: of shortest_edge, or of height and width.

    Raises:
        SpecError: it is neither.
    """
    value: Any = table.value(key)
    if value is None:
        return {"shortest_edge": kind.size} if kind.short else _both(kind.size, kind.size)
    if type(value) is int:
        value = _both(value, value) if kind.square else {"shortest_edge": value}
    elif isinstance(value, list) and len(value) == 2:
        value = _both(*value)
    elif isinstance(value, dict):
        value = {name: one for name, one in value.items() if one is not None}
    expected = "shortest_edge, or height and width, in pixels"
    if not isinstance(value, dict) or set(value) not in ({"shortest_edge"}, {"height", "width"}):
        names = " and ".join(map(str, value)) if isinstance(value, dict) else value
        raise table.fail(key, expected, names)
    for one in value.values():
        if type(one) is not int or not 1 <= one <= LARGEST:
            raise table.fail(key, f"{expected}, from 1 to {LARGEST}", one)
    return value


def _crop(table: Table, kind: ProcessorClass) -> int:
    value = table.value("crop_size")
    if value is None:
        return kind.crop or 224
    # A bare number means both edges here, whatever it means for the size.
    size = _size(table, "crop_size", ProcessorClass(size=0))
    if "height" not in size:
        raise table.fail("crop_size", "height and width", "shortest_edge")
    return _square(table, "crop_size", size)


def _square(table: Table, key: str, size: Size) -> int:
    height, width = size["height"], size["width"]
    if height != width:
        found = f"{height} × {width}"
        raise table.fail(key, "height and width alike: swipr's pictures are square", found)
    return height


def _both(height: Any, width: Any) -> dict[str, Any]:
    return {"height": height, "width": width}


def _enlarged(table: Table, crop: int, default: float) -> int:
    """Return the pixels of which `crop` is the part that crop_pct tells."""
    part = _number(table, "crop_pct", default)
    if not 0.1 <= part <= 1:
        raise table.fail("crop_pct", "a number from 0.1 to 1", part)
    return int(crop / part)


def _scale(table: Table, name: str, kind: ProcessorClass) -> tuple[Three, Three]:
    """Return mean and deviation of values from 0 to 1 that do all of what the file asks for.

    Its steps are x → x · factor, less 1 where it has an offset, and (x - mean) / std; ours are
    x → x / 255 and (x - mean) / std.
    """
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    # MobileViT's has statistics, and no step that takes them.
    if name != "MobileViTImageProcessor" and table.flag("do_normalize", True):
        mean, std = _three(table, "image_mean", kind.mean), _three(table, "image_std", kind.std)
    offset = 0.0
    factor = 1.0
    if table.flag("do_rescale", True):
        factor = 255 * _number(table, "rescale_factor", 1 / 255)
        if name == "EfficientNetImageProcessor" and table.flag("rescale_offset", False):
            offset = 1.0
        if not 1e-6 <= factor <= 1e6:
            raise table.fail("rescale_factor", "a number near 1/255", factor / 255)
        if abs(factor - 1) < 1e-9:
            factor = 1.0  # 0.00392156862745098 is 1/255 with fewer digits
    else:
        factor = 255.0
    again = (1.0, 1.0, 1.0)
    if name == "EfficientNetImageProcessor" and table.flag("include_top", True):
        again = _three(table, "image_std", kind.std)  # divided a second time
    return (
        _each(lambda one: (one + offset) / factor, mean),
        _each(lambda one, more: one * more / factor, std, again),
    )


def _each(what: Any, *values: Three) -> Three:
    red, green, blue = map(what, *values)
    return red, green, blue


def _three(table: Table, key: str, default: Three) -> Three:
    """Return three numbers, or the one that stands for all three; deviations are above 0."""
    value = table.value(key)
    if value is None:
        return default
    if type(value) in (int, float):
        numbers: tuple[float, ...] = (_number(table, key, 0.0),) * 3
    else:
        numbers = table.numbers(key, 3)
    if key == "image_std" and min(numbers) <= 0:
        raise table.fail(key, "3 numbers above 0", list(numbers))
    red, green, blue = numbers
    return red, green, blue


def _number(table: Table, key: str, default: float) -> float:
    if not table.has(key):
        return default
    return table.number(key)
