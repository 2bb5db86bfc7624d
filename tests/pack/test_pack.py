"""swiprd pack: checkpoints as people have them become folders that give the original's numbers."""

from __future__ import annotations

import csv
import hashlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import (
    TOLERANCE,
    area_crop,
    classifier,
    old_state,
    sampled_crop,
    save_legacy,
    spread,
    square_crop,
)
from conftest import StartDaemon
from imagefiles import encoded, picture
from PIL import Image
from torch import nn

from swiprd.__main__ import main
from swiprd.folder.spec import load_spec
from swiprd.inference import decode
from swiprd.inference.model import load_model
from swiprd.inference.torchvision_import import import_torchvision
from swiprd.pack.errors import CannotOpen, CannotWrite, Interrupted
from swiprd.pack.labels import given
from swiprd.pack.writer import making

pytestmark = pytest.mark.timeout(60)

torchvision = import_torchvision()
torch.set_num_threads(1)  # two on a busy host wait for each other
# 640 by 427 pixels: neither edge is a multiple of what it is resized to, and the centre of what
# comes out lies between two pixels.
ROCKET = (Path(__file__).parent.parent / "photos" / "rocket.jpg").read_bytes()
JPEG = encoded(picture(320, 240), "JPEG", quality=92)


@pytest.fixture(autouse=True)
def _no_weights_left_behind(tmp_path: Path) -> Iterator[None]:
    """pytest keeps three runs' folders, and these would be gigabytes."""
    yield
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.stat().st_size > 1 << 20:
            file.unlink()


