"""A model's compiled form: made from torch, proven without it, and served by ONNX Runtime.

torch and onnxruntime do not get along in one process everywhere. Whatever runs a compiled form here
is a process of its own, which never imports what makes one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from modelfolders import CLASSES, make_folder
from PIL import Image

from swiprd.folder.compiled_record import (
    COMPILED,
    FORMAT,
    MOST_DIFFERENCE,
    RECORD,
    CompiledRecord,
    is_current,
    load_record,
    write_record,
)
from swiprd.folder.model_id import identify
from swiprd.folder.spec import load_spec
from swiprd.inference.decode import decode
from swiprd.inference.proof import FRESH, OTHERS, REFERENCE, pictures
from swiprd.inference.torchvision_import import import_torchvision

missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]

GRID = """
[preprocess]
resize = 128
crop = 64
crops = "grid"
grid = [2, 3]
"""


def smooth_crops(images: int, count: int, crop: int) -> np.ndarray:
    """Crops of smooth random colours: float32 [images, count, 3, crop, crop]."""
    rng = np.random.default_rng(3)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
            (crop, crop), Image.Resampling.BICUBIC
        )
        for _ in range(images * count)
    ]
    crops = (np.stack([np.asarray(one) for one in pictures]) / 255 - 0.45) / 0.225
    shape = (images, count, crop, crop, 3)
    return np.ascontiguousarray(crops.reshape(shape).transpose(0, 1, 4, 2, 3), np.float32)


def make_lively(
    folder: Path, architecture: str, recipe: str = "", activation: str = "softmax", seed: int = 0
) -> Path:
    """Make a model's folder whose layers pass on what they see, as trained ones do.

    Layers of random weights, one after another, may leave so little of a picture that answers of
    torch and of a wrong network are the same to five digits.
    """
    import torch

    make_folder(folder, architecture, seed=seed, extra=recipe)
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace('"softmax"', f'"{activation}"'))
    module = import_torchvision().models.get_model(architecture, num_classes=CLASSES)
    module.load_state_dict(torch.load(folder / "weights.pth"))
    spec = load_spec(folder)
    seen = torch.from_numpy(
        np.concatenate([decode(one, spec.preprocess) for one in pictures(spec)])
    )
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, torch.nn.BatchNorm2d):
                one.momentum = None  # so that it takes the mean and variance of what it sees
                one.reset_running_stats()
        module.train()(seen)
        outputs = module.eval()(seen)
        last = [one for one in module.modules() if isinstance(one, torch.nn.Linear)][-1]
        last.weight /= outputs.std(dim=0).mean()
        last.bias -= module(seen).mean(dim=0)
    torch.save(module.state_dict(), folder / "weights.pth")
    return folder


def run(
    module: str, folder: Path, out: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", f"swiprd.inference.{module}", folder, out]
    given = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=given)


def compiled(folder: Path, out: Path) -> CompiledRecord:
    """Compile and prove, each in silence."""
    out.mkdir(exist_ok=True)
    for module in ("compile", "prove"):
        done = run(module, folder, out)
        assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)
    record = load_record(out)
    assert record is not None
    return record


@dataclass(frozen=True)
class Made:
    """A model's folder, and where its compiled form lies."""

    folder: Path
    out: Path

    def copied(self, to: Path) -> Made:
        """Copy both, to be changed."""
        shutil.copytree(self.folder, to / "model")
        shutil.copytree(self.out, to / "out")
        return Made(to / "model", to / "out")


