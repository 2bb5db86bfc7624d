"""area.py: what OpenCV's INTER_AREA gives, without OpenCV; and where the middle crop is cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from imagefiles import picture

from swiprd.folder.spec import Preprocess
from swiprd.inference.area import resize_area
from swiprd.inference.preprocess import preprocess

pytestmark = pytest.mark.timeout(60)

SMALL = np.array([[0, 100, 50], [200, 30, 250], [10, 90, 160]], np.uint8)

# cv2.resize(SMALL as float32, size, interpolation=cv2.INTER_AREA), OpenCV 5.0
OPENCV: dict[int, list[list[float]]] = {
    2: [[70.0, 103.3333], [72.2222, 150.0]],
    5: [
        [0.0, 33.3333, 100.0, 66.6667, 50.0],
        [66.6667, 70.0, 76.6667, 103.3333, 116.6667],
        [200.0, 143.3333, 30.0, 176.6667, 250.0],
        [73.3333, 72.2222, 70.0, 150.0, 190.0],
        [10.0, 36.6667, 90.0, 136.6667, 160.0],
    ],
}


@pytest.mark.parametrize("size", OPENCV)
def test_what_opencv_gives(size: int) -> None:
    found = resize_area(np.repeat(SMALL[..., None], 3, axis=2), size, size)
    assert (found.dtype, found.shape) == (np.float32, (size, size, 3))
    assert np.abs(found - np.asarray(OPENCV[size])[..., None]).max() < 1e-3


def mean_over(pixels: np.ndarray, top: float, bottom: float, left: float, right: float) -> Any:
    """Average one window, pixel by pixel."""
    total, area = np.zeros(3), 0.0
    for y in range(math.floor(top), min(math.ceil(bottom), pixels.shape[0])):
        for x in range(math.floor(left), min(math.ceil(right), pixels.shape[1])):
            part = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
            total += part * pixels[y, x]
            area += part
    return total / area


@pytest.mark.parametrize(
    ("old", "new"),
    [((40, 31), (17, 13)), ((12, 60), (4, 20)), ((50, 50), (49, 50)), ((9, 7), (1, 1))],
)
def test_each_new_pixel_is_the_mean_of_what_it_covers(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*old, 3), dtype=np.uint8)
    found = resize_area(pixels, new[1], new[0])
    down, across = old[0] / new[0], old[1] / new[1]
    for y in range(new[0]):
        for x in range(new[1]):
            expected = mean_over(pixels, y * down, (y + 1) * down, x * across, (x + 1) * across)
            assert np.abs(found[y, x] - expected).max() < 1e-3, (y, x)


def test_the_same_size_stays_as_it_is() -> None:
    pixels = np.asarray(picture(30, 20))
    assert np.array_equal(resize_area(pixels, 30, 20), pixels)


def plainly(**keys: Any) -> Preprocess:
    return Preprocess(interpolation="area", mean=(0, 0, 0), std=(1, 1, 1), **keys)


def test_validation_as_fastai_0_7_does_it() -> None:
    """Shortest side to 48 by area averaging, nothing rounded; the middle, halves upwards."""
    image = picture(131, 100)
    resized = resize_area(np.asarray(image), math.floor(131 * 48 / 100), 48) / 255
    left = math.ceil((resized.shape[1] - 48) / 2)
    found = preprocess(image, plainly(resize=48, crop=48, middle="up"))
    assert np.allclose(found[0].transpose(1, 2, 0), resized[:, left : left + 48], atol=1e-6)


@pytest.mark.parametrize(
    ("middle", "begin"), [("even", [0, 2, 2, 4]), ("up", [1, 2, 3, 4]), ("down", [0, 1, 2, 3])]
)
@pytest.mark.parametrize("interpolation", ["area", "bilinear"])
def test_where_halves_of_pixels_go(interpolation: Any, middle: Any, begin: list[int]) -> None:
    for spare, first in zip((1, 3, 5, 7), begin, strict=True):
        image = picture(16 + spare, 16)
        recipe = Preprocess(
            interpolation=interpolation,
            middle=middle,
            resize=None,
            crop=16,
            mean=(0, 0, 0),
            std=(1, 1, 1),
        )
        found = preprocess(image, recipe)[0].transpose(1, 2, 0) * 255
        assert np.allclose(found, np.asarray(image)[:, first : first + 16], atol=1e-3)


@pytest.mark.parametrize("crops", ["five", "ten", "grid"])
def test_other_crops_lie_where_they_lie_without_area(crops: Any) -> None:
    image = picture(40, 36)
    keys: dict[str, Any] = {"resize": None, "crop": 24, "crops": crops}
    keys |= {"grid": (2, 3)} if crops == "grid" else {}
    plain = Preprocess(mean=(0, 0, 0), std=(1, 1, 1), **keys)
    assert np.allclose(preprocess(image, plainly(**keys)), preprocess(image, plain), atol=1e-6)


@pytest.mark.parametrize("size", [(10, 40), (40, 10), (9, 11)])
def test_a_smaller_picture_is_padded_alike(size: tuple[int, int]) -> None:
    image = picture(*size)
    plain = Preprocess(mean=(0, 0, 0), std=(1, 1, 1), resize=None, crop=24)
    found = preprocess(image, plainly(resize=None, crop=24))
    assert np.allclose(found, preprocess(image, plain), atol=1e-6)
