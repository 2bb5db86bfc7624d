"""Reading checkpoints: every format, whatever lies around the weights, and nothing that is run."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_legacy
from torch import nn

from swiprd.__main__ import main
from swiprd.pack import checkpoint, formats, naming, values
from swiprd.pack.errors import CannotOpen, NotWeights, PackError, Unclear

pytestmark = pytest.mark.timeout(60)

WEIGHT = torch.arange(6.0).reshape(2, 3)
STATE = {"fc.weight": WEIGHT, "fc.bias": torch.zeros(2)}


def read(file: Path) -> Any:
    return checkpoint.read(file, formats.recognise(file))


def refusal(file: Path) -> str:
    """What a file is refused with, by everything up to its values; it begins with its name."""
    with pytest.raises(NotWeights) as caught:
        read(file)
    said = str(caught.value)
    assert said.startswith(f"{file}: ")
    assert "\n" not in said
    return said.removeprefix(f"{file}: ")


class Writer:
    """What a hostile pickle looks like: loading it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


class TestFormats:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_state_dict(self, tmp_path: Path, legacy: bool) -> None:
        file = tmp_path / "weights.h5"
        torch.save(OrderedDict(STATE), file, _use_new_zipfile_serialization=not legacy)
        assert formats.recognise(file) == ("legacy" if legacy else "zip")
        assert torch.equal(read(file)["fc.weight"], WEIGHT)

    def test_safetensors(self, tmp_path: Path) -> None:
        library = pytest.importorskip("safetensors.torch")
        library.save_file(STATE, tmp_path / "x")
        assert formats.recognise(tmp_path / "x") == "safetensors"
        assert torch.equal(read(tmp_path / "x")["fc.weight"], WEIGHT)
        os.truncate(tmp_path / "x", 40)
        assert "not a whole safetensors file" in refusal(tmp_path / "x")

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "empty"),
            (b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5"),
            (b"\x1f\x8b\x08" + bytes(90), "gunzip"),
            (b"BZh9" + bytes(90), "bunzip2"),
            (b"\xfd7zXZ\0" + bytes(90), "unxz"),
            (b"(\xb5/\xfd" + bytes(90), "unzstd"),
            (b"\x08\x08\x12\x07pytorch" + bytes(90), "ONNX"),
            (b"\x08\x01\x12\x99\x01" + bytes(90), "TensorFlow"),
            (b"\x1c\0\0\0TFL3" + bytes(90), "TensorFlow Lite"),
            (b"GGUF\x03" + bytes(90), "language model"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
            (b"a" * 257 + b"ustar" + bytes(300), "tar archive"),
            (b"PK\x03\x04" + bytes(90), "truncated or damaged"),
            (pickle.dumps({"a": 1}), "a pickle, but none that torch.save() wrote"),
            (b"hello", "not a checkpoint"),
        ],
    )
    def test_something_else(self, tmp_path: Path, data: bytes, words: str) -> None:
        (tmp_path / "x.pth").write_bytes(data)
        assert words in refusal(tmp_path / "x.pth")

    @pytest.mark.parametrize(
        ("members", "words"),
        [
            (["config.json", "metadata.json", "model.weights.h5"], "a Keras model"),
            (["resnet50.pth"], "which holds resnet50.pth: unpack it first"),
            ([], "an empty one"),
        ],
    )
    def test_a_zip_archive_of_something_else(
        self, tmp_path: Path, members: list[str], words: str
    ) -> None:
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            for name in members:
                archive.writestr(name, b"x")
        assert words in refusal(tmp_path / "x")

    def test_one_that_was_zipped_again(self, tmp_path: Path) -> None:
        torch.save(STATE, tmp_path / "x")
        again = zipfile.ZipFile(tmp_path / "y", "w", zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(tmp_path / "x") as old, again as new:
            for one in old.namelist():
                new.writestr(one, old.read(one))
        assert "compressed" in refusal(tmp_path / "y")

    @pytest.mark.parametrize("legacy", [False, True])
    def test_one_that_is_cut_off(self, tmp_path: Path, legacy: bool) -> None:
        file = tmp_path / "x"
        torch.save({"a.weight": torch.zeros(9999)}, file, _use_new_zipfile_serialization=not legacy)
        os.truncate(file, file.stat().st_size // 2)
        assert "truncated or damaged" in refusal(file)

    def test_one_that_is_too_large(self, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        os.truncate(tmp_path / "x", formats.MAX_SIZE + 1)  # a hole: it takes no space
        assert "is the limit" in refusal(tmp_path / "x")

    def test_what_cannot_be_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "packed").mkdir()
        (tmp_path / "packed" / "model.toml").touch()
        (tmp_path / "tensorflow").mkdir()
        (tmp_path / "tensorflow" / "saved_model.pb").touch()
        for name, words in [
            ("nosuch", "No such file"),
            ("pipe", "not a regular file"),
            ("packed", "packed already"),
            ("tensorflow", "SavedModel"),
            (".", "name the checkpoint in it"),
            ("nul\0", "null byte"),
        ]:
            with pytest.raises(CannotOpen, match=words):
                formats.recognise(tmp_path / name)


class TestNothingIsRun:
    """Item 7."""

    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_whole_module_gets_a_recipe(self, tmp_path: Path, legacy: bool) -> None:
        torch.save(nn.Linear(2, 2), tmp_path / "x", _use_new_zipfile_serialization=not legacy)
        said = refusal(tmp_path / "x")
        assert "a whole module" in said
        assert said.endswith("torch.save(model.state_dict(), 'weights.pth')")

    @pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "nested"])
    def test_a_pickle_that_would_make_a_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
    ) -> None:
        mark, file = tmp_path / "made", tmp_path / "x.pth"
        content: Any = {**STATE, "extra": Writer(mark)}
        if how == "pickle":
            file.write_bytes(pickle.dumps(content))
        elif how == "legacy":
            save_legacy(content, file)
        else:
            torch.save({"model": content} if how == "nested" else content, file)
        status = main(["pack", str(file), "--labels", "a,b", "-o", str(tmp_path / "m")])
        assert status == 65
        said = capsys.readouterr().err
        assert ("system" in said) == (how != "pickle")
        assert not mark.exists()
        assert not (tmp_path / "m").exists()
        # Seen from the other side: this is what would have happened.
        with open(file, "rb") as opened:
            torch.load(opened, weights_only=False) if how != "pickle" else pickle.load(opened)
        assert mark.exists()

    @pytest.mark.parametrize("legacy", [False, True])
    def test_what_is_data_is_let_in(self, tmp_path: Path, legacy: bool) -> None:
        content = {
            "state_dict": STATE,
            "args": argparse.Namespace(lr=0.1, out=Path("/runs/7")),
            "best": np.float64(0.9),
            "epoch": np.int64(3),
            "optimizer": torch.optim.Adam([nn.Parameter(WEIGHT)]).state_dict(),
        }
        torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
        found = read(tmp_path / "x")
        assert found["args"].lr == 0.1
        assert str(found["args"].out) == "/runs/7"
        assert found["best"] == 0.9
        assert naming.find(found).key == "state_dict"

    def test_what_is_not_is_named(self, tmp_path: Path) -> None:
        torch.save({**STATE, "extra": random.Random(3)}, tmp_path / "x")
        assert "asks for random.Random" in refusal(tmp_path / "x")

    def test_damage_ends_in_a_complaint_and_nothing_else(self, tmp_path: Path) -> None:
        rng = random.Random(5)
        for legacy in (False, True):
            torch.save(STATE, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
            whole = (tmp_path / "x").read_bytes()
            for _ in range(150):
                broken = bytearray(whole)
                for _ in range(rng.choice([1, 4, 40])):
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
                (tmp_path / "y").write_bytes(broken[: rng.choice([len(broken), 400])])
                try:
                    content = read(tmp_path / "y")
                    values.convert(naming.normalise(naming.find(content).tensors))
                except PackError:
                    continue


class TestFinding:
    def test_averages_come_first_and_what_is_usual_next(self) -> None:
        other = {"fc.weight": torch.ones(2, 3)}
        for content, key in [
            (STATE, ""),
            ({"state_dict": STATE, "optimizer": {"state": {0: {"step": WEIGHT}}}}, "state_dict"),
            ({"model": STATE, "discriminator": other}, "model"),
            ({"model": STATE, "model_ema": other}, "model_ema"),
            ({"model": STATE, "ema": {"module": other, "updates": 3}}, "ema.module"),
            ({"whatever": STATE}, "whatever"),
            ({"a": {"b": {"state_dict": STATE}}}, "a.b.state_dict"),
        ]:
            assert naming.find(content).key == key

    def test_two_that_have_no_usual_name(self) -> None:
        with pytest.raises(Unclear, match="--key: generator, critic"):
            naming.find({"generator": STATE, "critic": STATE})
        assert naming.find({"generator": STATE, "critic": STATE}, "critic").key == "critic"

    @pytest.mark.parametrize("content", [3, [STATE], {"epoch": 3}, {}, {"lr": WEIGHT}])
    def test_no_weights_at_all(self, content: Any) -> None:
        with pytest.raises(NotWeights):
            naming.find(content)


class TestNames:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("module.conv1.weight", "conv1.weight"),
            ("_orig_mod.module.conv1.weight", "conv1.weight"),
            ("features.module.0.weight", "features.0.weight"),
            ("layer1._orig_mod.0.conv1.weight", "layer1.0.conv1.weight"),
            (
                "features.denseblock1.denselayer2.norm.1.running_mean",
                "features.denseblock1.denselayer2.norm1.running_mean",
            ),
            (
                "encoder.layers.encoder_layer_3.mlp.linear_2.bias",
                "encoder.layers.encoder_layer_3.mlp.3.bias",
            ),
            ("submodule.conv1.weight", "submodule.conv1.weight"),
        ],
    )
    def test_wrappers_and_old_names(self, old: str, new: str) -> None:
        assert list(naming.normalise({old: WEIGHT})) == [new]

    def test_two_that_would_be_one(self) -> None:
        with pytest.raises(NotWeights, match=r"module\.a\.weight"):
            naming.normalise({"a.weight": WEIGHT, "module.a.weight": WEIGHT})

    def test_the_prefix_that_fits_best(self) -> None:
        tensors = {f"{way}.{name}": WEIGHT for way in ("model", "ema") for name in ("a.w", "b.w")}
        stripped, prefix = naming.strip(tensors | {"loss.a.w": WEIGHT}, ["a.w", "b.w"])
        assert (list(stripped), prefix) == (["a.w", "b.w"], "ema.")
        assert naming.strip({"x.w": WEIGHT}, ["a.w"]) == ({"x.w": WEIGHT}, "")


