"""What packing asks of a model to see that it works: a picture, and what it answers. No torch."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said, and in how many seconds from the picture's bytes."""

    labels: tuple[str, ...]
    row: tuple[float, ...]
    seconds: float
    model_id: str


def picture(seed: int = 0) -> bytes:
    """Make a JPEG of coloured waves, the same every time."""
    y, x = np.mgrid[0:240, 0:320]
    waves = [np.sin(x / 9 + seed + i) * np.cos(y / 13 - 3 * seed - i) for i in range(3)]
    pixels = np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()
