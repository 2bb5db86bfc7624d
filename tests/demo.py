"""`make demo`: what a newcomer sees first: the installed swiprctl on the sample photographs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PHOTOS = Path(__file__).parent / "photos"


def main() -> int:
    """Predict through a daemon that the client starts by itself, in a place of this run's own."""
    swiprctl = Path(sys.executable).with_name("swiprctl")
    photos = sorted(str(photo.relative_to(Path.cwd())) for photo in PHOTOS.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as runtime:
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        environment.pop("SWIPR_SOCKET", None)
        command = ["predict", "--header", *photos]
        print("$ swiprctl", *command, flush=True)
        status = subprocess.run([swiprctl, *command], env=environment).returncode
        pid = subprocess.run(
            [swiprctl, "status", "--json", "--no-autostart"],
            env=environment,
            capture_output=True,
            text=True,
        )
        if pid.returncode == 0:
            import json
            import signal

            daemon = json.loads(pid.stdout)["pid"]
            handle = os.pidfd_open(daemon)
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            import select

            select.select([handle], [], [], 30)
            os.close(handle)
    return status


if __name__ == "__main__":
    sys.exit(main())