class Pack:
    """Runs `swiprd pack` in this process, without a compiled form; keeps what it said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def run(self, checkpoint: Path, *options: str) -> int:
        self._capsys.readouterr()
        # What a compiled form takes longer, test_pack_compiled.py is for.
        status = main(["pack", str(checkpoint), "--engine", "torch", *options])
        self.out, self.err = self._capsys.readouterr()
        return status

    def made(self, checkpoint: Path, *options: str) -> dict[str, Any]:
        """Pack into `folder`; return what model.toml says."""
        status = self.run(checkpoint, "-o", str(self.folder), *options)
        assert status == 0, self.err
        assert self.err == ""
        return tomllib.loads((self.folder / "model.toml").read_text())

    def refused(self, status: int, checkpoint: Path, *options: str) -> str:
        """Pack in vain; return the complaint."""
        assert self.run(checkpoint, "-o", str(self.folder), *options) == status, self.err
        assert not self.folder.exists()
        assert not [one for one in self.folder.parent.iterdir() if one.name.startswith(".")]
        assert self.err.startswith("swiprd pack: ")
        assert "Traceback" not in self.err
        return self.err.removeprefix("swiprd pack: ").strip()

    def answer(self, image: bytes) -> torch.Tensor:
        """Answer as a worker does: [labels]."""
        loaded = load_model(load_spec(self.folder))
        crops = decode.decode(image, loaded.spec.preprocess)
        return torch.from_numpy(loaded.probabilities(crops[None]))[0]


@pytest.fixture
def pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pack:
    return Pack(tmp_path / "packed", capsys)


def same(row: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.allclose(row, expected, rtol=0, atol=TOLERANCE), f"{row} is not {expected}"


def recipe(
    image: bytes, resize: int = 256, crop: int = 224, mode: str = "BILINEAR", **statistics: Any
) -> torch.Tensor:
    """The evaluation recipe that everybody writes with torchvision: [1, 3, crop, crop]."""
    from io import BytesIO

    from torchvision import transforms

    mean = statistics.get("mean", [0.485, 0.456, 0.406])
    std = statistics.get("std", [0.229, 0.224, 0.225])
    how = transforms.InterpolationMode[mode]
    steps = [transforms.Resize(resize, interpolation=how), transforms.CenterCrop(crop)]
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    with Image.open(BytesIO(image)) as opened:
        tensor: torch.Tensor = transforms.Compose(steps)(opened.convert("RGB"))
    return tensor[None]


def softmax(module: nn.Module, crops: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        row: torch.Tensor = module(crops)[0].softmax(dim=0)
    return row


BODIES = {
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x4d",
    "resnext101_64": "resnext101_64x4d",
    **{f"vgg{depth}": f"vgg{depth}_bn" for depth in (16, 19)},
    **{f"dn{depth}": f"densenet{depth}" for depth in (121, 161, 169, 201)},
}


class TestFastai07:
    """Item 1: `learn.save()` of a ConvLearner."""

    @pytest.mark.parametrize("name", BODIES)
    def test_the_learners_own_numbers(self, pack: Pack, tmp_path: Path, name: str) -> None:
        size, image = 64, ROCKET
        crops = area_crop(image, size)
        learner = checkpoints.learner_0_7(name)
        spread(learner, crops, learner[-2])
        file = save_legacy(old_state(learner), tmp_path / "dogscats.h5")
        described = pack.made(file, "--labels", "cat,dog", "--crop", str(size))
        assert described["architecture"] == BODIES[name]
        assert (described["head"], described["match"]) == ("fastai", "order")
        assert described["activation"] == "log_softmax"
        with torch.no_grad():
            same(pack.answer(image), learner(crops)[0].exp())

    def test_the_row_that_swiprctl_prints(
        self, pack: Pack, tmp_path: Path, start_daemon: StartDaemon
    ) -> None:
        image = ROCKET
        crops = area_crop(image, 224)
        learner = checkpoints.learner_0_7("resnet34", seed=7)
        spread(learner, crops, learner[-2])
        names = list(old_state(learner))
        assert names[:2] == ["0.weight", "1.weight"]
        assert names[-2:] == ["16.weight", "16.bias"]
        file = save_legacy(old_state(learner), tmp_path / "dogscats.h5")
        described = pack.made(file, "--labels", "cat,dog")
        assert described["preprocess"] == {
            "resize": 224,
            "crop": 224,
            "crops": "center",
            "middle": "up",
            "interpolation": "area",
            "exif": "ignore",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        }
        (tmp_path / "photo.jpg").write_bytes(image)
        daemon = start_daemon(model=pack.folder).wait_ready()
        printed = subprocess.run(
            [
                *(sys.executable, "-m", "swiprctl", "--socket", str(daemon.path), "predict"),
                *("--header", str(tmp_path / "photo.jpg")),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        header, row = csv.reader(printed.splitlines())
        assert header == ["cat", "dog"]
        with torch.no_grad():
            expected = learner(crops)[0].exp()
        same(torch.tensor([float(one) for one in row]), expected)
        assert 0.05 < expected[0] < 0.95  # else any weights would have done

    def test_several_labels_a_picture(self, pack: Pack, tmp_path: Path) -> None:
        image = ROCKET
        learner = checkpoints.learner_0_7("resnet18", 3, multi=True)
        spread(learner, area_crop(image, 64), learner[-2])
        file = save_legacy(old_state(learner), tmp_path / "planet.h5")
        described = pack.made(file, "--labels", "clear,haze,water", "--multi-label", "--crop", "64")
        assert described["activation"] == "sigmoid"
        with torch.no_grad():
            same(pack.answer(image), learner(area_crop(image, 64))[0])

    def test_a_tensor_that_is_not_as_it_should_be_is_named(
        self, pack: Pack, tmp_path: Path
    ) -> None:
        state = old_state(checkpoints.learner_0_7("resnet18"))
        state["6.0.conv2.weight"] = torch.zeros(256, 128, 3, 3)
        file = save_legacy(state, tmp_path / "bad.h5")
        said = pack.refused(65, file, "--architecture", "resnet18", "--labels", "cat,dog")
        assert "6.0.conv2.weight: expected float32 of shape [256, 256, 3, 3]" in said
        assert "found float32 of shape [256, 128, 3, 3]" in said
        said = pack.refused(64, file)
        assert "no classifier of torchvision has exactly these" in said
        assert "nearest" not in said

    def test_another_architecture_than_it_is(self, pack: Pack, tmp_path: Path) -> None:
        file = save_legacy(old_state(checkpoints.learner_0_7("resnet18")), tmp_path / "x.h5")
        said = pack.refused(65, file, "--architecture", "resnet34", "--labels", "cat,dog")
        assert "not the weights of resnet34: 4.2.conv1.weight" not in said.partition("4.2.")[0]
        assert said.endswith("these are the tensors of resnet18")

    def test_saved_while_precompute_was_on(self, pack: Pack, tmp_path: Path) -> None:
        head = nn.Sequential(*checkpoints.fastai_head(512, 2)[2:])
        file = save_legacy(old_state(head), tmp_path / "x.h5")
        said = pack.refused(65, file, "--architecture", "resnet18")
        assert "precompute" in said


class TestFastai1And2:
    """Item 2."""

    @pytest.mark.parametrize("wrapped", [True, False], ids=["with-optimizer", "bare"])
    @pytest.mark.parametrize("bias", [True, False], ids=["fastai1", "fastai2"])
    def test_the_learners_own_numbers(
        self, pack: Pack, tmp_path: Path, bias: bool, wrapped: bool
    ) -> None:
        name = "densenet121" if wrapped else "resnet18"
        learner = checkpoints.learner_2(name, bias=bias)
        crops = sampled_crop(ROCKET, 224) if bias else square_crop(ROCKET, 224)
        spread(learner, crops, learner[-1][-1])
        state = learner.state_dict()
        assert ("1.8.bias" in state) == bias
        optimizer = {"state": [{"mom": torch.zeros(3)}], "hypers": [{"lr": 0.1}]}
        content = {"model": state, "opt": optimizer} if wrapped else state
        torch.save(content, tmp_path / "stage-1.pth")
        described = pack.made(tmp_path / "stage-1.pth", "--labels", "ant,bee,cow")
        assert (described["architecture"], described["head"]) == (name, "fastai")
        assert described.get("match", "name") == "name"
        assert described["activation"] == "softmax"
        same(pack.answer(ROCKET), softmax(learner, crops))

    # Of 230 rows that are to become 224, fastai 2's floating point takes 229.
    @pytest.mark.parametrize("size", [(640, 480), (333, 500), (431, 230), (230, 230), (90, 61)])
    @pytest.mark.parametrize("crop", [224, 299])
    def test_pictures_as_fastai_2_validates_on_them(
        self, pack: Pack, tmp_path: Path, size: tuple[int, int], crop: int
    ) -> None:
        learner = checkpoints.learner_2("resnet18")
        image = encoded(picture(*size), "PNG")
        crops = square_crop(image, crop)
        spread(learner, crops, learner[-1][-1])
        torch.save(learner.state_dict(), tmp_path / "stage-1.pth")
        options = ("--labels", "ant,bee,cow", "--crop", str(crop))
        chosen = pack.made(tmp_path / "stage-1.pth", *options)["preprocess"]
        assert (chosen["resize"], chosen["edge"], chosen["crop"]) == (crop, "square", crop)
        assert "note" not in pack.out
        assert f"square of the short edge, resize {crop}" in pack.out
        same(pack.answer(image), softmax(learner, crops))

    @pytest.mark.parametrize(("bias", "version"), [(True, 1), (False, 2)])
    def test_a_norm_at_the_end_says_nothing_of_the_version(
        self, pack: Pack, tmp_path: Path, bias: bool, version: int
    ) -> None:
        learner = checkpoints.learner_2("resnet18", bias=bias, normed=True)
        torch.save(learner.state_dict(), tmp_path / "stage-1.pth")
        chosen = pack.made(tmp_path / "stage-1.pth", "--labels", "ant,bee,cow")["preprocess"]
        assert f"(as fastai {version} validates" in pack.out
        assert chosen["middle"] == ("up" if bias else "down")
        assert chosen.get("edge", "short") == ("short" if bias else "square")

    # Landscape, portrait, square; less and more than twice as large; smaller; odd numbers.
    @pytest.mark.parametrize(
        "size", [(640, 480), (333, 500), (512, 512), (1501, 1023), (449, 1001), (90, 61)]
    )
    @pytest.mark.parametrize("crop", [224, 299])
    def test_pictures_as_fastai_1_validates_on_them(
        self, pack: Pack, tmp_path: Path, size: tuple[int, int], crop: int
    ) -> None:
        learner = checkpoints.learner_2("resnet18", bias=True)
        image = encoded(picture(*size), "PNG")
        crops = sampled_crop(image, crop)
        spread(learner, crops, learner[-1][-1])
        torch.save(learner.state_dict(), tmp_path / "stage-1.pth")
        options = ("--labels", "ant,bee,cow", "--crop", str(crop))
        chosen = pack.made(tmp_path / "stage-1.pth", *options)["preprocess"]
        assert (chosen["resize"], chosen["crop"], chosen["middle"]) == (crop, crop, "up")
        assert "note" not in pack.out
        assert chosen["interpolation"] == "grid_sample"
        same(pack.answer(image), softmax(learner, crops))

    def test_resize_as_told_is_of_the_square(self, pack: Pack, tmp_path: Path) -> None:
        torch.save(checkpoints.learner_2("resnet18").state_dict(), tmp_path / "c.pth")
        options = ("--labels", "a,b,c", "--resize", "256", "--crop", "224")
        chosen = pack.made(tmp_path / "c.pth", *options)["preprocess"]
        assert (chosen["resize"], chosen["edge"], chosen["crop"]) == (256, "square", 224)
        options = ("--labels", "a,b,c", "--edge", "short", "--force")
        assert "edge" not in pack.made(tmp_path / "c.pth", *options)["preprocess"]


class TestTorchvision:
    """Item 3."""

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: state,
            lambda state: {"state_dict": prefixed(state, "module."), "epoch": 9},
            lambda state: {"model": prefixed(state, "_orig_mod."), "optimizer": {"state": {}}},
            lambda state: {"model": {"state_dict": prefixed(state, "model.")}},
            lambda state: {
                "state_dict": prefixed(state, "model._orig_mod.module.")
                | {"criterion.weight": torch.ones(3)}
            },
            lambda state: {"net": {**prefixed(state, "module."), "n_averaged": torch.tensor(5)}},
        ],
        ids=["bare", "module", "compiled", "nested", "lightning", "averaged"],
    )
    def test_however_it_is_wrapped(self, pack: Pack, tmp_path: Path, wrap: Any) -> None:
        module = classifier("resnet18", 3)
        crops = recipe(JPEG)
        spread(module, crops, module.fc)
        torch.save(wrap(module.state_dict()), tmp_path / "best.pth.tar")
        described = pack.made(tmp_path / "best.pth.tar", "--labels", "a,b,c")
        assert described["architecture"] == "resnet18"
        same(pack.answer(JPEG), softmax(module, crops))
        assert ("left out" in pack.out) == ("criterion" in str(wrap({})))

    def test_the_average_is_preferred_and_said(self, pack: Pack, tmp_path: Path) -> None:
        last, average = classifier("shufflenet_v2_x0_5", 3, seed=1), None
        average = classifier("shufflenet_v2_x0_5", 3, seed=2)
        crops = recipe(JPEG)
        for module in (last, average):
            spread(module, crops, module.fc)
        file = tmp_path / "c.pth"
        torch.save({"model": last.state_dict(), "model_ema": average.state_dict()}, file)
        pack.made(file, "--labels", "a,b,c")
        assert "EMA" in pack.out
        same(pack.answer(JPEG), softmax(average, crops))
        pack.made(file, "--labels", "a,b,c", "--key", "model", "--force")
        same(pack.answer(JPEG), softmax(last, crops))
        assert "model, model_ema" in pack_again(pack, file, "--key", "net")

    def test_an_average_that_lacks_what_is_no_parameter(self, pack: Pack, tmp_path: Path) -> None:
        module, file = classifier("resnet18", 3), tmp_path / "c.pth"
        average = {name: one.detach() for name, one in module.named_parameters()}
        torch.save({"state_dict": module.state_dict(), "ema": average}, file)
        hint = 'these lie under "ema", and --key takes others: state_dict'
        assert hint in pack.refused(64, file, "--labels", "a,b,c")
        said = pack.refused(65, file, "--labels", "a,b,c", "--architecture", "resnet18")
        assert hint in said
        pack.made(file, "--labels", "a,b,c", "--key", "state_dict")

    def test_an_average_of_step_counts(self, pack: Pack, tmp_path: Path) -> None:
        module, file = classifier("resnet18", 3), tmp_path / "c.pth"
        crops = recipe(JPEG)
        spread(module, crops, module.fc)
        average = {name: one * 1.0 for name, one in module.state_dict().items()}
        assert average["bn1.num_batches_tracked"].is_floating_point()
        torch.save({"model": module.state_dict(), "ema": average}, file)
        pack.made(file, "--labels", "a,b,c")
        same(pack.answer(JPEG), softmax(module, crops))

    def test_two_networks_in_one_state_dict(self, pack: Pack, tmp_path: Path) -> None:
        query, key = (classifier("shufflenet_v2_x0_5", 3, seed=seed) for seed in (1, 2))
        crops = recipe(JPEG)
        for module in (query, key):
            spread(module, crops, module.fc)
        both = nn.ModuleDict({"encoder_q": query, "encoder_k": key})
        file = tmp_path / "moco.pth"
        torch.save({"state_dict": nn.ModuleDict({"module": both}).state_dict()}, file)
        for asked in ([], ["--architecture", "shufflenet_v2_x0_5"]):
            said = pack.refused(64, file, "--labels", "a,b,c", *asked)
            assert "choose with --key: encoder_k, encoder_q" in said
        pack.made(file, "--labels", "a,b,c", "--key", "encoder_k")
        assert 'under "state_dict.encoder_k"' in pack.out
        same(pack.answer(JPEG), softmax(key, crops))

    def test_half_precision(self, pack: Pack, tmp_path: Path) -> None:
        module = classifier("resnet18", 3).half().float()
        crops = recipe(JPEG)
        spread(module, crops, module.fc)
        module = module.half()
        torch.save(module.state_dict(), tmp_path / "half.pth")
        pack.made(tmp_path / "half.pth", "--labels", "a,b,c")
        assert "tensors become float32: 102 of float16" in pack.out
        stored = torch.load(pack.folder / "weights.pth", weights_only=True, mmap=True)
        assert {one.dtype for one in stored.values()} == {torch.float32, torch.int64}
        same(pack.answer(JPEG), softmax(module.float(), crops))

    def test_a_last_layer_in_a_sequential(self, pack: Pack, tmp_path: Path) -> None:
        module = classifier("resnet18", 3)
        module.fc = nn.Sequential(nn.Dropout(0.2), module.fc)
        crops = recipe(JPEG)
        spread(module.eval(), crops, module.fc[1])
        torch.save(module.state_dict(), tmp_path / "c.pth")
        pack.made(tmp_path / "c.pth", "--labels", "a,b,c")
        assert "the last layer is fc.1" in pack.out
        assert "before it or after, is not in the file" in pack.out
        same(pack.answer(JPEG), softmax(module, crops))

    def test_a_last_layer_of_several_parts(self, pack: Pack, tmp_path: Path) -> None:
        module = classifier("resnet18", 3)
        module.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 3))
        torch.save(module.state_dict(), tmp_path / "c.pth")
        said = pack.refused(65, tmp_path / "c.pth", "--architecture", "resnet18")
        assert "fc.0, fc.2" in said
        assert "torch.jit.trace" in said

    @pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
    def test_what_torchvision_transforms_inside(
        self, pack: Pack, tmp_path: Path, name: str
    ) -> None:
        # Published weights run with transform_input, and have their auxiliary heads.
        module = classifier(name, 5, aux_logits=True, transform_input=True)
        resize, crop = {"inception_v3": (342, 299), "googlenet": (256, 224)}[name]
        crops = recipe(JPEG, resize, crop)
        spread(module, crops, module.fc)
        torch.save(module.state_dict(), tmp_path / "c.pth")
        described = pack.made(tmp_path / "c.pth", "--labels", "a,b,c,d,e")
        assert described["preprocess"]["mean"] == described["preprocess"]["std"] == [0.5] * 3
        assert "transform_input" in pack.out
        same(pack.answer(JPEG), softmax(module, crops))

    def test_a_vision_transformer_for_other_pictures(self, pack: Pack, tmp_path: Path) -> None:
        options = {"patch_size": 32, "num_layers": 12, "num_heads": 12, "hidden_dim": 768}
        module = sown_transformer(image_size=96, mlp_dim=3072, num_classes=2, **options)
        crops = recipe(JPEG, 96, 96)
        spread(module, crops, module.heads)
        torch.save(module.state_dict(), tmp_path / "c.pth")
        described = pack.made(tmp_path / "c.pth", "--labels", "a,b")
        assert described["architecture"] == "vit_b_32"
        assert described["preprocess"]["crop"] == 96
        same(pack.answer(JPEG), softmax(module, crops))
        said = pack_again(pack, tmp_path / "c.pth", "--labels", "a,b", "--crop", "224")
        assert "96" in said

    def test_labels_beside_the_weights(self, pack: Pack, tmp_path: Path) -> None:
        module = classifier("shufflenet_v2_x0_5", 3)
        content = {"state_dict": module.state_dict(), "class_to_idx": {"b": 1, "c": 2, "a": 0}}
        torch.save(content, tmp_path / "c.pth")
        pack.made(tmp_path / "c.pth")
        assert (pack.folder / "labels.txt").read_text() == "a\nb\nc\n"
        assert '"class_to_idx" in the checkpoint' in pack.out


# These five take 16 GB of memory and minutes each: with SWIPR_EVERY_ARCHITECTURE=1 only.
LARGEST = {"convnext_large", "regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32"}
CLASSIFIERS = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if name not in LARGEST or os.environ.get("SWIPR_EVERY_ARCHITECTURE")
]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_packs_loads_and_answers(pack: Pack, tmp_path: Path, name: str) -> None:
    """Item 3: with the architecture left out, and its own recipe."""
    module = classifier(name, 3, seed=5)
    size = getattr(module, "image_size", None)  # of transformers, whose positions are for one
    every = (one.transforms() for one in torchvision.models.get_model_weights(name))
    weights = next(one for one in every if size in (None, *one.crop_size))
    (resize,), (crop,) = weights.resize_size, weights.crop_size
    mode = weights.interpolation.name
    half = {"mean": [0.5] * 3, "std": [0.5] * 3} if name in ("inception_v3", "googlenet") else {}
    crops = recipe(JPEG, resize, crop, mode, **({"mean": weights.mean, "std": weights.std} | half))
    last = [one for one in module.modules() if isinstance(one, nn.Linear | nn.Conv2d)][-1]
    if name.startswith(("inception", "googlenet")):
        last = module.fc
    spread(module, crops, last)
    torch.save(module.state_dict(), tmp_path / "c.pth")
    described = pack.made(tmp_path / "c.pth", "--labels", "a,b,c")
    assert described["architecture"] == name
    same(pack.answer(JPEG), softmax(module, crops))


def test_every_classifier_is_told_by_its_tensors() -> None:
    """Item 3, for all of them: by names and shapes alone, whose weights need no memory."""
    from swiprd.inference.architectures import build, classifiers
    from swiprd.pack.detect import guess

    for name in classifiers():
        state = build(name, classes=7, state={}).state_dict()
        (fit,) = guess(dict(state))
        assert (fit.architecture, fit.classes) == (name, 7)


class CheXNet(nn.Module):
    """As its weights were saved from: DenseNet-121 in a module of that name, Linear and Sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.densenet121 = classifier("densenet121", 14)
        self.densenet121.classifier = nn.Sequential(nn.Linear(1024, 14), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.densenet121(x)
        return answer


class TestCheXNet:
    """Item 4."""

    @pytest.mark.parametrize("crops", ["ten", "center"])
    def test_its_own_numbers(self, pack: Pack, tmp_path: Path, crops: str) -> None:
        from torchvision import transforms

        module = checkpoints.sow(CheXNet(), 3)
        cut = transforms.TenCrop(224) if crops == "ten" else transforms.CenterCrop(224)
        normal = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        scan = picture(300, 280).convert("RGB")
        cropped = cut(transforms.Resize(256)(scan))
        every = cropped if isinstance(cropped, tuple) else [cropped]
        batch = torch.stack([normal(transforms.ToTensor()(one)) for one in every])
        spread(module, batch, module.densenet121.classifier[0])
        state = {f"module.{name}": one for name, one in old_state(module).items()}
        assert "module.densenet121.classifier.0.weight" in state
        assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in state
        content = {"arch": "DENSE-NET-121", "state_dict": state, "best_loss": 0.1, "epoch": 9}
        file = save_legacy(content, tmp_path / "model.pth.tar")
        options = [] if crops == "ten" else ["--crops", "center"]
        described = pack.made(file, *options)
        assert described["preprocess"]["crops"] == crops
        assert (pack.folder / "labels.txt").read_text().splitlines()[6] == "Pneumonia"
        with torch.no_grad():
            same(pack.answer(encoded(picture(300, 280), "PNG")), module(batch).mean(dim=0))


class TestImageNet:
    """Item 5, as far as packing goes."""

    def test_the_labels_are_known(self, pack: Pack, tmp_path: Path) -> None:
        module = classifier("resnet50", 1000)
        crops = recipe(JPEG)
        spread(module, crops, module.fc, most=8)
        torch.save(module.state_dict(), tmp_path / "resnet50.pth")
        described = pack.made(tmp_path / "resnet50.pth")
        assert described["labels"] == "imagenet"
        assert described["architecture"] == "resnet50"
        same(pack.answer(JPEG), softmax(module, crops))

    def test_published_weights_are_known_by_their_hash(self) -> None:
        from swiprd.pack.detect import Fit
        from swiprd.pack.preprocessing import for_torchvision

        fit = Fit(architecture="resnet50", head="default", match="name", classes=1000, tensors={})
        # The file of IMAGENET1K_V2 is resnet50-11ad3fa6.pth, after the beginning of its SHA-256.
        assert for_torchvision(fit, "11ad3fa6" + 56 * "0").preprocess.resize == 232
        assert for_torchvision(fit, "0676ba61" + 56 * "0").preprocess.resize == 256
        assert for_torchvision(fit, 64 * "0").preprocess.resize == 256


class TestPrograms:
    """Item 6, as far as packing goes."""

    @pytest.fixture
    def module(self) -> nn.Module:
        module = classifier("shufflenet_v2_x0_5", 3, seed=8)
        spread(module, recipe(JPEG), module.fc)
        return module

    @pytest.fixture(params=["torchscript", "export"])
    def program(
        self, request: pytest.FixtureRequest, module: nn.Module, tmp_path: Path
    ) -> tuple[Path, str]:
        if request.param == "torchscript":
            torch.jit.trace(module, recipe(JPEG)).save(tmp_path / "model.pt")
            return tmp_path / "model.pt", "torchscript"
        torch.export.save(torch.export.export(module, (recipe(JPEG),)), tmp_path / "model.pt2")
        return tmp_path / "model.pt2", "export"

    def test_it_is_run_only_if_trusted(
        self, pack: Pack, module: nn.Module, program: tuple[Path, str]
    ) -> None:
        file, kind = program
        said = pack.refused(64, file, "--labels", "a,b,c")
        assert "carries code" in said
        assert said.endswith(f"--architecture {kind}")
        described = pack.made(file, "--labels", "a,b,c", "--architecture", kind)
        assert described["architecture"] == kind
        assert described["activation"] == "softmax"
        assert "IT CARRIES CODE" in pack.out
        assert stat.S_IMODE(pack.folder.stat().st_mode) == 0o755
        same(pack.answer(JPEG), softmax(module, recipe(JPEG)))

    def test_what_comes_out_is_looked_at(
        self, pack: Pack, module: nn.Module, tmp_path: Path
    ) -> None:
        with_softmax = nn.Sequential(module, nn.Softmax(dim=1))
        torch.jit.trace(with_softmax, recipe(JPEG)).save(tmp_path / "model.pt")
        said = pack.refused(64, tmp_path / "model.pt", "--architecture", "torchscript")
        assert "the 3 outputs" in said
        described = pack.made(
            tmp_path / "model.pt", "--architecture", "torchscript", "--labels", "a,b,c"
        )
        assert described["activation"] == "none"
        same(pack.answer(JPEG), softmax(module, recipe(JPEG)))

    def test_one_that_takes_other_pictures(self, pack: Pack, tmp_path: Path) -> None:
        module = classifier("shufflenet_v2_x0_5", 3)
        exported = torch.export.export(module, (torch.zeros(1, 3, 96, 96),))
        torch.export.save(exported, tmp_path / "model.pt2")
        options = ("--architecture", "export", "--labels", "a,b,c")
        said = pack.refused(65, tmp_path / "model.pt2", *options)
        assert said.startswith("--crop: expected 96")
        pack.made(tmp_path / "model.pt2", *options, "--crop", "96")

    def test_one_that_refuses_pictures(self, pack: Pack, tmp_path: Path) -> None:
        """What asserts raise in a script is no RuntimeError."""

        class Choosy(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                assert x.shape[0] > 100, "too few"
                return x.mean(dim=(2, 3))

        torch.jit.script(Choosy()).save(tmp_path / "model.pt")
        options = ("--architecture", "torchscript", "--labels", "a,b,c")
        said = pack.refused(65, tmp_path / "model.pt", *options)
        assert said.endswith("model.pt: fails on pictures: RuntimeError: AssertionError: too few")

    def test_one_for_few_pictures(self, pack: Pack, tmp_path: Path) -> None:
        """An export's guards are assertions; what they refuse is given in smaller parts."""
        module = classifier("shufflenet_v2_x0_5", 3, seed=8)
        shapes = ({0: torch.export.Dim("pictures", min=1, max=2)},)
        exported = torch.export.export(
            module, (torch.zeros(2, 3, 224, 224),), dynamic_shapes=shapes
        )
        torch.export.save(exported, tmp_path / "model.pt2")
        pack.made(tmp_path / "model.pt2", "--architecture", "export", "--labels", "a,b,c")


@pytest.mark.long
class TestTimm:
    """Item 9."""

    @pytest.mark.parametrize(
        "name",
        [
            *("convnext_atto", "resnet10t", "deit_tiny_patch16_224"),
            # For pictures of one size that is not 224.
            *("vit_tiny_patch16_384", "botnet26t_256", "maxvit_nano_rw_256"),
        ],
    )
    def test_its_own_numbers(self, pack: Pack, tmp_path: Path, name: str) -> None:
        timm = pytest.importorskip("timm")
        from timm.data import create_transform, resolve_model_data_config

        module = checkpoints.sow(timm.create_model(name, num_classes=3), 6)
        transform = create_transform(**resolve_model_data_config(module), is_training=False)
        crops = transform(picture(320, 240).convert("RGB"))[None]
        spread(module, crops, module.get_classifier())
        torch.save({"arch": name, "state_dict": module.state_dict()}, tmp_path / "c.pth.tar")
        said = pack.refused(64, tmp_path / "c.pth.tar", "--labels", "a,b,c")
        assert f"--architecture timm:{name}" in said
        options = ("--labels", "a,b,c", "--architecture", f"timm:{name}")
        described = pack.made(tmp_path / "c.pth.tar", *options)
        assert described["architecture"] == f"timm:{name}"
        same(pack.answer(encoded(picture(320, 240), "PNG")), softmax(module, crops))

    def test_another_size_than_the_published_one(self, pack: Pack, tmp_path: Path) -> None:
        timm = pytest.importorskip("timm")
        name = "deit_tiny_patch16_224"
        module = checkpoints.sow(timm.create_model(name, num_classes=3, img_size=96), 6)
        torch.save(module.state_dict(), tmp_path / "c.pth")
        options = ("--labels", "a,b,c", "--architecture", f"timm:{name}")
        said = pack.refused(65, tmp_path / "c.pth", *options)
        assert "pos_embed: expected float32 of shape [1, 197, 192]" in said
        assert "found float32 of shape [1, 37, 192]" in said
        assert said.endswith("; it was built for pictures of 224 pixels: --crop says another size")
        described = pack.made(tmp_path / "c.pth", *options, "--crop", "96")
        assert described["preprocess"]["crop"] == 96

    @pytest.mark.parametrize(
        ("name", "size"), [("xcit_nano_12_p16_224", "65"), ("gcvit_xxtiny", "8")]
    )
    def test_a_size_that_it_does_not_take(
        self, pack: Pack, tmp_path: Path, name: str, size: str
    ) -> None:
        pytest.importorskip("timm")
        torch.save({"a.weight": torch.zeros(3, 3)}, tmp_path / "c.pth")
        options = ("--architecture", f"timm:{name}", "--crop", size)
        said = pack.refused(64, tmp_path / "c.pth", *options)
        assert said.startswith(f"--crop: expected a size that timm:{name} takes, found {size}")

    def test_weights_that_timm_does_not_know(self, pack: Pack, tmp_path: Path) -> None:
        pytest.importorskip("timm")
        torch.save({"a.weight": torch.zeros(3, 3)}, tmp_path / "c.pth")
        options = ("--architecture", "timm:convnext_atto.nosuch")
        said = pack.refused(64, tmp_path / "c.pth", *options)
        assert said.startswith('--architecture: timm knows no weights "nosuch" of convnext_atto')
        assert "convnext_atto.d2_in1k" in said

    def test_pictures_that_are_not_square(self, pack: Pack, tmp_path: Path) -> None:
        pytest.importorskip("timm")
        torch.save({"a.weight": torch.zeros(3, 3)}, tmp_path / "c.pth")
        options = ("--labels", "a,b,c", "--architecture", "timm:vit_base_patch16_sapiens2")
        said = pack.refused(64, tmp_path / "c.pth", *options)
        assert "1024x768" in said
        assert "square" in said


def test_safetensors(pack: Pack, tmp_path: Path) -> None:
    """Item 8."""
    library = pytest.importorskip("safetensors.torch")
    module = classifier("resnet18", 3)
    crops = recipe(JPEG)
    spread(module, crops, module.fc)
    library.save_file(module.state_dict(), tmp_path / "model.safetensors")
    pack.made(tmp_path / "model.safetensors", "--labels", "a,b,c")
    same(pack.answer(JPEG), softmax(module, crops))


class TestFolder:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        torch.save(classifier("shufflenet_v2_x0_5", 2).state_dict(), tmp_path / "c.pth")
        return tmp_path / "c.pth"

    def test_it_is_described_and_closed_to_others(self, pack: Pack, checkpoint: Path) -> None:
        old = os.umask(0o077)
        try:
            described = pack.made(checkpoint, "--labels", "a,b")
        finally:
            os.umask(old)
        assert described["name"] == "packed"
        modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in pack.folder.iterdir()}
        assert modes == dict.fromkeys(("labels.txt", "model.toml", "weights.pth"), 0o644)
        assert stat.S_IMODE(pack.folder.stat().st_mode) == 0o755
        digest = hashlib.sha256((pack.folder / "weights.pth").read_bytes()).hexdigest()
        assert described["sha256"] == digest
        for command in ("swiprd check ", f"swiprctl --model {pack.folder} predict ", "systemctl "):
            assert command in pack.out

    def test_what_is_there_is_kept(self, pack: Pack, checkpoint: Path) -> None:
        pack.made(checkpoint, "--labels", "a,b")
        assert pack.run(checkpoint, "-o", str(pack.folder), "--labels", "c,d") == 73
        assert "--force" in pack.err
        assert (pack.folder / "labels.txt").read_text() == "a\nb\n"
        pack.made(checkpoint, "--labels", "c,d", "--force")
        assert (pack.folder / "labels.txt").read_text() == "c\nd\n"

    def test_what_is_no_model_is_never_replaced(
        self, pack: Pack, checkpoint: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("precious")
        options = ("-o", str(tmp_path / "home"), "--labels", "a,b", "--force")
        assert pack.run(checkpoint, *options) == 73
        assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"

    def test_a_place_that_is_not_there(self, pack: Pack, checkpoint: Path, tmp_path: Path) -> None:
        assert pack.run(checkpoint, "-o", str(tmp_path / "no" / "m"), "--labels", "a,b") == 73
        assert "make it first" in pack.err

    def test_what_only_a_person_knows_is_asked_for_at_once(
        self, pack: Pack, checkpoint: Path
    ) -> None:
        assert pack.run(checkpoint) == 64
        labels, output = pack.err.splitlines()
        assert "the 2 outputs" in labels
        assert "--labels A,B" in labels
        assert "-o FOLDER" in output
        assert "shufflenet_v2_x0_5" in pack.out

    @pytest.mark.parametrize(
        ("status", "options", "words"),
        [
            (64, ["--labels", "a,b,c"], "3 labels (--labels), where the weights have 2 outputs"),
            (64, ["--labels", "a,,b"], "--labels: label 2: a label is missing"),
            (64, ["--labels", "a,a"], '--labels: label 2: "a" a second time'),
            (64, ["--labels", "a,b", "--labels-file", "x"], "give one of them"),
            (66, ["--labels-file", "/nosuch"], "/nosuch: No such file"),
            (64, ["--labels", "a,b", "--name", "../x"], "--name"),
            (64, ["--labels", "a,b", "--key", "model"], 'no weights under "model"'),
            (
                64,
                ["--labels", "a,b", "--architecture", "resnet19"],
                "these are the tensors of shuff",
            ),
            (64, ["--labels", "a,b", "--architecture", "zzz"], "is no architecture 'zzz': these"),
            (65, ["--labels", "a,b", "--architecture", "resnet18"], "of shufflenet_v2_x0_5"),
            (64, ["--labels", "a,b", "--architecture", "torchscript"], "not a program"),
            (
                64,
                ["--labels", "a,b", "--multi-label", "--activation", "softmax"],
                "give one of them",
            ),
            (
                64,
                ["--labels", "a,b", "--crop", "4096"],
                "--crop 4096: pictures would in",
            ),
            (70, ["--labels", "a,b", "--crop", "1", "--mean", "1e38", "--std", "1e-38"], "number"),
        ],
    )
    def test_what_is_told_wrong(
        self, pack: Pack, checkpoint: Path, status: int, options: list[str], words: str
    ) -> None:
        assert words in pack.refused(status, checkpoint, *options)

    def test_a_crop_that_is_padding_for_the_most_part(self, pack: Pack, checkpoint: Path) -> None:
        pack.made(checkpoint, "--labels", "a,b", "--resize", "10")
        said = "pictures are resized to 10 pixels and the crop has 224: most of it is padding"
        assert said in pack.out
        pack.made(checkpoint, "--labels", "a,b", "--resize", "224", "--force")
        assert "is padding" not in pack.out

    def test_a_file_in_the_place_of_labels(
        self, pack: Pack, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "classes.txt").write_text("a\nb\n")
        said = pack.refused(64, checkpoint, "--labels", "classes.txt")
        assert "classes.txt is a file: --labels-file classes.txt reads" in said

    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("conv5.1.running_var", "[1024] (shufflenet_v2_x0_5, 2 classes), found nothing"),
            ("fc.weight", "[1, 1024] (shufflenet_v2_x0_5, 1 classes), found nothing"),
        ],
    )
    def test_a_checkpoint_that_lacks_a_tensor(
        self, pack: Pack, checkpoint: Path, tmp_path: Path, name: str, near: str
    ) -> None:
        state = torch.load(checkpoint, weights_only=True)
        del state[name]
        torch.save(state, tmp_path / "lacks.pth")
        said = pack.refused(64, tmp_path / "lacks.pth", "--labels", "a,b")
        assert f"shufflenet_v2_x0_5 comes nearest: {name}: expected float32 of shape {near}" in said

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b"a\n\nb\n", "line 2: a label is missing: blank"),
            (b"a\na\n", 'line 2: "a" a second time'),
            (b"a\nb\x1b[2J\n", "line 2:"),
            (b"a\n\xff\n", "byte 2 is not UTF-8"),
            (b"a\n" * 600_000, "more than"),
        ],
    )
    def test_a_file_of_labels_with_a_fault(
        self, pack: Pack, checkpoint: Path, tmp_path: Path, text: bytes, words: str
    ) -> None:
        file = tmp_path / "labels.txt"
        file.write_bytes(text)
        said = pack.refused(65, checkpoint, "--labels-file", str(file))
        assert said.startswith(str(file))
        assert words in said

    def test_labels_from_a_pipe(self, pack: Pack, checkpoint: Path, tmp_path: Path) -> None:
        """As the shell's <(…) gives one; for one that nobody writes to, nobody waits."""
        reader, writer = os.pipe()
        try:
            os.write(writer, b"cat\ndog\n")
            os.close(writer)
            pack.made(checkpoint, "--labels-file", f"/dev/fd/{reader}")
        finally:
            os.close(reader)
        assert (pack.folder / "labels.txt").read_text() == "cat\ndog\n"
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CannotOpen, match="a pipe that nobody writes to"):
            given(None, tmp_path / "pipe")

    def test_what_the_command_line_says_of_the_preprocessing_wins(
        self, pack: Pack, checkpoint: Path
    ) -> None:
        options = "--resize 96 --crop 64 --crops five --interpolation bicubic --exif apply"
        statistics = ("--mean", "0.5", "--std", "0.1,0.2,0.3", "--activation", "sigmoid")
        described = pack.made(checkpoint, "--labels", "a,b", *options.split(), *statistics)
        assert described["preprocess"] == {
            "resize": 96,
            "crop": 64,
            "crops": "five",
            "interpolation": "bicubic",
            "exif": "apply",
            "mean": [0.5] * 3,
            "std": [0.1, 0.2, 0.3],
        }
        assert described["activation"] == "sigmoid"
        described = pack.made(checkpoint, "--labels", "a,b", "--crop", "112", "--force")
        assert described["preprocess"]["resize"] == 128  # in proportion
        # torchvision's Resize((112, 112)), and fastai's squish
        squashed = ("--labels", "a,b", "--crop", "112", "--edge", "both", "--force")
        described = pack.made(checkpoint, *squashed)
        chosen = {key: described["preprocess"][key] for key in ("resize", "edge", "crop")}
        assert chosen == {"resize": 112, "edge": "both", "crop": 112}
        squared = ("--labels", "a,b", "--crop", "112", "--edge", "square", "--force")
        described = pack.made(checkpoint, *squared)
        chosen = {key: described["preprocess"][key] for key in ("resize", "edge", "crop")}
        assert chosen == {"resize": 112, "edge": "square", "crop": 112}

    def test_whoever_stops_reading_gets_the_folder_all_the_same(
        self, checkpoint: Path, tmp_path: Path
    ) -> None:
        packing = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "swiprd", "pack", str(checkpoint)),
                *("--labels", "a,b", "--engine", "torch", "-o", str(tmp_path / "m")),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert packing.stdout is not None
        packing.stdout.close()
        assert packing.stderr is not None
        with packing.stderr as stderr:
            assert stderr.read() == b""
        assert packing.wait(50) == 0
        assert (tmp_path / "m" / "model.toml").is_file()

    def test_nothing_is_left_where_the_disk_is_full(self, pack: Pack, checkpoint: Path) -> None:
        # The limit counts for the copy in memory as well; of half the precision, that fits.
        state = torch.load(checkpoint, weights_only=True)
        halves = {n: one.half() if one.is_floating_point() else one for n, one in state.items()}
        torch.save(halves, checkpoint)
        size = checkpoint.stat().st_size
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))  # Python ignores SIGXFSZ
        try:
            said = pack.refused(74, checkpoint, "--labels", "a,b")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert said == f"{pack.folder}: File too large"
        assert [one.name for one in checkpoint.parent.iterdir()] == ["c.pth"]

    def test_a_path_that_torch_cannot_open(self, checkpoint: Path, pack: Pack) -> None:
        above = Path(os.fsdecode(os.fsencode(checkpoint.parent) + b"/d\xff"))
        above.mkdir()
        pack.folder = above / "packed"
        said = pack.refused(73, checkpoint, "--labels", "a,b")
        assert said.startswith(f"{checkpoint.parent}/d?/packed: has bytes in its path")

    def test_weights_that_are_no_numbers(self, pack: Pack, checkpoint: Path) -> None:
        state = torch.load(checkpoint)
        state["fc.weight"][1, 7] = torch.nan
        torch.save(state, checkpoint)
        said = pack.refused(70, checkpoint, "--labels", "a,b")
        assert said.startswith(f"{checkpoint}: the answer to a picture is not a number")
        assert 'such as "fc.weight"' in said
        assert said.endswith("Take a checkpoint from before that")

    def test_a_name_cannot_move_the_terminals_cursor(self, pack: Pack, checkpoint: Path) -> None:
        state = torch.load(checkpoint)
        state["evil\x1b]0;PWNED\x07\x1b[31m"] = torch.zeros(3)
        torch.save(state, checkpoint)
        options = ("--labels", "a,b", "--architecture", "shufflenet_v2_x0_5")
        said = pack.refused(65, checkpoint, *options)
        assert "evil?]0;PWNED??[31m" in said
        assert said.isprintable()

    @pytest.mark.parametrize("umask", [0o002, 0o000])
    def test_a_program_whatever_the_umask(self, pack: Pack, tmp_path: Path, umask: int) -> None:
        module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        torch.jit.trace(module, recipe(JPEG)).save(tmp_path / "model.pt")
        old = os.umask(umask)
        try:
            pack.made(tmp_path / "model.pt", "--labels", "a,b", "--architecture", "torchscript")
        finally:
            os.umask(old)
        for file in (pack.folder / "program.pt", pack.folder / "model.toml"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o644

    def test_nobody_else_reaches_it_before_it_is_proven(self, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            with making(tmp_path / "m", replace=False, note=print) as made:
                assert stat.S_IMODE(made.stat().st_mode) == 0o700
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o755

    def test_an_output_that_is_full(self, checkpoint: Path, tmp_path: Path) -> None:
        with open("/dev/full", "wb") as full:
            ended = pack_alone(checkpoint, tmp_path / "m", stdout=full)
        _, err = ended.communicate(timeout=50)
        assert ended.returncode == 74
        assert err == b"swiprd pack: standard output: No space left on device; nothing was made\n"
        assert [one.name for one in tmp_path.iterdir()] == ["c.pth"]

    def test_labels_that_the_locale_has_not(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
        monkeypatch.setenv("PYTHONUTF8", "1")
        ended = pack_alone(checkpoint, tmp_path / "m", labels="Žluť,b", stdout=subprocess.PIPE)
        out, err = ended.communicate(timeout=50)
        assert (ended.returncode, err) == (0, b"")
        assert b"\nlabels       \\u017dlu\\u0165, b (" in out
        assert (tmp_path / "m" / "labels.txt").read_text(encoding="utf-8") == "Žluť\nb\n"


class TestInterruption:
    """Half a folder is none, and is not left behind either."""

    def make_struck(self, folder: Path, number: signal.Signals) -> None:
        with making(folder, replace=False, note=print) as made:
            (made / "weights.pth").write_bytes(b"0")
            os.kill(os.getpid(), number)
            pytest.fail("nothing happened")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_while_it_is_made(self, tmp_path: Path, number: signal.Signals) -> None:
        before = signal.getsignal(number)
        with pytest.raises(Interrupted) as caught:
            self.make_struck(tmp_path / "m", number)
        assert caught.value.exit_status == 128 + number
        assert list(tmp_path.iterdir()) == []
        assert signal.getsignal(number) == before

    def test_what_nohup_ignores_is_ignored(self, tmp_path: Path) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with making(tmp_path / "m", replace=False, note=print):
                os.kill(os.getpid(), signal.SIGHUP)
        finally:
            signal.signal(signal.SIGHUP, before)
        assert (tmp_path / "m").is_dir()

    @pytest.mark.parametrize("place", ["making", "replacing", "cleaning up"])
    def test_one_at_a_bad_moment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        """It waits: for the folder to be there, to be in its place, or to be gone."""
        folder = tmp_path / "m"
        folder.mkdir()
        (folder / "model.toml").write_text("old")

        def struck(owner: Any, name: str) -> None:
            done = getattr(owner, name)

            def strike(*arguments: Any, **options: Any) -> Any:
                result = done(*arguments, **options)
                os.kill(os.getpid(), signal.SIGTERM)
                return result

            monkeypatch.setattr(owner, name, strike)

        if place == "making":
            struck(tempfile, "mkdtemp")
        elif place == "replacing":
            struck(Path, "rename")
        else:
            struck(shutil, "rmtree")
        ended, begun = "", False
        try:
            with making(folder, replace=True, note=print) as made:
                begun = True
                (made / "model.toml").write_text("new")
                if place == "cleaning up":
                    raise CannotWrite("full")
        except (CannotWrite, Interrupted) as error:
            ended = type(error).__name__
        # The first comes at once where there is nothing to lose; the others come too late.
        expected = {
            "making": ("Interrupted", False, "old"),
            "replacing": ("", True, "new"),
            "cleaning up": ("CannotWrite", True, "old"),
        }
        assert (ended, begun, (folder / "model.toml").read_text()) == expected[place]
        assert list(tmp_path.iterdir()) == [folder]

    def test_the_old_one_comes_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "m"
        folder.mkdir()
        (folder / "model.toml").write_text("old")
        rename = Path.rename

        def fails_second(path: Path, to: Path) -> Path:
            if path.name.startswith(".m-") and not path.name.endswith(".old"):
                raise MemoryError
            return rename(path, to)

        monkeypatch.setattr(Path, "rename", fails_second)
        with (
            pytest.raises(MemoryError),
            making(folder, replace=True, note=print) as made,
        ):
            (made / "model.toml").write_text("new")
        assert (folder / "model.toml").read_text() == "old"
        assert list(tmp_path.iterdir()) == [folder]

    def test_an_old_one_that_stays_is_no_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "m"
        folder.mkdir()
        (folder / "model.toml").write_text("old")
        rmtree, told = shutil.rmtree, list[str]()

        def refuses(path: Path, **options: Any) -> None:
            if path.name.endswith(".old"):
                if not options.get("ignore_errors"):
                    raise PermissionError(13, "Permission denied")
            else:
                rmtree(path, **options)

        monkeypatch.setattr(shutil, "rmtree", refuses)
        with making(folder, replace=True, note=told.append) as made:
            (made / "model.toml").write_text("new")
        assert (folder / "model.toml").read_text() == "new"
        (note,) = told
        assert note.startswith(f"{folder} is made; what was there before could not be removed")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_command_says_so_in_a_line(self, tmp_path: Path, number: signal.Signals) -> None:
        torch.save(classifier("shufflenet_v2_x0_5", 2).state_dict(), tmp_path / "c.pth")
        reading, writing = os.pipe()
        packing = pack_alone(tmp_path / "c.pth", tmp_path / "m", code=_SLOW, ready=writing)
        os.close(writing)
        with open(reading, "rb") as ready:
            assert ready.read(1) == b"1"
        packing.send_signal(number)
        _, err = packing.communicate(timeout=50)
        assert packing.returncode == 128 + number
        assert err == b"swiprd pack: interrupted; nothing was made\n"
        assert [one.name for one in tmp_path.iterdir()] == ["c.pth"]

    def test_before_it_is_made_ctrl_c_just_ends_it(self, tmp_path: Path) -> None:
        (tmp_path / "c.pth").write_bytes(b"")
        reading, writing = os.pipe()
        packing = pack_alone(tmp_path / "c.pth", tmp_path / "m", code=_EARLY, ready=writing)
        os.close(writing)
        with open(reading, "rb") as ready:
            assert ready.read(1) == b"1"
        packing.send_signal(signal.SIGINT)
        _, err = packing.communicate(timeout=50)
        assert (packing.returncode, err) == (-signal.SIGINT, b"")


# In place of the proof, and of the look at the file, a wait that says when it begins.
_WAIT = """
import os, signal, sys, time
from swiprd.__main__ import main
def wait(*_):
    os.write(int(sys.argv.pop()), b"1")
    time.sleep(40)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
_SLOW = f"{_WAIT}import swiprd.pack.from_torch as c; c.prove = wait; sys.exit(main(sys.argv[1:-1]))"
_EARLY = (
    f"{_WAIT}import swiprd.pack.formats as f; f.recognise = wait; sys.exit(main(sys.argv[1:-1]))"
)


def pack_alone(
    checkpoint: Path,
    folder: Path,
    *,
    labels: str = "a,b",
    code: str = "import sys; from swiprd.__main__ import main; sys.exit(main(sys.argv[1:]))",
    ready: int | None = None,
    stdout: Any = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start it in a process of its own."""
    options = ("--labels", labels, "--engine", "torch", "-o", str(folder))
    options = (*options, *([] if ready is None else [str(ready)]))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, "pack", str(checkpoint), *options],
        pass_fds=[] if ready is None else [ready],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def sown_transformer(**options: Any) -> nn.Module:
    module = torchvision.models.VisionTransformer(**options)
    return checkpoints.sow(module, 4)


def pack_again(pack: Pack, checkpoint: Path, *options: str) -> str:
    """Pack in vain where there is a folder already; return the complaint."""
    before = np.sort([one.name for one in pack.folder.iterdir()]).tolist()
    assert pack.run(checkpoint, "-o", str(pack.folder), "--force", *options) == 64, pack.err
    assert sorted(one.name for one in pack.folder.iterdir()) == before
    return pack.err
