"""Which architecture has these tensors? Compares names, order and shapes; touches no values.

Every classifier that torchvision has is built without memory, with a class count that no other
dimension has: what is of that size in the skeleton belongs to the last layer, and what the
checkpoint has there says how many classes there are.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from swiprd.folder.spec import Head, Match
from swiprd.inference.architectures import TIMM, ArchitectureError, build, classifiers, import_timm
from swiprd.inference.fastai_heads import has_fastai_body
from swiprd.inference.state_dict import TensorMismatch, match_by_name, match_by_order, weighty
from swiprd.pack.errors import NotWeights, Unclear
from swiprd.pack.find_weights import Tensors, strip, unwrap_last

_CLASSES = 999_983  # a prime, and larger than any dimension of an architecture
_NEAR = 0.9  # of an architecture's tensors
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An architecture, and the tensors as it wants them.

    Attributes:
        tensors: under the architecture's names, or in its order.
        last: name of the last layer in the checkpoint, where it lay in a Sequential there, such
            as "classifier.0"; else empty.
        crop: edge of the pictures that the tensors are made for; None where any will do.
        prefix: what stood before the names.
    """

    architecture: str
    head: Head
    match: Match
    classes: int
    tensors: Tensors
    last: str = ""
    crop: int | None = None
    prefix: str = ""


def fit(tensors: Tensors, architecture: str, crop: int | None = None) -> Fit:
    """Put a checkpoint's tensors in an architecture's place.

    Args:
        crop: edge of the pictures that one of timm's is to be built for, where it takes one size
            only; None is the size of timm's own weights.

    Raises:
        Unclear: there is no such architecture, or it does not take such pictures.
        NotWeights: the tensors are not its own; names the first that differs.
    """
    try:
        if _is_fastai(tensors):
            return _fit_fastai(tensors, architecture)
        return _fit_names(tensors, architecture, crop)
    except ArchitectureError as error:
        # What is preprocess.crop in model.toml is --crop here.
        raise Unclear(f"--{str(error).removeprefix('preprocess.')}") from None
    except TensorMismatch as error:
        raise NotWeights(str(error)) from None


def guess(tensors: Tensors) -> list[Fit]:
    """Return a fit for every architecture of torchvision that has exactly these tensors."""
    found = []
    fastai = _is_fastai(tensors)
    for architecture in classifiers():
        if not (_may_be_body if fastai else _may_fit)(tensors, architecture):
            continue
        try:
            found.append((_fit_fastai if fastai else _fit_names)(tensors, architecture))
        except (TensorMismatch, ArchitectureError, NotWeights):
            continue
    return found


def nearest(tensors: Tensors) -> str:
    """Name torchvision's architecture that most of these tensors are of, and the first that is not
    as it has them; empty where none comes near."""
    if _is_fastai(tensors):
        return ""  # named by position, which any network is
    best, share = "", _NEAR
    for architecture in classifiers():
        wanted = dict(weighty(_template(architecture)))
        stripped, _ = strip(tensors, list(wanted))
        alike = [
            name
            for name, tensor in weighty(stripped)
            if name in wanted
            and (wanted[name].shape == tensor.shape or _CLASSES in wanted[name].shape)
        ]
        found = len(alike) / max(len(wanted), len(weighty(stripped)))
        if found >= share:
            best, share = architecture, found
    if not best:
        return ""
    try:
        fit(tensors, best)
    except (NotWeights, Unclear) as error:
        return f"{best} comes nearest: {error}"
    return ""


def outline(tensors: Tensors) -> str:
    """Summarise the tensors, for a user who has to name their architecture."""
    listed = [f"{name} {list(tensor.shape)}" for name, tensor in weighty(tensors)]
    shown = listed if len(listed) <= 4 else [*listed[:2], "…", *listed[-2:]]
    return f"{len(listed)} tensors: {', '.join(shown)}"


def timm_config(architecture: str) -> Any:
    """Return what timm says of an architecture's weights, its PretrainedCfg; None for nothing.

    Raises:
        ArchitectureError: timm is not installed.
        Unclear: it has no weights of that name, or they are for pictures that are not square.
    """
    timm = import_timm()
    name = architecture.removeprefix(TIMM)
    plain, _, weights = name.partition(".")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:
        every = timm.list_models(f"{plain}.*", pretrained=True)
        known = ", ".join(f"{TIMM}{one}" for one in every) or "none"
        raise Unclear(
            f'--architecture: timm knows no weights "{weights}" of {plain}. It has: {known};'
            f" {TIMM}{plain} will do, too"
        ) from None
    if config is not None and config.input_size[1] != config.input_size[2]:
        raise Unclear(
            f"--architecture: {architecture} takes pictures of"
            f" {config.input_size[1]}x{config.input_size[2]} pixels (height x width), and swipr's"
            " are square: it cannot be packed"
        )
    return config


