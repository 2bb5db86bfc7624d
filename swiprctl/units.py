"""Which sockets systemd listens on, and whether it has started what answers there.

To connect to such a socket starts its service, so that whoever only wants to look has to ask
systemd first. `systemctl show` answers everybody, and starts nothing.
"""

from __future__ import annotations

import os
import subprocess

BOOTED = "/run/systemd/system"
"""Is there where systemd is the system's manager: sd_booted(3)."""

_PATIENCE = 2.0
_SHOW = ("show", "--property=Id,Listen,SubState,Triggers", "--", "*.socket")
_WAITING = ("listening", "deferred")


class Unit:
    """A socket unit, the service that it starts, and the manager: "system" or "user"."""

    __slots__ = ("manager", "service", "socket", "started")

    def __init__(self, socket: str, service: str, state: str, manager: str) -> None:
        self.socket = socket
        self.service = service
        self.started = state not in _WAITING
        self.manager = manager

    @property
    def stop(self) -> str:
        """The line that stops it; its socket first, which would start it again."""
        how = "systemctl --user" if self.manager == "user" else "sudo systemctl"
        return f"{how} stop {self.socket} {self.service}".rstrip()

    @property
    def log(self) -> str:
        """The line that shows its log."""
        how = "journalctl --user" if self.manager == "user" else "journalctl"
        return f"{how} -u {self.service}"


class Units:
    """The socket units of this host, by the path that they listen on.

    Attributes:
        known: whether the system's manager has told them, or is not there.
    """

    def __init__(self) -> None:
        self._by_path: dict[str, Unit] = {}
        self.known = True
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if runtime and os.path.exists(f"{runtime}/systemd/private"):
            self._read("user", "systemctl", "--user")
        if os.path.isdir(BOOTED):
            self.known = self._read("system", "systemctl")

    def of(self, path: str) -> Unit | None:
        """Give the unit that listens on a path."""
        return self._by_path.get(os.path.realpath(path))

    def _read(self, manager: str, *command: str) -> bool:
        """Take in what a manager knows; False if it does not tell."""
        try:
            done = subprocess.run(
                [*command, *_SHOW],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        for block in os.fsdecode(done.stdout).split("\n\n"):
            pairs = [line.partition("=")[::2] for line in block.splitlines()]
            told = dict(pairs)
            unit = Unit(
                told.get("Id", ""), told.get("Triggers", ""), told.get("SubState", ""), manager
            )
            for key, value in pairs:
                path, _, kind = value.rpartition(" (")
                if key == "Listen" and kind == "Stream)" and path.startswith("/"):
                    self._by_path[os.path.realpath(path)] = unit
        return done.returncode == 0
