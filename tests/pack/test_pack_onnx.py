"""`swiprd pack model.onnx`: what is found in files of all makers, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from modelfolders import make_module, photo  # noqa: E402 - they need what may not be there
from onnx import helper  # noqa: E402
from onnxfiles import CLASSES, EDGE, endless, make_model, rows  # noqa: E402

from swiprd.__main__ import main  # noqa: E402
from swiprd.folder.onnx_file import inspect  # noqa: E402
from swiprd.folder.spec import load_spec  # noqa: E402
from swiprd.inference.decode import decode  # noqa: E402
from swiprd.inference.onnx_model import load_onnx_file  # noqa: E402
from swiprd.pack import onnx_facts  # noqa: E402

pytestmark = pytest.mark.timeout(120)

LABELS = ("--labels", "a,b,c,d")
KERAS = ("--mean", "0.5", "--std", "0.5")


class Pack:
    """One folder that is packed, and what was said."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = tmp_path / "in" / "net.onnx"
        self.file.parent.mkdir()
        self.folder = tmp_path / "out"
        self._capsys = capsys

    def __call__(self, model: Any, *options: str) -> int:
        """Pack a file; return the exit status."""
        data = model if isinstance(model, bytes) else model.SerializeToString()
        self.file.write_bytes(data)
        return self.again(*options)

    def again(self, *options: str) -> int:
        status = main(["pack", str(self.file), "-o", str(self.folder), *options])
        out, self.err = self._capsys.readouterr()
        found = re.findall(r"^(\w+) +(.*)$", out.partition("\nTry it")[0], flags=re.M)
        self.said = dict(reversed(found))
        assert (status == 0) == (self.err == ""), self.err
        assert self.folder.exists() == (status == 0)
        assert list(self.folder.parent.glob(".out-*")) == []
        return status

    def refused(self, model: Any, *options: str) -> str:
        """Pack in vain; return the complaint, without the name of the file."""
        assert self(model, *options) in (64, 65, 66, 70)
        text = self.err.removeprefix("swiprd pack: ").removeprefix(f"{self.file}: ")
        assert text.endswith("\n")
        return text.removesuffix("\n")

    def answer(self, picture: bytes) -> tuple[list[float], np.ndarray]:
        """What the folder answers to a picture, and its crop."""
        model = load_onnx_file(load_spec(self.folder))
        crops = decode(picture, model.spec.preprocess)
        row: list[float] = model.probabilities(crops[None])[0].tolist()
        model.close()
        return row, np.ascontiguousarray(crops)

    @property
    def toml(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "model.toml").read_text())


