"""The names of the outputs: given, known, or found in the checkpoint beside the weights.

Touches no tensors. Opens no file but the one that --labels-file names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swiprd.pack.errors import BadLabels, CannotOpen, Unclear

Labels = tuple[str, ...] | Literal["imagenet"]

IMAGENET = 1000
MOST = 1 << 20  # bytes of a file of labels

# In the order of the outputs: CLASS_NAMES in arnoweng/CheXNet, and Wang et al., "ChestX-ray8"
# (CVPR 2017), table 1 with the six that ChestX-ray14 added.
CHEST_XRAY_14 = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)

_KEYS = ("classes", "class_names", "labels", "categories", "idx_to_class", "class_to_idx")


@dataclass(frozen=True, kw_only=True)
class Named:
    """Labels, and where they are from."""

    labels: Labels
    source: str

    def count(self) -> int:
        """How many outputs they name."""
        return IMAGENET if self.labels == "imagenet" else len(self.labels)


def given(text: str | None, file: Path | None) -> Named | None:
    """Read --labels and --labels-file; None where neither is there.

    Raises:
        Unclear: both, a file as the one label, or an empty or repeated label.
        CannotOpen: the file cannot be read.
        BadLabels: a line of it is blank or repeated; names it.
    """
    if text is not None and file is not None:
        raise Unclear("--labels and --labels-file: give one of them")
    if text == "imagenet":
        return Named(labels="imagenet", source="torchvision's thousand, as --labels says")
    if text is not None:
        labels = tuple(one.strip() for one in text.split(","))
        if len(labels) == 1 and "." in text and Path(text).is_file():
            raise Unclear(
                f"--labels: {text} is a file: --labels-file {text} reads one label a line"
            )
        for number, label in enumerate(labels, start=1):
            if fault := _fault(label, labels[: number - 1]):
                raise Unclear(f"--labels: label {number}: {fault}")
        return Named(labels=labels, source="--labels")
    if file is not None:
        return Named(labels=_read(file), source=str(file))
    return None


def beside(content: Any, classes: int) -> Named | None:
    """Find the labels of `classes` outputs among what a checkpoint holds beside the weights."""
    if not isinstance(content, Mapping):
        return None
    for key in _KEYS:
        value = content.get(key)
        if isinstance(value, Mapping):
            value = _in_order(value)
        if not isinstance(value, list | tuple) or len(value) != classes:
            continue
        labels = tuple(one.strip() if isinstance(one, str) else "" for one in value)
        if not any(_fault(one, labels[:at]) for at, one in enumerate(labels)):
            return Named(labels=labels, source=f'"{key}" in the checkpoint')
    return None


def _in_order(names: Mapping[Any, Any]) -> list[str] | None:
    """Return the names of idx_to_class, or of class_to_idx, from 0 on; None if it is neither."""
    pairs = list(names.items())
    if all(type(one) is str for one in names):
        pairs = [(index, name) for name, index in pairs]
    # Exactly: True is an int, and 1. Both are checked before anything is sorted.
    if not all(type(index) is int and type(name) is str for index, name in pairs):
        return None
    pairs.sort()
    complete = [index for index, _ in pairs] == list(range(len(pairs)))
    return [name for _, name in pairs] if complete else None


def check(named: Named | None, classes: int) -> Named:
    """Return the labels if there is one for each output.

    Raises:
        Unclear: there are none, or not as many as there are outputs.
    """
    order = "in the order of training: fastai and ImageFolder sort the names of the folders"
    if named is None:
        raise Unclear(
            f"--labels: what are the {classes} outputs called? --labels A,B,… or --labels-file"
            f" FILE with one a line, {order}"
        )
    if named.count() != classes:
        raise Unclear(
            f"{named.count()} labels ({named.source}), where the weights have {classes} outputs"
        )
    return named


def _read(file: Path) -> tuple[str, ...]:
    try:
        # Opening must not wait, as for a pipe that nobody writes to; reading one may: <(…) is one.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.set_blocking(descriptor, True)
            with open(descriptor, "rb", closefd=False) as opened:
                data = opened.read(MOST + 1)
            if not data and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                raise CannotOpen(f"{file}: a pipe that nobody writes to")
        finally:
            os.close(descriptor)
    except CannotOpen:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CannotOpen(f"{file}: {reason}") from None
    if len(data) > MOST:
        raise BadLabels(f"{file}: more than {MOST} bytes: is this a file of labels?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadLabels(f"{file}: byte {error.start} is not UTF-8") from None
    labels: list[str] = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        label = line.strip()
        if fault := _fault(label, labels):
            raise BadLabels(f"{file}: line {number}: {fault}")
        labels.append(label)
    return tuple(labels)


def _fault(label: str, earlier: tuple[str, ...] | list[str]) -> str:
    if not label:
        return "a label is missing: blank"
    if not label.isprintable():
        return f"{label!r} has characters that cannot be printed"
    if label in earlier:
        return f'"{label}" a second time'
    return ""
