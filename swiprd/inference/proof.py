"""How a compiled form is proven: pictures, in batches, that torch and it both answer.

The pictures are the model's own canary, and `OTHERS` of smooth random colours, files of all shapes,
the same wherever they are made. compile.py writes down what torch answers, reference.json; prove.py
compares. Imports neither torch nor onnxruntime.
"""

from __future__ import annotations

import io
import json
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
    """

    digest: str
    versions: dict[str, str]
    labels: tuple[str, ...]
    rows: dict[int, np.ndarray]


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


def pictures(spec: ModelSpec) -> Iterator[bytes]:
    """Yield image files: the canary first.

    Raises:
        SpecError: the canary cannot be read.
    """
    yield canary_of(spec).image
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
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(file, "", "torch's answers", f"{type(error).__name__}: {error}") from None


def _decode(image: bytes, spec: ModelSpec) -> np.ndarray:
    # Here and not above: decode.py imports torch as yet, which gives no arrays either.
    from swiprd.inference.decode import decode

    return np.asarray(decode(image, spec.preprocess))
