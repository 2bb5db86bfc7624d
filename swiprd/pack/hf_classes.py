"""The image processors of transformers that can be translated: what each does where a file says
nothing. Source: their classes in transformers 5, under models/*/image_processing_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from swiprd.folder.spec import IMAGENET_MEAN, IMAGENET_STD

Three = tuple[float, float, float]

_HALF = (0.5, 0.5, 0.5)

# What the published weights of CLIP were trained with.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

BILINEAR, BICUBIC = 2, 3
"""Pillow's numbers of the two."""


@dataclass(frozen=True, kw_only=True)
class ProcessorClass:
    """What a class of image processors does where the file says nothing.

    Attributes:
        size, short: pixels, of the short edge or of both.
        square: whether a bare number means both edges.
        crop: edge of the crop; None where the class does not crop unless told to.
    """

    size: int
    short: bool = False
    square: bool = True
    crop: int | None = None
    resample: int = BICUBIC
    mean: Three = _HALF
    std: Three = _HALF


_CLIP = ProcessorClass(size=224, short=True, square=False, crop=224, mean=_CLIP_MEAN, std=_CLIP_STD)
_LEVIT = ProcessorClass(
    size=224, short=True, square=False, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD
)
_MOBILENET = ProcessorClass(size=256, short=True, square=False, crop=224, resample=BILINEAR)

CLASSES = {
    "BeitImageProcessor": ProcessorClass(size=224),
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "ConvNextImageProcessor": ProcessorClass(size=384, short=True, square=False),
    "DeiTImageProcessor": ProcessorClass(size=256, crop=224),
    "EfficientNetImageProcessor": ProcessorClass(size=346),
    "LevitImageProcessor": _LEVIT,
    "MobileNetV1ImageProcessor": _MOBILENET,
    "MobileNetV2ImageProcessor": _MOBILENET,
    "MobileViTImageProcessor": ProcessorClass(size=224, short=True, square=False, crop=256),
    "PoolFormerImageProcessor": _LEVIT,
    "PvtImageProcessor": ProcessorClass(size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "SegformerImageProcessor": ProcessorClass(
        size=512, resample=BILINEAR, mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "SiglipImageProcessor": ProcessorClass(size=224, square=False),
    "ViTImageProcessor": ProcessorClass(size=224, resample=BILINEAR),
}

OF_TYPES = {
    **dict.fromkeys(("beit", "data2vec-vision"), "BeitImageProcessor"),
    **dict.fromkeys(("bit", "dinov2", "focalnet", "hiera"), "BitImageProcessor"),
    **dict.fromkeys(("clip", "metaclip_2"), "CLIPImageProcessor"),
    **dict.fromkeys(
        ("convnext", "convnextv2", "cvt", "regnet", "resnet"), "ConvNextImageProcessor"
    ),
    "deit": "DeiTImageProcessor",
    "efficientnet": "EfficientNetImageProcessor",
    "levit": "LevitImageProcessor",
    "mobilenet_v1": "MobileNetV1ImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    **dict.fromkeys(("mobilevit", "mobilevitv2"), "MobileViTImageProcessor"),
    "poolformer": "PoolFormerImageProcessor",
    **dict.fromkeys(("pvt", "pvt_v2"), "PvtImageProcessor"),
    "segformer": "SegformerImageProcessor",
    "siglip": "SiglipImageProcessor",
    **dict.fromkeys(
        ("dinat", "ijepa", "swiftformer", "swin", "swinv2", "vit", "vit_msn"), "ViTImageProcessor"
    ),
}
"""The class that transformers takes for a model_type, where the file names none."""