class TestValues:
    def test_less_and_more_than_float32_is_converted(self) -> None:
        tensors = {"a": WEIGHT.half(), "b": WEIGHT.bfloat16(), "c": WEIGHT.double(), "d": WEIGHT}
        found, said = values.convert({**tensors, "n": torch.tensor(3)})
        assert {one.dtype for one in found.values()} == {torch.float32, torch.int64}
        assert said == "tensors become float32: 1 of float16, 1 of bfloat16, 1 of float64"

    def test_a_window_is_written_alone(self) -> None:
        whole = torch.zeros(1000, 3)
        found, _ = values.convert({"a": whole[:2], "b": whole.t()[1]})
        assert [one.untyped_storage().nbytes() for one in found.values()] == [24, 4000]

    def test_what_claims_more_than_it_holds(self, tmp_path: Path) -> None:
        bomb = torch.zeros(1).expand(1 << 20, 1 << 20)
        torch.save({"fc.weight": bomb}, tmp_path / "x")
        with pytest.raises(NotWeights, match="fewer"):
            values.convert(read(tmp_path / "x"))

    @pytest.mark.parametrize(
        "tensor",
        [torch.eye(3).to_sparse(), torch.eye(3).to(torch.complex64)],
    )
    def test_what_is_no_plain_tensor(self, tensor: torch.Tensor) -> None:
        with pytest.raises(NotWeights, match="sparse or complex"):
            values.convert({"a": tensor})
