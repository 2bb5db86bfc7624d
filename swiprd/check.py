"""`swiprd check`: what a model's folder is and whether it answers, without a daemon.

Runs in a process of its own, which loads the model with torch, and nothing here is imported by a
daemon. A compiled form in the folder answers beside torch, in another process. What is printed
reads like `swiprctl model` and `swiprctl predict`; the rows are those of the engine that serves.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from swiprctl.errors import CannotOpen, SwiprError
from swiprctl.report import lines
from swiprctl.rows import row
from swiprd.folder.canary import CANARY_LIMITS, WrongAnswer
from swiprd.folder.canary_image import canary_of
from swiprd.folder.compiled_record import COMPILED, MOST_DIFFERENCE, RECORD
from swiprd.folder.model_id import digest_weights
from swiprd.folder.spec import ModelSpec, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference import decode, model
from swiprd.inference.model import LoadedModel
from swiprd.inference.onnx_model import NoCompiledForm
from swiprd.inference.proof import largest_difference
from swiprd.inference.separate import Separate, SeparateFailed
from swiprd.system import console
from swiprd.system.imagefile import read_image_bytes
from swiprd.system.reason import first_line

EX_SOFTWARE = 70
EX_CONFIG = 78

_SHOWN = 5
_RUNS = 5
_ENOUGH = 3.0
"""Seconds after which a slow model has been timed often enough."""


_MEND = (
    "torch serves. 'swiprd pack' makes the form again, and so does a daemon once"
    f" {COMPILED} and {RECORD} are deleted"
)


class CheckFailed(Exception):
    """The model is not fit to serve; `status` is what to exit with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """What would serve, as it is told.

    Attributes:
        compiled: the compiled form, to be compared with torch; None where there is none to compare.
        serves: whether it is what serves.
        fault: what is wrong with one that is there and cannot serve.
    """

    told: str
    compiled: Separate | None = None
    serves: bool = False
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A picture's row, and the seconds that it took."""

    row: tuple[float, ...]
    decode: float
    infer: float


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
    try:
        spec = load_spec(folder)
        digest = _digest(spec)
        begun = time.monotonic()
        loaded = model.load_model(spec)
        seconds = {"load": time.monotonic() - begun}
        loaded = loaded.to_device(model.pick_device(device))
        engine = _choose(loaded, device, ends)
        if engine.serves and engine.compiled is not None:
            seconds = {"load": engine.compiled.load_seconds}
        seconds |= _prove(loaded, engine)
    except SpecError as error:
        return _complain(str(error), EX_CONFIG)
    except RuntimeError as error:  # no CUDA
        return _complain(str(error), EX_SOFTWARE)
    except CheckFailed as error:
        return _complain(f"{folder}: {error}", error.status)
    for line in lines(_describe(loaded, engine, digest, seconds)):
        console.put(line)
    if engine.fault:
        _complain(engine.fault, 0)
    if paths:
        console.put("")
    status = 0
    for path in paths:
        try:
            answer = _answer(loaded, engine, _read(path))
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


def _choose(loaded: LoadedModel, device: str, ends: ExitStack) -> _Engine:
    """Find out what a daemon would serve with, as inference/engines.py chooses.

    Args:
        device: as asked for.
        ends: takes what is to be ended.

    Raises:
        SpecError: model.toml demands a compiled form, and there is none that can serve.
    """
    spec = loaded.spec
    if spec.carries_code:
        return _Engine(told="torch (a program is served as it is)")
    if spec.engine == "torch":
        return _Engine(told="torch (as model.toml says)")
    if spec.engine == "onnx" and device == "cuda":
        raise SpecError(spec.file, "engine", "torch or auto with the device cuda", '"onnx"')
    if spec.engine == "auto" and loaded.device == "cuda":
        return _Engine(told="torch (on a GPU)")
    there = any(os.path.lexists(spec.folder / name) for name in (COMPILED, RECORD))
    missing = [one for one in ("onnxruntime", "onnx") if find_spec(one) is None]
    if spec.engine == "auto" and "onnxruntime" in missing:
        return _Engine(told="torch (onnxruntime is not installed)")
    if spec.engine == "auto" and not there:
        why = "onnx is not installed" if missing else "until a daemon has compiled it"
        return _Engine(told=f"torch ({why})")
    try:
        form = Separate(spec, spec.folder, len(loaded.labels), torch.get_num_threads())
    except NoCompiledForm as error:
        if spec.engine == "auto":
            return _Engine(told=f"torch ({error})", fault=f"{error}; {_MEND}")
        expected = "a compiled form that can serve"
        raise SpecError(spec.file, "engine", expected, f"none: {error}") from None
    ends.enter_context(form)
    if spec.engine == "auto" and form.outpaced:
        return _Engine(told=f"torch ({form.outpaced})", compiled=form)
    told = f"onnx {form.version}, within {form.difference:.2g} of torch"
    return _Engine(told=told, compiled=form, serves=True)


