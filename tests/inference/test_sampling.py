"""sampling.py, and what preprocess.py makes of it: fastai 1's own numbers, by torch's functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import sampled_crop
from hypothesis import given, settings
from hypothesis import strategies as st
from imagefiles import encoded, picture
from PIL import Image
from torch.nn import functional

from swiprctl.errors import TooLarge
from swiprd.folder.spec import Preprocess
from swiprd.inference import decode, sampling
from swiprd.inference.preprocess import preprocess, resized
from swiprd.inference.sampling import resize_sampled

pytestmark = pytest.mark.timeout(120)


def recipe(**keys: Any) -> Preprocess:
    return Preprocess(interpolation="grid_sample", middle="up", **keys)


def plainly(**keys: Any) -> Preprocess:
    return recipe(mean=(0, 0, 0), std=(1, 1, 1), **keys)


def by_torch(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """`Image.resize` of fastai 1.0.61 to any size, by torch's own functions: [h, w, 3]."""
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None]
    shrunk = min(tensor.shape[2] / height, tensor.shape[3] / width) / 2
    if shrunk > 1:
        tensor = functional.interpolate(tensor, scale_factor=1 / shrunk, mode="area")
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    grid = torch.stack([x, y], dim=2)[None]
    sampled = functional.grid_sample(tensor, grid, padding_mode="reflection", align_corners=True)
    return sampled[0].permute(1, 2, 0).numpy()


# Landscape, portrait and square; smaller than 224, less and more than twice as large, just at
# twice; of 449 and of 451 by 448 the other edge is half a pixel more than a whole one.
SIZES = [(640, 427), (427, 640), (500, 500), (224, 224), (225, 224), (90, 61), (61, 91), (1, 7)]
SIZES += [
    (448, 448),
    (449, 449),
    (447, 901),
    (1001, 777),
    (1500, 2003),
    (450, 301),
    (449, 448),
    (451, 448),
]


@pytest.mark.parametrize("crop", [224, 299, 65])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_fastai_1(size: tuple[int, int], crop: int) -> None:
    data = encoded(picture(*size), "PNG")
    found = decode.decode(data, recipe(resize=crop, crop=crop))
    # In units of the standard deviation, of which one of 255 levels is 0.017.
    assert np.abs(found - sampled_crop(data, crop).numpy()).max() < 2e-5


@settings(max_examples=150, deadline=None)
@given(*(st.integers(1, most) for most in (400, 400, 90, 90)))
def test_any_size_becomes_any_other_as_torch_has_it(
    columns: int, rows: int, width: int, height: int
) -> None:
    pixels = np.asarray(picture(columns, rows))
    found = resize_sampled(pixels, width, height)
    assert found.dtype == np.float32
    assert found.shape == (height, width, 3)
    if (columns, rows) != (width, height):
        assert np.abs(found - by_torch(pixels, width, height)).max() < 2e-3  # of 255


def test_the_same_size_stays_as_it_is() -> None:
    pixels = np.asarray(picture(30, 20))
    assert np.array_equal(resize_sampled(pixels, 30, 20), pixels)


def test_a_large_photo_keeps_its_precision() -> None:
    pixels = np.asarray(picture(4000, 3001))
    assert np.abs(resize_sampled(pixels, 299, 224) - by_torch(pixels, 299, 224)).max() < 2e-3


@pytest.mark.parametrize(
    ("size", "keys", "expected"),
    [
        ((333, 500), {}, (224, 336)),  # 336.3
        ((450, 301), {}, (335, 224)),  # 334.88
        ((449, 448), {}, (224, 224)),  # 224.5, to the even one
        ((451, 448), {}, (226, 224)),  # 225.5
        ((448, 449), {}, (224, 224)),
        ((1, 7), {}, (224, 1568)),
        ((1000, 3), {"edge": "long"}, (224, 1)),
        ((500, 333), {"edge": "both"}, (224, 224)),
        ((500, 333), {"resize": None}, (500, 333)),
        ((50, 33), {"enlarge": False}, (50, 33)),
    ],
)
def test_the_other_edge_is_rounded(
    size: tuple[int, int], keys: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert resized(*size, recipe(**{"resize": 224, **keys})) == expected


@pytest.mark.parametrize("size", [(301, 150), (97, 61), (20, 33)])
def test_squish_is_both_edges(size: tuple[int, int]) -> None:
    image = picture(*size)
    found = preprocess(image, plainly(resize=48, crop=48, edge="both"))
    expected = by_torch(np.asarray(image), 48, 48) / 255
    assert np.allclose(found[0].transpose(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize("crops", ["center", "five", "ten", "grid"])
@pytest.mark.parametrize("edge", ["short", "long", "both", "square"])
@pytest.mark.parametrize("crop", [24, 40])  # 40 is more than what is resized has
def test_crops_lie_where_they_lie_otherwise(crops: Any, edge: Any, crop: int) -> None:
    """A picture without detail is the same however it is resized; only places differ."""
    ramp = np.linspace(0, 255, 180 * 120).reshape(120, 180).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, ramp, ramp], axis=2))
    keys: dict[str, Any] = {"resize": 36, "crop": crop, "crops": crops, "edge": edge}
    keys |= {"grid": (2, 3)} if crops == "grid" else {}
    plain = Preprocess(mean=(0, 0, 0), std=(1, 1, 1), middle="up", **keys)
    found, other = preprocess(image, plainly(**keys)), preprocess(image, plain)
    assert found.shape == other.shape
    assert np.abs(found - other).max() < 0.05


@pytest.mark.parametrize(
    ("resize", "left"), [(100, (200, 151)), (76, (200, 151)), (150, (400, 301))]
)
def test_draft_is_near(resize: int, left: tuple[int, int]) -> None:
    # Soft: of a picture of noise fastai 1 takes two pixels of each four, and which, chance decides.
    soft = picture(40, 30).resize((1600, 1201), Image.Resampling.BICUBIC)
    data = encoded(soft, "JPEG", quality=95)
    keys: dict[str, Any] = {"resize": resize, "crop": resize}
    assert decode.load_image(data, plainly(draft=True, **keys)).size == left
    exact = decode.decode(data, plainly(**keys))
    assert np.abs(decode.decode(data, plainly(draft=True, **keys)) - exact).mean() < 0.02


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)])
def test_a_thin_picture_may_not_grow_beyond_the_limit(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size), "PNG")
    with pytest.raises(TooLarge, match=r"resized to .*5017600000 pixels"):
        decode.decode(data, recipe(resize=224))
    assert decode.decode(data, recipe(resize=224, edge="long")).shape == (1, 3, 224, 224)


def test_places_are_torch_s_own_to_the_last_bit() -> None:
    """Were torch's places others than these, pixels would move from one to the next."""
    for count in (*range(1, 1500), 2003, 4000, 4001, 9999, 40_000, 100_001):
        expected = torch.linspace(-1, 1, count).numpy()
        found = sampling.linspace(count)
        assert found.dtype == np.float32
        if torch.backends.cpu.get_cpu_capability() == "DEFAULT":  # torch may round twice here
            assert np.abs(found - expected).max() < 2**-23, count
        else:
            assert found.tobytes() == expected.tobytes(), count
