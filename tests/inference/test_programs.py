"""programs.py and ownership.py: programs answer as their modules do, from root's folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import nn

from swiprd import trust
from swiprd.folder import consent
from swiprd.folder.spec import load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference import model
from swiprd.inference.model import load_model
from swiprd.inference.programs import load_torchscript

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

torch.set_num_threads(1)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
TOLERANCE = 1e-4
SIZE = 32
JIT: Any = torch.jit  # not typed throughout


class Net(nn.Module):
    """A small classifier whose code no other process has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.body(x).mean(dim=(2, 3)) * 20)
        return out


class OneByOne(Net):
    """Has the number of pictures in its code, as traces of careless modules do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.body(x).mean(dim=(2, 3)).reshape(1, 8) * 20)
        return out


class OnlyOne(Net):
    """Says that it takes one picture at a time; a script's assert raises no RuntimeError."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] == 1, "one at a time"
        out: torch.Tensor = self.last(self.body(x).mean(dim=(2, 3)) * 20)
        return out


class Aided(Net):
    """Answers with an auxiliary head behind its own."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x.mean()


@pytest.fixture(autouse=True)
def _of_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies here counts as lying below /etc/swipr: there ownership decides, not a record."""
    monkeypatch.setattr(consent, "ROOTS", (tmp_path,))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "model"
    made.mkdir(mode=0o755)
    yield made
    made.chmod(0o755)


