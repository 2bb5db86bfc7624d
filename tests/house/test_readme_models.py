"""README, "Bring your own model": what it says to type is typed here, and answers as it says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import area_crop, old_state, save_legacy, spread
from imagefiles import encoded, picture

from swiprctl import Client
from swiprd.__main__ import main

pytestmark = [pytest.mark.timeout(60), pytest.mark.long]

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
CHAPTER = README.partition("\n## Bring your own model\n")[2].partition("\n## ")[0]
# Ids first: they may begin with digits.
NUMBER = re.compile(r"\b[0-9a-f]{12}\b|\d+(?:\.\d+)?(?:e-\d+)?")


def consoles() -> list[tuple[str, str]]:
    """The commands of the chapter's console blocks, each with what it is said to print."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", CHAPTER, flags=re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def told(text: str) -> str:
    """A text without its numbers, and without what a line of dots stands for."""
    return NUMBER.sub("N", text.partition("…\n")[0]).rstrip()


def dogscats(folder: Path) -> None:
    learner = checkpoints.learner_0_7("resnet34", seed=1)
    spread(learner, area_crop((folder / "photo.jpg").read_bytes(), 224), learner[-2])
    save_legacy(old_state(learner), folder / "dogscats.h5")


def stage(folder: Path) -> None:
    model = checkpoints.learner_2("resnet18").state_dict()
    torch.save({"model": model, "opt": {"hypers": []}}, folder / "stage-2.pth")


def best(folder: Path) -> None:
    state = checkpoints.classifier("resnet18", 3).state_dict()
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": state, "epoch": 90}, folder / "best.pth.tar")
    (folder / "classes.txt").write_text("finch\nrobin\nwren\n")


def imagenet(folder: Path) -> None:
    state = checkpoints.classifier("resnet50", 1000).state_dict()
    torch.save(state, folder / "resnet50-11ad3fa6.pth")


def chexnet(folder: Path) -> None:
    state = checkpoints.classifier("densenet121", 14).state_dict()
    state = {
        f"module.densenet121.{name}".replace("classifier.", "classifier.0."): tensor
        for name, tensor in state.items()
    }
    torch.save({"state_dict": state}, folder / "model.pth.tar")


def timm(folder: Path) -> None:
    library = pytest.importorskip("timm")
    module = checkpoints.sow(library.create_model("convnext_tiny", num_classes=3), 2)
    torch.save(module.state_dict(), folder / "flowers.pth")


def program(folder: Path) -> None:
    module = checkpoints.classifier("shufflenet_v2_x0_5", 3)
    torch.jit.trace(module, torch.rand(1, 3, 224, 224)).save(folder / "model.pt")


def onnx(folder: Path) -> None:
    pytest.importorskip("onnx")
    from onnxfiles import CLASSES, make_model

    (folder / "birds.onnx").write_bytes(make_model().SerializeToString())
    (folder / "birds.txt").write_text("".join(f"bird {number}\n" for number in range(CLASSES)))


def hub(folder: Path) -> None:
    pytest.importorskip("onnx")
    from hubfolders import optimum_folder

    optimum_folder(folder / "my-vit")


MAKERS: dict[str, Callable[[Path], None]] = {
    "dogscats.h5": dogscats,
    "stage-2.pth": stage,
    "best.pth.tar": best,
    "resnet50-11ad3fa6.pth": imagenet,
    "model.pth.tar": chexnet,
    "flowers.pth": timm,
    "birds.onnx": onnx,
    "./my-vit": hub,
    "model.pt": program,
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the reader sits: a photo at hand, and the two programs on the path."""
    place = tmp_path / "work"
    place.mkdir()
    (place / "photo.jpg").write_bytes(encoded(picture(640, 480), "JPEG"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("swiprd", "swiprctl"):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -P -m {name} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(place)
    yield place
    for file in place.rglob("*"):
        if file.is_file() and file.stat().st_size > 1 << 20:
            file.unlink()


@pytest.mark.timeout(150)  # three processes import torch, one after the other
def test_what_it_shows_is_what_comes(workplace: Path) -> None:
    shown = consoles()
    assert any("--model ./" in command for command, _ in shown)
    dogscats(workplace)
    try:
        for command, output in shown:
            ended = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, timeout=100
            )
            assert ended.returncode == 0, f"{command}: {ended.stderr}"
            assert told(output), command
            assert told(ended.stdout).startswith(told(output)), command
    finally:
        # It was started for the reader and would stay for five minutes.
        with Client(model="./pets", autostart=False) as client:
            os.kill(client.status()["pid"], signal.SIGTERM)


ROWS = re.findall(r"^\|[^|]*\| `(swiprd pack [^`]+)` \|$", CHAPTER, flags=re.M)


@pytest.mark.parametrize("command", ROWS)
def test_every_command_of_the_table(
    workplace: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    _, *arguments = shlex.split(command)
    MAKERS[arguments[1]](workplace)
    if not arguments[1].endswith((".onnx", "-vit")):
        # What is compiled is above: ten crops of CheXNet's, 17 times and in three sizes, take a
        # minute.
        arguments += ["--engine", "torch"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert (workplace / arguments[arguments.index("-o") + 1] / "model.toml").is_file()


def test_the_table_has_all_that_can_be_packed() -> None:
    assert {shlex.split(row)[2] for row in ROWS} == set(MAKERS)
