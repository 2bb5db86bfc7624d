"""The engine that is torch: a spec → a module in evaluation mode; crops → probabilities.

`load_model` runs in the forkserver, whose children inherit the module. It must therefore start no
thread and run no parallel region (a child's OpenMP would hang), run no forward pass, and copy no
weights: they stay mapped from the file, so that all workers share one copy in the page cache.
Decodes nothing and answers nobody.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

import numpy as np
import PIL
import torch

from swiprd.folder import consent
from swiprd.folder.model_id import identify
from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import SpecError
from swiprd.folder.trusted_programs import Code
from swiprd.inference import architectures
from swiprd.inference.programs import load_exported, load_torchscript
from swiprd.inference.state_dict import TensorMismatch, match_by_name, match_by_order
from swiprd.inference.torchvision_import import import_torchvision
from swiprd.inference.weights import SAFETENSORS, load_state


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A module that is ready to answer; see `engine.Engine` for what is not said here."""

    spec: ModelSpec
    module: torch.nn.Module
    labels: tuple[str, ...]
    model_id: str
    versions: dict[str, str]
    device: str = "cpu"

    @property
    def name(self) -> Literal["torch"]:
        """Which library computes."""
        return "torch"

    @property
    def difference(self) -> None:
        """None: what others are compared with."""

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from now on: torch as a whole, in this process."""
        torch.set_num_threads(threads)

    def to_device(self, device: str) -> LoadedModel:
        """Move the module to "cpu" or "cuda". Only in a worker: CUDA does not survive a fork."""
        if device == self.device:
            return self
        return replace(self, module=self.module.to(device), device=device)

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Answer a batch: float32 [images, crops, 3, h, w] → float32 [images, labels].

        With `log_softmax` the outputs are the logarithms of the probabilities, and softmax is what
        undoes that: it equals exp() there, and is also right for a checkpoint whose LogSoftmax was
        left out of the module that the weights were saved from.

        Args:
            crops: may be written to, as torch knows no array that may not; nothing does.
        """
        images, count = crops.shape[:2]
        with torch.inference_mode():
            # Channels last: 33 ms instead of 58 for 25 crops through shufflenet_v2_x0_5, up to a
            # tenth less for other architectures and never more. The weights can stay as they are.
            batch = torch.from_numpy(crops).flatten(0, 1)
            batch = batch.to(self.device, memory_format=torch.channels_last)
            outputs = self.module(batch).unflatten(0, (images, count))
            match self.spec.preprocess.pool:
                case "logits":
                    rows = self._activate(outputs.mean(dim=1))
                case "logsumexp":
                    rows = self._activate(outputs.logsumexp(dim=1) - math.log(count))
                case "mean":
                    rows = self._activate(outputs).mean(dim=1)
            return rows.to("cpu", torch.float32).numpy()

    def _activate(self, outputs: torch.Tensor) -> torch.Tensor:
        match self.spec.activation:
            case "softmax" | "log_softmax":
                return outputs.softmax(dim=-1)
            case "sigmoid":
                return outputs.sigmoid()
            case "none":
                return outputs


def load_model(spec: ModelSpec, trusted: Code | None = None) -> LoadedModel:
    """Build the architecture without memory of its own and put the mapped weights into it.

    A program is loaded as it is; of what it answers, nothing is known before it answers.

    Args:
        trusted: the program that may run, in place of those in the user's record.

    Raises:
        SpecError: an unknown architecture, or weights that are not a state_dict of it, with the
            first tensor at fault; or a program that may not run here.
    """
    if spec.carries_code:
        with consent.opened(spec, trusted) as (spec, program):
            module: torch.nn.Module = _load_program(spec, program)
        labels = _labels(spec)
    else:
        labels = _labels(spec)
        module = _build(spec, len(labels))
    return LoadedModel(
        spec=spec,
        module=module,
        labels=labels,
        model_id=identify(spec),
        versions=_versions(spec),
    )


def pick_device(wanted: str) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda", without initialising CUDA.

    Raises:
        RuntimeError: CUDA is wanted by name and this host or this torch has none.
    """
    if wanted == "cpu":
        return "cpu"
    # By NVML: the other way of asking initialises the driver, and then no child may use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise RuntimeError("CUDA is asked for, and torch finds no device for it")
    return "cpu"


def _versions(spec: ModelSpec) -> dict[str, str]:
    modules = {"torch": torch, "torchvision": import_torchvision(), "pillow": PIL, "numpy": np}
    if spec.architecture.startswith(architectures.TIMM):
        modules["timm"] = architectures.import_timm()
    versions = {name: str(module.__version__) for name, module in modules.items()}
    return versions | {"python": platform.python_version()}


def _labels(spec: ModelSpec) -> tuple[str, ...]:
    if spec.labels != "imagenet":
        return spec.labels
    # All its ImageNet classifiers have these thousand, two of them twice (crane, maillot).
    weights = import_torchvision().models.ResNet50_Weights.DEFAULT
    return tuple(weights.meta["categories"])


def _load_program(spec: ModelSpec, opened: BinaryIO) -> torch.nn.Module:
    if spec.architecture == "torchscript":
        return load_torchscript(spec.weights, opened)
    return load_exported(spec.weights, opened, spec.preprocess.crop, spec.file)


def _build(spec: ModelSpec, classes: int) -> torch.nn.Module:
    """Build the architecture and give it the tensors of the weights file, not copies."""
    state = load_state(spec.weights)
    if spec.match == "order" and spec.weights.suffix == SAFETENSORS:
        expected = "name: a safetensors file does not keep the order that the tensors had"
        raise SpecError(spec.file, "match", expected, '"order"')
    head = "a fastai head and " if spec.head == "fastai" else ""
    what = f"{spec.architecture} with {head}{classes} labels"
    match = match_by_order if spec.match == "order" else match_by_name
    try:
        module = architectures.build(
            spec.architecture,
            classes=classes,
            head=spec.head,
            state=state,
            crop=spec.preprocess.crop,
        )
        own = module.state_dict()
        matched = match(own, state, what)
    except architectures.ArchitectureError as error:
        raise SpecError(spec.file, error.key, error.expected, error.found) from None
    except TensorMismatch as error:
        raise SpecError(spec.weights, error.tensor, error.expected, error.found) from None
    # Not the file's own dict: ours carries the versions of the modules' formats, and the tensors
    # have just been seen to be those of today's.
    own.update(matched)
    module.load_state_dict(own, strict=True, assign=True)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            # Neither in the file nor computed by the constructor: there is no right value.
            raise SpecError(spec.weights, name, "a value", "none")
    return module.eval().requires_grad_(False)
