"""A preprocessing and its source, and what the command line says of it and of the activation.

That wins over whatever was inferred. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from typing import Any

from swiprd.folder.spec import IMAGENET_MEAN, IMAGENET_STD, Activation, Preprocess
from swiprd.pack.errors import Unclear
from swiprd.pack.options import LARGEST


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A preprocessing and its source.

    Attributes:
        source: completes "preprocessing as …".
        notes: what deserves a line of its own.
    """

    preprocess: Preprocess
    source: str
    notes: tuple[str, ...] = field(default=())


def plain(source: str) -> Recipe:
    """Return the recipe that most ImageNet models share."""
    return Recipe(preprocess=Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD), source=source)


def override(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """Put what the command line says of the preprocessing over what was inferred.

    Raises:
        Unclear: the size that would follow from --crop is more than model.toml takes.
    """
    plain = recipe.preprocess
    said: dict[str, Any] = {
        key: getattr(options, key)
        for key in ("edge", "crop", "crops", "interpolation", "exif", "mean", "std")
        if getattr(options, key) is not None
    }
    if options.resize is not None:
        said["resize"] = options.resize or None
    elif options.edge in ("both", "square"):
        said["resize"] = options.crop or plain.crop
    elif options.crop is not None and plain.resize is not None:
        said["resize"] = max(options.crop, round(plain.resize * options.crop / plain.crop))
        if said["resize"] > LARGEST:
            raise Unclear(
                f"--crop {options.crop}: pictures would in proportion be resized to"
                f" {said['resize']} pixels before, and {LARGEST} are the most: say --resize, too"
            )
    changed = [key for key, value in said.items() if value != getattr(plain, key)]
    if not changed:
        return recipe
    # A note about a value that the command line replaces would be wrong.
    notes = () if {"mean", "std"} & set(changed) else recipe.notes
    source = f"{recipe.source}; {', '.join(changed)} as told"
    preprocess: Preprocess = replace(plain, **said)
    notes = (*notes, *_padding(preprocess))
    return Recipe(preprocess=preprocess, source=source, notes=notes)


def _padding(preprocess: Preprocess) -> tuple[str, ...]:
    """Note that the crops are larger than what pictures are resized to."""
    resize, crop = preprocess.resize, preprocess.crop
    if resize is None or resize >= crop:
        return ()
    share = "most" if 2 * resize <= crop else "a part"
    return (
        f"pictures are resized to {resize} pixels and the crop has {crop}: {share} of it is"
        " padding; --resize is usually no less than --crop",
    )


def activation(options: argparse.Namespace) -> tuple[Activation, str] | None:
    """Return what the command line says of the activation, if anything.

    Raises:
        Unclear: two things.
    """
    if options.multi_label and options.activation not in (None, "sigmoid"):
        raise Unclear(f"--multi-label and --activation {options.activation}: give one of them")
    if options.activation is not None:
        return options.activation, "--activation"
    return ("sigmoid", "--multi-label") if options.multi_label else None