def _is_fastai(tensors: Tensors) -> bool:
    """Whether they are named by position, as those of a Sequential are."""
    return all(name[:1].isdigit() for name in tensors)


def _fit_fastai(tensors: Tensors, architecture: str) -> Fit:
    matrices = [one for one in tensors.values() if one.dim() == 2]
    if not any(one.dim() == 4 for one in tensors.values()):
        raise NotWeights(
            "only the head of a fastai 0.7 learner, saved while precompute was on. Where it was"
            " trained: learn.precompute = False, then learn.save() again"
        )
    if not matrices:
        raise NotWeights("no last layer: fastai's head ends in a Linear")
    classes = matrices[-1].shape[0]
    wanted = build(architecture, classes=classes, head="fastai", state=tensors).state_dict()
    what = f"{architecture} with fastai's head"
    match: Match = "name"
    if weighty(tensors) and dict(weighty(tensors)).keys() == dict(weighty(wanted)).keys():
        match_by_name(wanted, tensors, what)
    else:
        match = "order"
        match_by_order(wanted, tensors, what)
    return Fit(
        architecture=architecture, head="fastai", match=match, classes=classes, tensors=tensors
    )


def _fit_names(tensors: Tensors, architecture: str, asked: int | None = None) -> Fit:
    size = _timm_size(architecture, asked)
    template = _template(architecture, size or 224)
    stripped, prefix = strip(tensors, [name for name, _ in weighty(template)])
    last = _last_layer(template)
    stripped, inside = unwrap_last(stripped, last)
    crop = size or _crop_of(architecture, stripped)
    weight = stripped.get(f"{last}.weight")
    # Without a last layer there is a difference, and an earlier one says more.
    classes = weight.shape[0] if weight is not None and weight.dim() else 1
    module = build(architecture, classes=classes, state=stripped, crop=crop or 224)
    wanted = module.state_dict()
    try:
        matched = match_by_name(wanted, stripped, f"{architecture}, {classes} classes")
    except TensorMismatch as error:
        if size is None or dict(weighty(stripped)).keys() != dict(weighty(wanted)).keys():
            raise
        raise NotWeights(
            f"{error}; it was built for pictures of {size} pixels: --crop says another size"
        ) from None
    return Fit(
        architecture=architecture,
        head="default",
        match="name",
        classes=classes,
        tensors={name: matched[name] for name in wanted},
        last=inside if inside != last else "",
        crop=crop,
        prefix=prefix,
    )


@functools.cache
def _template(architecture: str, crop: int = 224) -> Tensors:
    return dict(build(architecture, classes=_CLASSES, state={}, crop=crop).state_dict())


def _last_layer(template: Tensors) -> str:
    """Name the layer whose weights have a row for each class."""
    names = [name for name, tensor in template.items() if _CLASSES in tensor.shape]
    return names[-1].rpartition(".")[0]


@functools.cache
def _weights_of(architecture: str) -> frozenset[torch.Size]:
    return frozenset(
        one.shape
        for one in _template(architecture).values()
        if one.dim() in (2, 4) and _CLASSES not in one.shape
    )


def _may_fit(tensors: Tensors, architecture: str) -> bool:
    """Whether it is worth a closer look: every shape of convolutions and matrices is there."""
    return _weights_of(architecture) <= {one.shape for one in tensors.values()}


@functools.cache
def _body(architecture: str) -> list[torch.Size]:
    """Shapes of what a fastai learner has of an architecture; empty where that is not known."""
    if not has_fastai_body(architecture):
        return []
    whole = build(architecture, classes=2, head="fastai", state={})
    return [tensor.shape for _, tensor in weighty(whole.get_submodule("0").state_dict())]


def _may_be_body(tensors: Tensors, architecture: str) -> bool:
    """Whether they begin with a body of this architecture."""
    shapes = _body(architecture)
    return bool(shapes) and [one.shape for _, one in weighty(tensors)][: len(shapes)] == shapes


def _timm_size(architecture: str, asked: int | None) -> int | None:
    """Return what size one of timm's is to be built for, in pixels; None where it takes any."""
    if not architecture.startswith(TIMM):
        return None
    config = timm_config(architecture)
    if config is None or not config.fixed_input_size:
        return None
    published: int = config.input_size[-1]
    return asked or published


def _crop_of(architecture: str, tensors: Tensors) -> int | None:
    """Return the size that a vision transformer's positions are for, in pixels."""
    positions, patches = tensors.get("encoder.pos_embedding"), tensors.get("conv_proj.weight")
    if not architecture.startswith("vit_") or positions is None or patches is None:
        return None
    if positions.dim() != 3 or patches.dim() != 4:
        return None
    return math.isqrt(max(0, positions.shape[1] - 1)) * patches.shape[3]
