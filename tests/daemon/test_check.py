"""`swiprd check` as its users meet it: what it prints, its words and its exit status."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from modelfolders import make_folder, make_module, photo

from swiprd import trust
from swiprd.check import check as swiprd_check
from swiprd.folder.model_id import identify
from swiprd.folder.spec import load_spec
from swiprd.inference import decode
from swiprd.inference.decoders import readable
from swiprd.inference.model import load_model
from swiprd.system.image_formats import either

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

torch.set_num_threads(1)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def check(
    capfd: pytest.CaptureFixture[str], folder: Path, *paths: str | Path
) -> tuple[str, str, int]:
    """Run it in this process, which has torch already."""
    capfd.readouterr()
    status = swiprd_check(folder, [Path(path) for path in paths], "cpu")
    out, err = capfd.readouterr()
    return out, err, status


def command(*arguments: str | Path) -> tuple[str, str, int]:
    """Run it as a user does."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "swiprd", "check", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    return done.stdout, done.stderr, done.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_folder(tmp_path_factory.mktemp("check") / "model")
    (made / "a.jpg").write_bytes(photo(1))
    (made / "b.jpg").write_bytes(photo(2))
    return made


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


def told(out: str) -> dict[str, str]:
    """What it says of the model."""
    said = out.partition("\n\n")[0].splitlines()
    return {key.strip(): value for key, _, value in (line.partition("  ") for line in said)}


def test_a_model_that_works(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out, err, status = check(capfd, folder, "a.jpg", "none.jpg", "labels.txt", "b.jpg")
    said = {key: value.strip() for key, value in told(out).items()}
    spec = load_spec(folder)
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    timings = {key: said.pop(key) for key in list(said) if key.endswith(" took")}
    assert timings.keys() == {"load took", "decode took", "infer took"}
    assert all(0 < float(value.removesuffix(" ms")) < 60_000 for value in timings.values())
    assert said.pop("engine").startswith("torch (")
    assert said == {
        "name": "tiny",
        "model": identify(spec),
        "architecture": "shufflenet_v2_x0_5",
        "parameters": "352042",
        "carries code": "no",
        "labels": "10: class0, class1, class2, class3, class4, …",
        "activation": "softmax",
        "resize": "short edge 256",
        "input": "1 x 3 x 224 x 224",
        "formats": ", ".join(readable()),
        "weights": f"sha256 {digest}, not recorded in model.toml",
        "device": "cpu",
        "threads": str(torch.get_num_threads()),
        "forward pass": "ok",
    }
    loaded = load_model(spec)
    rows = out.partition("\n\n")[2].splitlines()
    for name, row in zip(("a.jpg", "b.jpg"), rows, strict=True):
        path, *numbers = row.split(",")
        crops = decode.decode((folder / name).read_bytes(), spec.preprocess)
        expected = torch.from_numpy(loaded.probabilities(crops[None]))[0]
        assert path == name
        found = torch.tensor([float(number) for number in numbers])
        assert torch.allclose(found, expected, rtol=0, atol=1e-4)
    assert err == (
        "swiprd: none.jpg: No such file or directory\n"
        f"swiprd: labels.txt: not a {either(readable())} image\n"
    )
    assert status == 66


def test_one_image_has_no_path_in_its_row(folder: Path) -> None:
    out, err, status = command("--device", "cpu", folder, folder / "a.jpg")
    assert (err, status) == ("", 0)
    assert "forward pass  ok\n" in out
    assert out.partition("\n\n")[2].count(",") == 9


def refusal(capfd: pytest.CaptureFixture[str], status: int, folder: Path) -> str:
    out, err, found = check(capfd, folder)
    assert (out, found) == ("", status), err
    (line,) = err.splitlines()
    return line.removeprefix("swiprd: ")


def test_a_folder_that_is_wrong(spoilt: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = spoilt / "model.toml"
    file.write_text(file.read_text().replace("softmax", "softmaxx"))
    assert refusal(capfd, 78, spoilt) == (
        f'{file}: activation: expected one of softmax, sigmoid, log_softmax, none, found "softmaxx"'
    )
    nowhere = spoilt / "nowhere"
    hint = "No such file or directory; 'swiprd pack' makes a model's folder"
    assert refusal(capfd, 78, nowhere) == f"{nowhere}/model.toml: {hint}"


@needs_root
def test_a_canary_that_cannot_be_read(capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = make_folder(Path(name))
        folder.chmod(0o755)
        assert check(capfd, folder)[2] == 0  # and all is imported that may be closed to others
        (folder / "canary.jpg").chmod(0o600)
        os.seteuid(65534)
        try:
            found = refusal(capfd, 78, folder)
        finally:
            os.seteuid(0)
    assert found == f"{folder}/canary.jpg: expected a readable file, found Permission denied"


def test_weights_that_are_not_those_recorded(
    spoilt: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded = "0f" * 32
    file = spoilt / "model.toml"
    file.write_text(f'sha256 = "{recorded}"\n' + file.read_text())
    digest = hashlib.sha256((spoilt / "weights.pth").read_bytes()).hexdigest()
    assert refusal(capfd, 78, spoilt) == (
        f"{spoilt}/weights.pth: expected the recorded sha256 {recorded}, found {digest}"
    )
    file.write_text(file.read_text().replace(recorded, digest))
    out, _, status = check(capfd, spoilt)
    assert status == 0
    assert told(out)["weights"].strip() == f"sha256 {digest}, as recorded"


def test_a_canary_that_is_answered_wrongly(spoilt: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (spoilt / "model.toml").open("a") as file:
        file.write(f"probabilities = {[1.0] + [0.0] * 9}\n")
    assert refusal(capfd, 78, spoilt).startswith(f"{spoilt}: the canary is answered wrongly: ")


def test_a_program_is_said_to_carry_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "model")
    jit: Any = torch.jit
    module = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 9)
    )
    jit.trace(module, torch.zeros(1, 3, 224, 224)).save(str(folder / "weights.pth"))
    file = folder / "model.toml"
    file.write_text(file.read_text().replace("shufflenet_v2_x0_5", "torchscript"))
    assert "carry code" in refusal(capfd, 78, folder)
    assert trust.run(folder) == 0
    capfd.readouterr()
    assert refusal(capfd, 78, folder) == (
        f"{folder}: the canary is answered wrongly: 9 probabilities for 10 labels"
    )
    labels = folder / "labels.txt"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:9]))
    out, err, status = check(capfd, folder)
    assert (err, status) == ("", 0)
    assert told(out)["carries code"].strip() == "yes"