@pytest.fixture
def pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pack:
    return Pack(tmp_path, capsys)


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_torchs_export(pack: Pack, tmp_path: Path, batch: int | str) -> None:
    import torch

    module = make_module("shufflenet_v2_x0_5")
    axes = {"dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}} if batch == "n" else {}
    torch.onnx.export(
        module, (torch.zeros(batch if isinstance(batch, int) else 2, 3, 224, 224),),
        str(tmp_path / "x.onnx"), dynamo=False, opset_version=17,
        input_names=["x"], output_names=["y"], **axes,
    )  # fmt: skip
    labels = ",".join(f"class{one}" for one in range(10))
    assert pack((tmp_path / "x.onnx").read_bytes(), "--labels", labels) == 0
    assert names(pack.folder) == ["labels.txt", "model.onnx", "model.toml"]
    assert pack.said["input"] == "3 x 224 x 224" + ("" if batch == "n" else f", {batch} at once")
    assert pack.said["engine"].startswith("onnx ")
    assert pack.toml["preprocess"]["resize"] == 256
    row, crops = pack.answer(photo(3))
    with torch.inference_mode():
        expected = module(torch.from_numpy(crops)).softmax(dim=1)[0].tolist()
    assert row == pytest.approx(expected, abs=1e-5)


def test_the_layout_of_keras_and_the_values_that_it_must_be_told(pack: Pack) -> None:
    model = make_model(("n", EDGE, EDGE, 3), last="Softmax")
    said = pack.refused(model, *LABELS)
    assert said.startswith("--mean and --std: which values do the pictures have")
    assert pack.refused(model, *LABELS, "--mean", "0").startswith("--mean and --std: ")
    assert pack(model, *LABELS, "--mean", "0", "--std", "0.00392156862745098") == 0
    assert pack.said["input"] == f"{EDGE} x {EDGE} x 3, as Keras has it"
    assert pack.said["activation"].startswith("none (the file ends in Softmax")
    recipe = pack.toml["preprocess"]
    assert (recipe["resize"], recipe["edge"], recipe["crop"]) == (EDGE, "both", EDGE)
    row, crops = pack.answer(photo(3))
    assert 200 < crops.max() <= 255.01, "0 to 255"
    assert row == pytest.approx(rows(crops)[0].tolist(), abs=1e-5)


ULTRALYTICS = {
    "description": "Ultralytics YOLOv8n-cls model trained on birds",
    "author": "Ultralytics",
    "task": "classify",
    "stride": "1",
    "imgsz": f"[{EDGE}, {EDGE}]",
    "names": "{0: 'great tit', 1: \"robin's\", 2: 'kite', 3: 'kite'}",
}


@pytest.mark.parametrize("shape", [(1, 3, EDGE, EDGE), ("batch", 3, "height", "width")], ids=str)
def test_ultralytics_labels_and_recipe(pack: Pack, shape: tuple[int | str, ...]) -> None:
    assert pack(make_model(shape, last="Softmax", metadata=ULTRALYTICS)) == 0
    labels = (pack.folder / "labels.txt").read_text().splitlines()
    assert labels == ["great tit", "robin's", "kite", "kite (3)"]
    assert pack.said["labels"].endswith('(from "names" in its metadata)')
    assert pack.said["note"].endswith("have got their number: kite (3)")
    assert f"as Ultralytics validates at imgsz={EDGE}" in pack.said["preprocess"]
    assert pack.toml["activation"] == "none"
    recipe = pack.toml["preprocess"]
    assert (recipe["resize"], recipe["crop"], recipe["exif"]) == (EDGE, EDGE, "apply")
    row, crops = pack.answer(photo(3, (90, 60)))
    assert crops.min() >= 0
    assert 0.5 < crops.max() <= 1
    assert row == pytest.approx(rows(crops)[0].tolist(), abs=1e-5)


def test_what_is_said_wins_over_the_metadata(pack: Pack) -> None:
    model = make_model(("n", 3, "h", "w"), metadata=ULTRALYTICS)
    assert pack(model, *LABELS, "--crop", "48", "--exif", "ignore", "--multi-label") == 0
    assert (pack.folder / "labels.txt").read_text() == "a\nb\nc\nd\n"
    assert pack.toml["preprocess"]["crop"] == 48
    assert pack.toml["preprocess"]["exif"] == "ignore"
    assert pack.toml["activation"] == "sigmoid"


def test_any_size_gets_the_usual_one(pack: Pack) -> None:
    assert pack(make_model(("n", 3, "h", "w")), *LABELS) == 0
    assert pack.toml["preprocess"]["crop"] == 224
    assert pack.said["input"] == "3 x any x any"


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({"names": json.dumps(dict(enumerate("wxyz")))}, "wxyz"),
        ({"names": "['w', 'x', 'y', 'z']"}, "wxyz"),
        ({"classes": '["w", "x", "y", "z"]'}, "wxyz"),
        ({"class_names": "{'w': 1, 'x': 0, 'y': 2, 'z': 3}"}, "xwyz"),
        ({"names": "{0: 'w', 1: 'x', 2: 'y', 4: 'z'}"}, ""),
        ({"names": "{0: 'w', 1: 'x', 2: 'y'}"}, ""),
        ({"names": "{0: 'w', 1: 'x', 2: 'y', 3: ''}"}, ""),
        ({"names": "{0: 'w', 1: 'x', 2: 'y', 3: 7}"}, ""),
        ({"names": "__import__('os').system('touch /tmp/owned')"}, ""),
        ({"names": "(" * 5000}, ""),
        ({"names": "[" * 100_000}, ""),
        ({"names": "{" + "-" * 100_000 + "1: 'w'}"}, ""),
        ({"names": "9" * 10_000}, ""),
        ({"names": "{[]: 1}"}, ""),
        ({"names": "{0: 'w', 'x': 1, None: 2, (): 3}"}, ""),
        ({"names": "w" * (2 << 20)}, ""),
    ],
)
def test_labels_in_the_metadata(metadata: dict[str, str], found: str) -> None:
    contents = onnx_facts.OnnxFile(metadata=metadata)
    named, _ = onnx_facts.labels(contents, CLASSES)
    assert "".join(named.labels if named else ()) == found


