"""The command line of `swiprd pack`. Imports nothing heavy: `swiprd serve` reads it, too."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from swiprd.folder.spec import Activation, Crops, Edge, Engine, Interpolation

# A grid needs its rows and columns; model.toml is the place for that.
CROPS = tuple(one for one in get_args(Crops) if one != "grid")

LARGEST = 4096
"""Pixels: model.toml takes no more."""

DESCRIPTION = """\
Make a model's folder from a checkpoint: a state_dict in either of torch's formats or as
safetensors, alone or among other things, of a classifier of torchvision, fastai or timm; a
program (TorchScript, torch.export); or an ONNX file. What the file tells is inferred and said.
Nothing is unpickled but tensors and plain values."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `swiprd pack`."""
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="the file with the weights")
    add("-o", "--output", type=Path, metavar="FOLDER", help="the folder to make")
    add("--force", action="store_true", help="replace a model's folder that is there already")
    add(
        "--architecture",
        metavar="NAME",
        help="a classifier of torchvision, timm:NAME for one of timm, or torchscript or export"
        " for a program that you trust (default: whichever has these tensors)",
    )
    add("--labels", metavar="A,B,…", help="names of the outputs in their order, or imagenet")
    add("--labels-file", type=Path, metavar="FILE", help="the same, one a line")
    add("--name", metavar="NAME", help="the model's name (default: the folder's)")
    add(
        "--key",
        metavar="KEY",
        help="where the weights are in the checkpoint, such as state_dict or model_ema.module;"
        " of an ONNX file with several outputs, which of them counts",
    )
    add("--activation", choices=get_args(Activation), help="what makes outputs probabilities")
    add("--multi-label", action="store_true", help="several labels a picture: --activation sigmoid")
    add("--resize", type=_pixels(0), metavar="N", help="pixels of --edge; 0 keeps the size")
    add(
        "--edge",
        choices=get_args(Edge),
        help="short (default), long, both: squashed to a square, or square: one is cut out first",
    )
    add("--crop", type=_pixels(1), metavar="N", help="edge of the crops in pixels")
    add("--crops", choices=CROPS, help="which crops; their probabilities are averaged")
    add("--interpolation", choices=get_args(Interpolation), help="how pictures are resized")
    add("--exif", choices=("ignore", "apply"), help="whether pictures are turned upright first")
    add("--mean", type=_three(None), metavar="R,G,B", help="subtracted from values of 0 to 1")
    add(
        "--engine",
        choices=get_args(Engine),
        default="auto",
        help="what is to run the network: torch, or onnx, a compiled form of it that is made now;"
        " auto (default) makes one if that can be done, and the faster of both serves",
    )
    add("--std", type=_three(0.0), metavar="R,G,B", help="what they are then divided by")


def _pixels(least: int) -> Callable[[str], int]:
    """Make argparse's reader for a whole number of pixels."""

    def read(text: str) -> int:
        # Not too many digits: Python reads only so many, and says so in its own words.
        whole = text.isascii() and text.isdigit() and len(text) < 100
        if not whole or not least <= int(text) <= LARGEST:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {LARGEST}, found {_shown(text)}"
            )
        return int(text)

    return read


def _three(above: float | None) -> Callable[[str], tuple[float, float, float]]:
    """Make argparse's reader for three numbers, or one that stands for all three."""

    def read(text: str) -> tuple[float, float, float]:
        try:
            values = [float(one) for one in text.split(",")]
        except ValueError:
            values = []
        if len(values) == 1:
            values *= 3
        least = -math.inf if above is None else above
        if len(values) != 3 or not all(math.isfinite(one) and one > least for one in values):
            more = "" if above is None else f" above {above:g}"
            raise argparse.ArgumentTypeError(f"expected three numbers{more}, found {_shown(text)}")
        return values[0], values[1], values[2]

    return read


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
