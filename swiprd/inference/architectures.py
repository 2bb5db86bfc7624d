"""An architecture's name → its module without memory, in the shape that the weights ask for.

Knows torchvision's classifiers and, where it is installed, timm's. Downloads nothing, reads no
file and runs no forward pass.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from swiprd.folder.spec import Head
from swiprd.inference.fastai_heads import has_fastai_body, with_fastai_head
from swiprd.inference.skeleton import Skeleton
from swiprd.inference.state_dict import Tensors
from swiprd.inference.torchvision_import import import_torchvision

TIMM = "timm:"
"""What stands before the name of one of timm's architectures."""


class ArchitectureError(Exception):
    """There is no such module.

    Attributes:
        key: of model.toml: `architecture`, `head` or `preprocess.crop`.
        expected, found: two phrases that complete "expected …, found …".
    """

    def __init__(self, key: str, expected: str, found: str) -> None:
        super().__init__(key, expected, found)
        self.key = key
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return f"{self.key}: expected {self.expected}, found {self.found}"


def classifiers() -> list[str]:
    """Return the names of the architectures without a prefix: torchvision's, and one of fastai."""
    torchvision = import_torchvision()
    return sorted([*torchvision.models.list_models(module=torchvision.models), *_OURS])


def build(
    architecture: str, *, classes: int, head: Head = "default", state: Tensors, crop: int = 224
) -> torch.nn.Module:
    """Build a classifier for its tensors' names, shapes and order; the values are to be assigned.

    `matching.shapes(module)` lists the tensors in their order; `matching.match_by_order` and
    `match_by_name` fill in a checkpoint's. For pooled and flattened bodies with `head = "fastai"`
    see fastai_heads.py. Inception v3 and GoogLeNet are built as trained from scratch, without
    torchvision's `transform_input`: for their published weights a spec says mean = std = 0.5.

    Args:
        architecture: a torchvision classifier's name, or "timm:" and timm's name for one.
        classes: outputs of the last layer.
        state: the checkpoint's tensors, which decide whether there are auxiliary heads and what
            layers a fastai head has; may be empty.
        crop: edge of the crops in pixels, for architectures whose tensors depend on it.

    Raises:
        ArchitectureError: no such name, no such head for it, or a crop that it cannot take.
    """
    if architecture.startswith(TIMM):
        if head != "default":
            raise ArchitectureError("head", f"default with {architecture}", f'"{head}"')
        return _timm(architecture.removeprefix(TIMM), classes, crop)
    known = classifiers()
    if architecture not in known:
        raise unknown(architecture, known, "a torchvision classifier, such as resnet50")
    if head == "fastai" and not has_fastai_body(architecture):
        expected = f"default: how fastai cuts {architecture} is not known here"
        raise ArchitectureError("head", expected, f'"{head}"')
    with Skeleton():
        module = _torchvision(architecture, classes, state, crop)
        if head == "fastai":
            module = with_fastai_head(module, architecture, classes, state)
    return module


def unknown(name: str, known: Sequence[str], otherwise: str) -> ArchitectureError:
    """Make the error for a name that is not among the known ones, with the nearest of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return ArchitectureError("architecture", near[0] if near else otherwise, f'"{name}"')


def _torchvision(architecture: str, classes: int, state: Tensors, crop: int) -> torch.nn.Module:
    models = import_torchvision().models
    options: dict[str, Any] = {"num_classes": classes}
    if architecture in ("inception_v3", "googlenet"):
        # The heads that only training uses: in the file or not, the answers are the same.
        auxiliary = any(name.startswith(("AuxLogits.", "aux1.")) for name in state)
        options |= {"init_weights": False, "aux_logits": auxiliary}
    elif architecture.startswith("vit_"):
        options["image_size"] = crop
    elif architecture.startswith("maxvit_"):
        options["input_size"] = (crop, crop)
    try:
        module: torch.nn.Module
        if architecture in _OURS:
            resnet = importlib.import_module("torchvision.models.resnet")
            module = models.ResNet(resnet.Bottleneck, **_OURS[architecture], **options)
        else:
            module = models.get_model(architecture, weights=None, **options)
    except (AssertionError, ValueError) as error:
        expected = f"a size that {architecture} takes"
        raise ArchitectureError("preprocess.crop", expected, f"{crop} ({error})") from None
    return module


_OURS: dict[str, dict[str, Any]] = {
    # fastai 0.7's resnext101, which torchvision has the parts of and no name for.
    "resnext101_32x4d": {"layers": [3, 4, 23, 3], "groups": 32, "width_per_group": 4},
}


def _timm(name: str, classes: int, crop: int) -> torch.nn.Module:
    timm = import_timm()
    plain = name.partition(".")[0]  # behind it stands which weights timm would download
    known = timm.list_models()
    if plain not in known:
        error = unknown(plain, known, "convnext_tiny")
        raise ArchitectureError(error.key, f"{TIMM}{error.expected}", f'"{TIMM}{name}"')
    published = timm.get_pretrained_cfg(plain)
    options: dict[str, Any] = {}
    if published is not None and published.fixed_input_size:
        options["img_size"] = crop
    try:
        # Its tables are filled after torch.empty(): on the meta device they would stay without.
        with Skeleton(meta=False):
            module: torch.nn.Module = timm.create_model(
                plain, pretrained=False, num_classes=classes, **options
            )
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        expected = f"a size that {TIMM}{name} takes"
        raise ArchitectureError("preprocess.crop", expected, f"{crop} ({error})") from None
    return module


def import_timm() -> ModuleType:
    """Import timm, which need not be installed.

    Raises:
        ArchitectureError: it is not.
    """
    import_torchvision()  # which timm imports, and which may need mending
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        expected = "timm to be installed (pip install 'swipr[timm]')"
        raise ArchitectureError("architecture", expected, "no module named timm") from None
