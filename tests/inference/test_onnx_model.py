"""A folder whose network is an ONNX file: what it takes is found in it, and no torch serves it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from modelfolders import make_module  # noqa: E402 - they need what may not be there
from onnx import TensorProto, helper  # noqa: E402
from onnxfiles import (  # noqa: E402
    CLASSES,
    EDGE,
    any_number_of_outputs,
    make_model,
    make_onnx_folder,
    rows,
)

from swiprd.folder.model_id import identify  # noqa: E402
from swiprd.folder.spec import load_spec  # noqa: E402
from swiprd.folder.toml_table import SpecError  # noqa: E402
from swiprd.inference.engines import load_engine  # noqa: E402
from swiprd.inference.onnx_model import OnnxModel, load_onnx_file  # noqa: E402
from swiprd.inference.onnx_network import UnfitNetwork  # noqa: E402
from swiprd.system.messages import Load  # noqa: E402

pytestmark = pytest.mark.timeout(120)


def load(folder: Path) -> OnnxModel:
    return load_onnx_file(load_spec(folder))


def crops(images: int, count: int = 1, edge: int = EDGE) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.normal(0, 1, (images, count, 3, edge, edge)).astype(np.float32)


def refusal(folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load(folder)
    return str(caught.value).replace(f"{folder}/", "")


SHAPES: list[tuple[int | str, ...]] = [
    ("n", 3, EDGE, EDGE),
    ("n", 3, "h", "w"),
    ("n", "c", "h", "w"),
    ("n", EDGE, EDGE, 3),
    ("n", "h", "w", 3),
    (1, 3, EDGE, EDGE),
    (1, EDGE, EDGE, 3),
    (4, 3, EDGE, EDGE),
    (4, EDGE, EDGE, 3),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("images", [1, 5, 8])
def test_any_layout_and_any_batch_give_the_same_rows(
    tmp_path: Path, shape: tuple[int | str, ...], images: int
) -> None:
    model = load(make_onnx_folder(tmp_path / "m", make_model(shape)))
    pictures = crops(images)
    found = model.probabilities(pictures)
    assert found == pytest.approx(rows(pictures[:, 0]), abs=1e-5)
    assert found.std(axis=0).max() > 0.01 or images == 1, "the pictures are told apart"
    model.close()


def test_several_crops_of_a_picture_are_pooled(tmp_path: Path) -> None:
    pictures = crops(3, 5)
    for shape in SHAPES:
        model = load(make_onnx_folder(tmp_path / str(shape), make_model(shape)))
        expected = rows(pictures.reshape(-1, 3, EDGE, EDGE)).reshape(3, 5, CLASSES).mean(axis=1)
        assert model.probabilities(pictures) == pytest.approx(expected, abs=1e-5)
        model.close()


def test_a_number_of_pictures_that_nothing_shows_is_met_one_by_one(tmp_path: Path) -> None:
    """A Reshape to the batch of the trace: what the older exporters leave in a network."""
    model = make_model()
    flatten = next(one for one in model.graph.node if one.op_type == "Flatten")
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([1, 12], np.int64), "traced")
    )
    flatten.op_type = "Reshape"
    flatten.input.append("traced")
    loaded = load(make_onnx_folder(tmp_path / "m", model))
    assert loaded.network.batch is None
    pictures = crops(3)
    for _ in range(2):
        assert loaded.probabilities(pictures) == pytest.approx(rows(pictures[:, 0]), abs=1e-5)
    assert loaded.network.batch == 1
    loaded.close()


def test_its_id_is_what_everybody_else_computes(tmp_path: Path) -> None:
    folder = make_onnx_folder(tmp_path / "m")
    model = load(folder)
    assert model.model_id == identify(load_spec(folder))
    assert model.model_id.startswith("bird@")
    model.close()


def test_another_file_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    folder = make_onnx_folder(tmp_path / "m")
    model = load(folder)
    model.close()
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(f'sha256 = "{model.sha256}"\n{text}')
    again = load(folder)
    again.close()
    assert again.model_id == model.model_id
    another = make_model(metadata={"trained": "again"}).SerializeToString()
    (folder / "model.onnx").write_bytes(another)
    found = hashlib.sha256(another).hexdigest()
    expected = f"model.onnx: expected the recorded sha256 {model.sha256}, found {found}"
    assert refusal(folder) == expected


@pytest.mark.parametrize("classes", [CLASSES - 1, CLASSES, CLASSES + 3])
def test_another_number_of_outputs_than_labels_is_no_answer(tmp_path: Path, classes: int) -> None:
    model = load(make_onnx_folder(tmp_path / "m", any_number_of_outputs(classes)))
    if classes == CLASSES:
        assert model.probabilities(crops(2)).shape == (2, CLASSES)
    else:
        said = f"expected as many outputs as there are labels, {CLASSES}, found {classes}"
        with pytest.raises(UnfitNetwork, match=said):
            model.probabilities(crops(2))
    model.close()


def test_the_output_that_counts(tmp_path: Path) -> None:
    model = make_model(outputs=("scores", "hidden"))
    folder = make_onnx_folder(tmp_path / "m", model, extra='output = "scores"\n')
    loaded = load(folder)
    assert loaded.probabilities(crops(2)) == pytest.approx(rows(crops(2)[:, 0]), abs=1e-5)
    loaded.close()
    (folder / "labels.txt").write_text("".join(f"{one}\n" for one in range(12)))
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace('"scores"', '"hidden"'))
    loaded = load(folder)
    assert loaded.probabilities(crops(2)).shape == (2, 12)
    loaded.close()


def indifferent(*shape: int | str, kind: int = TensorProto.FLOAT) -> Any:
    """Make a network that takes anything, and answers with the four sizes of that."""
    nodes = [
        helper.make_node("Shape", ["pictures"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "axis"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "indifferent",
        [helper.make_tensor_value_info("pictures", kind, list(shape))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])],
        [onnx.numpy_helper.from_array(np.zeros(1, np.int64), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def elsewhere() -> Any:
    model = make_model()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")
    return model


WHOLE = "model.onnx: expected an ONNX file that can be served, found what cannot be: "
SHAPE = "model.onnx: expected an input of tensor(float) [n, 3, h, w] or [n, h, w, 3], found "
THREE = "model.onnx: expected pictures of 3 channels: [n, 3, h, w] or [n, h, w, 3], found "


@pytest.mark.parametrize(
    ("model", "extra", "said"),
    [
        (make_model(("n", 3, 48, 48)), "",
         "model.toml: preprocess.crop: expected 48, as model.onnx takes, found 32"),
        (make_model(("n", 3, 32, 48)), "",
         "model.onnx: expected an input of square pictures, found 32 x 48 pixels"),
        (make_model(classes=5), "",
         "model.toml: labels: expected as many as model.onnx has outputs, 5, found 4"),
        (indifferent("n", 1, 32, 32), "", THREE + "[n, 1, 32, 32]"),
        (indifferent("n", 3, 32, 32, kind=TensorProto.UINT8), "",
         SHAPE + "tensor(uint8) [n, 3, 32, 32]"),
        (indifferent("n", 3, 32), "", SHAPE + "tensor(float) [n, 3, 32]"),
        (indifferent("n", 8, "h", "w"), "", THREE + "[n, 8, h, w]"),
        (indifferent(0, 3, 32, 32), "", "model.onnx: expected an input of pictures, found [0, "),
        (make_model(outputs=("scores", "hidden")), "",
         "model.toml: output: expected one of scores, hidden, found nothing"),
        (make_model(), 'output = "logits"\n',
         "model.toml: output: expected one of scores, found 'logits'"),
        (elsewhere(), "", WHOLE + "has tensors in another file ('weights.bin'): 'swiprd pack'"),
        (b"", "", WHOLE + "empty"),
        (b"\x08\x08", "", WHOLE + "not an ONNX file: there is no graph in it"),
        (make_model().SerializeToString()[:300], "", WHOLE + "truncated or damaged, or no ONNX"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, model: Any, extra: str, said: str) -> None:
    if not isinstance(model, bytes):
        model = model.SerializeToString()
    assert refusal(make_onnx_folder(tmp_path / "m", model, extra=extra)).startswith(said)


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    model = make_model()
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ["n", 1]))
    said = "model.onnx: expected a network of one input, pictures, found 2: pictures, age"
    assert refusal(make_onnx_folder(tmp_path / "m", model)) == said


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
@pytest.mark.parametrize("engine", ["auto", "onnx", "torch"])
def test_which_engine_and_device(tmp_path: Path, engine: str, device: str) -> None:
    folder = make_onnx_folder(tmp_path / "m")
    command = Load(folder=str(folder), device=device, memory=None, engine=engine)
    if engine == "torch":
        with pytest.raises(SpecError, match='the daemon is told engine = "torch", found "onnx"'):
            load_engine(load_spec(folder), command)
    elif device == "cuda":
        with pytest.raises(SpecError, match="an ONNX file is served on the CPU"):
            load_engine(load_spec(folder), command)
    else:
        loaded, on, note = load_engine(load_spec(folder), command)
        assert isinstance(loaded, OnnxModel)
        assert (loaded.name, on, note, loaded.difference) == ("onnx", "cpu", "", None)
        loaded.close()


ALONE = """
import sys
from pathlib import Path
import numpy as np
from swiprd.folder.spec import load_spec
from swiprd.inference.engines import load_engine
from swiprd.system.messages import Load
folder, file = sys.argv[1:]
command = Load(folder=folder, device="auto", memory=None)
model, _, _ = load_engine(load_spec(Path(folder)), command)
np.save(file, model.probabilities(np.load(file)))
print(sorted({"torch", "torchvision", "onnx", "PIL", "numpy", "onnxruntime"} & set(sys.modules)))
"""


def test_one_row_for_two_pictures_is_not_taken(tmp_path: Path) -> None:
    model = load(make_onnx_folder(tmp_path / "m", indifferent("n", 3, "h", "w")))
    assert model.probabilities(crops(1)).shape == (1, CLASSES)
    # The one row is not one for each of two; then each gets its own.
    assert model.probabilities(crops(2)).shape == (2, CLASSES)
    model.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("architecture", ["shufflenet_v2_x0_5", "resnet18", "mobilenet_v3_small"])
def test_what_torch_exports_answers_as_torch_does_without_it(
    tmp_path: Path, architecture: str
) -> None:
    import torch

    module = make_module(architecture)
    file = tmp_path / "exported.onnx"
    torch.onnx.export(
        module, (torch.zeros(2, 3, 224, 224),), str(file), dynamo=False, opset_version=17,
        input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )  # fmt: skip
    folder = make_onnx_folder(tmp_path / "m", file.read_bytes(), edge=224)
    (folder / "labels.txt").write_text("".join(f"{one}\n" for one in range(10)))
    pictures = crops(4, edge=224)
    np.save(tmp_path / "a.npy", pictures)
    command = [sys.executable, "-P", "-c", ALONE, folder, tmp_path / "a.npy"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said == "['PIL', 'numpy', 'onnxruntime']\n"
    with torch.inference_mode():
        expected = module(torch.from_numpy(pictures[:, 0])).softmax(dim=1).numpy()
    assert np.load(tmp_path / "a.npy") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [0, 40, 1 << 20])
def test_what_was_loaded_answers_whatever_is_written_to_the_file(tmp_path: Path, size: int) -> None:
    folder = make_onnx_folder(tmp_path / "m")
    model = load(folder)
    (folder / "model.onnx").write_bytes(b"\xff" * size)  # in place
    for threads in (2, 3, 1):
        model.set_threads(threads)
        found = model.probabilities(crops(2))
        assert found == pytest.approx(rows(crops(2)[:, 0]), abs=1e-5)
    model.close()


def test_one_thread_answers_where_several_are_not_to_be_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(make_onnx_folder(tmp_path / "m"))
    model.close()
    for threads in (2, 3):
        model.set_threads(threads)
        found = model.probabilities(crops(2))
        assert found == pytest.approx(rows(crops(2)[:, 0]), abs=1e-5)
    (line,) = caplog.messages
    assert line == f"{tmp_path}/m/model.onnx: is closed; one thread answers in place of 2"


def test_a_network_that_fails_prints_nothing_into_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    flatten = next(one for one in model.graph.node if one.op_type == "Flatten")
    flatten.op_type, flatten.name = "Reshape", "a\n2026-01-01 swiprd: forged \x1b[31m"
    flatten.input.append("traced")  # fails for two pictures at once
    one = onnx.numpy_helper.from_array(np.array([1, 12], np.int64), "traced")
    model.graph.initializer.append(one)
    loaded = load(make_onnx_folder(tmp_path / "m", model))
    loaded.probabilities(crops(2))
    loaded.close()
    assert loaded.network.batch == 1, "it has failed"
    assert capfd.readouterr().err == ""


BOUNDED = """
import os, resource, sys
real = os.sysconf
os.sysconf = lambda name: (400 << 20) // real("SC_PAGE_SIZE") if "PHYS" in name else real(name)
from swiprd.inference.forkserver import _load_model
from swiprd.system.messages import Load
before = resource.getrlimit(resource.RLIMIT_DATA)
_load_model(Load(folder=sys.argv[1], device="cpu", memory=None))
assert resource.getrlimit(resource.RLIMIT_DATA) == before, "workers would inherit it"
print(open("/proc/self/oom_score_adj").read().strip())
# Not ru_maxrss, which begins with what the process had before exec: its parent's.
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) << 10)
"""


def test_a_forkserver_loads_no_more_than_the_host_has_memory(tmp_path: Path) -> None:
    """A gigabyte of ones, which onnxruntime multiplies and adds up as it loads them."""
    model = make_model()
    steps = [
        helper.make_node("MatMul", ["column", "row"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("Add", ["pictures", "sum"], ["summed"]),
    ]
    for node in model.graph.node:
        for number, name in enumerate(node.input):
            if name == "pictures":
                node.input[number] = "summed"
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*steps, *kept])
    for name, shape in (("column", (16_000, 1)), ("row", (1, 16_000))):
        ones = onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        model.graph.initializer.append(ones)
    folder = make_onnx_folder(tmp_path / "m", model)
    command = [sys.executable, "-P", "-c", BOUNDED, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    first_to_go, peak = map(int, done.stdout.split())
    assert first_to_go == 500
    assert peak < 900 << 20, "onnxruntime leaves undone what there is no memory for"
    assert (done.stderr, done.returncode) == ("", 0)
