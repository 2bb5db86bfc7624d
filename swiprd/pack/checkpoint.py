"""A checkpoint's file → what lies in it, with nothing unpickled but tensors and plain values.

Every read of a pickle is `torch.load(weights_only=True)`. Besides what that takes, a few classes
are let in (`_HARMLESS`) that training scripts leave beside the weights; building one calls no
code that the file brings. Everything else ends in `NotWeights`, with what to do instead.
"""

from __future__ import annotations

import argparse
import importlib
import mmap
import pathlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swiprd.pack.errors import NotWeights
from swiprd.pack.formats import Format

_SAVE = "torch.save(model.state_dict(), 'weights.pth')"


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """List what stands in checkpoints beside tensors and is data: options, paths, scores.

    A Namespace gets attributes and nothing else; a path is parts of a string, and is not opened; a
    numpy scalar is a dtype and its bytes, and of the dtypes none that holds objects.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        (pathlib.PurePosixPath, "pathlib.PosixPath"),
        (pathlib.PurePosixPath, "pathlib._local.PosixPath"),
        (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    ]


def read(file: Path, form: Format) -> Any:
    """Read a checkpoint that `formats.recognise` told to be of `form`; return what it holds.

    Tensors of the zip format stay mapped from the file until they are used.

    Raises:
        NotWeights: it asks for more than tensors and plain values, or it is damaged.
    """
    if form == "safetensors":
        return _read_safetensors(file)
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols; they are read or refused
            return torch.load(file, map_location="cpu", weights_only=True, mmap=form == "zip")
    except pickle.UnpicklingError as error:
        raise NotWeights(f"{file}: {_refusal(error, _globals(file, form))}") from None
    except Exception as error:
        # A damaged file can make torch raise nearly anything.
        reason = _first_line(error)
        raise NotWeights(
            f"{file}: truncated or damaged: fetch it or save it again ({reason})"
        ) from error


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        library = importlib.import_module("safetensors.torch")
    except ModuleNotFoundError:
        raise NotWeights(
            f"{file}: safetensors, and the library that reads it is not installed:"
            " pip install safetensors"
        ) from None
    try:
        state: dict[str, torch.Tensor] = library.load_file(file)
    except Exception as error:
        reason = _first_line(error)
        raise NotWeights(f"{file}: not a whole safetensors file: {reason}") from error
    return state


def _refusal(error: pickle.UnpicklingError, wanted: set[str]) -> str:
    """Say what a pickle asks for that is no tensor, and what its owner can do."""
    if any(name.startswith(("fastai.learner", "fastai.basic_train")) for name in wanted):
        return (
            "a whole learner, as learn.export() writes it, which only runs as code. Where it was"
            " trained: learn.save('weights')"
        )
    if any(name.startswith(("torch.nn.modules.", "torchvision.models.")) for name in wanted):
        return (
            "a whole module, as torch.save(model) writes it, which only runs as code. Where it was"
            f" trained: {_SAVE}"
        )
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked is None:
        return f"a pickle of something else ({_first_line(error)}): {_SAVE} writes what can be read"
    return (
        f"its pickle asks for {asked[1]}, which is neither a tensor nor plain data and is not run."
        f" If you trust where it came from, save the weights alone: {_SAVE}"
    )


def _globals(file: Path, form: Format) -> set[str]:
    """Name all classes and functions that a refused pickle asks for, without loading any."""
    found: set[str] = set()
    strings: list[str] = []
    try:
        if form == "zip":
            with zipfile.ZipFile(file) as archive:
                name = next(one for one in archive.namelist() if one.endswith("data.pkl"))
                data = archive.read(name)
        else:
            with (
                file.open("rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            ):
                # Magic number, version, sizes of types, and then what was saved: megabytes of
                # names at most. The tensors' values follow.
                data = mapped[: 64 << 20]
        rest = data
        while rest:
            for opcode, argument, position in pickletools.genops(rest):
                if opcode.name == "GLOBAL":
                    found.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    found.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
                if opcode.name == "STOP":
                    rest = rest[(position or 0) + 1 :]
                    break
    except (ValueError, zipfile.BadZipFile, OSError, StopIteration, IndexError):
        return found  # the message will be less to the point
    return found


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
