"""What `swiprd check` asks: a model that answers a picture, by any engine. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from swiprd.folder.spec import ModelSpec

EX_SOFTWARE = 70
EX_CONFIG = 78


class CheckFailed(Exception):
    """The model is not fit to serve; `status` is what to exit with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A picture's row, and the seconds that it took."""

    row: tuple[float, ...]
    decode: float
    infer: float


class Examined(Protocol):
    """A model that is loaded.

    Attributes:
        engine: what would serve, as it is told.
        fault: what is wrong with a compiled form that is there and cannot serve.
        parameters: how many numbers the network has learnt.
        load_seconds: what loading took.
    """

    spec: ModelSpec
    labels: tuple[str, ...]
    model_id: str
    device: str
    threads: int
    engine: str
    fault: str
    parameters: int
    load_seconds: float

    def answer(self, data: bytes) -> Answer:
        """Answer one picture.

        Raises:
            BadImage, TooLarge: it is no picture, or too large a one.
            CheckFailed: the model cannot answer, or does not answer as it should.
        """
