"""A daemon, and `swiprd check`, on an ONNX file's folder, where torch cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from conftest import StartDaemon  # noqa: E402 - they need what may not be there
from daemonprocess import forkservers  # noqa: E402
from modelfolders import photo  # noqa: E402
from onnx import helper  # noqa: E402
from onnxfiles import (  # noqa: E402
    CLASSES,
    EDGE,
    any_number_of_outputs,
    endless,
    make_model,
    make_onnx_folder,
    rows,
)

from swiprctl.client import Client  # noqa: E402
from swiprd.check import check as swiprd_check  # noqa: E402
from swiprd.folder.spec import load_spec  # noqa: E402
from swiprd.inference.decode import decode  # noqa: E402

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_onnx_folder(tmp_path / "model", make_model(("n", EDGE, EDGE, 3)))


@pytest.fixture
def no_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which no process can import torch, nor onnx, which only packing needs."""
    for name in ("torch", "torchvision", "onnx"):
        (tmp_path / "none" / name).mkdir(parents=True)
        text = f"raise ImportError('{name} is not installed here')\n"
        (tmp_path / "none" / name / "__init__.py").write_text(text)
    return {"PYTHONPATH": str(tmp_path / "none")}


def expected(folder: Path, picture: bytes) -> list[float]:
    crops = decode(picture, load_spec(folder).preprocess)
    return [float(one) for one in rows(np.ascontiguousarray(crops))[0]]


def test_a_daemon_serves_it_without_torch(
    start_daemon: StartDaemon, folder: Path, no_torch: dict[str, str], tmp_path: Path
) -> None:
    daemon = start_daemon(
        "--engine=auto", f"--cache={tmp_path}/cache", model=folder, environment=no_torch
    ).wait_ready()
    with Client(str(daemon.path)) as client:
        for seed in range(3):
            found = client.predict(photo(seed)).probabilities
            assert found == pytest.approx(expected(folder, photo(seed)), abs=1e-5)
        model = client.model()
        client.ping()
    assert (model["engine"], model["architecture"]) == ("onnx", "onnx")
    assert "torch" not in model["versions"]  # type: ignore[operator]
    (forkserver,) = forkservers(daemon.pid)
    assert "libtorch" not in Path(f"/proc/{forkserver}/maps").read_text()


def test_another_file_is_another_model(
    start_daemon: StartDaemon, folder: Path, no_torch: dict[str, str]
) -> None:
    daemon = start_daemon("--engine=auto", model=folder, environment=no_torch).wait_ready()
    with Client(str(daemon.path)) as client:
        before = client.model()["model"]
        new = make_model(("n", EDGE, EDGE, 3), metadata={"trained": "again"})
        (folder / "model.onnx").write_bytes(new.SerializeToString())
        client.reload()
        assert client.model()["model"] != before


def strange() -> bytes:
    node = helper.make_node("Run", ["pictures"], ["x"], domain="evil.corp")
    return bytes(make_model(nodes=[node]).SerializeToString())


def elsewhere() -> bytes:
    model = make_model()
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../../../etc/passwd")
    tensor.ClearField("raw_data")
    return bytes(model.SerializeToString())


def mismatched() -> bytes:
    """A tensor that claims more values than it has."""
    model = make_model()
    model.graph.initializer[0].dims[0] = 1 << 30
    return bytes(model.SerializeToString())


HOSTILE = {
    "strange": (strange, "has operators that the ONNX standard has not: evil.corp.Run."),
    "elsewhere": (elsewhere, "has tensors in another file ('../../../../etc/passwd'): 'swiprd"),
    "mismatched": (mismatched, "model.onnx: expected an ONNX file that can be served, found what"),
    "truncated": (lambda: make_model().SerializeToString()[:-99], "truncated or damaged, or no"),
    "noise": (lambda: bytes(range(256)) * 9, "truncated or damaged, or no ONNX file: fetch or"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_not_fit_is_a_named_failure(
    start_daemon: StartDaemon, folder: Path, no_torch: dict[str, str], name: str
) -> None:
    make, said = HOSTILE[name]
    (folder / "model.onnx").write_bytes(make())
    daemon = start_daemon("--engine=auto", model=folder, environment=no_torch).wait_listening()
    reason = daemon.wait_status(lambda s: s["state"] == "loading-failed")["reason"]
    assert said in reason
    assert f"{folder}/model.onnx: " in reason
    done = check(folder, no_torch)
    assert done.returncode == 78
    assert said in done.stderr
    assert done.stderr.startswith(f"swiprd: {folder}: model.onnx: ")
    assert done.stderr.count("\n") == 1


def test_one_that_never_answers_is_a_named_failure(
    start_daemon: StartDaemon, folder: Path, no_torch: dict[str, str]
) -> None:
    (folder / "model.onnx").write_bytes(endless())
    daemon = start_daemon(
        "--engine=auto", "--load-timeout=5", model=folder, environment=no_torch
    ).wait_listening()
    reason = daemon.wait_status(lambda s: s["state"] == "loading-failed")["reason"]
    assert "did not answer within 5 s" in reason


@pytest.mark.parametrize("classes", [CLASSES - 1, CLASSES + 1])
def test_another_number_of_outputs_than_labels_is_a_named_failure(
    start_daemon: StartDaemon, folder: Path, no_torch: dict[str, str], classes: int
) -> None:
    (folder / "model.onnx").write_bytes(any_number_of_outputs(classes).SerializeToString())
    said = f"expected as many outputs as there are labels, {CLASSES}, found {classes}"
    done = check(folder, no_torch)
    assert done.returncode == 70
    assert done.stderr == f"swiprd: {folder}: the network fails: {said}\n"
    daemon = start_daemon("--engine=auto", model=folder, environment=no_torch).wait_listening()
    reason = daemon.wait_status(lambda s: s["state"] == "loading-failed")["reason"]
    assert "no worker answers the canary" in reason
    assert said in daemon.log.read_text()


def check(
    folder: Path, environment: dict[str, str], *arguments: str | Path
) -> subprocess.CompletedProcess[str]:

    command = [sys.executable, "-P", "-m", "swiprd", "check", folder, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_check_needs_no_torch(folder: Path, no_torch: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(1))
    done = check(folder, no_torch, tmp_path / "a.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    said = {line[:14].strip(): line[14:] for line in done.stdout.splitlines()}
    assert said["architecture"] == "onnx"
    assert said["engine"].startswith("onnx ")
    assert said["parameters"] == str(3 * 3 * 3 * 3 + 12 * 4 + 4)
    assert said["forward pass"] == "ok"
    row = [float(one) for one in done.stdout.splitlines()[-1].split(",")]
    assert row == pytest.approx(expected(folder, photo(1)), abs=1e-4)


def test_check_gives_up_one_that_never_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.onnx").write_bytes(endless())
    monkeypatch.setattr("swiprd.inference.separate._PATIENCE", 3.0)
    assert swiprd_check(folder, [], "cpu") == 70
    said = f"swiprd: {folder}: the network fails: an answer takes onnxruntime more than 3 s\n"
    assert capfd.readouterr().err == said


def test_check_says_what_is_not_installed(folder: Path, no_torch: dict[str, str]) -> None:
    (Path(no_torch["PYTHONPATH"]) / "onnxruntime.py").write_text("raise ImportError('none here')")
    done = check(folder, no_torch)
    assert done.returncode == 78
    assert "onnxruntime cannot be imported: none here" in done.stderr