@pytest.mark.parametrize(
    ("last", "activation"),
    [
        ("Softmax", "none"),
        ("Sigmoid", "none"),
        ("LogSoftmax", "log_softmax"),
        ("Identity", "softmax"),
    ],
)
def test_the_activation_is_what_the_file_ends_in(pack: Pack, last: str, activation: str) -> None:
    assert pack(make_model(last=last), *LABELS) == 0
    assert pack.toml["activation"] == activation
    assert (f"the file ends in {last}" in pack.said["activation"]) == (last != "Identity")


def test_softmax_before_what_changes_nothing(pack: Pack) -> None:
    model = make_model(last="Softmax")
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Identity", ["before"], ["scores"]))
    assert pack(model, *LABELS) == 0
    assert pack.said["activation"].startswith("none (the file ends in Softmax: ")


def test_an_activation_is_not_done_twice(pack: Pack) -> None:
    said = pack.refused(make_model(last="Sigmoid"), *LABELS, "--multi-label")
    assert said == (
        "--multi-label: the file ends in Sigmoid: what comes out are probabilities: leave"
        " --multi-label out"
    )


@pytest.mark.parametrize("option", [("--activation", "log_softmax"), ("--activation", "softmax")])
def test_no_activation_goes_on_top_of_softmax(pack: Pack, option: tuple[str, str]) -> None:
    said = pack.refused(make_model(last="Softmax"), *LABELS, *option)
    assert said == (
        "--activation: the file ends in Softmax: what comes out are probabilities: leave"
        " --activation out"
    )
    assert pack(make_model(last="Softmax"), *LABELS, "--activation", "none") == 0


def test_probabilities_by_an_end_that_is_not_recognised(pack: Pack) -> None:
    model = ending("LogSoftmax", "Exp")
    assert "probabilities already" in pack.refused(model, *LABELS, "--multi-label")
    assert pack(model, *LABELS) == 0
    assert pack.toml["activation"] == "none"


def test_answers_that_may_be_probabilities_are_asked_about(pack: Pack) -> None:
    model = ending("Neg", "Softplus", "Neg", "Exp")  # a sigmoid, as 1 / (1 + exp(-x))
    said = pack.refused(model, *LABELS)
    assert said.startswith("--activation: are these probabilities already? Every answer to the")
    assert said.endswith("--activation none if they are; else --activation softmax")
    assert pack(model, *LABELS, "--activation", "none") == 0


@pytest.mark.parametrize("domain", ["own", ""])
def test_a_function_that_is_only_called_softmax(domain: str) -> None:
    """Whatever the runtime thinks of one in the standard's own domain."""
    model = make_model(last="Softmax")
    model.graph.node[-1].domain = domain
    found = inspect(softmax_of(model, domain))
    assert onnx_facts.ends_in(found, "scores") is None