def describe(folder: Path, kind: str, *, labels: int = 3, crop: int = SIZE) -> Path:
    """Write what belongs beside the program, with the permissions that it needs."""
    (folder / "labels.txt").write_text("".join(f"class{i}\n" for i in range(labels)))
    (folder / "model.toml").write_text(
        f'name = "program"\narchitecture = "{kind}"\nweights = "program"\nlabels = "labels.txt"\n'
        f'activation = "softmax"\n[preprocess]\nresize = {crop}\ncrop = {crop}\n'
    )
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def crops(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def expected(module: nn.Module) -> torch.Tensor:
    """Answer the pictures one by one, as the module itself does."""
    with torch.no_grad():
        outputs = [module(crop.unsqueeze(0)) for crop in crops()]
        rows = [one[0] if isinstance(one, tuple) else one for one in outputs]
        return torch.cat(rows).softmax(dim=1)


def answers(folder: Path) -> torch.Tensor:
    rows = load_model(load_spec(folder)).probabilities(crops().unsqueeze(1).numpy())
    return torch.from_numpy(rows)


def traced(folder: Path, module: nn.Module) -> None:
    JIT.trace(module, crops(1)).save(str(folder / "program"))


def exported(folder: Path, module: nn.Module, pictures: int, *, fixed: bool) -> None:
    shapes = None if fixed else ({0: torch.export.Dim("pictures", min=1, max=256)},)
    program = torch.export.export(module, (crops(pictures),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "program")


@pytest.mark.parametrize("kind", [Net, OneByOne, Aided])
def test_a_trace_answers_as_its_module(folder: Path, kind: type[Net]) -> None:
    module = kind().eval()
    traced(folder, module)
    rows = answers(describe(folder, "torchscript"))
    assert torch.allclose(rows, expected(module), rtol=0, atol=TOLERANCE)
    assert rows.std(dim=0).max() > 0.005


@pytest.mark.parametrize("kind", [Net, OnlyOne])
def test_a_script_answers_as_its_module(folder: Path, kind: type[Net]) -> None:
    module = kind().eval()
    JIT.script(module).save(str(folder / "program"))
    rows = answers(describe(folder, "torchscript"))
    assert torch.allclose(rows, expected(module), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("pictures", "fixed"), [(1, True), (2, True), (2, False)])
def test_an_exported_program_answers_as_its_module(
    folder: Path, pictures: int, fixed: bool
) -> None:
    module = Net().eval()
    exported(folder, module, pictures, fixed=fixed)
    rows = answers(describe(folder, "export"))
    assert torch.allclose(rows, expected(module), rtol=0, atol=TOLERANCE)


def test_an_exported_program_for_few_pictures_is_given_few(folder: Path) -> None:
    """Its guards, too, are assertions."""
    module = Net().eval()
    shapes = ({0: torch.export.Dim("pictures", min=1, max=2)},)
    program = torch.export.export(module, (crops(2),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "program")
    rows = answers(describe(folder, "export"))
    assert torch.allclose(rows, expected(module), rtol=0, atol=TOLERANCE)


def test_an_exported_program_may_be_called_anything(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Links of caches lead to files that are called after their digests."""
    exported(folder, Net().eval(), 1, fixed=True)
    caplog.clear()
    load_model(load_spec(describe(folder, "export")))
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


def test_ten_crops_through_a_program_for_one_picture(folder: Path) -> None:
    module = Net().eval()
    exported(folder, module, 1, fixed=True)
    loaded = load_model(load_spec(describe(folder, "export")))
    rows = torch.from_numpy(loaded.probabilities(crops().unsqueeze(0).numpy()))
    assert torch.allclose(rows[0], expected(module).mean(dim=0), rtol=0, atol=TOLERANCE)


def refusal(folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_model(load_spec(folder))
    return str(caught.value).replace(f"{folder}/", "")


def test_a_crop_that_the_exported_program_does_not_take(folder: Path) -> None:
    exported(folder, Net().eval(), 1, fixed=True)
    assert refusal(describe(folder, "export", crop=64)) == (
        "model.toml: preprocess.crop: expected 32, as program takes, found 64"
    )


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_files_that_are_no_program(folder: Path, kind: str) -> None:
    torch.save(Net().state_dict(), folder / "program")
    found = refusal(describe(folder, kind))
    assert "program: expected a program written by torch." in found
    assert "found what cannot be read: " in found
    (folder / "program").write_bytes(b"PK\x03\x04 and no more")
    assert "found what cannot be read: " in refusal(folder)


# --- who may have written it ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "shown"),
    [
        ("program", 0o664, "0664"),
        ("program", 0o646, "0646"),
        ("model.toml", 0o666, "0666"),
        (".", 0o775, "0775"),
        (".", 0o1777, "1777"),
        ("..", 0o757, "0757"),
    ],
)
@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_a_program_that_others_could_have_written(
    folder: Path, kind: str, name: str, mode: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *given, **_: opened.append(given))
    monkeypatch.setattr(torch.export, "load", opened.append)
    (folder / "program").write_bytes(b"whatever")
    path = (describe(folder, kind) / name).resolve()
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with pytest.raises(SpecError) as caught:
            load_model(load_spec(folder))
    finally:
        path.chmod(before)
    assert str(caught.value) == (
        f"{path}: expected root or uid {os.geteuid()} as its owner, and nobody else to be able to "
        f"write it, since {kind} models carry code, found uid {os.geteuid()} and mode {shown} "
        f"(to trust it: chmod go-w {path})"
    )
    assert not opened


def test_a_sticky_folder_above_is_no_danger(folder: Path) -> None:
    traced(folder, Net().eval())
    folder.parent.chmod(0o1777)
    load_model(load_spec(describe(folder, "torchscript")))


def test_links_are_followed_to_what_they_lead_to(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    traced(elsewhere, Net().eval())
    (folder / "program").symlink_to(elsewhere / "program")
    describe(folder, "torchscript")
    load_model(load_spec(folder))
    elsewhere.chmod(0o777)
    assert f"{elsewhere}: expected root or uid" in refusal(folder)


@pytest.mark.parametrize("name", ["model", "sub/..", "../above/model", "../link"])
def test_the_models_own_folder_is_closed_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Sticky or not: whoever can make files in it can make those that are not there yet."""
    folder = tmp_path / "above" / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    traced(folder, Net().eval())
    describe(folder, "torchscript")
    folder.chmod(0o1777)
    monkeypatch.chdir(folder if name.startswith("sub") else folder.parent)
    assert "found uid" in refusal(Path(name))


def test_the_programs_own_folder_is_closed(folder: Path) -> None:
    (folder / "sub").mkdir()
    traced(folder, Net().eval())
    (folder / "program").rename(folder / "sub" / "program")
    toml = describe(folder, "torchscript") / "model.toml"
    toml.write_text(toml.read_text().replace('weights = "', 'weights = "sub/'))
    (folder / "sub").chmod(0o1777)
    assert refusal(folder).startswith("sub: expected root or uid")


def test_a_link_that_others_could_turn(folder: Path, tmp_path: Path) -> None:
    """Where it leads now is safe; in a moment it may lead elsewhere."""
    traced(folder, Net().eval())
    describe(folder, "torchscript")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    (open_to_all / "link").symlink_to(folder)
    (open_to_all / "program").symlink_to(folder / "program")
    load_model(load_spec(open_to_all / "link"))
    open_to_all.chmod(0o777)
    assert refusal(open_to_all / "link").startswith(f"{open_to_all}: expected root or uid")
    # A link in a safe folder to a safe program, by way of that folder.
    (folder / "by_way").symlink_to("../open/program")
    toml = folder / "model.toml"
    toml.write_text(toml.read_text().replace('weights = "program"', 'weights = "by_way"'))
    assert refusal(folder).startswith(f"{open_to_all}: expected root or uid")
    open_to_all.chmod(0o755)
    load_model(load_spec(folder))


@needs_root
def test_a_link_of_another_user(folder: Path, tmp_path: Path) -> None:
    """In /tmp, whose sticky bit lets everybody turn his own."""
    traced(folder, Net().eval())
    describe(folder, "torchscript")
    tmp_path.chmod(0o1777)
    link = tmp_path / "li nk"
    link.symlink_to(folder)
    load_model(load_spec(link))
    os.chown(link, 12345, -1, follow_symlinks=False)
    found = refusal(link)
    assert found.startswith(f"{link}: expected root or uid")
    assert found.endswith(f"(to trust it: chown -h root '{link}')")


def test_what_was_looked_at_is_what_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """model.toml and the program are read again, under the names that were found safe."""
    traced(folder, Net().eval())
    describe(folder, "torchscript")
    evil = tmp_path / "evil"
    shutil.copytree(folder, evil)
    evil.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(evil)
    spec = load_spec(link)  # read while the link led astray
    link.unlink()
    link.symlink_to(folder)
    opened = []

    def turn_and_load(file: Path, program: BinaryIO) -> Any:
        link.unlink()
        link.symlink_to(evil)
        opened.append(os.readlink(f"/proc/self/fd/{program.fileno()}"))
        return load_torchscript(file, program)

    monkeypatch.setattr(model, "load_torchscript", turn_and_load)
    loaded = load_model(spec)
    assert opened == [str(folder / "program")]
    assert (loaded.spec.folder, loaded.spec.weights) == (folder, folder / "program")


def test_a_program_that_has_gone(folder: Path) -> None:
    traced(folder, Net().eval())
    spec = load_spec(describe(folder, "torchscript"))
    (folder / "program").unlink()
    (folder / "program").symlink_to("program")
    with pytest.raises(SpecError, match=r"weights: expected a file in .*, found .*Too many"):
        load_model(spec)
    (folder / "model.toml").unlink()
    with pytest.raises(SpecError, match=r"model\.toml: expected a file, found No such file"):
        load_model(spec)


@needs_root
def test_a_program_of_another_user(folder: Path) -> None:
    traced(folder, Net().eval())
    describe(folder, "torchscript")
    os.chown(folder / "program", 12345, -1)
    found = refusal(folder)
    assert "found uid 12345 and mode 0644 (to trust it: chown root " in found


# --- what a forkserver needs ------------------------------------------------------------------

LOAD = """
import os, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from swiprd.folder.spec import load_spec
from swiprd.inference.model import load_model
before = len(os.listdir("/proc/self/task"))
loaded = load_model(load_spec(Path(sys.argv[1])))
assert len(os.listdir("/proc/self/task")) == before, "a thread was started"
if pid := os.fork():
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
else:
    torch.set_num_threads(2)
    row = loaded.probabilities(np.zeros((64, 1, 3, 32, 32), np.float32))
    os._exit(0 if row.shape == (64, 3) else 3)
print("well")
"""


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_loading_leaves_a_process_that_can_fork(folder: Path, kind: str) -> None:
    if kind == "torchscript":
        traced(folder, Net().eval())
    else:
        exported(folder, Net().eval(), 2, fixed=False)
    assert trust.run(describe(folder, kind)) == 0
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
