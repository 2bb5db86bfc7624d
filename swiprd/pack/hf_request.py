"""What the process that exports a Hugging Face folder is asked, and what it answers. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from swiprd.folder.spec import Activation, Preprocess

NETWORK = "network.onnx"
"""The export, in the directory that was given."""

_ANSWERS = "answers.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
        architecture: transformers' class.
        labels: how many outputs there are names for.
        activation: what makes outputs probabilities.
        preprocess: how pictures are prepared.
        flipped: whether the network takes blue, green and red.
        backend: of the image processor that `preprocess` is to equal; "" where it is not to.
    """

    architecture: str
    labels: int
    activation: Activation
    preprocess: Preprocess
    flipped: bool
    backend: str

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Request:
        """Read what `to_json` wrote."""
        values = json.loads(data)
        plain = values.pop("preprocess")
        plain |= {key: tuple(plain[key]) for key in ("mean", "std")}
        return cls(preprocess=Preprocess(**plain), **values)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What transformers has answered.

    Attributes:
        rows: probabilities of the pictures of `proof.others`: [pictures, labels].
        versions: of torch and transformers.
    """

    rows: np.ndarray
    versions: dict[str, str]

    def write(self, out: Path) -> None:
        """Write it into `out`.

        Raises:
            OSError: it cannot be written.
        """
        values = {"rows": self.rows.tolist(), "versions": self.versions}
        (out / _ANSWERS).write_text(json.dumps(values), encoding="utf-8")

    @classmethod
    def read(cls, out: Path) -> Answers:
        """Read what the process has written into `out`."""
        values = json.loads((out / _ANSWERS).read_bytes())
        return cls(rows=np.array(values["rows"], np.float64), versions=values["versions"])
