"""worker.py with an engine of a few lines of numpy: it takes no torch to serve."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from imagefiles import encoded, picture

from swiprctl.protocol import Decoder, Reply, encode
from swiprd.folder.spec import ModelSpec, Preprocess
from swiprd.inference import decode
from swiprd.inference.engine import Engine
from swiprd.inference.worker import serve
from swiprd.system.messages import Limits, Order, Row

pytestmark = pytest.mark.timeout(60)

LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20, max_decode=30.0)


@dataclass(kw_only=True)
class Means:
    """The mean of each channel of all crops."""

    spec: ModelSpec
    labels: tuple[str, ...] = ("red", "green", "blue")
    model_id: str = "means@0"
    versions: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    name: Literal["torch", "onnx"] = "onnx"
    threads: list[int] = field(default_factory=list)
    """Those of each batch."""

    def set_threads(self, threads: int) -> None:
        self.threads.append(threads)

    def to_device(self, device: str) -> Engine:
        self.device = device
        return self

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        assert crops.dtype == np.float32
        return crops.mean(axis=(1, 3, 4), dtype=np.float32)


def means(**recipe: object) -> Means:
    preprocess = Preprocess(**{"resize": 64, "crop": 48, **recipe})  # type: ignore[arg-type]
    spec = ModelSpec(
        folder=Path("/nowhere"),
        name="means",
        architecture="means",
        weights=Path("/nowhere/weights"),
        labels=("red", "green", "blue"),
        activation="none",
        preprocess=preprocess,
    )
    return Means(spec=spec)


def served(engine: Means, batches: Sequence[Sequence[bytes]], folder: Path) -> Iterator[Reply]:
    """Have a worker answer batches of images' files, on as many threads as a batch has images."""
    front, worker = socket.socketpair()
    with front, worker:
        for images in batches:
            for number, data in enumerate(images):
                file = folder / "image"
                file.write_bytes(data)
                descriptor = os.open(file, os.O_RDONLY)
                file.unlink()
                order = Order(id=number, size=len(images), threads=len(images), limits=LIMITS)
                socket.send_fds(front, [encode(order.fields())], [descriptor])
                os.close(descriptor)
        front.shutdown(socket.SHUT_WR)
        serve(worker, engine, "cpu")
        worker.shutdown(socket.SHUT_WR)
        decoder = Decoder()
        while data := front.recv(1 << 16):
            decoder.feed(data)
            for frame in decoder.frames():
                yield Reply.parse(frame.fields)


def test_what_an_engine_answers_is_what_the_front_gets(tmp_path: Path) -> None:
    files = [encoded(picture(90, 70, seed=seed), "JPEG") for seed in range(3)]
    engine = means(crops="five")
    replies = list(served(engine, [files, files[:1]], tmp_path))
    expected = [
        decode.decode(data, engine.spec.preprocess).mean(axis=(0, 2, 3), dtype=np.float32)
        for data in (*files, files[0])
    ]
    assert [one.id for one in replies] == [0, 1, 2, 0]
    for reply, row in zip(replies, expected, strict=True):
        assert np.allclose(Row.parse(reply.fields).probabilities, row, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 0.01  # else any crops would have done
    assert engine.threads == [3, 1]


def test_what_is_no_image_is_answered_and_the_rest_served(tmp_path: Path) -> None:
    files = [b"none", encoded(picture(90, 70), "JPEG")]
    bad, good = served(means(), [files], tmp_path)
    assert (bad.id, good.id) == (0, 1)
    assert str(bad.error).startswith("not a JPEG")
    assert good.error is None


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
from test_worker import means, served
folder = Path(sys.argv[1])
(reply,) = served(means(), [[(folder / "photo.jpg").read_bytes()]], folder)
heavy = {"torch", "torchvision", "timm", "onnxruntime"}
print(json.dumps({
    "row": reply.fields["probabilities"],
    "heavy": sorted(heavy & {name.partition(".")[0] for name in sys.modules}),
}))
"""


@pytest.mark.parametrize("interpolation", ["bilinear", "area", "grid_sample"])
def test_a_worker_needs_no_torch(tmp_path: Path, interpolation: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(picture(180, 140), "JPEG"))
    script = WITHOUT_TORCH.replace("means()", f"means(interpolation={interpolation!r}, draft=True)")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert len(found["row"]) == 3
