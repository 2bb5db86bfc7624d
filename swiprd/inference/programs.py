"""Traced and exported programs → modules. They bring their own code, which runs here.

Whoever calls this has seen to it that what is opened may run, and that nobody can change it any
more (consent.py): torch.export.load unpickles, and either kind is code to be run. Loading
starts no thread and runs no forward pass, so a forkserver may do it. The weights are not mapped
but read; workers share them as they share all of the forkserver's memory.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch

from swiprd.folder.toml_table import SpecError
from swiprd.system.reason import first_line


class ProgramError(Exception):
    """A program answers with what no classifier answers."""


class Program(torch.nn.Module):
    """A program that takes batches of any size, whatever the one inside was made for.

    Args:
        run: [n, 3, h, w] → [n, labels].
        batch: the only number of pictures that it takes at once; None if it takes any, as far as
            is known. One that fails on several is given them one by one from then on.
    """

    def __init__(self, run: torch.nn.Module, batch: int | None = None) -> None:
        super().__init__()
        self.run = run
        self._batch = batch

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Answer a batch.

        Raises:
            ProgramError: the program does not give one row for each picture.
        """
        if self._batch is None:
            try:
                return self._answer(crops)
            except Exception:
                # A trace for one picture may have that number in it where nothing shows it. What
                # then fails may raise nearly anything: a script's assert is a torch.jit.Error, an
                # export's guard an AssertionError. If it was not the number, it fails again below.
                if len(crops) == 1:
                    raise
                self._batch = 1
        parts = []
        for part in torch.split(crops, self._batch):
            # The last part is filled up; what that answers is dropped.
            whole = torch.cat([part, part[-1:].expand(self._batch - len(part), -1, -1, -1)])
            parts.append(self._answer(whole)[: len(part)])
        return torch.cat(parts)

    def _answer(self, crops: torch.Tensor) -> torch.Tensor:
        # The optimizing executor compiles anew for each shape, during the second and third call.
        jit: Any = torch.jit  # not typed throughout
        with jit.optimized_execution(False):
            outputs: Any = self.run(crops)
        if isinstance(outputs, tuple | list) and outputs:
            outputs = outputs[0]  # behind it are auxiliary heads
        if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2:
            shape = list(getattr(outputs, "shape", ())) or type(outputs).__name__
            raise ProgramError(f"a program that answers with {shape} is no classifier")
        if len(outputs) != len(crops):
            raise ProgramError(f"{len(outputs)} answers for {len(crops)} pictures")
        return outputs.float()


def load_torchscript(file: Path, opened: BinaryIO) -> Program:
    """Load what torch.jit.save wrote.

    Args:
        file: what it is called in errors.

    Raises:
        SpecError: it is not that.
    """
    jit: Any = torch.jit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, not these programs
            # By its name torch reads it piece by piece; of an object it makes a copy first.
            program = jit.load(f"/proc/self/fd/{opened.fileno()}", map_location="cpu")
    except Exception as error:  # a damaged file can make torch raise nearly anything
        raise _unreadable(file, "a program written by torch.jit.save", error) from error
    return Program(program.eval())


def load_exported(file: Path, opened: BinaryIO, crop: int, model_file: Path) -> Program:
    """Load what torch.export.save wrote.

    Args:
        file: what it is called in errors.

    Raises:
        SpecError: it is not that, or takes no pictures of `crop` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.load(opened)  # not by a name: torch minds how that ends
            run = exported.module()
    except Exception as error:
        raise _unreadable(file, "a program written by torch.export.save", error) from error
    names = exported.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in exported.graph.nodes if node.name in names]
    if len(inputs) != 1 or inputs[0].dim() != 4 or inputs[0].dtype != torch.float32:
        raise SpecError(file, "", "a program of one input, float32 pictures", "other inputs")
    # A size that the export left open is not an int but a symbol.
    batch, channels, *edges = (size if isinstance(size, int) else None for size in inputs[0].shape)
    if channels not in (3, None):
        raise SpecError(file, "", "pictures of 3 channels", f"{channels}")
    for edge in edges:
        if edge not in (crop, None):
            raise SpecError(model_file, "preprocess.crop", f"{edge}, as {file} takes", f"{crop}")
    return Program(run, batch)


def _unreadable(file: Path, expected: str, error: Exception) -> SpecError:
    return SpecError(file, "", expected, f"what cannot be read: {first_line(error)}")
