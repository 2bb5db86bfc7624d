"""A model's folder → its compiled form, unproven, and torch's answers to prove it by.

    python -P -m swiprd.inference.compile FOLDER OUT [PARENT]

A process of its own: it runs the model, which a forkserver must not, and it imports torch, beside
which onnxruntime does not get along everywhere: onnxruntime is prove.py's, which comes next. Writes
compiled.onnx.new and reference.json into OUT, a directory that is there and its caller's alone.
Uses one thread of the CPU. With the pid of a parent it dies with that, and works only where no
other process wants the processor. Exits with 0, or with 1 and a line on standard error that says
why.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import torch

from swiprctl.errors import SwiprError
from swiprctl.version import __version__
from swiprd.folder.model_id import digest_answers, digest_weights
from swiprd.folder.spec import load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference.background import stay_behind
from swiprd.inference.model import LoadedModel, load_model
from swiprd.inference.onnx_model import INPUT, OUTPUT
from swiprd.inference.proof import (
    BATCHES,
    FRESH,
    Reference,
    answers,
    processor_seconds,
    write_reference,
)
from swiprd.system.reason import first_line

_OPSET = 17
"""Of the operators that are used: the newest that torch's tracing exporter writes throughout."""


class CannotCompile(Exception):
    """The model stays with torch; the text says why."""


def compile_model(folder: Path, out: Path) -> None:
    """Write `out`/compiled.onnx.new and reference.json.

    Raises:
        CannotCompile: the model is a program, or has what cannot be exported.
        SpecError: the folder is not what it should be.
        OSError: a file cannot be written.
    """
    spec = load_spec(folder)
    if spec.carries_code:
        raise CannotCompile(f"a program ({spec.architecture}) is served as it is, by torch")
    # First: what the weights are while they are read, or else were.
    digest = digest_answers(spec, digest_weights(spec))
    loaded = load_model(spec)
    _export(loaded, out / FRESH)
    rows = {}
    for size in BATCHES:
        answered = answers(spec, size, loaded.probabilities)
        if answered is not None:
            rows[size] = answered
    write_reference(
        out,
        Reference(
            digest=digest,
            versions=_versions(loaded),
            labels=loaded.labels if spec.labels == "imagenet" else (),
            rows=rows,
            seconds=processor_seconds(spec, loaded.probabilities),
        ),
    )


def _export(loaded: LoadedModel, file: Path) -> None:
    crop = loaded.spec.preprocess.crop
    # Two, since one is a size that a trace may take for granted.
    example = torch.zeros(2, 3, crop, crop)
    try:
        torch.onnx.export(
            loaded.module,
            (example,),
            str(file),
            # The tracing exporter: the other one fails on a batch of any size in transformers.
            dynamo=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
        )
    except ModuleNotFoundError as error:
        raise CannotCompile(f"torch's exporter needs {error.name}, which is not there") from None
    except Exception as error:
        # An operator that it does not know, a file beyond the 2 GB of its format, a module that
        # gives up: each has a class of its own, and torch serves in all these cases.
        reason = first_line(error).partition(". Please ")[0]  # tell the makers of torch
        raise CannotCompile(f"torch does not export it: {reason}") from None


def _versions(loaded: LoadedModel) -> dict[str, str]:
    import onnx  # present, or the export would have failed

    kept = {k: v for k, v in loaded.versions.items() if k in ("torch", "torchvision", "timm")}
    return kept | {"onnx": str(onnx.__version__), "swipr": __version__}


def main(arguments: list[str]) -> int:
    """Run for the command line; return the exit status."""
    folder, out = map(Path, arguments[:2])
    stay_behind(arguments[2:])
    warnings.simplefilter("ignore")  # of tracing, and of the exporter's age: they fill a page
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    try:
        compile_model(folder, out)
    except (CannotCompile, SpecError, SwiprError, OSError) as error:
        print(first_line(error, 1000), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
