"""Resizing as torchvision does it to a picture of bytes: Pillow's filters in less exact numbers.

torch weighs pixels with whole numbers of 16 bits, where Pillow's have 22 behind the point, and so
one value in some hundred comes out a level or two off. A model whose pictures were prepared by
torchvision's form of an image processor is answered to the last digit only this way.
"""

from __future__ import annotations

import numpy as np

_SUPPORT = {"torch_bilinear": 1.0, "torch_bicubic": 2.0, "torch_lanczos": 3.0}
_MOST = 1 << 15
_CUBIC = -0.5  # as torch has it where it smooths, and Pillow


def resize_fixed(pixels: np.ndarray, width: int, height: int, interpolation: str) -> np.ndarray:
    """Resize a picture: uint8 of shape [h, w, 3] → uint8 of shape [height, width, 3].

    Across first, as torch does it. Source: `upsample_avx_bilinear_bicubic_uint8` and
    `_compute_index_ranges_int16_weights` in PyTorch's aten/src/ATen/native/cpu.
    """
    if pixels.shape[1] != width:
        pixels = _resized(pixels.swapaxes(0, 1), width, interpolation).swapaxes(0, 1)
    if pixels.shape[0] != height:
        pixels = _resized(pixels, height, interpolation)
    return pixels


def _resized(pixels: np.ndarray, new: int, interpolation: str) -> np.ndarray:
    """Resize along the first axis: [old, n, 3] → [new, n, 3]."""
    windows = _windows(pixels.shape[0], new, interpolation)
    largest = max(float(weights.max()) for _, weights in windows)
    bits = _bits(largest)
    half = 1 << (bits - 1)
    lines = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    made = np.empty((new, lines.shape[1]), np.uint8)
    sums = np.empty(lines.shape[1])
    for number, (first, weights) in enumerate(windows):
        # Rounded as C does: halves away from zero.
        whole = np.trunc(weights * (1 << bits) + np.copysign(0.5, weights))
        # Whole numbers of less than 2**53: a float64 holds their sums exactly.
        covered = lines[first : first + len(weights)].astype(np.float64)
        np.einsum("i,ij->j", whole, covered, out=sums)
        np.floor((sums + half) / (1 << bits), out=sums)
        made[number] = sums.clip(0, 255)
    return made.reshape(new, *pixels.shape[1:])


def _bits(largest: float) -> int:
    """How many bits stand behind the point, that the largest weight has 16 with its sign."""
    for bits in range(22):
        if int(0.5 + largest * (1 << (bits + 1))) >= _MOST:
            return bits
    return 22


def _windows(old: int, new: int, interpolation: str) -> list[tuple[int, np.ndarray]]:
    """Give each of `new` pixels the first of the `old` ones under it, and their weights."""
    scale = old / new
    stretched = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretched
    windows = []
    for number in range(new):
        centre = scale * (number + 0.5)
        first = max(int(centre - support + 0.5), 0)
        end = min(int(centre + support + 0.5), old)
        places = (np.arange(first, end) - centre + 0.5) / stretched
        weights = _FILTERS[interpolation](places)
        windows.append((first, weights / weights.sum()))
    return windows


def _triangle(places: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.maximum(0, 1 - np.abs(places))
    return weights


def _cubic(places: np.ndarray) -> np.ndarray:
    x = np.abs(places)
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _CUBIC
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(places: np.ndarray) -> np.ndarray:
    return np.where(np.abs(places) < 3, np.sinc(places) * np.sinc(places / 3), 0)


_FILTERS = {"torch_bilinear": _triangle, "torch_bicubic": _cubic, "torch_lanczos": _lanczos}
