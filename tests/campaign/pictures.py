"""Pictures of which each has a row of its own, known beforehand: a swapped answer is seen."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from modelfolders import make_folder
from PIL import Image

from campaign import engine
from swiprd.folder.spec import load_spec
from swiprd.inference import decode, model

NEAR = 1e-4
"""What a right row may differ by in each number, of its largest: what swipr promises."""

_APART = 100 * NEAR  # what the rows of two pictures differ by in some number, at least

_PREPROCESS = """
[preprocess]
resize = {0}
crop = {0}
"""


def quick_model(folder: Path) -> Path:
    """Write a model that answers within a millisecond, with rows that tell pictures apart."""
    # The compiled form of squeezenet with random weights rounds too far apart to be proven.
    return _model(folder, "squeezenet1_1" if engine.chosen == "torch" else "shufflenet_v2_x0_5", 32)


def small_model(folder: Path) -> Path:
    """Write a model that answers within five milliseconds or so."""
    return _model(folder, "shufflenet_v2_x0_5", 64)


def _model(folder: Path, architecture: str, edge: int) -> Path:
    make_folder(folder, architecture, spread=0.3, extra=_PREPROCESS.format(edge))
    file = folder / "model.toml"
    # Pictures so small are all alike to it: a softmax would make one of two rows of them.
    file.write_text(file.read_text().replace('"softmax"', '"none"'))
    return engine.prepare(folder)


class Pictures:
    """Files named by their number, and the row that belongs to each.

    The rows come from the model in this process, by none of the ways that are tried.
    """

    def __init__(self, folder: Path, model_folder: Path, *, count: int, seed: int) -> None:
        folder.mkdir(parents=True)
        torch.set_num_threads(1)
        loaded = model.load_model(load_spec(model_folder))
        rng = np.random.default_rng(seed)
        self.files: list[Path] = []
        self.rows = np.empty((0, len(loaded.labels)))
        while len(self.files) < count:
            data = _picture(rng)
            crops = decode.decode(data, loaded.spec.preprocess)
            row = loaded.probabilities(crops[None])[0].astype(np.float64)
            if any(_difference(row, other) < _APART for other in self.rows):
                continue
            self.rows = np.vstack([self.rows, row])
            file = folder / f"{len(self.files):05}.png"
            file.write_bytes(data)
            self.files.append(file)

    def right(self, number: int, row: object) -> bool:
        """Whether this is the row of the picture of this number."""
        return (
            isinstance(row, list)
            and len(row) == self.rows.shape[1]
            and _difference(self.rows[number], np.array(row)) <= NEAR
        )


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / max(1.0, np.abs(one).max()))


def _picture(rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()
