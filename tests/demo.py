"""`make demo`: what a newcomer sees first: the installed swiprctl on the sample photographs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PHOTOS = Path(__file__).parent / "photos"

GO_ON = """
To go on with photos of your own:
  . .venv/bin/activate                 # in fish: . .venv/bin/activate.fish
  swiprctl predict --labels PHOTO...
  swiprctl --help
  man -l packaging/man/swiprctl.1
"""


def main() -> int:
    """Predict through a daemon that the client starts by itself, in a place of this run's own."""
    swiprctl = Path(sys.executable).with_name("swiprctl")
    photos = sorted(str(photo.relative_to(Path.cwd())) for photo in PHOTOS.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as runtime:
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        for name in ("SWIPR_SOCKET", "SWIPR_MODEL"):
            environment.pop(name, None)
        command = ["predict", "--header", *photos]
        print("$ swiprctl", *command, flush=True)
        status = subprocess.run([swiprctl, *command], env=environment).returncode
        own = Path(runtime, "swipr", "default.sock")
        if own.exists():
            stop = [swiprctl, "stop", "--socket", own]
            subprocess.run(stop, env=environment, stdout=subprocess.DEVNULL)
    if status == 0:
        print(GO_ON, end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
