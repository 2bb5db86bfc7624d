"""Resizing by area averaging, as OpenCV's INTER_AREA does it.

Pillow's BOX is not that: it counts a pixel wholly or not at all, where a window's edge cuts it in
parts. On a small photo the two differ by 1.6 of 255 on average, and by 44 at most.
"""

from __future__ import annotations

import numpy as np


def resize_area(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a picture: uint8 of shape [h, w, 3] → float32 of shape [height, width, 3], 0 to 255.

    What shrinks is averaged over the part of the picture that a new pixel covers, with nothing
    rounded. What grows, in either direction, is interpolated linearly along both, with weights of
    INTER_AREA's own. Source: `cv::resize` in OpenCV's modules/imgproc/src/resize.cpp.
    """
    rows, columns = pixels.shape[:2]
    if (height, width) == (rows, columns):
        return pixels.astype(np.float32)
    windows = _covered if height <= rows and width <= columns else _between
    halfway = weighted(pixels, windows(rows, height))
    return weighted(halfway.swapaxes(0, 1), windows(columns, width)).swapaxes(0, 1)


def weighted(pixels: np.ndarray, windows: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Sum windows along the first axis: each a first index and the weights from there on.

    Never makes floats of all pixels at once, which would be four times what was decoded.
    """
    lines = np.empty((len(windows), *pixels.shape[1:]), np.float32)
    for line, (first, weights) in zip(lines, windows, strict=True):
        covered = pixels[first : first + len(weights)].astype(np.float32, copy=False)
        np.einsum("i,ijk->jk", weights, covered, out=line)
    return lines


def _covered(old: int, new: int) -> list[tuple[int, np.ndarray]]:
    """Give each of `new` pixels the `old` ones that it covers, and how much of each."""
    scale = old / new
    windows = []
    for number in range(new):
        begin, end = number * scale, min((number + 1) * scale, old)
        first, last = int(begin), min(int(np.ceil(end)), old)
        edges = np.arange(first, last + 1, dtype=np.float64).clip(begin, end)
        windows.append((first, (np.diff(edges) / (end - begin)).astype(np.float32)))
    return windows


def _between(old: int, new: int) -> list[tuple[int, np.ndarray]]:
    """Give each of `new` pixels the two `old` ones between which it lies."""
    # Rounded as OpenCV rounds it: where a boundary is met exactly, the last bit decides which.
    growth = new / old
    scale = 1 / growth
    windows = []
    for number in range(new):
        first = int(number * scale)
        part = np.float32((number + 1) - (first + 1) * growth)
        part = part - np.floor(part) if part > 0 else np.float32(0)
        weights = [1 - part, part] if first + 1 < old else [1.0]
        windows.append((min(first, old - 1), np.asarray(weights, np.float32)))
    return windows
