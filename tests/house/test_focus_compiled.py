"""The compiled form that the shipped model comes with: that it is the model's, and answers so."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from swiprd.folder.compiled_record import (
    COMPILED,
    MOST_DIFFERENCE,
    RECORD,
    is_current,
    load_record,
)
from swiprd.folder.spec import load_spec
from swiprd.inference.proof import FRESH, OTHERS

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parent.parent.parent
FOCUS = ROOT / "swiprd/models/focus"
AGAIN = "see 'make compiled'"


def test_it_is_of_these_weights_and_this_model_toml() -> None:
    record = load_record(FOCUS)
    assert record is not None
    assert is_current(record, load_spec(FOCUS)) == "", AGAIN


def test_it_is_shipped() -> None:
    """A wheel has what is listed here; the Debian package, what a wheel has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["swiprd.models.focus"]
    for file in FOCUS.iterdir():
        if file.suffix != ".py" and file.name != "__pycache__":
            assert any(fnmatch(file.name, pattern) for pattern in patterns), file.name
    taken = (ROOT / "packaging/debian/swiprd.install").read_text().split()
    assert "usr/lib/python3*/dist-packages/swiprd" in taken


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="onnx or onnxruntime is not installed",
)
def test_it_answers_as_torch_does(tmp_path: Path) -> None:
    """torch's answers of here and now, with which the shipped file is proven once more."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}

    def run(module: str) -> None:
        command = [sys.executable, "-P", "-m", f"swiprd.inference.{module}", FOCUS, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr

    run("compile")
    shutil.copy(FOCUS / COMPILED, tmp_path / FRESH)
    run("prove")
    proven, shipped = load_record(tmp_path), load_record(FOCUS)
    assert proven is not None
    assert shipped is not None
    assert (proven.sha256, proven.digest) == (shipped.sha256, shipped.digest), AGAIN
    assert (proven.pictures, proven.batches) == (1 + OTHERS, (1, 4, 17))
    assert max(proven.difference, shipped.difference) <= MOST_DIFFERENCE
    assert sorted(one.name for one in tmp_path.iterdir()) == [COMPILED, RECORD]
