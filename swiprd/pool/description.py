"""What `model` answers: the model that serves."""

from __future__ import annotations

from typing import Any

from swiprd.folder.spec import ModelSpec


def describe_model(spec: ModelSpec, described: dict[str, Any]) -> dict[str, object]:
    """The model that serves, from its folder and from what the forkserver says of it."""
    preprocess = spec.preprocess
    return {
        "name": spec.name,
        "model": described["model"],
        "architecture": spec.architecture,
        "labels": described["labels"],
        "thresholds": spec.thresholds,
        "activation": spec.activation,
        "input": {
            "resize": preprocess.resize,
            "edge": preprocess.edge,
            "crop": preprocess.crop,
            "crops": preprocess.crop_count,
            "exact": not preprocess.draft,
        },
        "device": described["device"],
        "folder": str(spec.folder),
        "versions": described["versions"],
    }
