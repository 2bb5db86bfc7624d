"""What a loaded model is to those who ask it: crops in, probabilities out, whatever computes them.

Imports no torch, and no other library that runs models: whoever needs only this stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from swiprd.folder.spec import ModelSpec

if TYPE_CHECKING:
    pass


class Engine(Protocol):
    """A model that is ready to answer."""

    @property
    def name(self) -> Literal["torch", "onnx"]:
        """Which library computes."""

    @property
    def spec(self) -> ModelSpec:
        """What its folder says."""

    @property
    def labels(self) -> tuple[str, ...]:
        """One for each output, in their order."""

    @property
    def model_id(self) -> str:
        """The name and a digest of what decides the answers; see `model_id.identify`."""

    @property
    def versions(self) -> dict[str, str]:
        """Of everything that has a say in the last digits of an answer."""

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda"."""

    @property
    def difference(self) -> float | None:
        """The largest by which a probability differed from torch's in the proof; None: torch's."""

    def set_threads(self, threads: int) -> None:
        """Compute with so many threads from now on."""

    def to_device(self, device: str) -> Engine:
        """Return it on "cpu" or "cuda". Only in a worker: CUDA does not survive a fork."""

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Answer a batch: float32 [images, crops, 3, h, w] → float32 [images, labels]."""
