"""How a compiled form is proven: pictures, in batches, that torch and it both answer.

The pictures are the model's own canary, and `OTHERS` of smooth random colours, files of all shapes,
the same wherever they are made. compile.py writes down what torch answers, reference.json; prove.py
compares. Imports neither torch nor onnxruntime.
"""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swiprd.folder.canary_image import canary_of
from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import SpecError, read
from swiprd.inference.decode import decode

FRESH = "compiled.onnx.new"
"""A compiled form that is not proven yet."""

REFERENCE = "reference.json"

OTHERS = 16
"""Pictures besides the canary."""

BATCHES = (1, 4)
"""How many pictures torch answers at once."""

MORE_BATCHES = (*BATCHES, 1 + OTHERS)
"""How many the compiled form answers at once: one of them is no multiple of those it has seen."""

_SEED = 20
_TIMES, _ENOUGH = 15, 3.0  # answers, or seconds, that a median is taken of
_MOST_PIXELS = 256 * 224 * 224
"""In all crops of a batch: larger ones are left out, which would take gigabytes inside a model."""

_MOST = 256 << 20
"""Bytes that are read of reference.json: 20,000 labels take 16 MB."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What torch answers, and what answered.

    Attributes:
        digest, versions, labels: as in `CompiledRecord`.
        rows: for each size of batches, what they were answered: [pictures, labels].
        seconds: of processor time for a picture's crops by itself; see `processor_seconds`.
    """

    digest: str
    versions: dict[str, str]
    labels: tuple[str, ...]
    rows: dict[int, np.ndarray]
    seconds: float


def answers(
    spec: ModelSpec, size: int, answer: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """Have the pictures answered, `size` at once: [pictures, labels]; None if that is too many.

    Args:
        answer: takes float32 crops, [images, crops, 3, h, w], and gives [images, labels].

    Raises:
        SpecError: the canary cannot be read.
        BadImage, TooLarge: it cannot be decoded.
    """
    recipe = spec.preprocess
    if size > 1 and size * recipe.crop_count * recipe.crop**2 > _MOST_PIXELS:
        return None
    crops = (_decode(one, spec) for one in pictures(spec))
    rows = []
    while batch := list(islice(crops, size)):
        rows.append(answer(np.stack(batch)))
    return np.concatenate(rows)


def largest_difference(spec: ModelSpec, torchs: np.ndarray, rows: np.ndarray) -> float:
    """Return by how much answers differ from torch's at most, as `MOST_DIFFERENCE` counts it.

    Not a number where one of them is none. Both are of one shape: [pictures, labels].
    """
    # Outputs of any size are as exact as their own digits.
    unit = np.maximum(1, np.abs(torchs)) if spec.activation == "none" else 1.0
    return float((np.abs(rows - torchs) / unit).max())


def processor_seconds(spec: ModelSpec, answer: Callable[[np.ndarray], np.ndarray]) -> float:
    """Seconds of processor time that the canary's crops take in a process of one thread: a median.

    Not of the clock: a compiled form is made and proven where no other process wants the processor.
    """
    crops = _decode(next(pictures(spec)), spec)[None]
    answer(crops)  # the first makes what the others use
    times: list[float] = []
    while len(times) < _TIMES and sum(times) < _ENOUGH:
        begun = time.process_time()
        answer(crops)
        times.append(time.process_time() - begun)
    return statistics.median(times)


def pictures(spec: ModelSpec) -> Iterator[bytes]:
    """Yield image files: the canary first.

    Raises:
        SpecError: the canary cannot be read.
    """
    yield canary_of(spec).image
    yield from others()


def others() -> Iterator[bytes]:
    """Yield `OTHERS` image files of smooth random colours, always the same."""
    rng = np.random.default_rng(_SEED)
    for number in range(OTHERS):
        rows, columns = rng.integers(2, 14, 2)
        noise = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
        width, height = (int(edge) for edge in rng.integers(160, 720, 2))
        picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        if number % 2:
            picture.save(file, "PNG", compress_level=1)
        else:
            picture.save(file, "JPEG", quality=92)
        yield file.getvalue()


def write_reference(out: Path, reference: Reference) -> None:
    """Write `out`/reference.json.

    Raises:
        OSError: it cannot be written.
    """
    values = {
        "digest": reference.digest,
        "versions": reference.versions,
        "labels": reference.labels,
        "rows": {str(size): rows.tolist() for size, rows in reference.rows.items()},
        "seconds": reference.seconds,
    }
    (out / REFERENCE).write_text(json.dumps(values), encoding="utf-8")


def read_reference(out: Path) -> Reference:
    """Read `out`/reference.json, which compile.py has written.

    Raises:
        SpecError: it is not there, or not what compile.py writes.
    """
    file = out / REFERENCE
    try:
        values: dict[str, Any] = json.loads(read(file, _MOST))
        return Reference(
            digest=values["digest"],
            versions=values["versions"],
            labels=tuple(values["labels"]),
            rows={int(size): np.array(rows, float) for size, rows in values["rows"].items()},
            seconds=float(values["seconds"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(file, "", "torch's answers", f"{type(error).__name__}: {error}") from None


def _decode(image: bytes, spec: ModelSpec) -> np.ndarray:
    # Without torch's own resizing, on both sides: it is the networks that are compared.
    return decode(image, spec.preprocess)