@pytest.fixture(scope="module")
def _unproven(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("compiled")
    folder = make_lively(root / "model", "mobilenet_v3_small")
    (root / "out").mkdir()
    assert run("compile", folder, root / "out").returncode == 0
    return Made(folder, root / "out")


@pytest.fixture
def unproven(_unproven: Made, tmp_path: Path) -> Made:
    """A model that is compiled and not proven, to be changed."""
    return _unproven.copied(tmp_path / "unproven")


@pytest.fixture(scope="module")
def made(_unproven: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The model, proven; nobody may change it."""
    made = _unproven.copied(tmp_path_factory.mktemp("proven"))
    assert run("prove", made.folder, made.out).returncode == 0
    return made


@pytest.fixture
def own(made: Made, tmp_path: Path) -> Made:
    """A copy of the proven model, to be changed."""
    return made.copied(tmp_path / "own")


ANSWER = """
import json, os, sys
from pathlib import Path
import numpy as np
from swiprd.folder.spec import load_spec
from swiprd.inference.onnx_model import NoCompiledForm, load_onnx
folder, out, crops = map(Path, sys.argv[1:4])
model = load_onnx(load_spec(folder), out)
"""


def python(program: str, *arguments: object, **environment: str) -> str:
    """Run a program in a process of its own, with no threads of numpy's; return what it prints."""
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    given = os.environ | {"OPENBLAS_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def torchs_rows(folder: Path, crops: np.ndarray) -> np.ndarray:
    """What torch answers to crops, which may be of any recipe's number: [images, labels]."""
    from swiprd.inference.model import load_model

    return load_model(load_spec(folder)).probabilities(crops)


@pytest.mark.parametrize(
    ("architecture", "recipe", "activation"),
    [
        ("resnet18", "", "softmax"),
        ("mobilenet_v3_small", "", "sigmoid"),
        ("mobilenet_v3_small", f'{GRID}pool = "logsumexp"\n', "log_softmax"),
        ("resnet18", f'{GRID}pool = "logits"\n', "sigmoid"),
        ("resnet18", GRID, "none"),
    ],
)
def test_a_compiled_form_answers_as_torch_does(
    tmp_path: Path, architecture: str, recipe: str, activation: str
) -> None:
    folder = make_lively(tmp_path / "model", architecture, recipe, activation)
    record = compiled(folder, tmp_path / "out")
    assert 0 < record.difference <= MOST_DIFFERENCE
    assert (record.pictures, record.batches) == (1 + OTHERS, (1, 4, 17))
    assert {"torch", "torchvision", "onnx", "onnxruntime", "swipr"} == set(record.versions)
    assert sorted(path.name for path in record.directory.iterdir()) == [COMPILED, RECORD]
    # And to what no proof has shown it, in a batch of another size.
    recipe_of = load_spec(folder).preprocess
    crops = smooth_crops(3, recipe_of.crop_count, recipe_of.crop)
    np.save(tmp_path / "c.npy", crops)
    said = python(
        f"{ANSWER}print(json.dumps(model.probabilities(np.load(crops)).tolist()))",
        *(folder, record.directory, tmp_path / "c.npy"),
    )
    rows = np.array(json.loads(said))
    expected = torchs_rows(folder, crops)
    assert rows.shape == (3, CLASSES)
    assert np.abs(rows - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    assert expected.std(axis=0).max() > 0.01  # else anything would have done


def test_the_pictures_of_the_proof_differ_and_are_the_same_each_time(unproven: Made) -> None:
    spec = load_spec(unproven.folder)
    first = list(pictures(spec))
    assert first == list(pictures(spec))
    assert len(set(first)) == 1 + OTHERS
    assert first[0] == (unproven.folder / "canary.jpg").read_bytes()


def test_the_labels_of_imagenet_come_with_the_compiled_form(tmp_path: Path) -> None:
    import torch

    folder = make_folder(tmp_path / "model", "squeezenet1_1")
    torch.manual_seed(1)
    torch.save(import_torchvision().models.squeezenet1_1().state_dict(), folder / "weights.pth")
    text = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(text.replace('"labels.txt"', '"imagenet"'))
    record = compiled(folder, tmp_path / "out")
    assert len(record.labels) == 1000
    said = python(
        f"{ANSWER}print(model.labels[:2], len(model.labels))", folder, tmp_path / "out", ""
    )
    assert said == "('tench', 'goldfish') 1000\n"


def test_what_a_loaded_model_says_of_itself(made: Made) -> None:
    said = python(
        f"{ANSWER}print(json.dumps([model.name, model.device, model.labels, model.model_id,"
        " sorted(model.versions), model.to_device('cpu') is model]))",
        *(made.folder, made.out, ""),
    )
    spec = load_spec(made.folder)
    assert json.loads(said) == [
        *("onnx", "cpu", list(spec.labels), identify(spec)),
        *(["numpy", "onnxruntime", "pillow", "python"], True),
    ]


def alter(file: Path, factor: float) -> None:
    """Multiply a weight of the last layer."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(file))
    last = [one for one in model.graph.initializer if len(one.dims) == 2][-1]
    values = numpy_helper.to_array(last).copy()
    values[0] *= factor
    last.CopyFrom(numpy_helper.from_array(values, last.name))
    onnx.save(model, str(file))


def test_one_that_answers_otherwise_is_not_proven(unproven: Made) -> None:
    alter(unproven.out / FRESH, 1.01)
    done = run("prove", unproven.folder, unproven.out)
    assert done.returncode == 1
    begin, _, rest = done.stderr.partition(" by ")
    figure, _, rest = rest.partition(" ")
    assert begin == "it differs from torch"
    assert 1e-5 < float(figure) < 0.1
    assert rest == "in batches of 1, where 1e-05 is the most\n"
    assert not (unproven.out / COMPILED).exists()
    assert load_record(unproven.out) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_whose_answers_are_no_numbers_is_not_proven(unproven: Made, value: float) -> None:
    alter(unproven.out / FRESH, value)
    done = run("prove", unproven.folder, unproven.out)
    assert (done.returncode, done.stderr) == (1, "there are answers that are not numbers\n")


def test_what_was_proven_before_stays_if_the_next_is_not(own: Made, unproven: Made) -> None:
    before = {path.name: path.read_bytes() for path in own.out.iterdir()}
    shutil.copy(unproven.out / REFERENCE, own.out)
    (own.out / FRESH).write_bytes(b"nonsense")
    done = run("prove", own.folder, own.out)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{own.out / FRESH}: ")
    assert done.stderr.count("\n") == 1
    assert before.items() <= {path.name: path.read_bytes() for path in own.out.iterdir()}.items()


def test_a_folder_that_changes_between_compiling_and_proving_is_not_proven(unproven: Made) -> None:
    with (unproven.folder / "weights.pth").open("ab") as file:
        file.write(b"more")
    done = run("prove", unproven.folder, unproven.out)
    why = f"{unproven.folder} has changed since it was compiled\n"
    assert (done.returncode, done.stderr) == (1, why)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (None, "expected a readable file, found No such file or directory"),
        ("{", "expected torch's answers"),
        ("[]", "expected torch's answers"),
        ('{"digest": 1}', "expected torch's answers"),
    ],
)
def test_a_reference_that_is_not_one_proves_nothing(own: Made, write: str | None, why: str) -> None:
    if write is not None:
        (own.out / REFERENCE).write_text(write)
    done = run("prove", own.folder, own.out)
    assert done.returncode == 1
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_program_is_not_compiled(own: Made) -> None:
    text = (own.folder / "model.toml").read_text()
    (own.folder / "model.toml").write_text(text.replace("mobilenet_v3_small", "torchscript"))
    done = run("compile", own.folder, own.out)
    assert (done.returncode, done.stderr) == (
        *(1,),
        "a program (torchscript) is served as it is, by torch\n",
    )


def test_what_cannot_be_compiled_says_so_in_a_line(own: Made) -> None:
    text = (own.folder / "model.toml").read_text()
    (own.folder / "model.toml").write_text(text.replace("mobilenet_v3_small", "resnet18"))
    done = run("compile", own.folder, own.out)
    assert done.returncode == 1
    assert "resnet18 with 10 labels" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_proven_form_is_current(made: Made) -> None:
    record = load_record(made.out)
    assert record is not None
    assert is_current(record, load_spec(made.folder)) == ""


@pytest.mark.parametrize(
    ("seconds", "why"),
    [
        (0.019, ""),
        (0.0209, ""),  # a draw
        (
            *(0.0211,),
            "torch is faster: 20.0 ms of a processor for an image, the compiled form takes 21.1",
        ),
    ],
)
def test_torch_is_the_better_choice_where_it_is_faster(
    made: Made, seconds: float, why: str
) -> None:
    record = load_record(made.out)
    assert record is not None
    assert replace(record, seconds=seconds, torch_seconds=0.02).outpaced() == why


OTHERWISE = {
    "weights": "was made from other weights, other labels or another model.toml",
    "recorded weights": "was made from other weights, other labels or another model.toml",
    "model.toml": "was made from other weights, other labels or another model.toml",
    "labels": "was made from other weights, other labels or another model.toml",
    "compiled.onnx": "is not the file that was proven",
    "no compiled.onnx": "cannot be read: No such file or directory",
    "a pipe": "cannot be read: no regular file",
    "a folder": "cannot be read: Is a directory",
    "format": f"has format {FORMAT + 1}, where {FORMAT} is read",
    "difference": "tells of a difference of 2.0e-05",
}


def change(what: str, made: Made) -> None:
    toml, onnx = made.folder / "model.toml", made.out / COMPILED
    record = load_record(made.out)
    assert record is not None
    match what:
        case "weights" | "recorded weights":
            # What model.toml says of them is not asked: they may have been replaced.
            if what == "recorded weights":
                digest = "0" * 64
                toml.write_text(f'sha256 = "{digest}"\n{toml.read_text()}')
                assert is_current(record, load_spec(made.folder)) == ""
            weights = made.folder / "weights.pth"
            data = bytearray(weights.read_bytes())
            data[len(data) // 2] ^= 1
            weights.write_bytes(data)
        case "model.toml":
            toml.write_text(f"{toml.read_text()}[preprocess]\nresize = 255\n")
        case "labels":
            (made.folder / "labels.txt").write_text("".join(f"other{n}\n" for n in range(CLASSES)))
        case "compiled.onnx":
            data = bytearray(onnx.read_bytes())
            data[len(data) // 2] ^= 1
            onnx.write_bytes(data)
        case "no compiled.onnx":
            onnx.unlink()
        case "a pipe":
            onnx.unlink()
            os.mkfifo(onnx)
        case "a folder":
            onnx.unlink()
            onnx.mkdir()
        case "format":
            write_record(replace(record, format=FORMAT + 1))
        case "difference":
            write_record(replace(record, difference=2e-5))


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_form_that_is_not_current_is_not_served(own: Made, what: str) -> None:
    change(what, own)
    record = load_record(own.out)
    assert record is not None
    assert is_current(record, load_spec(own.folder)).endswith(OTHERWISE[what])
    program = ANSWER.replace("model = ", "try: model = ")
    said = python(f"{program}except NoCompiledForm as e: print(e)", own.folder, own.out, "")
    assert said.endswith(f"{OTHERWISE[what]}\n")


def test_what_does_not_change_the_answers_does_not_count(own: Made) -> None:
    with (own.folder / "model.toml").open("a") as file:
        file.write("[serve]\nworkers = 1\n")
    record = load_record(own.out)
    assert record is not None
    assert is_current(record, load_spec(own.folder)) == ""


def damaged(text: str) -> Iterator[bytes]:
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith("#") and "." not in line.partition(" ")[2]:
            yield "\n".join([*lines[:number], *lines[number + 1 :]]).encode()  # one is missing
    for old, new in (
        *(("pictures = 17", 'pictures = "17"'), ("pictures = 17", "pictures = true")),
        *(("pictures = 17", "pictures = -1"), ("batches = [1", "batches = [0")),
        *(("batches = [", "batches = [[],"), ("labels = []", "labels = [1]")),
        *(("format = 1", "format = 1.5"), ('digest = "', 'digest = 1 # "')),
        *(("[versions]", "[[versions]]"), ("[versions]", "[versions]\nx = 1")),
        *(("difference = ", "difference = nan # "), ("difference = ", "difference = -1 # ")),
        ("difference = ", f"difference = 1{'0' * 400} # "),
    ):
        assert old in text
        yield text.replace(old, new).encode()
    yield text.encode()[: len(text) // 2]
    yield b""
    yield b"\xff" + text.encode()
    yield b"x = " + b"[" * 100_000
    yield text.encode() + b"#" * (5 << 20)


def test_a_damaged_record_is_none(own: Made) -> None:
    file = own.out / RECORD
    text = file.read_text()
    cases = list(damaged(text))
    assert len(cases) > 20
    for data in cases:
        file.write_bytes(data)
        assert load_record(own.out) is None, data[:600]
    file.write_text(text)
    assert load_record(own.out) is not None


@pytest.mark.parametrize("kind", ["nothing", "a pipe", "a folder"])
def test_a_record_that_is_no_file_is_none(tmp_path: Path, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo(tmp_path / RECORD)
    elif kind == "a folder":
        (tmp_path / RECORD).mkdir()
    assert load_record(tmp_path) is None


def test_a_record_keeps_all_it_is_given(tmp_path: Path) -> None:
    record = CompiledRecord(
        directory=tmp_path,
        digest="a" * 64,
        sha256="b" * 64,
        versions={"torch": "2.6.0+cpu", 'o"dd\x7f\n': "1 é 𝄞"},
        difference=2.9802322387695312e-08,
        pictures=17,
        batches=(1, 4),
        seconds=0.004,
        torch_seconds=0.0125,
        labels=("tench", 'with "quotes" \\'),
    )
    write_record(record)
    assert load_record(tmp_path) == record


FORKS = """
data = np.load(crops)
def threads():
    return len(os.listdir("/proc/self/task"))
assert threads() == 1, threads()
answers = []
for child in range(3):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        # The first answer, not a later one, is what the front waits for.
        rows = [model.probabilities(data).tolist()]
        assert threads() == 1
        model.set_threads(2)
        assert threads() == 2
        rows.append(model.probabilities(data).tolist())
        model.set_threads(2)
        model.set_threads(1)
        rows.append(model.probabilities(data).tolist())
        with os.fdopen(writing, "w") as pipe:
            json.dump(rows, pipe)
        os._exit(0)
    os.close(writing)
    answers.append(os.fdopen(reading))
print(json.dumps([json.load(one) for one in answers]))
"""


def test_forked_children_answer_at_once_with_any_threads(made: Made, tmp_path: Path) -> None:
    crops = smooth_crops(2, 1, 224)
    np.save(tmp_path / "crops.npy", crops)
    said = python(ANSWER + FORKS, made.folder, made.out, tmp_path / "crops.npy")
    expected = torchs_rows(made.folder, crops)
    children = np.array(json.loads(said))
    assert children.shape == (3, 3, 2, CLASSES)
    assert np.abs(children - expected).max() <= 1e-5


REPLACED = """
from pathlib import Path
(out / "compiled.onnx").rename(out / "old")
(out / "compiled.onnx").write_bytes(b"another")
model.set_threads(2)
print(model.probabilities(np.load(crops)).shape)
(out / "old").write_bytes(b"overwritten in place")
model.set_threads(3)
print(model.probabilities(np.load(crops)).shape)
"""


def test_sessions_are_made_of_the_file_that_was_checked(own: Made, tmp_path: Path) -> None:
    np.save(tmp_path / "crops.npy", smooth_crops(2, 1, 224))
    said = python(ANSWER + REPLACED, own.folder, own.out, tmp_path / "crops.npy")
    assert said == f"(2, {CLASSES})\n" * 2


EXTREMES = """
import warnings
import numpy as np
from swiprd.inference import onnx_model
warnings.simplefilter("error")
large = np.array([[[-1e4, 0, 1e4], [-200, -300, 88]]], np.float32)
for rows in (onnx_model._softmax(large), onnx_model._sigmoid(large)):
    assert rows.dtype == np.float32 and ((rows >= 0) & (rows <= 1)).all(), rows
assert onnx_model._sigmoid(large)[0, 0].tolist() == [0, 0.5, 1]
"""


def test_extreme_outputs_are_no_fault() -> None:
    python(EXTREMES)


def test_telemetry_is_off(made: Made, tmp_path: Path) -> None:
    """No thread, no file and no connection, where the runtime would start, write and make some."""
    program = f"""
import os, socket, sys
tried = []
sys.addaudithook(lambda event, _: event.startswith("socket.") and tried.append(event))
{ANSWER}
import time
model.probabilities(np.load(crops))
print(len(os.listdir("/proc/self/task")), tried)
for name in os.listdir("/proc/self/fd"):
    try:
        to = os.readlink("/proc/self/fd/" + name)
    except OSError:
        continue
    if to.startswith("socket:"):
        print(name, to)
"""
    np.save(tmp_path / "crops.npy", smooth_crops(1, 1, 224))
    home = tmp_path / "home"
    home.mkdir()
    names = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")
    environment = dict.fromkeys(names, str(home))
    said = python(program, made.folder, made.out, tmp_path / "crops.npy", **environment)
    assert said == "1 []\n"
    assert not list(home.iterdir())


def test_onnxruntime_that_is_not_there_is_named(made: Made) -> None:
    program = f"""
import sys
sys.modules["onnxruntime"] = None
{ANSWER.replace("model = ", "try: model = ")}except NoCompiledForm as error: print(error)
"""
    assert python(program, made.folder, made.out, "").startswith("onnxruntime cannot be imported:")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "module 'onnxruntime' has no attribute '__version__'"),
        ("__version__ = '1'", "module 'onnxruntime' has no attribute 'InferenceSession'"),
        ("raise RuntimeError('no such\\nprocessor')", "no such"),
    ],
)
def test_onnxruntime_that_is_damaged_is_as_if_it_were_not_there(
    made: Made, tmp_path: Path, source: str, said: str
) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text(source)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
{ANSWER.replace("model = ", "try: model = ")}except NoCompiledForm as error: print(error)
"""
    told = python(program, made.folder, made.out, "")
    assert told == f"onnxruntime cannot be imported: {said}\n"
