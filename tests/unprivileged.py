"""A daemon with a uid of its own, as systemd starts it: neither root's nor any client's.

The interpreter and this project may lie where that uid cannot reach them (/root, a home folder).
So the daemon gets a mount namespace in which they lie elsewhere, too. Takes root.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import fuseserver
from daemonprocess import DaemonProcess

UID = 65531
"""The daemon's uid."""

_BIND, _PRIVATE = 0x1000, 0x44000  # linux/mount.h: MS_BIND; MS_REC | MS_PRIVATE
_CLONE_NEWNS = 0x20000

_LAUNCH = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def sure(result):
    if result:
        raise OSError(ctypes.get_errno(), "no mount namespace")

uid, place, subuid, python, *arguments = sys.argv[1:]
sure(libc.unshare({_CLONE_NEWNS}))
sure(libc.mount(None, b"/", None, {_PRIVATE}, None))
for name, source in (pair.split("=", 1) for pair in os.environ.pop("SWIPR_BINDS").split(";")):
    sure(libc.mount(source.encode(), os.fsencode(os.path.join(place, name)), None, {_BIND}, None))
if subuid:
    sure(libc.mount(subuid.encode(), b"/etc/subuid", None, {_BIND}, None))
os.chmod(os.environ["NOTIFY_SOCKET"], 0o666)
os.setgroups([])
os.setresgid(*[int(uid)] * 3)
os.setresuid(*[int(uid)] * 3)
os.execv(python, [python, *arguments])
"""


def possible() -> bool:
    """Whether this machine lets us: root, with the right to mount."""
    return fuseserver.possible()


class Unprivileged(DaemonProcess):
    """A daemon of `UID`. Its socket is open to all.

    Args:
        subuids: a file that it sees as /etc/subuid.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        model: Path,
        environment: dict[str, str] | None = None,
        subuids: Path | None = None,
    ) -> None:
        self._subuids = subuids
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, UID, UID)
        super().__init__(folder, *arguments, model=model, environment=environment)

    def _start(
        self,
        folder: Path,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        place = folder / "python"
        sources = {
            "base": sys.base_prefix,
            "packages": sysconfig.get_path("platlib"),
            "project": str(Path(__file__).parent.parent),
        }
        for name in sources:
            (place / name).mkdir(parents=True)
        python = place / "base/bin" / Path(os.path.realpath(sys.executable)).name
        paths = [str(place / "project"), str(place / "packages")]
        environment = dict(environment or {})
        if before := environment.get("PYTHONPATH"):
            paths.insert(0, before)
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        environment["LD_LIBRARY_PATH"] = str(place / "base/lib")
        environment["SWIPR_BINDS"] = ";".join(f"{name}={path}" for name, path in sources.items())
        super()._start(
            folder,
            [
                *(sys.executable, "-c", _LAUNCH, str(UID), str(place), str(self._subuids or "")),
                *(str(python), *command[1:]),
            ],
            environment=environment,
            pass_fds=pass_fds,
        )

    def wait_ready(self) -> Unprivileged:
        super().wait_ready()
        self.path.chmod(0o666)
        return self
