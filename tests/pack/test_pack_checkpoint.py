"""Reading checkpoints: every format, whatever lies around the weights, and nothing that is run."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import save_legacy
from torch import nn

from swiprd.__main__ import main
from swiprd.inference.state_dict import match_by_name
from swiprd.pack import checkpoint, convert, find_weights, formats, labels
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


def text(value: str) -> bytes:
    """A string, as a pickle has it."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def glob(module: str, name: str) -> bytes:
    """A class or a function."""
    return f"c{module}\n{name}\n".encode()


def dtype(code: str) -> bytes:
    """numpy.dtype(code, False, True)."""
    return glob("numpy", "dtype") + text(code) + b"\x89\x88\x87R"


def stored(file: Path, content: bytes) -> Path:
    """Write a checkpoint of the zip format around a pickle's opcodes."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file


def legacy_stored(file: Path, content: bytes) -> Path:
    """Write one of the legacy format."""
    before = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    data = b"".join(pickle.dumps(one, protocol=2) for one in before)
    file.write_bytes(data + b"\x80\x02" + content + b"." + pickle.dumps([], protocol=2))
    return file


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

    def test_onnx(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(90))
        assert formats.recognise(tmp_path / "x") == "onnx"

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "empty"),
            (
                b"\x89HDF\r\n\x1a\n" + bytes(90),
                "HDF5, probably a Keras model: make an ONNX file of it",
            ),
            (b"\x1f\x8b\x08" + bytes(90), "gunzip"),
            (b"BZh9" + bytes(90), "bunzip2"),
            (b"\xfd7zXZ\0" + bytes(90), "unxz"),
            (b"(\xb5/\xfd" + bytes(90), "unzstd"),
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
        for name in ("args", "best", "epoch"):  # and nothing of it is taken over
            assert type(found[name]) is checkpoint.Unread
            assert not hasattr(found[name], "__dict__")
        assert found["optimizer"]["param_groups"][0]["lr"] == 0.001
        assert find_weights.find(found).key == "state_dict"

    def test_what_is_not_is_named(self, tmp_path: Path) -> None:
        torch.save({**STATE, "extra": random.Random(3)}, tmp_path / "x")
        assert "asks for random.Random" in refusal(tmp_path / "x")

    def test_a_dtype_of_numpy_with_forged_fields(self, tmp_path: Path) -> None:
        """It sets the address of a field's type: a numpy that believed it would end in SIGSEGV."""
        eight = dtype("f8")
        eight = b"".join(
            [
                *(eight, b"(", whole(3), text("<"), b"N", text("a"), b"\x85", b"}", text("a")),
                *(glob("numpy", "dtype"), text("O"), b"\x85R", whole(0), b"\x86", b"s"),
                *(whole(8), whole(8), whole(0), b"tb"),
            ]
        )
        void = glob("numpy", "dtype") + dtype("V8") + eight + b"\x86\x85R"
        raw = glob("_codecs", "encode") + text("AAAAAA\0\0") + text("latin1") + b"\x86R"
        forged = glob("numpy._core.multiarray", "scalar") + void + raw + b"\x86R"
        entry = glob("collections", "OrderedDict") + forged + b"\x85R"
        file = stored(tmp_path / "x.pth", b"}" + text("best") + entry + b"s")
        # In a process of its own: what is tested for is the death of it.
        command = [sys.executable, "-m", "swiprd", "pack", str(file), "--labels", "a,b"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 65, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert str(file) in done.stderr

    @pytest.mark.parametrize(
        ("module", "name", "words"),
        [
            ("torch._utils", "_rebuild_nested_tensor", "holds nested tensors"),
            ("torch._utils", "_rebuild_sparse_tensor", "holds sparse tensors"),
            ("torch._utils", "_rebuild_qtensor", "holds quantised tensors"),
            ("torch._utils", "_rebuild_meta_tensor_no_storage", "of the meta device"),
            ("torch._utils", "_rebuild_wrapper_subclass", "_rebuild_wrapper_subclass, which is"),
            ("torch._tensor", "_rebuild_from_type_v2", "_rebuild_from_type_v2, which is"),
            ("torch", "FloatTensor", "asks for torch.FloatTensor"),
            ("builtins", "eval", "asks for builtins.eval"),
            ("numpy.dtypes", "Float64DType", "asks for numpy.dtypes.Float64DType"),
            ("argparse", "ArgumentParser", "asks for argparse.ArgumentParser"),
            ("pathlib", "Path.home", "asks for pathlib.Path.home"),
            ("torch", "storage.Storage\x1b[31m", "asks for torch.storage.Storage?[31m"),
        ],
    )
    @pytest.mark.parametrize("legacy", [False, True])
    def test_what_torch_would_take_and_a_classifier_needs_not(
        self, tmp_path: Path, module: str, name: str, words: str, legacy: bool
    ) -> None:
        make = legacy_stored if legacy else stored
        assert words in refusal(make(tmp_path / "x", glob(module, name)))

    @pytest.mark.parametrize("name", ["argparse Namespace", "pathlib PosixPath", "numpy dtype"])
    def test_what_stands_beside_can_be_told_nothing(self, tmp_path: Path, name: str) -> None:
        module, name = name.split()
        attribute = b"}" + text("__class__") + glob("collections", "OrderedDict") + b"s"
        state = attribute + attribute + b"\x86b"  # of an instance's dictionary, and of its slots
        for made in (b")R", b")\x81", text("a") + b"\x85R", text("a") + b"\x85\x81"):
            found = read(stored(tmp_path / "x", glob(module, name) + made + state))
            assert type(found) is checkpoint.Unread

    def test_methods_that_a_pickle_replaces(self, tmp_path: Path) -> None:
        class Poisoned:
            def __reduce__(self) -> Any:
                methods = dict.fromkeys(["items", "get", "values", "keys"], torch.Size)
                return OrderedDict, (), methods, None, iter({**STATE, "fc.weight": weight}.items())

        weight: Any = nn.Parameter(WEIGHT)
        weight.numel = weight.detach = weight.contiguous = torch.Size
        poisoned = Poisoned()
        torch.save({"model": poisoned, "again": poisoned}, tmp_path / "x")
        found = read(tmp_path / "x")
        assert type(found["model"]) is dict
        tensors, _ = convert.convert(find_weights.find(found).tensors)
        assert torch.equal(tensors["fc.weight"], WEIGHT)
        assert type(tensors["fc.weight"]) is torch.Tensor

    def test_dictionaries_that_hold_each_other(self, tmp_path: Path) -> None:
        model: dict[str, Any] = {**STATE}
        content: dict[str, Any] = {"model": model, "again": model}
        content["self"] = model["self"] = content
        torch.save(content, tmp_path / "x")
        found = read(tmp_path / "x")
        assert found["self"] is found
        assert found["again"] is found["model"]
        assert find_weights.find(found).key == "model"

    @pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
    def test_a_file_that_is_written_again_meanwhile(self, tmp_path: Path, form: Any) -> None:
        file = tmp_path / "x"
        if form == "safetensors":
            pytest.importorskip("safetensors.torch").save_file(STATE, file)
        else:
            torch.save(STATE, file, _use_new_zipfile_serialization=form == "zip")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        found = checkpoint.read(file, form, digest)
        os.truncate(file, 0)  # SIGBUS, if it were mapped
        assert torch.equal(found["fc.weight"], WEIGHT)
        file.write_bytes(b"PK")
        with pytest.raises(CannotOpen, match="changed while it was read"):
            checkpoint.read(file, form, digest)

    def test_pickles_without_end(self, tmp_path: Path) -> None:
        started = time.monotonic()
        file = legacy_stored(tmp_path / "x", glob("os", "system"))
        with file.open("ab") as opened:
            opened.write(b"N." * (8 << 20))
        assert "asks for os.system" in refusal(file)
        assert time.monotonic() - started < 5
        with file.open("wb") as opened:
            opened.write(legacy_stored(tmp_path / "y", b"").read_bytes()[:-1])
            opened.write(b"N0" * (8 << 20))
        assert "over 5000000 steps" in refusal(file)

    def test_damage_ends_in_a_complaint_and_nothing_else(self, tmp_path: Path) -> None:
        rng = random.Random(5)
        for legacy in (False, True):
            content = {"state_dict": STATE, "best": np.float64(0.9)}
            torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
            whole = (tmp_path / "x").read_bytes()
            for _ in range(150):
                broken = bytearray(whole)
                for _ in range(rng.choice([1, 4, 40])):
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
                (tmp_path / "y").write_bytes(broken[: rng.choice([len(broken), 400])])
                try:
                    content = read(tmp_path / "y")
                    convert.convert(find_weights.normalise(find_weights.find(content).tensors))
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
            assert find_weights.find(content).key == key

    def test_two_that_have_no_usual_name(self) -> None:
        with pytest.raises(Unclear, match="--key: generator, critic"):
            find_weights.find({"generator": STATE, "critic": STATE})
        assert find_weights.find({"generator": STATE, "critic": STATE}, "critic").key == "critic"

    def test_dictionaries_with_millions_of_ways_through_them(self) -> None:
        content: dict[str, Any] = {"a": WEIGHT}
        for _ in range(3):
            content = {f"k{number}": content for number in range(400)}
        started = time.monotonic()
        with pytest.raises(NotWeights):
            find_weights.find(content)
        assert time.monotonic() - started < 1

    def test_one_that_lies_deep_and_less_deep(self) -> None:
        outer = {"c": {"d": STATE}}
        assert find_weights.find({"a": {"b": outer}, "z": outer}).key == "z.c.d"

    def test_one_network_of_two_in_a_dictionary(self) -> None:
        both = {f"module.{way}.{name}": one for way in ("q", "k") for name, one in STATE.items()}
        content = {"state_dict": both}
        for key in ("q", "state_dict.q"):
            found = find_weights.find(content, key)
            assert found.key == "state_dict.q"
            assert list(found.tensors) == ["module.q.fc.weight", "module.q.fc.bias"]
        with pytest.raises(Unclear, match="no weights under"):
            find_weights.find(content, "fc")
        with pytest.raises(Unclear, match=r"can be: state_dict\.q, ema\.q"):
            find_weights.find({"state_dict": both, "ema": both.copy()}, "q")

    @pytest.mark.parametrize("content", [3, [STATE], {"epoch": 3}, {}, {"lr": WEIGHT}])
    def test_no_weights_at_all(self, content: Any) -> None:
        with pytest.raises(NotWeights):
            find_weights.find(content)


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
        assert list(find_weights.normalise({old: WEIGHT})) == [new]

    def test_two_that_would_be_one(self) -> None:
        with pytest.raises(NotWeights, match=r"module\.a\.weight"):
            find_weights.normalise({"a.weight": WEIGHT, "module.a.weight": WEIGHT})

    def test_the_prefix_that_fits_best(self) -> None:
        tensors = {f"{way}.{name}": WEIGHT for way in ("model", "ema") for name in ("a.w", "b.w")}
        stripped, prefix = find_weights.strip(tensors | {"loss.a.w": WEIGHT}, ["a.w", "b.w"])
        assert (list(stripped), prefix) == (["a.w", "b.w"], "ema.")
        assert find_weights.strip({"x.w": WEIGHT}, ["a.w"]) == ({"x.w": WEIGHT}, "")

    @pytest.mark.parametrize("ways", [("encoder_q", "encoder_k"), ("online", "target")])
    def test_two_networks_of_the_same_names(self, ways: tuple[str, str]) -> None:
        names = ["a.w", "b.w", "c.w", "fc.weight", "fc.bias"]
        tensors = {f"{way}.{name}": WEIGHT for way in ways for name in names}
        with pytest.raises(Unclear, match="--key: " + ", ".join(sorted(ways))):
            find_weights.strip(tensors, names)
        # The last layer in a Sequential is found later.
        inside = {name.replace("fc.", "fc.1."): one for name, one in tensors.items()}
        with pytest.raises(Unclear):
            find_weights.strip(inside, names)
        assert find_weights.strip({**dict.fromkeys(names, WEIGHT), **tensors}, names)[1] == ""
        part = find_weights.find({"model": {**tensors, "x.weight": WEIGHT}}, ways[1]).tensors
        assert find_weights.strip(part, names)[1] == f"{ways[1]}."


class TestValues:
    def test_less_and_more_than_float32_is_converted(self) -> None:
        tensors = {"a": WEIGHT.half(), "b": WEIGHT.bfloat16(), "c": WEIGHT.double(), "d": WEIGHT}
        found, said = convert.convert({**tensors, "n": torch.tensor(3)})
        assert {one.dtype for one in found.values()} == {torch.float32, torch.int64}
        assert said == "tensors become float32: 1 of float16, 1 of bfloat16, 1 of float64"

    def test_a_window_is_written_alone(self) -> None:
        whole = torch.zeros(1000, 3)
        found, _ = convert.convert({"a": whole[:2], "b": whole.t()[1]})
        assert [one.untyped_storage().nbytes() for one in found.values()] == [24, 4000]

    def test_what_claims_more_than_it_holds(self, tmp_path: Path) -> None:
        bomb = torch.zeros(1).expand(1 << 20, 1 << 20)
        torch.save({"fc.weight": bomb}, tmp_path / "x")
        with pytest.raises(NotWeights, match="fewer"):
            convert.convert(read(tmp_path / "x"))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: torch.eye(3).to_sparse(), "sparse or complex"),
            (lambda: torch.eye(3).to(torch.complex64), "sparse or complex"),
            (lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantised"),
            (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
            (lambda: torch.zeros(3, device="meta"), "without values"),
        ],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_what_is_no_plain_tensor(self, make: Callable[[], torch.Tensor], words: str) -> None:
        with pytest.raises(NotWeights, match=f"^a: {words}"):
            convert.convert({"a": make()})

    def test_a_storage_that_a_pickle_gave_methods(self) -> None:
        tensor = torch.zeros(3)
        storage = tensor.untyped_storage()
        storage.nbytes = torch.Size  # type: ignore[method-assign,assignment]
        with pytest.raises(NotWeights, match="methods of its own"):
            convert.convert({"a": tensor})


class TestLabels:
    @pytest.mark.parametrize(
        "names",
        [
            {"train": [0, 1], "val": [1]},
            {0: "a", 1: "b", "x": "c"},
            {False: "a", True: "b"},
            {0: "a", 2: "b"},
            {0: "a", 1: "b", 3: "c"},
            {"a": 0, "b": 0},
            {"a": 0, "b": None},
            {0: "a", 1: ["b"]},
            {WEIGHT: "a", 1: "b"},
        ],
    )
    @pytest.mark.parametrize("key", ["labels", "idx_to_class"])
    def test_what_are_no_names_of_outputs(self, names: dict[Any, Any], key: str) -> None:
        assert labels.beside({key: names}, 2) is None

    @pytest.mark.parametrize("names", [{1: "b", 0: "a"}, {"b": 1, "a": 0}, ["a", "b"], ("a", "b")])
    def test_what_are(self, names: Any) -> None:
        found = labels.beside({"labels": {"train": [0]}, "class_to_idx": names}, 2)
        assert found is not None
        assert found.labels == ("a", "b")


class TestMatching:
    @pytest.mark.parametrize("given", [torch.tensor(9.7), torch.ones(3), torch.tensor(4)])
    def test_step_counts_are_never_wrong(self, given: torch.Tensor) -> None:
        wanted = dict(nn.BatchNorm2d(2).state_dict())
        found = match_by_name(wanted, {**wanted, "num_batches_tracked": given}, "it")
        assert found["num_batches_tracked"].dtype == torch.int64
        assert found["num_batches_tracked"].shape == ()
