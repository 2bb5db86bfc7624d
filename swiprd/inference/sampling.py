"""Resizing by torch's grid_sample on a picture of floats, as fastai 1 does it.

Written out along one axis after the other, which gives grid_sample's numbers: given a whole photo,
torch would need it as floats, four times what was decoded, and a grid as large as what it makes.
"""

from __future__ import annotations

import math

import numpy as np

from swiprd.inference.area import weighted


def resize_sampled(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a picture: uint8 of shape [h, w, 3] → float32 of shape [height, width, 3], 0 to 255.

    Each new pixel is interpolated linearly between the nearest four, the corners lying on the
    corners (`align_corners`). Where both edges shrink to less than half, the picture is first
    pooled to twice the size. Source: `_affine_grid` and `_grid_sample` in fastai 1.0.61's
    vision/image.py.
    """
    rows, columns = pixels.shape[:2]
    if (height, width) == (rows, columns):
        return pixels.astype(np.float32)
    shrunk = min(rows / height, columns / width) / 2
    if shrunk > 1:
        # As torch's interpolate(scale_factor=1 / shrunk) rounds it: to one less, now and then.
        rows, columns = (math.floor(old * (1 / shrunk)) for old in (rows, columns))
        pixels = _both(pixels, _pooled(pixels.shape[0], rows), _pooled(pixels.shape[1], columns))
    return _both(pixels, _between(rows, height), _between(columns, width))


def _both(
    pixels: np.ndarray, down: list[tuple[int, np.ndarray]], across: list[tuple[int, np.ndarray]]
) -> np.ndarray:
    return weighted(weighted(pixels, down).swapaxes(0, 1), across).swapaxes(0, 1)


def _pooled(old: int, new: int) -> list[tuple[int, np.ndarray]]:
    """Give each of `new` pixels the `old` ones that it touches, all alike.

    So does torch's adaptive_avg_pool2d, which is its interpolation by "area": a pixel that two
    new ones share counts wholly for both.
    """
    windows = []
    for number in range(new):
        first, end = number * old // new, -((number + 1) * old // -new)
        windows.append((first, np.full(end - first, 1 / (end - first), np.float32)))
    return windows


def _between(old: int, new: int) -> list[tuple[int, np.ndarray]]:
    """Give each of `new` pixels the two `old` ones between which it lies."""
    # torch's arithmetic, in float32: of an edge of 2,000 pixels it places a pixel only to the
    # 8,000th part of one.
    points = (linspace(new) + 1) / 2 * (old - 1)
    windows = []
    for place in points.tolist():
        first = min(int(place), old - 1)
        part = place - first
        weights = [1 - part, part] if first + 1 < old else [1.0]
        windows.append((first, np.asarray(weights, np.float32)))
    return windows


def linspace(count: int) -> np.ndarray:
    """Return `torch.linspace(-1, 1, count)`, bit for bit: float32 of shape [count].

    It counts from the nearer end, and rounds once where it multiplies and adds: so does torch on a
    processor that does both in one instruction (of x86, any with AVX2), else twice. Source:
    `linspace_kernel` in PyTorch's aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp.
    """
    if count == 1:
        return np.array([-1], np.float32)
    step = np.float32(2) / np.float32(count - 1)
    half = count // 2
    # In float64 neither rounds, up to a million of them and more.
    places = step.astype(np.float64) * np.arange(count - half)
    return np.concatenate([places[:half] - 1, 1 - places[::-1]]).astype(np.float32)
