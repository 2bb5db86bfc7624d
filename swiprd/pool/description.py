"""What `model` answers: the model that serves."""

from __future__ import annotations

from typing import Any

from swiprd.folder.spec import Bundle


def describe_model(bundle: Bundle, described: dict[str, Any]) -> dict[str, object]:
    """The model that serves, from its folder and from what the forkserver says of it."""
    preprocess = bundle.preprocess
    return {
        "name": bundle.name,
        "model": described["model"],
        "architecture": bundle.architecture,
        "labels": described["labels"],
        "thresholds": bundle.thresholds,
        "activation": bundle.activation,
        "input": {
            "resize": preprocess.resize,
            "edge": preprocess.edge,
            "crop": preprocess.crop,
            "crops": preprocess.crop_count,
            "exact": not preprocess.draft,
        },
        "device": described["device"],
        "folder": str(bundle.folder),
        "versions": described["versions"],
    }