def test_a_forward_pass_that_fails(spoilt: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = spoilt / "model.toml"
    file.write_text(file.read_text() + "[preprocess]\nresize = 8\ncrop = 1\n")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 9, 5), torch.nn.Flatten())
    jit: Any = torch.jit
    jit.trace(module, torch.zeros(1, 3, 5, 5)).save(str(spoilt / "weights.pth"))
    file.write_text(file.read_text().replace("shufflenet_v2_x0_5", "torchscript"))
    assert trust.run(spoilt) == 0
    capfd.readouterr()
    assert refusal(capfd, 70, spoilt).startswith(f"{spoilt}: the forward pass fails: ")


@pytest.mark.parametrize(
    ("encoding", "sink", "expected", "words"),
    [
        ("utf-8", "/dev/full", 74, "swiprd: standard output: No space left on device\n"),
        ("utf-8", "nobody", 141, ""),
        ("utf-8", "closed", 74, "swiprd: standard output: it is closed\n"),
        ("latin-1", os.devnull, 0, ""),
    ],
)
def test_an_output_that_does_not_take_it(
    spoilt: Path, encoding: str, sink: str, expected: int, words: str
) -> None:
    labels = spoilt / "labels.txt"
    labels.write_text(labels.read_text().replace("class0", "Žluť"))
    if sink == "nobody":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(os.devnull if sink == "closed" else sink, os.O_WRONLY)
    with open(writing, "wb") as output:
        ended = subprocess.run(
            [
                *("sh", "-c", f'exec "$0" "$@" {">&-" if sink == "closed" else ""}'),
                *(sys.executable, "-P", "-m", "swiprd", "check", spoilt, "--device", "cpu"),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": encoding},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=50,
        )
    assert (ended.stderr, ended.returncode) == (words, expected)


def test_a_name_cannot_move_the_terminals_cursor(
    spoilt: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = make_module("shufflenet_v2_x0_5").state_dict()
    state["evil\x1b]0;PWNED\x07\x1b[31m"] = torch.zeros(3)
    torch.save(state, spoilt / "weights.pth")
    said = refusal(capfd, 78, spoilt)
    assert "evil?]0;PWNED??[31m" in said
    assert said.isprintable()


def test_what_it_needs_is_asked_for() -> None:
    out, err, status = command()
    assert (out, status) == ("", 64)
    assert err.startswith("swiprd check: the following arguments are required: FOLDER (see")