def softmax_of(model: Any, domain: str) -> bytes:
    """Give the file a function of its own by that name, which does nothing."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function(domain, "Softmax", ["x"], ["y"], nodes, imports))
    return bytes(model.SerializeToString())


def ending(*operators: str) -> Any:
    """A classifier that ends in these, one after the other."""
    model = make_model(last=operators[0])
    for number, name in enumerate(operators[1:]):
        model.graph.node[-1].output[0] = f"step{number}"
        model.graph.node.append(helper.make_node(name, [f"step{number}"], ["scores"]))
    return model


def test_the_output_that_counts(pack: Pack) -> None:
    model = make_model(outputs=("scores", "hidden"))
    said = pack.refused(model, *LABELS)
    assert said.startswith("--key: which output counts? expected one of scores, hidden")
    assert pack(model, *LABELS, "--key", "scores") == 0
    assert pack.toml["output"] == "scores"
    row, crops = pack.answer(photo(1))
    assert row == pytest.approx(rows(crops)[0].tolist(), abs=1e-5)


def put_elsewhere(model: Any, folder: Path, location: str, write: str = "") -> Any:
    """Move its tensors to a file, which may be another than it says."""
    data = b""
    for tensor in model.graph.initializer:
        onnx.external_data_helper.set_external_data(
            tensor, location, offset=len(data), length=len(tensor.raw_data)
        )
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    place = folder / (write or location)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return model


@pytest.mark.parametrize("location", ["net.onnx.data", "sub/weights.bin"])
def test_tensors_beside_the_file_are_put_into_it(pack: Pack, location: str) -> None:
    assert pack(put_elsewhere(make_model(), pack.file.parent, location), *LABELS) == 0
    assert pack.said["note"] == f"put into the one file: the tensors of {location}"
    assert names(pack.folder) == ["labels.txt", "model.onnx", "model.toml"]
    row, crops = pack.answer(photo(1))
    assert row == pytest.approx(rows(crops)[0].tolist(), abs=1e-5)


def test_tensors_from_anywhere_else_are_refused(pack: Pack, tmp_path: Path) -> None:
    inside = pack.file.parent
    only = "and only files beside it are read: copy it beside the ONNX file, or export again"
    for location, write in (
        (str(tmp_path / "secret.bin"), ""),
        ("../secret.bin", ""),
        ("sub/../../secret.bin", "sub/x"),
        ("*/_ORT_MEM_ADDR_/*/../..", "x"),
    ):
        said = pack.refused(put_elsewhere(make_model(), inside, location, write), *LABELS)
        assert said.startswith(f"has tensors in {location!r}, {only}"), said
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    said = pack.refused(put_elsewhere(make_model(), inside, "link.bin", "x"), *LABELS)
    assert said.startswith(f"{inside}/link.bin: a link, which may lead anywhere: copy it beside")
    (inside / "up").symlink_to(tmp_path)
    said = pack.refused(put_elsewhere(make_model(), inside, "up/secret.bin", "x"), *LABELS)
    assert "Not a directory" in said
    os.mkfifo(inside / "pipe")
    said = pack.refused(put_elsewhere(make_model(), inside, "pipe", "x"), *LABELS)
    assert "no regular file" in said
    said = pack.refused(put_elsewhere(make_model(), inside, "gone.bin", "x"), *LABELS)
    assert said == f"{inside}/gone.bin: No such file or directory (net.onnx has tensors in it)"


def test_tensors_that_end_too_early(pack: Pack) -> None:
    model = put_elsewhere(make_model(), pack.file.parent, "w.bin")
    with (pack.file.parent / "w.bin").open("r+b") as file:
        file.truncate(100)
    said = pack.refused(model, *LABELS)
    assert said.startswith(f"{pack.file.parent}/w.bin: truncated: 100 bytes, where 'filters' ends")


def test_a_file_that_is_too_large_for_onnx(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    from swiprd.pack import onnx_whole

    size = len(make_model().SerializeToString())
    monkeypatch.setattr(onnx_whole, "MOST", size - 1)
    said = f"more than {size - 1} bytes, ONNX's own limit for one file: pack the checkpoint"
    assert said in pack.refused(make_model(), *LABELS)
    monkeypatch.setattr(onnx_whole, "MOST", size - 1)
    model = put_elsewhere(make_model(), pack.file.parent, "w.bin")
    assert f"with w.bin it has {said}" in pack.refused(model, *LABELS)


def strange() -> Any:
    return make_model(nodes=[helper.make_node("Run", ["pictures"], ["x"], domain="evil.corp")])


def claiming() -> Any:
    model = make_model()
    model.graph.initializer[0].dims[0] = 1 << 30
    return model


def unknown() -> Any:
    return make_model(nodes=[helper.make_node("NoSuchOperator", ["pictures"], ["x"])])


def broken() -> Any:
    model = make_model()
    model.graph.initializer[1].raw_data = b"\xff" * len(model.graph.initializer[1].raw_data)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (strange, "has operators that the ONNX standard has not: evil.corp.Run. Export"),
        (claiming, "onnxruntime refuses it: "),
        (unknown, "onnxruntime refuses it: .*NoSuchOperator"),
        (broken, "it answers with what is not a number: are there NaNs in the weights?"),
        (lambda: make_model().SerializeToString()[:-50], "truncated or damaged, or no ONNX file"),
        (lambda: b"\x08\x08" + bytes(range(200)), "truncated or damaged, or no ONNX file"),
        (lambda: make_model(("n", 3, 40, 32)), "expected an input of square pictures, found 40 x"),
    ],
)
def test_hostile_and_damaged_files_end_in_one_line(
    pack: Pack, make: Callable[[], Any], said: str
) -> None:
    text = pack.refused(make(), *LABELS)
    assert re.match(said.replace("?", r"\?"), text), text
    assert "\n" not in text
    assert str(pack.file) in pack.err


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (("n", 3, 6000, 6000), "it takes pictures of 6000 pixels only, and 4096 are the most"),
        (("n", 6000, 6000, 3), "it takes pictures of 6000 pixels only, and 4096 are the most"),
        ((100_000, 3, EDGE, EDGE), "it takes 100000 pictures at once only, and 256 are the most"),
    ],
)
def test_sizes_that_are_never_served_are_not_tried(
    pack: Pack, shape: tuple[int | str, ...], said: str
) -> None:
    assert pack.refused(make_model(shape), *LABELS).startswith(said)


def test_the_size_in_proportion_is_one_that_can_be_served() -> None:
    found = onnx_facts.recipe(onnx_facts.OnnxFile(), edge=4000, channels_last=False, crop=None)
    assert (found.preprocess.resize, found.preprocess.crop) == (4096, 4000)


def test_a_tensor_without_the_name_of_its_file(pack: Pack) -> None:
    """And with a data_location of more bits than protobuf reads: 2^32 + 1 is EXTERNAL."""
    model = put_elsewhere(make_model(), pack.file.parent, "w.bin")
    lost = onnx.TensorProto(name="lost", data_type=1, dims=[1], raw_data=bytes(4))
    tensor = lost.SerializeToString() + b"\x70\x81\x80\x80\x80\x10"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor  # merged with the one that is there
    data = model.SerializeToString() + b"\x3a" + bytes([len(graph)]) + graph
    assert "" in inspect(data).external
    assert "has tensors in ''" in pack.refused(data, *LABELS)


def test_a_process_that_dies_is_named(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file may bring it about that has found a fault in onnxruntime."""
    first = pack.file.parent / "first"
    first.mkdir()
    (first / "onnxruntime.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(first))
    assert pack.refused(make_model(), *LABELS) == "onnxruntime's process was ended by SIGSEGV"


def test_one_that_never_answers_is_given_up(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiprd.inference.onnx_probe._PATIENCE", 4.0)
    said = "onnxruntime takes more than 4 s to answer"
    assert pack.refused(endless(), *LABELS) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--labels: what are the 4 outputs called?"),
        (("--labels", "a,b"), "2 labels (--labels), where the weights have 4 outputs"),
        ((*LABELS, "--crop", "99"), "--crop 99: the file takes pictures of 32 pixels only"),
        ((*LABELS, "--architecture", "resnet50"), "--architecture resnet50: the file is ONNX"),
        ((*LABELS, "--engine", "torch"), "--engine torch: torch runs no ONNX file"),
        ((*LABELS, "--key", "x"), "--key: which output counts? expected one of scores, found 'x'"),
    ],
)
def test_what_must_be_said_otherwise(pack: Pack, options: tuple[str, ...], said: str) -> None:
    assert pack.refused(make_model(), *options).startswith(said)