def _prove(loaded: LoadedModel, engine: _Engine) -> dict[str, float]:
    """Have the canary answered rightly, a few times; return the median seconds of each part.

    Raises:
        CheckFailed: the model does not answer, or wrongly.
    """
    canary = canary_of(loaded.spec, len(loaded.labels))
    answers: list[_Answer] = []
    begun = time.monotonic()
    while len(answers) < _RUNS and (not answers or time.monotonic() - begun < _ENOUGH):
        try:
            answers.append(_answer(loaded, engine, canary.image))
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


def _answer(loaded: LoadedModel, engine: _Engine, data: bytes) -> _Answer:
    """Answer one picture, with torch and with the compiled form where there is one.

    Raises:
        BadImage, TooLarge: it is no picture, or too large a one.
        CheckFailed: the forward pass raised an error, or the compiled form answers otherwise.
    """
    begun = time.monotonic()
    crops = decode.decode(data, loaded.spec.preprocess, CANARY_LIMITS.max_pixels)
    decoded = time.monotonic()
    try:
        answers = loaded.probabilities(crops[None])
    except Exception as error:  # whatever a module or a program raises is news for its owner
        reason = first_line(error, 300)
        raise CheckFailed(f"the forward pass fails: {reason}", EX_SOFTWARE) from error
    row, seconds = answers[0], time.monotonic() - decoded
    if engine.compiled is not None:
        try:
            found, taken = engine.compiled.answer(crops)
        except SeparateFailed as error:
            raise CheckFailed(f"the compiled form fails: {error}", EX_SOFTWARE) from None
        difference = largest_difference(loaded.spec, row, found)
        if not difference <= MOST_DIFFERENCE:
            raise CheckFailed(
                f"the compiled form differs from torch by {difference:.1e}, where"
                f" {MOST_DIFFERENCE:.0e} is the most: pack the model again, or delete {COMPILED}"
                f" and {RECORD}",
                EX_CONFIG,
            )
        if engine.serves:
            row, seconds = found, taken
    return _Answer(row=tuple(row.tolist()), decode=decoded - begun, infer=seconds)


def _describe(
    loaded: LoadedModel, engine: _Engine, digest: str, seconds: dict[str, float]
) -> dict[str, object]:
    spec, recipe = loaded.spec, loaded.spec.preprocess
    edge = {"both": "both edges", "square": "a square of the short edge"}.get(
        recipe.edge, f"{recipe.edge} edge"
    )
    resize = f"{edge} {recipe.resize}" if recipe.resize else "as it comes"
    more = ", …" if len(loaded.labels) > _SHOWN else ""
    parameters = sum(one.numel() for one in loaded.module.parameters())
    return {
        "name": spec.name,
        "model": loaded.model_id,
        "architecture": spec.architecture,
        "head": "" if spec.head == "default" else spec.head,
        "parameters": parameters,
        "carries_code": spec.carries_code,
        "labels": f"{len(loaded.labels)}: {', '.join(loaded.labels[:_SHOWN])}{more}",
        "activation": spec.activation,
        "thresholds": list(spec.thresholds or ()),
        "resize": resize,
        "input": f"{recipe.crop_count} x 3 x {recipe.crop} x {recipe.crop}",
        "weights": digest,
        "engine": engine.told,
        "device": loaded.device,
        "threads": torch.get_num_threads(),
        "forward_pass": "ok",
        **{f"{key}_took": f"{1000 * value:.1f} ms" for key, value in seconds.items()},
    }
