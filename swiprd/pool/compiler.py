"""Has a model's compiled form made and proven, each in a process of its own, while it is quiet.

torch exports the network (inference/compile.py), ONNX Runtime answers the same pictures
(inference/prove.py); a form that differs is not kept. It lies in the cache under a name that a
digest of the model's files and of the libraries' versions is part of, so that an outdated one is
never met; one that does not fit its record is not served (folder/compiled_record.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path

from swiprd.config import Settings
from swiprd.folder.compiled_record import FAILED, LIBRARIES, load_record
from swiprd.folder.spec import ModelSpec
from swiprd.pool.forkserver_process import ENVIRONMENT
from swiprd.system.log import log

_PATIENCE = 900.0  # seconds for each of the two processes
_POLL = 0.5  # seconds between looks whether the daemon is quiet
_KEPT = 30 * 86400.0  # seconds that a form of the same model stays which nobody has used
_LONGEST = 300  # characters of a reason


def compiled_directory(settings: Settings, spec: ModelSpec) -> Path | None:
    """Where the form of a model is kept in the cache; None where its files cannot be read."""
    try:
        digest = hashlib.sha256(spec.file.read_bytes())
        stat = spec.weights.stat()
    except OSError:
        return None
    digest.update(repr((stat.st_size, stat.st_mtime_ns, *map(_version, LIBRARIES))).encode())
    assert settings.cache is not None
    return settings.cache / "compiled" / f"{spec.name}-{digest.hexdigest()[:16]}"


class Compiler:
    """Makes each form once in the life of a daemon.

    Args:
        quiet: whether nobody asks for anything.
    """

    def __init__(self, settings: Settings, quiet: Callable[[], bool]) -> None:
        self._settings = settings
        self._quiet = quiet
        self._tried: set[Path] = set()

    async def make(self, spec: ModelSpec) -> bool:
        """Make the form of a model that torch serves; return whether there is a new one."""
        directory = compiled_directory(self._settings, spec)
        if directory is None or directory in self._tried or (directory / FAILED).exists():
            return False
        wanted = spec.engine if self._settings.engine == "auto" else self._settings.engine
        if wanted == "torch" or spec.carries_code:
            return False
        made = load_record(directory)
        if made is not None and made.outpaced():
            return False  # torch serves because it is faster, not because there is none
        self._tried.add(directory)
        if any(util.find_spec(library) is None for library in LIBRARIES):
            return False
        while not self._quiet():
            await asyncio.sleep(_POLL)
        begun = time.monotonic()
        try:
            reason = await self._make(spec, directory)
        except OSError as error:
            log.warning("no compiled form of %s: %s", spec.name, error)
            return False
        if reason:
            log.info("torch goes on serving %s: %s", spec.name, reason)
            return False
        seconds = time.monotonic() - begun
        log.info("%s was compiled and proven in %.0f s", spec.name, seconds)
        return True

    async def _make(self, spec: ModelSpec, directory: Path) -> str:
        """Put a form into `directory`, or the reason why there is none, which is returned."""
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".new-"))
        _clear(spec.name, new)
        try:
            reason = ""
            for module in ("compile", "prove"):
                status, reason = await _run(f"swiprd.inference.{module}", str(spec.folder), new)
                if status < 0:
                    return reason  # somebody killed it: that says nothing of the model
                if status:
                    (new / FAILED).write_text(reason)
                    break
                reason = ""
            if directory.exists():
                shutil.rmtree(directory)
            new.rename(directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return reason


def _clear(name: str, new: Path) -> None:
    """Remove what lies beside the newest directory, of the same model or half made, and is old."""
    old = new.stat().st_mtime - _KEPT
    for pattern in (f"{name}-*", ".new-*"):
        for found in new.parent.glob(pattern):
            with suppress(OSError):
                if found.stat().st_mtime < old:
                    shutil.rmtree(found)


async def _run(module: str, folder: str, out: Path) -> tuple[int, str]:
    """Run a module as a process; return its exit status and the last line that it wrote.

    Not by asyncio's own subprocesses, which start a thread: the front forks.
    """
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, folder, str(out), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=told,
            env={**os.environ, **ENVIRONMENT},
        )
        pidfd = os.pidfd_open(process.pid)
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), _PATIENCE)
        except TimeoutError:
            return -1, f"{module} took more than {_PATIENCE:g} s"
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            if not ended.is_set():
                process.kill()
            process.wait()
        told.seek(0)
        lines = told.read(1 << 16).decode(errors="replace").strip().splitlines() or [""]
        reason = lines[-1][:_LONGEST] or f"{module} ended with status {process.returncode}"
        return process.returncode, reason


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
