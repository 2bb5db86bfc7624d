"""Model folders with seeded random weights, made by the tests. Needs torch."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from swiprd.inference.torchvision_import import import_torchvision

CLASSES = 10


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A JPEG of smooth random colours, different for each seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def slow_png() -> bytes:
    """A picture just under the pixel limit: seconds of uninterrupted C in its decoder."""
    stream = io.BytesIO()
    Image.new("L", (13_000, 13_000), 128).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def make_module(architecture: str, seed: int = 0, spread: float = 1.0) -> torch.nn.Module:
    """Build a classifier whose answers differ visibly from picture to picture.

    Args:
        spread: standard deviation of an output over pictures. An untrained network has nearly
            none, and what enlarges it enlarges the last digits, too.
    """
    torchvision = import_torchvision()
    torch.manual_seed(seed)
    extra = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    module = torchvision.models.get_model(
        architecture, weights=None, num_classes=CLASSES, **extra
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        probe = torch.rand((4, 3, 224, 224), generator=generator)
        found = module(probe).std(dim=0).mean()
        last = [m for m in module.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)][-1]
        last.weight.mul_(min(1e6, spread / float(found)))
    return module


def make_folder(
    folder: Path,
    architecture: str = "shufflenet_v2_x0_5",
    *,
    seed: int = 0,
    spread: float = 1.0,
    extra: str = "",
) -> Path:
    """Write model.toml, labels.txt and weights.pth; `extra` is appended to model.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(make_module(architecture, seed, spread).state_dict(), folder / "weights.pth")
    (folder / "labels.txt").write_text("".join(f"class{i}\n" for i in range(CLASSES)))
    (folder / "canary.jpg").write_bytes(photo(12345))
    (folder / "model.toml").write_text(
        f"""\
name = "tiny"
architecture = "{architecture}"
weights = "weights.pth"
labels = "labels.txt"
activation = "softmax"

[canary]
image = "canary.jpg"
{extra}"""
    )
    return folder


def compile_into(folder: Path) -> None:
    """Make the compiled form of a model's folder, in that folder."""
    for module in ("compile", "prove"):
        subprocess.run(
            [sys.executable, "-P", "-m", f"swiprd.inference.{module}", str(folder), str(folder)],
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            check=True,
        )
