"""Resizing by torch, in less than half of Pillow's time: for recipes that ask for speed.

Apart from preprocess.py, which imports no torch: who has torch hands it in.
"""

from __future__ import annotations

import numpy as np
import torch


def shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a picture bilinearly: uint8 of shape [h, w, 3] → uint8 of shape [height, width, 3].

    One value in some hundred is a level off Pillow's.
    """
    planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    small = torch.nn.functional.interpolate(
        planes, (height, width), mode="bilinear", antialias=True
    )
    return small[0].permute(1, 2, 0).numpy()
