"""Does a folder work? Loads it as the daemon does and asks about a picture. And what does a program
answer, whose outputs no tensor tells?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from swiprd.folder.spec import Activation, Preprocess, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.folder.trusted_programs import Code
from swiprd.inference import decode
from swiprd.inference.model import load_model
from swiprd.inference.programs import load_exported, load_torchscript
from swiprd.pack.errors import NotProven, NotWeights
from swiprd.pack.formats import Format
from swiprd.pack.trial import Answer, picture
from swiprd.system.reason import first_line


def prove(folder: Path, trusted: Code | None = None) -> Answer:
    """Load a folder and answer a picture.

    Args:
        trusted: the program in it, where it is one.

    Raises:
        NotProven: it does not load, or its answers are no numbers.
    """
    try:
        loaded = load_model(load_spec(folder), trusted)
        begin = time.perf_counter()
        crops = decode.decode(picture(), loaded.spec.preprocess)
        row = loaded.probabilities(crops[None])[0]
        seconds = time.perf_counter() - begin
    except SpecError as error:
        raise NotProven(str(error)) from None
    except Exception as error:
        # The module itself gives up, such as a pooling that finds nothing left of small crops; a
        # program may raise nearly anything.
        raise NotProven(f"the model fails on a picture: {_telling_line(error)}") from error
    if row.shape != (len(loaded.labels),):
        found = f"{list(row.shape)} outputs, where there are {len(loaded.labels)} labels"
        raise NotProven(found)
    if not np.isfinite(row).all():
        raise NotProven("the answer to a picture is not a number: are there NaNs in the weights?")
    return Answer(
        labels=loaded.labels,
        row=tuple(row.tolist()),
        seconds=seconds,
        model_id=loaded.model_id,
    )


def try_program(
    file: Path, opened: BinaryIO, form: Format, preprocess: Preprocess
) -> tuple[int, Activation, str]:
    """Run a program, which runs its code; return its outputs' count, their activation, and why.

    Raises:
        NotWeights: it cannot be loaded, or fails on pictures.
    """
    try:
        if form == "torchscript":
            program = load_torchscript(file, opened)
        else:
            program = load_exported(file, opened, preprocess.crop, Path("--crop"))
        crops = np.concatenate([decode.decode(picture(seed), preprocess) for seed in range(3)])
        with torch.inference_mode():
            outputs = program(torch.from_numpy(crops))
    except SpecError as error:
        raise NotWeights(str(error).replace("--crop: preprocess.crop:", "--crop:")) from None
    except Exception as error:  # a script's assert, an export's guard: nearly anything
        raise NotWeights(f"{file}: fails on pictures: {_telling_line(error)}") from error
    count = outputs.shape[1]
    if _are_probabilities(outputs):
        return count, "none", "what comes out are probabilities already"
    if _are_probabilities(outputs.exp()):
        return count, "log_softmax", "what comes out are their logarithms"
    if bool(((outputs >= 0) & (outputs <= 1)).all()):
        return count, "none", "what comes out lies within 0 and 1, as behind a sigmoid"
    return count, "softmax", "assumed; what comes out are no probabilities"


def _are_probabilities(rows: torch.Tensor) -> bool:
    ones = torch.ones(len(rows))
    return bool((rows >= 0).all()) and torch.allclose(rows.sum(dim=1), ones, rtol=0, atol=1e-4)


def _telling_line(error: Exception) -> str:
    """The line that says what is wrong: TorchScript's errors have it last, behind a traceback."""
    if isinstance(error, torch.jit.Error) and (text := str(error).strip()):
        return text.splitlines()[-1].strip()
    return first_line(error, 1000)
