"""fastai's bodies and heads, built as the weights have them.

A body is a classifier cut before its own pooling. The head pools twice, flattens and ends in
layers of BatchNorm1d, Dropout, Linear and ReLU; sizes and biases follow from the weights. The
names of the tensors are those of fastai 1 and 2 (`0.…` the body, `1.…` the head); fastai 0.7 has
the same tensors in the same order under other names.

Sources: fastai 0.7, `ConvnetBuilder` in conv_learner.py; fastai 1 and 2, `create_body`,
`create_head`, `bn_drop_lin` and `LinBnDrop` in vision/learner.py and layers.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swiprd.inference.state_dict import Tensors, weighty

_HIDDEN = 512
"""Outputs of the hidden layer, where nothing else was asked for: all three versions have it so."""

_CUTS: tuple[tuple[str, int], ...] = (
    # Children of the torchvision module from its end that are not body. fastai names these:
    (r"resnet\d+|resnext\d+_\d+x\d+d|wide_resnet\d+_2", 2),  # avgpool, fc
    (r"densenet\d+", 1),  # classifier; the ReLU behind `features` is not a module, and not cut out
    (r"vgg\d+(_bn)?|alexnet", 2),  # avgpool, classifier
    (r"squeezenet1_\d", 1),  # classifier
    # And these by its rule: cut before the last child that pools.
    (r"efficientnet_\w+|convnext_\w+|mobilenet_v3_\w+|regnet_\w+", 2),
    (r"swin_\w+", 3),  # avgpool, flatten, head
    # No child of these pools: fastai 1 cuts the last one.
    (r"mobilenet_v2|mnasnet\d_\d+", 1),
)


class AdaptiveConcatPool2d(nn.Module):
    """The largest value of each channel, then the mean of each: [n, c, h, w] → [n, 2c, 1, 1]."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool a batch."""
        return torch.cat(
            [features.amax(dim=(2, 3), keepdim=True), features.mean(dim=(2, 3), keepdim=True)], 1
        )


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What of a head follows from its weights.

    Attributes:
        outputs: of each Linear that is not the last.
        biases: for each Linear whether it has one.
        normed: whether one more BatchNorm1d comes last (fastai's `bn_final`).
    """

    outputs: tuple[int, ...] = (_HIDDEN,)
    biases: tuple[bool, ...] = (True, True)
    normed: bool = False


def has_fastai_body(architecture: str) -> bool:
    """Whether it is known how fastai cuts a torchvision classifier."""
    return _cut(architecture) is not None


def with_fastai_head(
    module: nn.Module, architecture: str, classes: int, state: Tensors
) -> nn.Sequential:
    """Cut a torchvision classifier and put a head for `classes` labels on its body.

    Args:
        state: weights in a fastai learner's order, whose last tensors say how the head is made.
            Where they are no such head, it is the one that fastai makes unless told otherwise,
            and matching the tensors will name the first that differs.
    """
    children = list(module.children())
    cut = len(children) - (_cut(architecture) or 0)
    body = nn.Sequential(*children[:cut])
    channels = _inputs(children[cut:])
    tail = [tensor for _, tensor in weighty(state)[len(weighty(body.state_dict())) :]]
    recipe = _read(tail, classes) or _Recipe()
    # `concat_pool=False` leaves half as many.
    plain = bool(tail) and list(tail[0].shape) == [channels]
    size = channels if plain else 2 * channels
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1) if plain else AdaptiveConcatPool2d(), nn.Flatten())
    for outputs, bias in zip((*recipe.outputs, classes), recipe.biases, strict=True):
        head.extend((nn.BatchNorm1d(size), nn.Dropout(), nn.Linear(size, outputs, bias=bias)))
        head.append(nn.ReLU(inplace=True))
        size = outputs
    del head[-1]
    if recipe.normed:
        head.append(nn.BatchNorm1d(classes))
    return nn.Sequential(body, head)


def _cut(architecture: str) -> int | None:
    return next((cut for name, cut in _CUTS if re.fullmatch(name, architecture)), None)


def _inputs(children: Iterable[nn.Module]) -> int:
    """Return how many channels a body gives: what the classifier behind it takes."""
    area = 1
    for module in (one for child in children for one in child.modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d):
            size: Any = module.output_size
            area = size[0] * size[1] if isinstance(size, tuple) else size * size
        elif isinstance(module, nn.Linear):
            return module.in_features // area
        elif isinstance(module, nn.Conv2d):
            return module.in_channels
    raise AssertionError("a classifier without a layer")


def _read(tail: Sequence[torch.Tensor], classes: int) -> _Recipe | None:
    """Read a head from its tensors: four of a BatchNorm1d, a Linear's weight, perhaps its bias."""
    if any(one.dim() not in (1, 2) for one in tail):
        return None
    # Linear weights are what has two dimensions; between them lie 4 or 5 tensors that have one.
    first, *runs = "".join(str(one.dim()) for one in tail).split("2")
    if not runs or {len(first), *(len(run) for run in runs[:-1])} - {4, 5} or len(first) != 4:
        return None
    normed = len(runs[-1]) >= 4
    if len(runs[-1]) not in (0, 1, 4, 5) or (normed and tail[-1].shape[0] != classes):
        return None
    return _Recipe(
        outputs=tuple(one.shape[0] for one in tail if one.dim() == 2)[:-1],
        biases=tuple(len(run) % 4 == 1 for run in runs),
        normed=normed,
    )
