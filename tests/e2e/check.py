"""What the steps are made of: commands, checks that print what they saw, and clients that loop.

Runs as root inside the booted tree. Standard library only.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

USER = "alice"
PATIENCE = 60.0
"""Seconds that anything may take before a check fails. Nothing is asserted to be quicker."""


class Failed(Exception):
    """A check did not hold."""


def check(holds: object, what: str, saw: object = "") -> None:
    """Print what holds; raise where it does not, with what was seen instead."""
    if not holds:
        raise Failed(f"{what}\n      saw: {saw}")
    print(f"   ok {what}", flush=True)


def run(*command: str, user: str = "root", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as a user with nothing of root's environment."""
    entry = pwd.getpwnam(user)
    options.setdefault("timeout", 300)
    if "input" not in options and "stdin" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run(
        command,
        user=user,
        group=entry.pw_gid,
        extra_groups=os.getgrouplist(user, entry.pw_gid),
        cwd=entry.pw_dir,
        env={"PATH": "/usr/bin:/usr/sbin", "HOME": entry.pw_dir, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        **options,
    )


def sure(*command: str, user: str = "root", **options: Any) -> str:
    """Run a command that must succeed; return its standard output."""
    ended = run(*command, user=user, **options)
    if ended.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit {ended.returncode}\n      {ended.stderr.strip()}")
    return ended.stdout


def show(unit: str, name: str) -> str:
    """A property of a unit."""
    return sure("systemctl", "show", "-P", name, unit).strip()


def main_pid(unit: str = "swiprd.service") -> int:
    return int(show(unit, "MainPID"))


def wait_for(condition: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """Poll for what has no event to wait for; give what the condition gave."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > until:
            raise Failed(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
    return found


def journal(*options: str) -> list[str]:
    """Messages of the journal, oldest first."""
    sure("journalctl", "--sync")
    return sure("journalctl", "-q", "-b", "-o", "cat", "--no-pager", *options).splitlines()


class Clients:
    """Eight clients that ask for the same photo over and over while the block runs.

    Attributes:
        answered: how many times they got the row that they should get.
        wrong: what they got otherwise.
    """

    def __init__(self, photo: str, row: str, count: int = 8) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._photo = photo
        self._row = row
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._loop) for _ in range(count)]

    def _loop(self) -> None:
        while not self._stop.is_set():
            ended = run("swiprctl", "predict", "--no-autostart", self._photo, user=USER)
            if (ended.returncode, ended.stdout) == (0, self._row):
                self.answered += 1
            else:
                self.wrong.append(f"exit {ended.returncode}: {ended.stdout}{ended.stderr}".strip())

    def more(self, count: int) -> None:
        """Wait until they have got that many more rows, or something else."""
        goal = self.answered + count
        wait_for(lambda: self.wrong or self.answered >= goal, f"{count} more rows")

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        self.more(len(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """After the block: no client failed."""
        check(
            not self.wrong, f"8 clients got {self.answered} rows, every one right", self.wrong[:3]
        )
