"""The installed swipr as the steps use it: its files, its units, and who asks it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from check import USER, run, sure

HERE = Path(__file__).parent
HOME = Path("/home") / USER
PHOTO = str(HOME / "chelsea.jpg")
BLURRED = str(HOME / "chelsea-blurred.jpg")
FOCUS = Path("/usr/lib/python3/dist-packages/swiprd/models/focus")
UNITS = Path("/etc/systemd/system")
SETTINGS = Path("/etc/swipr")
ROW = re.compile(r"[0-9.e-]+,[0-9.e-]+\n")

SERVICE, SOCKET = "swiprd.service", "swiprd.socket"


def ask(*words: str, user: str = USER, **options: object) -> subprocess.CompletedProcess[str]:
    return run("swiprctl", *words, user=user, **options)


def row() -> str:
    """The row of the user's photo, from the daemon that serves."""
    return sure("swiprctl", "predict", "--no-autostart", PHOTO, user=USER)


def status() -> dict[str, object]:
    return json.loads(sure("swiprctl", "status", "--json", "--no-autostart"))


def drop_in(unit: str, text: str) -> None:
    folder = UNITS / f"{unit}.d"
    folder.mkdir(exist_ok=True)
    (folder / "e2e.conf").write_text(text)
    sure("systemctl", "daemon-reload")


def no_drop_in(unit: str) -> None:
    shutil.rmtree(UNITS / f"{unit}.d")
    sure("systemctl", "daemon-reload")


def forget_starts() -> None:
    """Keep what a step starts and stops out of the start limit, which counts every start."""
    run("systemctl", "reset-failed", SERVICE)


def apt_install(*packages: str) -> None:
    options = ("-qq", "-y", "--no-install-recommends", "--allow-downgrades")
    sure("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", *options, *packages)


def debs(folder: str, name: str = "swipr*") -> list[str]:
    return [str(path) for path in sorted((HERE / folder).glob(f"{name}_*.deb"))]


def own_model(name: str, folder: Path = SETTINGS / "models") -> Path:
    """A copy of the model that is shipped."""
    copy = folder / name
    shutil.copytree(FOCUS, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return copy


def rename(model: Path, name: str) -> None:
    """The same answers under another name, and so another id."""
    file = model / "model.toml"
    file.write_text(re.sub("^name = .*", f'name = "{name}"', file.read_text(), flags=re.M))
