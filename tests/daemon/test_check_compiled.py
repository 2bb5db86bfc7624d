"""`swiprd check` of a folder with a compiled form: which engine serves; do both answer alike?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from modelfolders import make_folder, photo

from swiprd.check import check as swiprd_check
from swiprd.folder.compiled_record import (
    COMPILED,
    MOST_DIFFERENCE,
    RECORD,
    CompiledRecord,
    digest_file,
    load_record,
    write_record,
)
from swiprd.folder.spec import load_spec
from swiprd.inference.decode import decode
from swiprd.inference.model import load_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.timeout(120)

torch.set_num_threads(1)

MEND = (
    "torch serves. 'swiprd pack' makes the form again, and a daemon makes one of its own in quiet"
    " time"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("check") / "model")
    for module in ("compile", "prove"):
        command = [sys.executable, "-P", "-m", f"swiprd.inference.{module}", folder, folder]
        subprocess.run(command, check=True, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"})
    (folder / "a.jpg").write_bytes(photo(1))
    # Whichever is faster on this host now.
    write_record(replace(record(folder), seconds=0.01, torch_seconds=0.02))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


def record(folder: Path) -> CompiledRecord:
    found = load_record(folder)
    assert found is not None
    return found


Check = Callable[[Path], tuple[str, str, str, int]]


@pytest.fixture
def check(capfd: pytest.CaptureFixture[str]) -> Check:
    def check(folder: Path) -> tuple[str, str, str, int]:
        """Check a folder and its picture: the engine, the row, the complaints, the status."""
        capfd.readouterr()
        status = swiprd_check(folder, [folder / "a.jpg"], "cpu")
        out, err = capfd.readouterr()
        head, _, row = out.partition("\n\n")
        engine = [one for one in head.splitlines() if one.startswith("engine ")]
        return "".join(engine).removeprefix("engine").strip(), row, err, status

    return check


def torchs(folder: Path) -> list[float]:
    loaded = load_model(load_spec(folder))
    crops = decode((folder / "a.jpg").read_bytes(), loaded.spec.preprocess)
    row: list[float] = loaded.probabilities(crops[None])[0].tolist()
    return row


def test_the_compiled_form_serves_and_answers_as_torch_does(folder: Path, check: Check) -> None:
    engine, row, err, status = check(folder)
    kept = record(folder)
    version = kept.versions["onnxruntime"]
    assert engine == f"onnx {version}, within {kept.difference:.2g} of torch"
    assert (err, status) == ("", 0)
    found = [float(one) for one in row.split(",")]
    assert found == pytest.approx(torchs(folder), rel=1e-5, abs=MOST_DIFFERENCE)


def alter(folder: Path) -> None:
    """Change the network a little, and the record so that it vouches for it."""
    model = onnx.load(str(folder / COMPILED))
    last = [one for one in model.graph.initializer if len(one.dims) == 2][-1]
    values = onnx.numpy_helper.to_array(last).copy()
    values[0] *= 1.01
    last.CopyFrom(onnx.numpy_helper.from_array(values, last.name))
    onnx.save(model, str(folder / COMPILED))
    write_record(replace(record(folder), sha256=digest_file(folder / COMPILED)))


@pytest.mark.parametrize("serves", [True, False])
def test_one_that_answers_otherwise_is_complained_of(
    folder: Path, check: Check, serves: bool
) -> None:
    """Whoever sends a folder may have written the record as well."""
    alter(folder)
    write_record(replace(record(folder), seconds=0.01 if serves else 0.03))
    _, _, err, status = check(folder)
    begin, _, rest = err.partition(" differs from torch by ")
    assert (begin, status) == (f"swiprd: {folder}: the compiled form", 78)
    figure, _, rest = rest.partition(",")
    assert MOST_DIFFERENCE < float(figure) < 0.1
    assert rest == (
        " where 1e-05 is the most: pack the model again, or delete compiled.onnx and"
        " compiled.toml\n"
    )


def damage(folder: Path) -> str:
    data = bytearray((folder / COMPILED).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / COMPILED).write_bytes(data)
    return f"{folder / COMPILED} is not the file that was proven"


def edit(folder: Path) -> str:
    with (folder / "model.toml").open("a") as file:
        file.write("[preprocess]\nresize = 255\n")
    return edited(folder)


def edited(folder: Path) -> str:
    return f"{folder / COMPILED} was made from other weights, other labels or another model.toml"


def rename(folder: Path) -> str:
    labels = (folder / "labels.txt").read_text().splitlines()
    (folder / "labels.txt").write_text("\n".join(["another name", *labels[1:]]) + "\n")
    return edited(folder)


def forget(folder: Path) -> str:
    (folder / RECORD).unlink()
    return f"{folder}: has no compiled.toml that can be used"


def nonsense(folder: Path) -> str:
    (folder / COMPILED).unlink()
    os.mkfifo(folder / COMPILED)
    return f"{folder / COMPILED}: cannot be read: no regular file"


@pytest.mark.parametrize("spoil", [damage, edit, rename, forget, nonsense])
def test_one_that_cannot_serve_is_named(
    folder: Path, check: Check, spoil: Callable[[Path], str]
) -> None:
    why = spoil(folder)
    engine, row, err, status = check(folder)
    assert engine == f"torch ({why})"
    assert (err, status) == (f"swiprd: {why}; {MEND}\n", 0)
    assert [float(one) for one in row.split(",")] == pytest.approx(torchs(folder), rel=1e-5)


def test_one_that_is_demanded_and_cannot_serve(folder: Path, check: Check) -> None:
    file = folder / "model.toml"
    file.write_text('engine = "onnx"\n' + file.read_text())
    assert check(folder)[0].startswith("onnx ")
    why = damage(folder)
    expected = f"{file}: engine: expected a compiled form that can serve, found none: {why}"
    assert check(folder) == ("", "", f"swiprd: {expected}\n", 78)


def test_one_that_is_not_wanted(folder: Path, check: Check) -> None:
    file = folder / "model.toml"
    file.write_text('engine = "torch"\n' + file.read_text())
    damage(folder)
    engine, _, err, status = check(folder)
    assert (engine, err, status) == ("torch (as model.toml says)", "", 0)


def test_one_that_is_slower(folder: Path, check: Check) -> None:
    write_record(replace(record(folder), seconds=0.03))
    engine, row, err, status = check(folder)
    assert engine == f"torch ({record(folder).outpaced()})"
    assert (err, status) == ("", 0)
    assert [float(one) for one in row.split(",")] == pytest.approx(torchs(folder), rel=1e-5)


@pytest.mark.parametrize("there", [True, False])
def test_without_onnxruntime(
    folder: Path, check: Check, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if not there:
        (folder / COMPILED).unlink()
        (folder / RECORD).unlink()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    engine, _, err, status = check(folder)
    assert (engine, err, status) == ("torch (onnxruntime is not installed)", "", 0)


def test_a_process_that_dies_is_named(
    folder: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the OOM killer does it, when the first picture is answered."""
    code = """
import os
__version__ = "0"
class SessionOptions: pass
class ExecutionMode: ORT_SEQUENTIAL = 0
class GraphOptimizationLevel: ORT_ENABLE_ALL = 0
class Pictures: name, type, shape = "crops", "tensor(float)", ["n", 3, 224, 224]
class Rows: name, type, shape = "outputs", "tensor(float)", ["n", 10]
class InferenceSession:
    def __init__(self, *_, **__): pass
    def get_inputs(self): return [Pictures]
    def get_outputs(self): return [Rows]
    def run(self, *_): os.kill(os.getpid(), 9)
"""
    first = folder.parent / "first"
    first.mkdir()
    (first / "onnxruntime.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(first))
    said = f"swiprd: {folder}: the compiled form fails: onnxruntime's process was ended by SIGKILL"
    assert check(folder) == ("", "", f"{said}\n", 70)
