"""Models that people bring, through a real daemon: the rows that swiprctl prints for them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import StartDaemon
from daemonprocess import DaemonProcess
from imagefiles import picture
from test_fastai_heads import FEATURES, lively, old_body, old_head
from torch import nn

from swiprd import trust
from swiprd.inference.torchvision_import import import_torchvision

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

import_torchvision()
torch.set_num_threads(1)
TOLERANCE = 1e-4
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def swiprctl(daemon: DaemonProcess, *arguments: str | Path) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SWIPR", "XDG_RUNTIME"))}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "swiprctl", *map(str, arguments)],
        capture_output=True,
        env=clean | {"SWIPR_SOCKET": str(daemon.path)},
        timeout=60,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def write(folder: Path, toml: str, labels: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    (folder / "model.toml").write_text(f'labels = "labels.txt"\n{toml}')
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


def area_matrix(old: int, new: int) -> np.ndarray:
    """How much of each old pixel a new one covers: [new, old]."""
    scale = old / new
    rows = []
    for n in range(new):
        edges = np.clip(np.arange(old + 1), n * scale, (n + 1) * scale)
        rows.append(np.diff(edges) / scale)
    return np.stack(rows)


def validated(pixels: np.ndarray, size: int) -> torch.Tensor:
    """What fastai 0.7 makes of a picture before it asks the network: [1, 3, size, size]."""
    height, width = pixels.shape[:2]
    ratio = size / min(height, width)
    new = max(math.floor(height * ratio), size), max(math.floor(width * ratio), size)
    scaled = np.einsum("yh,hwc->ywc", area_matrix(height, new[0]), pixels / 255)
    scaled = np.einsum("xw,ywc->yxc", area_matrix(width, new[1]), scaled)
    top, left = math.ceil((new[0] - size) / 2), math.ceil((new[1] - size) / 2)
    crop = (scaled[top : top + size, left : left + size] - MEAN) / STD
    return torch.tensor(crop.transpose(2, 0, 1), dtype=torch.float32).unsqueeze(0)


def test_a_learner_of_fastai_0_7_and_its_row(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """The model that swipr is named for: two classes, probabilities are exp of the output."""
    folder = tmp_path / "model"
    folder.mkdir()
    head = old_head(FEATURES["resnet34"], 2, nn.LogSoftmax(dim=1))
    pictures = [validated(np.asarray(picture(391, 300, seed=n)), 224) for n in (5, 6, 7)]
    learner = lively(nn.Sequential(*old_body("resnet34"), *head), torch.cat(pictures))
    torch.save(
        {k: v for k, v in learner.state_dict().items() if "num_batches" not in k},
        folder / "weights.pth",
    )
    write(
        folder,
        'name = "old"\narchitecture = "resnet34"\nhead = "fastai"\nmatch = "order"\n'
        'weights = "weights.pth"\nactivation = "log_softmax"\n[preprocess]\nresize = 224\n'
        'interpolation = "area"\nmiddle = "up"\n',
        ["blurred", "sharp"],
    )
    image = tmp_path / "x.png"
    pixels = picture(391, 300, seed=5)
    exif = pixels.getexif()
    exif[0x0112] = 6  # "lies on its side", which fastai 0.7 ignores
    pixels.save(image, exif=exif)
    with torch.no_grad():
        blurred, sharp = learner(pictures[0]).exp()[0].tolist()
    daemon = start_daemon(model=folder).wait_ready()
    row = [float(number) for number in swiprctl(daemon, "predict", image).split(",")]
    assert row == pytest.approx([blurred, sharp], abs=TOLERANCE)
    assert min(row) > 1e-3  # else any weights would have done
    best, probability, _, _ = swiprctl(daemon, "predict", "--labels", image).split(",")
    assert best == ("blurred" if blurred > sharp else "sharp")
    assert float(probability) == pytest.approx(max(blurred, sharp), abs=TOLERANCE)


class Findings(nn.Module):
    """Three findings at once; exported for one picture at a time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Conv2d(3, 8, 5, 4)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.body(x).relu().mean(dim=(2, 3)))
        return out


@pytest.mark.parametrize("kind", ["export", "torchscript"])
def test_a_program_with_ten_crops_and_thresholds(
    tmp_path: Path, start_daemon: StartDaemon, kind: str
) -> None:
    from torchvision import transforms

    folder = tmp_path / "model"
    folder.mkdir()
    module = Findings().eval()
    one = torch.zeros(1, 3, 64, 64)
    jit: Any = torch.jit
    if kind == "export":
        torch.export.save(torch.export.export(module, (one,)), folder / "program")
    else:
        jit.trace(module, one).save(str(folder / "program"))
    pixels = picture(100, 90, seed=2)
    pixels.save(tmp_path / "x.png")
    ten = transforms.TenCrop(64)(transforms.Resize(72)(pixels))
    normal = transforms.Normalize(MEAN.tolist(), STD.tolist())
    with torch.no_grad():
        batch = torch.stack([normal(transforms.ToTensor()(crop)) for crop in ten])
        expected = module(batch).sigmoid().mean(dim=0).tolist()
    names = ["Mass", "Nodule", "Hernia"]
    found = sorted(expected)[1:]
    thresholds = [0.0 if p in found else 1.0 for p in expected]
    write(
        folder,
        f'name = "findings"\narchitecture = "{kind}"\nweights = "program"\n'
        f'activation = "sigmoid"\nthresholds = {thresholds}\n[preprocess]\nresize = 72\n'
        'crop = 64\ncrops = "ten"\n',
        names,
    )
    assert trust.run(folder) == 0
    daemon = start_daemon(model=folder).wait_ready()
    row = [float(number) for number in swiprctl(daemon, "predict", tmp_path / "x.png").split(",")]
    assert row == pytest.approx(expected, abs=TOLERANCE)
    said = swiprctl(daemon, "predict", "--labels", "--with-model", tmp_path / "x.png").split(",")
    model, pairs = said[0], dict(zip(said[1::2], map(float, said[2::2]), strict=True))
    assert model.startswith("findings@")
    assert pairs == pytest.approx(
        {name: p for name, p in zip(names, expected, strict=True) if p in found}, abs=TOLERANCE
    )
    told = swiprctl(daemon, "model")
    assert "thresholds" in told
    assert model in told