@pytest.mark.parametrize("option", [("--engine", "onnx"), ("--architecture", "onnx")])
def test_what_may_be_said(pack: Pack, option: tuple[str, ...]) -> None:
    assert pack(make_model(), *LABELS, *option) == 0


def test_a_thousand_outputs_are_imagenets(pack: Pack) -> None:
    assert pack(make_model(classes=1000)) == 0
    labels = (pack.folder / "labels.txt").read_text().splitlines()
    assert labels[0] == "tench"
    assert len(set(labels)) == 1000, "two are there twice in some releases of torchvision"


def test_neither_torch_nor_onnx_is_needed(pack: Pack, tmp_path: Path) -> None:
    for name in ("torch", "torchvision", "onnx"):
        (tmp_path / "none" / name).mkdir(parents=True)
        (tmp_path / "none" / name / "__init__.py").write_text("raise ImportError('not here')")
    pack.file.write_bytes(make_model().SerializeToString())

    def run(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "swiprd", "pack", file, "-o", pack.folder, *options]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "none")}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    done = run(pack.file, *LABELS)
    assert (done.returncode, done.stderr) == (0, "")
    model = put_elsewhere(make_model(), pack.file.parent, "w.bin")
    pack.file.write_bytes(model.SerializeToString())
    done = run(pack.file, *LABELS, "--force")
    assert done.returncode == 65
    assert done.stderr.endswith("is not installed: pip install onnx\n")
    (tmp_path / "c.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    done = run(tmp_path / "c.safetensors", *LABELS, "--force")
    assert done.returncode == 70
    assert "torch reads it, and cannot be imported here: not here" in done.stderr
