"""Hugging Face folders, made by the tests: as transformers writes them, and as optimum does.

The networks are tiny, and told to answer differently from photo to photo. What needs transformers
imports it when it is called.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from onnxfiles import CLASSES, EDGE, make_model
from PIL import Image

from swiprd.inference.torchvision_import import import_torchvision

PHOTOS = sorted((Path(__file__).parent / "photos").glob("*.jpg"))

CONFIG: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "id2label": {"0": "wren", "1": "crow", "2": "owl", "3": "swift"},
    "transformers_version": "4.44.0",
}
"""What optimum leaves beside `onnx_network`."""

PROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": EDGE, "width": EDGE},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def import_transformers() -> Any:
    """Import transformers, offline and quiet."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    import_torchvision()
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def optimum_folder(folder: Path, place: str = "model.onnx") -> Path:
    """Make a folder with an ONNX network, without transformers."""
    (folder / place).parent.mkdir(parents=True)
    (folder / place).write_bytes(make_model(classes=CLASSES).SerializeToString())
    write(folder)
    return folder


def write(folder: Path, config: Any = None, processor: Any = None) -> None:
    """Write both descriptions, with what is given changed; None leaves a key out."""
    for name, plain, changed in (
        ("config.json", CONFIG, config),
        ("preprocessor_config.json", PROCESSOR, processor),
    ):
        values = {**plain, **(changed or {})}
        held = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(held), encoding="utf-8")


def _vit(t: Any, **more: Any) -> tuple[Any, Any]:
    config = t.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, **more,
    )  # fmt: skip
    size = {"height": 32, "width": 32}
    return t.ViTForImageClassification(config), t.ViTImageProcessor(size=size)


def _multi_label(t: Any, **more: Any) -> tuple[Any, Any]:
    return _vit(t, problem_type="multi_label_classification", **more)


def _resnet(t: Any, **more: Any) -> tuple[Any, Any]:
    config = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **more
    )
    return t.ResNetForImageClassification(config), _convnexts(t)


def _convnext(t: Any, **more: Any) -> tuple[Any, Any]:
    config = t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **more)
    return t.ConvNextForImageClassification(config), _convnexts(t)


def _convnexts(t: Any) -> Any:
    return t.ConvNextImageProcessor(size={"shortest_edge": 63}, crop_pct=0.9)


def _swin(t: Any, **more: Any) -> tuple[Any, Any]:
    config = t.SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, **more
    )
    processor = t.ViTImageProcessor(size={"height": 64, "width": 64}, resample=3)
    return t.SwinForImageClassification(config), processor


def _deit(t: Any, **more: Any) -> tuple[Any, Any]:
    config = t.DeiTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, **more,
    )  # fmt: skip
    processor = t.DeiTImageProcessor(
        size={"height": 37, "width": 37}, crop_size={"height": 32, "width": 32}
    )
    return t.DeiTForImageClassificationWithTeacher(config), processor


def _mobilevit(t: Any, **more: Any) -> tuple[Any, Any]:
    """The one whose pictures are blue, green and red."""
    processor = t.MobileViTImageProcessor(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}
    )
    config = t.MobileViTConfig(image_size=64, **more)
    return t.MobileViTForImageClassification(config), processor


FAMILIES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "vit": _vit,
    "multi-label": _multi_label,
    "resnet": _resnet,
    "convnext": _convnext,
    "swin": _swin,
    "deit": _deit,
    "mobilevit": _mobilevit,
}


def saved_folder(folder: Path, family: str, **saving: Any) -> Path:
    """Have transformers write a folder of a tiny network with random weights.

    Args:
        saving: for `save_pretrained`, such as the size of shards.
    """
    transformers = import_transformers()
    torch.manual_seed(3)
    names = ["wren", "crow", "owl", "swift"]
    network, processor = FAMILIES[family](
        transformers,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    network.eval()
    with torch.inference_mode():
        _stir(network)
        heads = [  # a distilled network has two
            one
            for one in network.modules()
            if isinstance(one, torch.nn.Linear) and one.out_features == len(names)
        ]
        for head in heads:
            head.bias.zero_()
        photos = [Image.open(one).convert("RGB") for one in PHOTOS]
        found = network(**processor(images=photos, return_tensors="pt")).logits
        larger = 1.0 / float(found.std(dim=0).mean())
        for head in heads:
            head.weight.mul_(larger)
            head.bias.sub_(found.mean(dim=0) * larger)
    network.save_pretrained(folder, **saving)
    processor.save_pretrained(folder)
    return folder


def _stir(network: torch.nn.Module) -> None:
    """Give weights that untrained networks begin with a size that pictures get through."""
    for one in network.modules():
        if isinstance(one, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(one.weight)


def pipeline_rows(folder: Path, **how: Any) -> list[list[float]]:
    """What transformers' own pipeline answers to the photos, in the order of the outputs.

    Args:
        how: for the image processor, such as its backend.
    """
    transformers = import_transformers()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **how)
    ask = transformers.pipeline(
        "image-classification", model=str(folder), image_processor=processor, device="cpu"
    )
    order = ask.model.config.id2label
    rows = []
    for photo in PHOTOS:
        scores = {one["label"]: one["score"] for one in ask(str(photo), top_k=len(order))}
        rows.append([scores[order[number]] for number in range(len(order))])
    return rows
