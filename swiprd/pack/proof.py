"""Does a folder work? Loads it as the daemon does and asks about one picture."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from swiprd import images
from swiprd.bundle import load_bundle
from swiprd.model import load_model, probabilities
from swiprd.pack.errors import NotProven
from swiprd.tables import BundleError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said, and in how many seconds from the picture's bytes."""

    labels: tuple[str, ...]
    row: tuple[float, ...]
    seconds: float
    model_id: str


def prove(folder: Path) -> Answer:
    """Load a folder and answer a picture.

    Raises:
        NotProven: it does not load, or its answers are no numbers.
    """
    try:
        loaded = load_model(load_bundle(folder))
        begin = time.perf_counter()
        crops = images.decode(_picture(), loaded.bundle.preprocess)
        row = probabilities(loaded, crops.unsqueeze(0))[0]
        seconds = time.perf_counter() - begin
    except BundleError as error:
        raise NotProven(str(error)) from None
    except RuntimeError as error:
        # The module itself gives up, such as a pooling that finds nothing left of small crops.
        raise NotProven(f"the model fails on a picture: {str(error).splitlines()[0]}") from error
    if row.shape != (len(loaded.labels),):
        found = f"{list(row.shape)} outputs, where there are {len(loaded.labels)} labels"
        raise NotProven(found)
    if not torch.isfinite(row).all():
        raise NotProven("the answer to a picture is not a number: are there NaNs in the weights?")
    return Answer(
        labels=loaded.labels,
        row=tuple(row.tolist()),
        seconds=seconds,
        model_id=loaded.model_id,
    )


def _picture() -> bytes:
    """Make a JPEG of coloured waves, the same every time."""
    y, x = np.mgrid[0:240, 0:320]
    waves = [np.sin(x / 9 + shift) * np.cos(y / 13 - shift) for shift in (0.0, 1.0, 2.0)]
    pixels = np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()
