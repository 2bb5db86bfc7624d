"""Which engine serves a model: its compiled form where one is proven and wanted, or else torch.

A model that is an ONNX file has no other engine. torch is imported only where it is to serve: that
takes two seconds, and two hundred megabytes.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from swiprd.folder.compiled_record import FAILED, LIBRARIES, is_there, load_record
from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import SpecError
from swiprd.inference.engine import Engine
from swiprd.inference.onnx_model import NoCompiledForm, OnnxModel, load_onnx, load_onnx_file
from swiprd.system.messages import Load

_NVIDIA = Path("/dev/nvidiactl")  # of NVIDIA's driver. To ask torch would be to import it.


def load_engine(spec: ModelSpec, command: Load) -> tuple[Engine, str, str]:
    """Load a model; start no thread and run no forward pass, for processes that fork.

    Returns:
        The engine; the device for its workers, "cpu" or "cuda"; and why it is not the compiled
        form's, where that was wanted.

    Raises:
        SpecError: the folder's files are not fit to be served, or the compiled form is demanded
            and there is none.
        RuntimeError: CUDA is demanded, and there is none.
    """
    wanted = spec.engine if command.engine == "auto" else command.engine
    if spec.is_onnx:
        return _load_onnx_file(spec, wanted, command.device), "cpu", ""
    note = ""
    if wanted == "onnx" and command.device == "cuda":
        raise SpecError(spec.file, "engine", "torch or auto with the device cuda", wanted)
    if wanted == "onnx" or (wanted == "auto" and not _on_gpu(command.device)):
        found = _compiled(spec, command.compiled, at_any_speed=wanted == "onnx")
        if not isinstance(found, str):
            return found, "cpu", ""
        note = found
        if wanted == "onnx":
            raise SpecError(spec.file, "engine", "a compiled form that can serve", note)
    return *_load_torch(spec, command.device), note


def _load_onnx_file(spec: ModelSpec, wanted: str, device: str) -> OnnxModel:
    if wanted == "torch":
        expected = 'weights that torch runs, since the daemon is told engine = "torch"'
        raise SpecError(spec.file, "architecture", expected, f'"{spec.architecture}"')
    if device == "cuda":
        expected = "weights that torch takes: an ONNX file is served on the CPU"
        raise SpecError(spec.file, "architecture", expected, f'"{spec.architecture}", and cuda')
    return load_onnx_file(spec)


def _compiled(spec: ModelSpec, cached: str, *, at_any_speed: bool) -> OnnxModel | str:
    """Load the compiled form from the model's folder or the cache; or say why there is none."""
    why = []
    directories = (spec.folder, *([Path(cached)] if cached else []))
    for directory in filter(is_there, directories):
        record = load_record(directory)
        if record is not None and not at_any_speed and (slower := record.outpaced()):
            why.append(slower)  # onnxruntime is not even imported: not everywhere beside torch
            continue
        try:
            return load_onnx(spec, directory)
        except NoCompiledForm as error:
            why.append(str(error))
    return "; ".join(why) or _none_yet(spec, cached, at_any_speed)


def _none_yet(spec: ModelSpec, cached: str, demanded: bool) -> str:
    """Say that there is no compiled form, and what the daemon does about it (pool/compiler.py)."""
    if spec.carries_code:
        return "a program has no compiled form: it is served as it is"
    if demanded:  # nothing serves until there is one
        return "none: 'swiprd pack' makes one, and so does a daemon with engine = \"auto\""
    if missing := [one for one in LIBRARIES if find_spec(one) is None]:
        return f"there is no compiled form, and without {missing[0]} none can be made"
    if not cached:
        return "there is no compiled form; 'swiprd pack' makes one"
    if (Path(cached) / FAILED).exists():
        return f"there is no compiled form: it could not be made; {cached}/{FAILED} says why"
    return "there is no compiled form yet: one is made in quiet time"


def _load_torch(spec: ModelSpec, device: str) -> tuple[Engine, str]:
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    from swiprd.inference.model import load_model, pick_device

    return load_model(spec), pick_device(device)


def _on_gpu(device: str) -> bool:
    return device == "cuda" or (device == "auto" and _NVIDIA.exists())
