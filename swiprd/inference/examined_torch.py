"""A model of torch's, examined; with the compiled form beside it, in another process."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from swiprd.folder.canary import CANARY_LIMITS
from swiprd.folder.compiled_record import COMPILED, MOST_DIFFERENCE, RECORD, is_there
from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import SpecError
from swiprd.inference import decode, model
from swiprd.inference.examined import EX_CONFIG, EX_SOFTWARE, Answer, CheckFailed
from swiprd.inference.model import LoadedModel
from swiprd.inference.onnx_model import NoCompiledForm
from swiprd.inference.proof import largest_difference
from swiprd.inference.separate import Separate, SeparateFailed
from swiprd.system.reason import first_line

_MEND = (
    "torch serves. 'swiprd pack' makes the form again, and a daemon makes one of its own in quiet"
    " time"
)


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


class ExaminedTorch:
    """Of a folder with weights or a program; see `Examined`."""

    def __init__(self, spec: ModelSpec, device: str, ends: ExitStack) -> None:
        """Load the model, and its compiled form where there is one.

        Args:
            device: "auto", "cpu" or "cuda".
            ends: takes what is to be ended.

        Raises:
            SpecError: the folder is not fit to be served, or model.toml demands a compiled form and
                there is none.
            RuntimeError: CUDA is demanded, and there is none.
        """
        begun = time.monotonic()
        loaded = model.load_model(spec)
        self.load_seconds = time.monotonic() - begun
        self._loaded = loaded = loaded.to_device(model.pick_device(device))
        self._engine = engine = _choose(loaded, device, ends)
        if engine.serves and engine.compiled is not None:
            self.load_seconds = engine.compiled.load_seconds
        self.spec = spec
        self.labels = loaded.labels
        self.model_id = loaded.model_id
        self.device = loaded.device
        self.threads = torch.get_num_threads()
        self.engine = engine.told
        self.fault = engine.fault
        self.parameters = sum(one.numel() for one in loaded.module.parameters())

    def answer(self, data: bytes) -> Answer:
        """Answer one picture, with torch and with the compiled form where there is one.

        Raises:
            BadImage, TooLarge: it is no picture, or too large a one.
            CheckFailed: the forward pass raised an error, or the compiled form answers otherwise.
        """
        loaded, engine = self._loaded, self._engine
        begun = time.monotonic()
        crops = decode.decode(data, self.spec.preprocess, CANARY_LIMITS.max_pixels)
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
            difference = largest_difference(self.spec, row, found)
            if not difference <= MOST_DIFFERENCE:
                raise CheckFailed(
                    f"the compiled form differs from torch by {difference:.1e}, where"
                    f" {MOST_DIFFERENCE:.0e} is the most: pack the model again, or delete"
                    f" {COMPILED} and {RECORD}",
                    EX_CONFIG,
                )
            if engine.serves:
                row, seconds = found, taken
        return Answer(row=tuple(row.tolist()), decode=decoded - begun, infer=seconds)


def _choose(loaded: LoadedModel, device: str, ends: ExitStack) -> _Engine:
    """Find out what a daemon would serve with, as inference/engines.py chooses.

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
    missing = [one for one in ("onnxruntime", "onnx") if find_spec(one) is None]
    if spec.engine == "auto" and "onnxruntime" in missing:
        return _Engine(told="torch (onnxruntime is not installed)")
    if spec.engine == "auto" and not is_there(spec.folder):
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
