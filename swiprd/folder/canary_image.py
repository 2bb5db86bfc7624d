"""Which picture a model must answer: its folder's own, or the photograph that is shipped."""

from __future__ import annotations

from pathlib import Path

from swiprd.folder.canary import CANARY_LIMITS, Canary
from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import read

_SHIPPED = Path(__file__).parents[1] / "models" / "focus" / "canary.jpg"


def canary_of(spec: ModelSpec, classes: int = 0) -> Canary:
    """Read the picture, and the row to expect where the folder names one.

    Args:
        classes: how many labels the model has; 0 while it is not loaded.

    Raises:
        SpecError: the picture cannot be read, or is larger than a worker takes.
    """
    own = spec.canary
    image = own.image if own is not None else _SHIPPED
    return Canary(
        image=read(image, CANARY_LIMITS.max_bytes),
        expected=own.probabilities if own is not None else None,
        activation=spec.activation,
        classes=classes,
    )
