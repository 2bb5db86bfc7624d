"""`swiprd pack` makes the compiled form at once: what serves then, and what if that cannot be."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from checkpoints import classifier
from modelfolders import photo
from torch import nn

from swiprd.__main__ import main
from swiprd.folder.compiled_record import MOST_DIFFERENCE, is_current, load_record
from swiprd.folder.spec import load_spec

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.timeout(120)

torch.set_num_threads(1)
FILES = ["labels.txt", "model.toml", "weights.pth"]
COMPILED = ["compiled.onnx", "compiled.toml"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(classifier("shufflenet_v2_x0_5", 2).state_dict(), tmp_path / "c.pth")
    return tmp_path / "c.pth"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "packed"


def pack(checkpoint: Path, folder: Path, *options: str) -> int:
    given = options if "--labels" in options else ("--labels", "a,b", *options)
    return main(["pack", str(checkpoint), "-o", str(folder), *given])


def engine(capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of it, if nothing is complained of."""
    out, err = capsys.readouterr()
    assert err == ""
    (line,) = re.findall(r"^engine +(.*)$", out, flags=re.M)
    assert out.index("\nproven ") < out.index("\nengine ") < out.index("\nTry it:")
    return str(line)


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


SERVED = """
import json, sys
from pathlib import Path
import numpy as np
from swiprd.folder.spec import load_spec
from swiprd.inference.decode import decode
from swiprd.inference.onnx_model import load_onnx
folder, picture = map(Path, sys.argv[1:])
model = load_onnx(load_spec(folder), folder)
crops = decode(picture.read_bytes(), model.spec.preprocess)
print(json.dumps(model.probabilities(crops[None])[0].tolist()))
"""


