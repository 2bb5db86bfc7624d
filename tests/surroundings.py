"""A user's surroundings of the test's own: no daemon of the host's is seen there, or stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemonprocess import PATIENCE

_RUN = """
import sys
from swiprctl import address, units
address.SYSTEM_FOLDER, address.RUNTIME_FOLDER, address.FALLBACK_FOLDER = sys.argv[1:4]
units.BOOTED = sys.argv[4]
del sys.argv[1:5]
from swiprctl.cli import run
run()
"""


class Surroundings:
    """A runtime folder, the system's folder of sockets, and `swiprctl` among them.

    Attributes:
        private: the folder of the user's own sockets; it is not made.
        system: what stands for /run/swipr; it is not made.
        booted: what says that systemd has booted the host, if it is there; it is not made.
    """

    def __init__(self, folder: Path) -> None:
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o700)
        self.private = self.runtime / "swipr"
        self.system = folder / "system"
        self.booted = folder / "booted"
        self._folders = [
            *(str(self.system), f"{folder}/user-{{uid}}", f"{folder}/other-{{uid}}"),
            str(self.booted),
        ]
        kept = {name: value for name, value in os.environ.items() if name[:6] != "SWIPR_"}
        self.environment = {
            **kept,
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def make_private(self) -> Path:
        """Make the folder of the user's own sockets."""
        self.private.mkdir(mode=0o700)
        return self.private

    def command(self, *words: str) -> list[str]:
        """The command line of `swiprctl`."""
        return [sys.executable, "-P", "-c", _RUN, *self._folders, *words]

    def swiprctl(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it, to its end."""
        return subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            env={**self.environment, **environment},
            check=False,
        )

    def listed(self, *words: str, **environment: str) -> dict[str, dict[str, Any]]:
        """What `swiprctl list --json` tells, by the sockets' paths."""
        done = self.swiprctl("list", "--json", *words, **environment)
        assert (done.stderr, done.returncode) == ("", 0)
        return {entry["socket"]: entry for entry in json.loads(done.stdout)}
