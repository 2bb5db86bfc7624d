"""How pictures were prepared for a model, as far as its origin tells.

A checkpoint does not say. Here are the validation recipes of the programs that it may come from.
A user who trained with another recipe gives it as options, which win.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from swiprd.folder.spec import Preprocess
from swiprd.inference.architectures import TIMM, import_timm
from swiprd.inference.torchvision_import import import_torchvision
from swiprd.pack.detect import Fit, timm_config
from swiprd.pack.told import Recipe, plain

HALF = (0.5, 0.5, 0.5)

# The published weights of these come from TensorFlow, which maps pixels to -1…1. torchvision
# undoes ImageNet's statistics inside the module (`transform_input`); swipr's modules do not.
_HALVED = ("inception_v3", "googlenet")


def for_fastai(fit: Fit, size: int) -> Recipe:
    """Return fastai's validation recipe for pictures of `size` pixels.

    0.7: `tfms_from_model` in transforms.py: the short side to `size` by OpenCV's INTER_AREA, its
    centre, ImageNet's statistics (Inception's own only for bodies that swipr has not). 1:
    `get_transforms()`: the short side to `size` by torch's grid_sample, its centre. 2:
    `Resize(size)` cuts a square out of the middle and resizes it with Pillow, bilinearly.
    """
    if fit.match == "order":
        return Recipe(
            preprocess=Preprocess(resize=size, crop=size, interpolation="area", middle="up"),
            source=f"fastai 0.7 validates: short side to {size}, centre, EXIF ignored",
        )
    if _has_biases(fit):
        return Recipe(
            preprocess=Preprocess(resize=size, crop=size, interpolation="grid_sample", middle="up"),
            source=f"fastai 1 validates at size={size}: short side, centre, EXIF ignored",
        )
    return Recipe(
        preprocess=Preprocess(resize=size, edge="square", crop=size, middle="down"),
        source=f"fastai 2 validates after Resize({size}): the centred square, resized",
    )


def _has_biases(fit: Fit) -> bool:
    """Whether the Linears of a fastai head have biases: all in 1, and in 2 none that is normed."""
    return all(
        f"{name.removesuffix('weight')}bias" in fit.tensors
        for name, tensor in fit.tensors.items()
        if name.startswith("1.") and tensor.dim() == 2
    )


def for_chexnet() -> Recipe:
    """Return the recipe of the reimplementation whose weights everybody has (arnoweng)."""
    return Recipe(
        preprocess=Preprocess(resize=256, crop=224, crops="ten"),
        source="CheXNet's test: short side to 256, ten crops of 224, mean of their probabilities",
    )


def for_torchvision(fit: Fit, digest: str) -> Recipe:
    """Return torchvision's evaluation recipe, of the very weights where they are published ones.

    Args:
        digest: SHA-256 of the checkpoint's file. torchvision publishes its beginning in the names
            of its files, such as resnet50-11ad3fa6.pth.
    """
    models = import_torchvision().models
    published = []
    if fit.architecture in models.list_models(module=models):
        published = list(models.get_model_weights(fit.architecture))
    source = ""
    chosen = None
    for weights in published:
        if digest.startswith(_hash_in(weights.url)):
            chosen, source = weights, f"torchvision evaluates exactly these weights ({weights})"
    if chosen is None and published:
        fitting = (one for one in published if one.transforms().crop_size == [fit.crop])
        chosen = next(fitting, published[0])
        source = f"torchvision evaluates {chosen}"
    if chosen is None:
        return plain(f"torchvision evaluates most models; none is published for {fit.architecture}")
    recipe = chosen.transforms()
    (resize,), (crop,) = recipe.resize_size, recipe.crop_size
    if fit.crop not in (None, crop):
        resize = crop = fit.crop
        source += f", at the {crop} pixels that its positions are for"
    mean, std = _three(recipe.mean), _three(recipe.std)
    notes = []
    if fit.architecture in _HALVED:
        mean = std = HALF
        notes.append(
            f"mean and std are 0.5: {fit.architecture}'s published weights want -1…1, which"
            " torchvision brings about inside the module (transform_input). Trained from scratch"
            " with ImageNet's statistics? Then: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
        )
    preprocess = Preprocess(
        resize=resize, crop=crop, interpolation=recipe.interpolation.value, mean=mean, std=std
    )
    return Recipe(preprocess=preprocess, source=source, notes=tuple(notes))


def for_timm(architecture: str) -> Recipe:
    """Return what timm says about the default weights of an architecture, as its own config.

    Raises:
        Unclear: it has no such weights, or they are for pictures that are not square.
    """
    name = architecture.removeprefix(TIMM)
    timm = import_timm()
    data = importlib.import_module("timm.data")
    config = timm_config(architecture)
    found: dict[str, Any] = data.resolve_data_config(
        {}, pretrained_cfg=config.to_dict() if config else None
    )
    crop = found["input_size"][-1]
    notes = []
    mode = found.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        notes.append(f'timm would crop by "{mode}"; swipr takes the centre of the short side')
    resize = int(crop / found["crop_pct"])  # as timm.data.transforms_factory has it
    interpolation = found["interpolation"]
    if interpolation == "random":
        interpolation = "bilinear"
    return Recipe(
        preprocess=Preprocess(
            resize=resize,
            edge="both" if mode == "squash" else "short",
            crop=crop,
            interpolation=interpolation,
            mean=_three(found["mean"]),
            std=_three(found["std"]),
        ),
        source=f"timm {timm.__version__} has it for {name}",
        notes=tuple(notes),
    )


def _hash_in(url: str) -> str:
    found = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return found[1] if found else "none"


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(one) for one in values)
    return red, green, blue
