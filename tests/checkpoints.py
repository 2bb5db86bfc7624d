"""Checkpoints as the programs that wrote them laid them out, and what those programs answered.

The modules are built here from their descriptions, with torch's and torchvision's parts alone:
nothing of swipr has a say in a name, an order or a number.
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from swiprd.inference.torchvision_import import import_torchvision

torchvision = import_torchvision()

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TOLERANCE = 1e-4  # what swipr promises on a probability


class ConcatPool(nn.Module):
    """fastai's AdaptiveConcatPool2d: the maximum first, then the mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.amax((2, 3), keepdim=True), x.mean((2, 3), keepdim=True)], dim=1)


class Branches(nn.Sequential):
    """A ConcatTable of Lua's torch: every child gets the input."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        return [child(x) for child in self]


class Sum(nn.Module):
    """Its CAddTable."""

    def forward(self, xs: list[torch.Tensor]) -> torch.Tensor:
        return xs[0] + xs[1]


def converted_resnext(layers: Iterable[int], cardinality: int, width: int) -> list[nn.Module]:
    """The body of fastai 0.7's resnext*, converted from Lua: Sequentials in Sequentials."""

    def conv(i: int, o: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        made = nn.Conv2d(i, o, size, stride, size // 2, groups=groups, bias=False)
        return [made, nn.BatchNorm2d(o)]

    body: list[nn.Module] = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    given = 64
    for stage, count in enumerate(layers):
        inner, out = cardinality * width * 2**stage, 256 * 2**stage
        blocks = []
        for block in range(count):
            stride = 2 if stage and not block else 1
            grouped = [*conv(given, inner, 1), nn.ReLU()]
            grouped += [*conv(inner, inner, 3, stride, cardinality), nn.ReLU()]
            way = nn.Sequential(nn.Sequential(*grouped), *conv(inner, out, 1))
            aside = nn.Identity() if block else nn.Sequential(*conv(given, out, 1, stride))
            blocks.append(nn.Sequential(Branches(way, aside), Sum(), nn.ReLU()))
            given = out
        body.append(nn.Sequential(*blocks))
    return body


def fastai_body(name: str) -> tuple[list[nn.Module], int]:
    """What fastai 0.7's ConvnetBuilder cuts for `name`, and how many channels it gives."""
    resnexts = {
        "resnext50": ([3, 4, 6, 3], 32, 4),
        "resnext101": ([3, 4, 23, 3], 32, 4),
        "resnext101_64": ([3, 4, 23, 3], 64, 4),
    }
    if name in resnexts:
        return converted_resnext(*resnexts[name]), 2048
    if name.startswith("vgg"):
        return [getattr(torchvision.models, f"{name}_bn")().features], 512
    if name.startswith("dn"):
        whole = getattr(torchvision.models, f"densenet{name[2:]}")()
        return [whole.features], whole.classifier.in_features
    whole = getattr(torchvision.models, name)()
    return list(whole.children())[:8], whole.fc.in_features


def fastai_head(channels: int, classes: int, *, bias: bool = True) -> list[nn.Module]:
    """The layers behind the body, without what comes after the last Linear."""
    return [
        *(ConcatPool(), nn.Flatten()),
        *(nn.BatchNorm1d(2 * channels), nn.Dropout(0.25), nn.Linear(2 * channels, 512, bias=bias)),
        *(nn.ReLU(), nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, classes, bias=bias)),
    ]


def learner_0_7(name: str, classes: int = 2, *, multi: bool = False, seed: int = 0) -> nn.Module:
    """A ConvLearner's model."""
    with torch.device("meta"):
        body, channels = fastai_body(name)
        end = nn.Sigmoid() if multi else nn.LogSoftmax(dim=1)
        module = nn.Sequential(*body, *fastai_head(channels, classes), end)
    return sow(module, seed)


def learner_2(
    name: str,
    classes: int = 3,
    *,
    bias: bool = False,
    normed: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A model of fastai 1 (with biases) or 2 (without): a body and a head, and raw outputs.

    Args:
        normed: with a BatchNorm at the very end, as `bn_final=True` makes it.
    """
    cuts = {"resnet": -2, "densenet": -1, "vgg": -2}
    with torch.device("meta"):
        whole = getattr(torchvision.models, name)()
        channels = 512 if name.startswith(("vgg", "resnet18", "resnet34")) else 2048
        if name.startswith("densenet"):
            channels = whole.classifier.in_features
        cut = next(cut for family, cut in cuts.items() if name.startswith(family))
        body = nn.Sequential(*list(whole.children())[:cut])
        head = fastai_head(channels, classes, bias=bias)
        module = nn.Sequential(body, nn.Sequential(*head))
        if normed:
            module[1].append(nn.BatchNorm1d(classes))
    return sow(module, seed)


def classifier(name: str, classes: int, *, seed: int = 0, **options: Any) -> nn.Module:
    """One of torchvision's."""
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    torch.manual_seed(seed)
    module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return sow(module, seed)


def sow(module: nn.Module, seed: int) -> nn.Module:
    """Fill a module with seeded numbers that keep its answers apart."""
    if any(one.is_meta for one in module.parameters()):
        module = module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    # With 2, which keeps signals alive behind a ReLU where nothing normalises them, they explode in
    # EfficientNet-B4 until float32 has no digits left: its answers then depend on memory's layout.
    normal = any(name.endswith("running_var") for name in module.state_dict())
    gain = 1 if normal else 2
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point() or name.endswith("relative_position_index"):
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() > 1:
                tensor.normal_(0, math.sqrt(gain / tensor[0].numel()), generator=generator)
            elif name.endswith("weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 0.1, generator=generator)
        for name, buffer in module.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.zero_()
    return module.eval()


def spread(module: nn.Module, crops: torch.Tensor, last: nn.Module, most: float = 2.0) -> None:
    """Scale a last layer so that its outputs for `crops` lie within ±`most`."""
    seen: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        module(crops)
        hook.remove()
        for parameter in last.parameters():
            parameter.mul_(most / seen[0].abs().max())


def old_state(module: nn.Module) -> OrderedDict[str, torch.Tensor]:
    """A state_dict of the time before step counts, and with dots in dense layers' names."""
    found = OrderedDict()
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        for part in ("norm", "conv"):
            for digit in "12":
                if "denselayer" in name:
                    name = name.replace(f".{part}{digit}.", f".{part}.{digit}.")
        found[name] = tensor
    return found


def save_legacy(content: Any, file: Path) -> Path:
    """Save as torch before 1.6 did."""
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file


def area_crop(data: bytes, size: int) -> torch.Tensor:
    """fastai 0.7's validation transforms, written out: [1, 3, size, size].

    Each pixel of the result is the mean of the area that it covers, with parts of pixels counted
    as parts, which is OpenCV's INTER_AREA.
    """
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(np.float64) / 255
    height, width, _ = pixels.shape
    ratio = size / min(height, width)
    rows = _cover(height, max(math.floor(height * ratio), size))
    columns = _cover(width, max(math.floor(width * ratio), size))
    scaled = np.einsum("ir,rcx,jc->ijx", rows, pixels, columns, optimize=True)
    top, left = (math.ceil((one - size) / 2) for one in scaled.shape[:2])
    cut = scaled[top : top + size, left : left + size]
    normal = (cut - MEAN) / STD
    return torch.from_numpy(normal.transpose(2, 0, 1)[None]).float()


def square_crop(data: bytes, size: int) -> torch.Tensor:
    """fastai 2's `Resize(size)` in validation, `ToTensor` and `Normalize`: [1, 3, size, size].

    Source: `Resize.encodes` and `_do_crop_pad` in fastai 2.8's vision/augment.py.
    """
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    ratio = min(width / size, height / size)
    side = int(ratio * size)
    left, top = int(0.5 * (width - side)), int(0.5 * (height - side))
    cut = image.crop((left, top, left + side, top + side))
    scaled = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))
    normal = (scaled / 255 - MEAN) / STD
    return torch.from_numpy(normal.transpose(2, 0, 1)[None]).float()


def sampled_crop(data: bytes, size: int) -> torch.Tensor:
    """fastai 1's validation transform for `size`, and `normalize`: [1, 3, size, size].

    Source: `_get_resize_target`, `_affine_grid` and `_grid_sample` in fastai 1.0.61's
    vision/image.py, `_crop_pad_default` in vision/transform.py.
    """
    with Image.open(io.BytesIO(data)) as opened:
        pixels = np.asarray(opened.convert("RGB")).transpose(2, 0, 1).astype(np.float32)
    picture = torch.from_numpy(pixels).div(255)[None]
    rows, columns = picture.shape[2:]
    ratio = min(rows / size, columns / size)
    high, wide = round(rows / ratio), round(columns / ratio)
    shrunk = min(rows / high, columns / wide) / 2
    if shrunk > 1:
        picture = nn.functional.interpolate(picture, scale_factor=1 / shrunk, mode="area")
    y, x = torch.meshgrid(torch.linspace(-1, 1, high), torch.linspace(-1, 1, wide), indexing="ij")
    picture = nn.functional.grid_sample(
        picture, torch.stack([x, y], dim=2)[None], padding_mode="reflection", align_corners=True
    )
    top, left = int((high - size + 1) * 0.5), int((wide - size + 1) * 0.5)
    cut = picture[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy()
    return torch.from_numpy(((cut - MEAN) / STD).transpose(2, 0, 1)[None]).float()


def _cover(given: int, wanted: int) -> np.ndarray:
    """[wanted, given]: which share of each given pixel lies in each wanted one, summing to 1."""
    scale = given / wanted
    edges = np.arange(wanted + 1) * scale
    low, high = edges[:-1, None], edges[1:, None]
    at = np.arange(given)[None]
    return np.clip(np.minimum(high, at + 1) - np.maximum(low, at), 0, None) / scale
