"""`swiprd check`: what a model's folder is and whether it answers, without a daemon.

Runs in a process of its own, which loads the model, and nothing here is imported by a daemon. What
is printed reads like `swiprctl model` and `swiprctl predict`; the rows are those of the engine that
serves. torch is imported only for a model that it runs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from swiprctl.errors import CannotOpen, SwiprError
from swiprctl.report import lines
from swiprctl.rows import row
from swiprd.folder.canary import CANARY_LIMITS, WrongAnswer
from swiprd.folder.canary_image import canary_of
from swiprd.folder.model_id import digest_weights
from swiprd.folder.spec import ModelSpec, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference.decoders import readable
from swiprd.inference.examined import EX_CONFIG, EX_SOFTWARE, Answer, CheckFailed, Examined
from swiprd.system import console
from swiprd.system.imagefile import read_image_bytes

_SHOWN = 5
_RUNS = 5
_ENOUGH = 3.0
"""Seconds after which a slow model has been timed often enough."""


def check(folder: Path, paths: Sequence[Path], device: str) -> int:
    """Print what the model is, then a row for each picture; return the exit status.

    0 if all went well; 78 if something in the folder is wrong, 70 if the model cannot answer;
    65 or 66 for the first picture that is none or cannot be opened, whose row is missing; 74 if
    standard output takes nothing, and 141 if nobody reads it.

    Args:
        device: "auto", "cpu" or "cuda".
    """
    try:
        with ExitStack() as ends:
            return _check(folder, paths, device, ends)
    except console.OutputFailed as error:
        return error.status if error.unread else _complain(str(error), error.status)


def _check(folder: Path, paths: Sequence[Path], device: str, ends: ExitStack) -> int:
    if reason := _lacks(folder / "model.toml"):
        return _complain(f"{reason}; 'swiprd pack' makes a model's folder", EX_CONFIG)
    try:
        spec = load_spec(folder)
        digest = _digest(spec)
        model = _open(spec, device, ends)
        seconds = {"load": model.load_seconds} | _prove(model)
    except SpecError as error:
        return _complain(str(error), EX_CONFIG)
    except RuntimeError as error:  # no CUDA
        return _complain(str(error), EX_SOFTWARE)
    except CheckFailed as error:
        return _complain(f"{folder}: {error}", error.status)
    for line in lines(_describe(model, digest, seconds)):
        console.put(line)
    if model.fault:
        _complain(model.fault, 0)
    if paths:
        console.put("")
    status = 0
    for path in paths:
        try:
            answer = model.answer(_read(path))
        except SwiprError as error:
            failed = _complain(f"{path}: {error}", error.exit_status)
            status = status or failed
        except CheckFailed as error:
            return _complain(f"{path}: {error}", error.status)
        else:
            console.put(row(answer.row, str(path) if len(paths) > 1 else None))
    return status


def _complain(message: str, status: int) -> int:
    console.complain("swiprd", message)
    return status


def _lacks(file: Path) -> str:
    """Say that a file is not there; nothing where it is, or may be."""
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{file}: {error.strerror}"
    except OSError:
        pass
    return ""


def _digest(spec: ModelSpec) -> str:
    """Digest the weights, and compare with what is recorded.

    Raises:
        SpecError: they are not those that model.toml was written for.
    """
    found = digest_weights(spec)
    if spec.sha256 is None:
        return f"sha256 {found}, not recorded in model.toml"
    if found != spec.sha256:
        raise SpecError(spec.weights, "", f"the recorded sha256 {spec.sha256}", found)
    return f"sha256 {found}, as recorded"


def _open(spec: ModelSpec, device: str, ends: ExitStack) -> Examined:
    """Load the model by what runs it.

    Raises:
        SpecError, CheckFailed: it cannot be served.
        RuntimeError: CUDA is demanded, and there is none.
    """
    if spec.is_onnx:
        from swiprd.inference.examined_onnx import ExaminedOnnx

        return ExaminedOnnx(spec, device, ends)
    from swiprd.inference.examined_torch import ExaminedTorch

    return ExaminedTorch(spec, device, ends)


def _prove(model: Examined) -> dict[str, float]:
    """Have the canary answered rightly, a few times; return the median seconds of each part.

    Raises:
        CheckFailed: the model does not answer, or wrongly.
    """
    canary = canary_of(model.spec, len(model.labels))
    answers: list[Answer] = []
    begun = time.monotonic()
    while len(answers) < _RUNS and (not answers or time.monotonic() - begun < _ENOUGH):
        try:
            answers.append(model.answer(canary.image))
            canary.check(answers[-1].row)
        except SwiprError as error:
            raise CheckFailed(f"the canary's picture: {error}", EX_CONFIG) from None
        except WrongAnswer as error:
            raise CheckFailed(f"the canary is answered wrongly: {error}", EX_CONFIG) from None
    return {
        "decode": statistics.median(one.decode for one in answers),
        "infer": statistics.median(one.infer for one in answers),
    }


def _read(path: Path) -> bytes:
    """Read a picture.

    Raises:
        CannotOpen, BadImage, TooLarge: it cannot be opened or read, or is too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CannotOpen(error.strerror or str(error)) from error
    try:
        return read_image_bytes(descriptor, CANARY_LIMITS.max_bytes)
    finally:
        os.close(descriptor)


def _describe(model: Examined, digest: str, seconds: dict[str, float]) -> dict[str, object]:
    spec, recipe = model.spec, model.spec.preprocess
    edge = {"both": "both edges", "square": "a square of the short edge"}.get(
        recipe.edge, f"{recipe.edge} edge"
    )
    resize = f"{edge} {recipe.resize}" if recipe.resize else "as it comes"
    more = ", …" if len(model.labels) > _SHOWN else ""
    return {
        "name": spec.name,
        "model": model.model_id,
        "architecture": spec.architecture,
        "head": "" if spec.head == "default" else spec.head,
        "parameters": model.parameters,
        "carries_code": spec.carries_code,
        "labels": f"{len(model.labels)}: {', '.join(model.labels[:_SHOWN])}{more}",
        "activation": spec.activation,
        "thresholds": list(spec.thresholds or ()),
        "resize": resize,
        "input": f"{recipe.crop_count} x 3 x {recipe.crop} x {recipe.crop}",
        "formats": ", ".join(readable()),
        "weights": digest,
        "engine": model.engine,
        "device": model.device,
        "threads": model.threads,
        "forward_pass": "ok",
        **{f"{key}_took": f"{1000 * value:.1f} ms" for key, value in seconds.items()},
    }
