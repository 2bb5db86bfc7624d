"""What an ONNX file says of itself beside the network: labels, sizes, and what it ends in. Pure.

Ultralytics' classifiers carry their labels, as a dictionary in Python's notation, and the size of
their pictures; other makers write JSON. Nothing is evaluated.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from swiprd.folder.onnx_file import OnnxFile
from swiprd.folder.spec import Activation, Preprocess
from swiprd.pack.labels import Named, beside
from swiprd.pack.options import LARGEST
from swiprd.pack.told import Recipe, plain

KERAS_VALUES = (
    "which values do the pictures have that it was trained with? Nothing in the file tells. From"
    " -1 to 1: --mean 0.5 --std 0.5; from 0 to 1: --mean 0 --std 1; from 0 to 255, as for Keras'"
    " EfficientNet and MobileNetV3: --mean 0 --std 0.00392156862745098"
)
"""What is asked of a network with the colours last; torch's are nearly all ImageNet's."""

_USUAL = 224  # pixels, where a network takes any
_NAMES = ("names", "id2label", "classes", "class_names", "labels", "categories", "idx_to_class")
_LONGEST = 1 << 20  # characters of a text that is parsed
_ENDS: dict[str, tuple[Activation, str]] = {
    "Softmax": ("none", "the file ends in Softmax: what comes out are probabilities"),
    "Sigmoid": ("none", "the file ends in Sigmoid: what comes out are probabilities"),
    "HardSigmoid": ("none", "the file ends in HardSigmoid: what comes out are probabilities"),
    "LogSoftmax": ("log_softmax", "the file ends in LogSoftmax"),
}
_PASSES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Dropout")


def ends_in(contents: OnnxFile, output: str) -> tuple[Activation, str] | None:
    """Return the activation for a network whose output ends in one, and why; None if it does not.

    Looks through what changes no number.
    """
    for _ in range(len(contents.makers)):
        name, takes = contents.makers.get(output, ("", []))
        if name in _ENDS:
            return _ENDS[name]
        if name not in _PASSES or not takes:
            return None
        output = takes[0]
    return None


def labels(contents: OnnxFile, classes: int) -> tuple[Named | None, str]:
    """Find the labels of `classes` outputs among the metadata; and a note about them, or nothing.

    A label that is there twice, as two of ImageNet's are, gets its number.
    """
    for key in _NAMES:
        values = _in_order(_parsed(contents.metadata.get(key, "")))
        if len(values) != classes:
            continue
        renamed, note = distinct(values)
        found = beside({"labels": renamed}, classes)
        if found is not None:
            return Named(labels=found.labels, source=f'"{key}" in its metadata'), note
    return None, ""


def distinct(names: list[str]) -> tuple[list[str], str]:
    """Tell apart labels that are the same, by their numbers; and a note about that, or nothing."""
    seen: set[str] = set()
    made = []
    for number, name in enumerate(names):
        made.append(f"{name} ({number})" if name in seen else name)
        seen.add(made[-1])
    changed = [new for new, old in zip(made, names, strict=True) if new != old]
    if not changed:
        return made, ""
    return made, f"labels that are there twice have got their number: {', '.join(changed[:4])}"


def recipe(
    contents: OnnxFile, *, edge: int | None, channels_last: bool, crop: int | None
) -> Recipe:
    """Return how pictures are prepared, as far as the file tells.

    Args:
        edge: of the pictures that it takes; None if it takes any.
        crop: the edge that was asked for.
    """
    size = edge or crop or _size(contents) or _USUAL
    if _is_ultralytics(contents):
        return Recipe(
            preprocess=Preprocess(
                resize=size, crop=size, exif="apply", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
            ),
            source=f"Ultralytics validates at imgsz={size}: short side, centre, values of 0 to 1",
        )
    if channels_last:
        return Recipe(
            preprocess=Preprocess(
                resize=size, edge="both", crop=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
            ),
            source=f"Keras loads pictures: both edges to {size}; assumed, since the colours come"
            " last",
        )
    usual = plain("torchvision evaluates most models; assumed")
    resize = min(LARGEST, round(256 * size / 224))
    if size == usual.preprocess.crop:
        return usual
    return Recipe(preprocess=Preprocess(resize=resize, crop=size), source=usual.source)


def knows_values(contents: OnnxFile, *, channels_last: bool) -> bool:
    """Whether `recipe` has the mean and the standard deviation from more than a guess."""
    return not channels_last or _is_ultralytics(contents)


def _is_ultralytics(contents: OnnxFile) -> bool:
    said = contents.metadata
    return said.get("task") == "classify" and "names" in said and "imgsz" in said


def _size(contents: OnnxFile) -> int | None:
    """Read Ultralytics' imgsz, such as [224, 224]."""
    found = _parsed(contents.metadata.get("imgsz", ""))
    edges = found if isinstance(found, list | tuple) else [found]
    if (
        edges
        and all(type(one) is int and 0 < one <= 4096 for one in edges)
        and len(set(edges)) == 1
    ):
        return int(edges[0])
    return None


def _parsed(text: str) -> Any:
    """Read JSON or a literal of Python's; None where it is neither."""
    if not text or len(text) > _LONGEST:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _in_order(found: Any) -> list[str]:
    """Return names by their numbers from 0 on, or as they are listed; nothing if it is neither."""
    if isinstance(found, dict):
        pairs = {}
        for key, value in found.items():
            # A key of JSON is always a text. Not too many digits: Python reads only so many.
            number = type(key) is str and key.isascii() and key.isdigit() and len(key) < 9
            pairs[int(key) if number else key] = value
        if all(type(one) is int for one in pairs.values()):  # class_to_idx: the other way round
            pairs = {value: key for key, value in pairs.items()}
        if not all(type(one) is int for one in pairs) or sorted(pairs) != list(range(len(pairs))):
            return []
        found = [pairs[number] for number in range(len(pairs))]
    if not isinstance(found, list | tuple) or not all(type(one) is str for one in found):
        return []
    return [one.strip() for one in found]