def test_what_is_packed_is_served_by_its_compiled_form(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = os.umask(0o077)
    try:
        assert pack(checkpoint, folder) == 0
    finally:
        os.umask(old)
    said = engine(capsys)
    record = load_record(folder)
    assert record is not None
    assert is_current(record, load_spec(folder)) == ""
    if why := record.outpaced():  # as it was measured on a busy host
        assert said == f"torch ({why})"
    else:
        found = re.fullmatch(r"onnx (\d[\w.+-]*), within (\S+) of torch", said)
        assert found, said
        assert found[1] == record.versions["onnxruntime"]
        assert float(found[2]) <= MOST_DIFFERENCE
    assert names(folder) == sorted([*FILES, *COMPILED])
    assert {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()} == {0o644}
    assert "engine" not in tomllib.loads((folder / "model.toml").read_text())
    # The form itself, where torch is not imported, and torch's own module beside it.
    (folder.parent / "a.jpg").write_bytes(photo(3))
    command = [sys.executable, "-P", "-c", SERVED, folder, folder.parent / "a.jpg"]
    row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    from swiprd.inference.decode import decode
    from swiprd.inference.model import load_model

    loaded = load_model(load_spec(folder))
    crops = decode(photo(3), loaded.spec.preprocess)
    expected = loaded.probabilities(crops[None])[0].tolist()
    assert row == pytest.approx(expected, abs=MOST_DIFFERENCE)


def test_it_is_left_out_where_torch_is_to_serve(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(checkpoint, folder, "--engine", "torch") == 0
    assert engine(capsys) == "torch (as --engine says)"
    assert names(folder) == FILES
    assert load_spec(folder).engine == "torch"


def test_it_is_what_serves_where_that_is_demanded(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(checkpoint, folder, "--engine", "onnx") == 0
    assert engine(capsys).startswith("onnx ")
    assert names(folder) == sorted([*FILES, *COMPILED])
    assert load_spec(folder).engine == "onnx"


@pytest.fixture
def unexportable(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """Of crops of 100 pixels AlexNet makes 2 x 2, and pools these to 6 x 6: no operator of ONNX."""
    torch.save(classifier("alexnet", 2).state_dict(), tmp_path / "c.pth")
    return tmp_path / "c.pth", ("--crop", "100")


def test_one_that_cannot_be_exported_is_torchs(
    unexportable: tuple[Path, tuple[str, ...]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, options = unexportable
    why = r"torch does not export it: Unsupported: ONNX export of operator adaptive_avg_pool2d, .*"
    assert pack(checkpoint, folder, *options) == 0
    assert re.fullmatch(rf"torch \({why}\)", engine(capsys))
    assert names(folder) == FILES
    assert load_spec(folder).engine == "auto"
    asked = ("--engine", "onnx", "--force")
    before = folder.stat().st_ino
    assert pack(checkpoint, folder, *options, *asked) == 70
    said = capsys.readouterr().err
    demand = "swiprd pack: --engine onnx: there is no compiled form: "
    assert re.fullmatch(rf"{re.escape(demand)}{why}\n", said)
    assert folder.stat().st_ino == before
    assert names(folder.parent) == ["c.pth", "packed"]


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_without_a_library_torch_serves(
    checkpoint: Path,
    folder: Path,
    library: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    assert pack(checkpoint, folder) == 0
    assert engine(capsys) == f"torch ({library} is not installed)"
    assert names(folder) == FILES
    assert pack(checkpoint, folder, "--engine", "onnx", "--force") == 70
    assert capsys.readouterr().err.endswith(f"no compiled form: {library} is not installed\n")


def put_first(library: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes import something else under a library's name."""
    (folder / "first" / library).mkdir(parents=True)
    (folder / "first" / library / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder / "first"))


def test_a_library_that_is_broken_is_named(
    checkpoint: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = "raise ImportError('libfoo.so: not found')"
    put_first("onnxruntime", code, folder.parent, monkeypatch)
    assert pack(checkpoint, folder) == 0
    assert engine(capsys) == "torch (onnxruntime cannot be imported: libfoo.so: not found)"
    assert names(folder) == FILES


def test_one_that_is_killed_costs_the_compiled_form_only(
    checkpoint: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the OOM killer does it."""
    code = "import os; os.kill(os.getpid(), 9)"
    put_first("onnx", code, folder.parent, monkeypatch)
    assert pack(checkpoint, folder) == 0
    assert engine(capsys) == "torch (swiprd.inference.compile was ended by SIGKILL)"
    assert names(folder) == FILES


def test_a_program_is_served_as_it_is(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    torch.jit.trace(module, torch.zeros(1, 3, 224, 224)).save(tmp_path / "m.pt")  # type: ignore
    program = ("--architecture", "torchscript")
    assert pack(tmp_path / "m.pt", folder, *program, "--engine", "onnx") == 64
    said = capsys.readouterr().err
    assert said == "swiprd pack: --engine onnx: a program is served as it is, by torch\n"
    assert pack(tmp_path / "m.pt", folder, *program) == 0
    assert engine(capsys) == "torch (a program is served as it is)"
    assert names(folder) == ["labels.txt", "model.toml", "program.pt"]


@pytest.mark.parametrize(
    ("library", "number", "group"),
    [
        pytest.param("onnx", signal.SIGTERM, False, id="kill while it is compiled"),
        pytest.param("onnxruntime", signal.SIGTERM, False, id="kill while it is proven"),
        pytest.param("onnxruntime", signal.SIGINT, True, id="on a terminal"),
    ],
)
def test_a_signal_meanwhile_leaves_nothing(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    number: signal.Signals,
    group: bool,
) -> None:
    """In the midst of either process: the one imports onnx at its end, the other onnxruntime."""
    place = tmp_path / "place"
    place.mkdir()
    os.mkfifo(tmp_path / "told")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    code = "import os, signal\nwith open(os.environ['TOLD'], 'w') as told:\n"
    code += "    told.write(str(os.getpid()))\nwhile True: signal.pause()\n"
    put_first(library, code, tmp_path, monkeypatch)
    packing = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "swiprd", "pack", checkpoint, "--labels", "a,b"),
            *("-o", place / "m"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    child = int((tmp_path / "told").read_text())  # a pipe: it comes when there is something
    (made,) = place.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    if group:
        os.killpg(packing.pid, number)
    else:
        packing.send_signal(number)
    _, err = packing.communicate(timeout=50)
    assert (packing.returncode, err) == (
        128 + number,
        b"swiprd pack: interrupted; nothing was made\n",
    )
    assert list(place.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
