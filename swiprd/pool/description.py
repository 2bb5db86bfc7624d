"""What `model` answers: the model that serves."""

from __future__ import annotations

from collections.abc import Sequence

from swiprd.folder.spec import ModelSpec
from swiprd.system.messages import Loaded


def describe_model(spec: ModelSpec, loaded: Loaded, formats: Sequence[str]) -> dict[str, object]:
    """The model that serves, from its folder and from what the forkserver says of it.

    Args:
        formats: of images, that the settings allow.
    """
    preprocess = spec.preprocess
    return {
        "name": spec.name,
        "model": loaded.model,
        "architecture": spec.architecture,
        "labels": loaded.labels,
        "thresholds": spec.thresholds,
        "activation": spec.activation,
        "input": {
            "resize": preprocess.resize,
            "edge": preprocess.edge,
            "crop": preprocess.crop,
            "crops": preprocess.crop_count,
            "exact": not preprocess.draft,
        },
        "formats": [name for name in formats if name in loaded.formats],
        "device": loaded.device,
        "engine": loaded.engine,
        "engine_note": loaded.engine_note,
        "difference": loaded.difference,
        "folder": str(spec.folder),
        "versions": loaded.versions,
    }
