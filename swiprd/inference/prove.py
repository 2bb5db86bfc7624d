"""A compiled form, unproven → one that may serve, if it answers as torch does.

    python -P -m swiprd.inference.prove FOLDER OUT [PARENT]

Comes after compile.py, in a process of its own without torch: what is proven is what will serve.
Renames compiled.onnx.new to compiled.onnx in OUT and writes compiled.toml beside it. Exits with 0,
or with 1 and a line on standard error that says why, with the figure; then compiled.onnx and
compiled.toml are as they were.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from swiprctl.errors import SwiprError
from swiprd.folder.compiled_record import (
    COMPILED,
    MOST_DIFFERENCE,
    CompiledRecord,
    write_record,
)
from swiprd.folder.model_id import digest_answers, digest_weights, identify
from swiprd.folder.spec import ModelSpec, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference.background import stay_behind
from swiprd.inference.onnx_model import NoCompiledForm, OnnxModel
from swiprd.inference.onnx_network import UnfitNetwork
from swiprd.inference.proof import (
    FRESH,
    MORE_BATCHES,
    OTHERS,
    REFERENCE,
    Reference,
    answers,
    largest_difference,
    processor_seconds,
    read_reference,
)
from swiprd.system.reason import first_line


class NotProven(Exception):
    """The compiled form does not answer as torch does; the text says by how much."""


def prove(folder: Path, out: Path) -> CompiledRecord:
    """Compare `out`/compiled.onnx.new with reference.json; if they agree, put it in its place.

    Raises:
        NotProven: they do not agree, or the model has changed since.
        NoCompiledForm: onnxruntime is not installed, or does not load it.
        UnfitNetwork: it takes or gives something else than torch's.
        SpecError: the folder is not what it should be, or there is no reference.
        OSError: a file cannot be written.
    """
    spec = load_spec(folder)
    reference = read_reference(out)
    if digest_answers(spec, digest_weights(spec)) != reference.digest:
        raise NotProven(f"{folder} has changed since it was compiled")
    labels = reference.labels if spec.labels == "imagenet" else spec.labels
    model = OnnxModel(spec, out / FRESH, labels, identify(spec))
    found = {}
    for size in MORE_BATCHES:
        rows = _answers(model, size)
        if rows is not None:
            found[size] = rows
    difference = _difference(spec, reference, found)
    record = CompiledRecord(
        directory=out,
        digest=reference.digest,
        sha256=model.sha256,
        versions=reference.versions | {"onnxruntime": model.versions["onnxruntime"]},
        difference=difference,
        pictures=1 + OTHERS,
        batches=tuple(found),
        seconds=processor_seconds(spec, model.probabilities),
        torch_seconds=reference.seconds,
        labels=reference.labels,
    )
    model.close()
    with (out / FRESH).open("rb") as file:
        os.fsync(file.fileno())
    # In this order: with a record of before, the new file is not current, and made again.
    (out / FRESH).replace(out / COMPILED)
    write_record(record)
    (out / REFERENCE).unlink()
    return record


def _answers(model: OnnxModel, size: int) -> np.ndarray | None:
    try:
        return answers(model.spec, size, model.probabilities)
    except (SwiprError, SpecError, MemoryError):
        raise
    except Exception as error:
        # Each of onnxruntime's errors is a class of its own, without one above them but this.
        raise NotProven(f"it fails on a batch of {size}: {first_line(error)}") from None


def _difference(spec: ModelSpec, reference: Reference, found: dict[int, np.ndarray]) -> float:
    """Return the largest difference between any answer of torch's and any of ours to a picture.

    Raises:
        NotProven: it is too large, or there is something that is not a number.
    """
    largest = 0.0
    for torchs in reference.rows.values():
        for size, rows in found.items():
            if rows.shape != torchs.shape:
                raise NotProven(f"it gives {rows.shape} answers, torch {torchs.shape}")
            if not (np.isfinite(rows).all() and np.isfinite(torchs).all()):
                raise NotProven("there are answers that are not numbers")
            difference = largest_difference(spec, torchs, rows)
            if difference > MOST_DIFFERENCE:
                raise NotProven(
                    f"it differs from torch by {difference:.1e} in batches of {size},"
                    f" where {MOST_DIFFERENCE:.0e} is the most"
                )
            largest = max(largest, difference)
    if not reference.rows or not found:
        raise NotProven("there is nothing to compare")
    return largest


def main(arguments: list[str]) -> int:
    """Run for the command line; return the exit status."""
    folder, out = map(Path, arguments[:2])
    stay_behind(arguments[2:])
    try:
        prove(folder, out)
    except (NotProven, NoCompiledForm, UnfitNetwork, SpecError, SwiprError, OSError) as error:
        print(first_line(error, 1000), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
