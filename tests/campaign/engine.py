"""Which engine the daemons of a campaign serve with, and the compiled forms that it takes."""

from __future__ import annotations

import atexit
import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from modelfolders import compile_into

from swiprd.folder.compiled_record import COMPILED, RECORD

Engine = Literal["torch", "onnx"]

chosen: Engine = "onnx"
"""Of every daemon that is started from now on. Set once, before the first scenario."""

_made: dict[str, TemporaryDirectory[str]] = {}  # compiled forms, by what they were made from


def argument() -> str:
    """Give the option of `swiprd serve` that demands the engine."""
    return f"--engine={chosen}"


def prepare(model: Path) -> Path:
    """Put the compiled form into a model's folder, if the engine needs it; return the folder.

    Made once a process for each model: scenarios make the same few anew.
    """
    if chosen == "torch":
        return model
    files = (model / "model.toml", model / "weights.pth")
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    if key not in _made:
        compile_into(model)
        _made[key] = TemporaryDirectory(prefix="swipr")
        atexit.register(_made[key].cleanup)
        for name in (COMPILED, RECORD):
            shutil.copy(model / name, _made[key].name)
    for name in (COMPILED, RECORD):
        shutil.copy(Path(_made[key].name) / name, model)
    return model
