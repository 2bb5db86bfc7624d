"""`make demo`, less the installation: it leaves no daemon behind, and says how to go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(Path("/run/swipr/default.sock").exists(), reason="a system daemon is there")
def test_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/demo.py"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "SWIPR_MODEL": "nosuch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    photos = sorted(str(photo.relative_to(ROOT)) for photo in ROOT.glob("tests/photos/*.jpg"))
    assert lines[0] == f"$ swiprctl predict --header {' '.join(photos)}"
    assert lines[1] == "path,sharp,blurred"
    assert [line.partition(",")[0] for line in lines[2 : 2 + len(photos)]] == photos
    assert ". .venv/bin/activate " in done.stdout
    assert max(map(len, lines[2 + len(photos) :])) <= 80
    page = re.search(r"man -l (\S+)", done.stdout)
    assert page is not None
    assert (ROOT / page[1]).is_file()
    assert list(tmp_path.iterdir()) == [], "its daemon is gone, and the folder with it"
    for pid in Path("/proc").glob("[0-9]*"):
        try:
            words = (pid / "environ").read_bytes()
        except OSError:
            continue  # it is gone, or somebody else's
        assert os.fsencode(tmp_path) not in words, f"{pid.name} is left"
