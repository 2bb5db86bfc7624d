"""fixed_point.py: torchvision's own numbers for a tensor of bytes, to the last level."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from imagefiles import picture
from PIL import Image

from swiprd.folder.spec import Interpolation, Preprocess
from swiprd.inference.fixed_point import resize_fixed
from swiprd.inference.preprocess import preprocess
from swiprd.inference.torchvision_import import import_torchvision

pytestmark = pytest.mark.timeout(60)

FILTERS: list[Interpolation] = ["torch_bilinear", "torch_bicubic", "torch_lanczos"]
SIZES = [
    ((300, 451), (224, 224)),
    ((90, 70), (131, 257)),  # larger
    ((400, 60), (33, 190)),  # smaller in one direction, larger in the other
    ((120, 77), (120, 40)),
    ((77, 120), (40, 120)),
    ((50, 40), (50, 40)),
    ((1, 9), (5, 3)),
    ((611, 13), (1, 1)),
]


def by_torchvision(pixels: np.ndarray, height: int, width: int, name: Interpolation) -> np.ndarray:
    import_torchvision()
    transforms: Any = importlib.import_module("torchvision.transforms.v2")
    mode = transforms.InterpolationMode(name.removeprefix("torch_"))
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    try:
        made = transforms.functional.resize(planes, [height, width], mode, antialias=True)
    except ValueError:
        pytest.skip("this torchvision has no such filter for tensors")
    found: np.ndarray = made.permute(1, 2, 0).numpy()
    return found


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_what_torchvision_gives(
    name: Interpolation, old: tuple[int, int], new: tuple[int, int]
) -> None:
    noise = np.random.default_rng(7).integers(0, 256, (*old, 3), dtype=np.uint8)
    smooth = np.asarray(picture(old[1], old[0]))
    for pixels in (noise, smooth):
        found = resize_fixed(pixels, new[1], new[0], name)
        assert found.dtype == np.uint8
        assert np.array_equal(found, by_torchvision(pixels, *new, name))


def test_pillow_gives_something_else() -> None:
    """Or else nobody would need it."""
    image = picture(451, 300)
    pillows = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(resize_fixed(np.asarray(image), 224, 224, "torch_bicubic") - pillows)
    assert 1 <= difference.max() <= 2


@pytest.mark.parametrize("name", FILTERS)
def test_a_recipe_takes_it(name: Interpolation) -> None:
    recipe = Preprocess(
        resize=40, crop=32, interpolation=name, middle="down", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    image = picture(91, 60)
    (crop,) = preprocess(image, recipe)
    resized = by_torchvision(np.asarray(image), 40, 60, name)
    cut = resized[4:36, 14:46].transpose(2, 0, 1)
    assert np.array_equal(np.rint(crop * 255), cut)
