"""The compiled form of what is packed: made and proven at once, each in a process of its own.

Otherwise the daemon makes it when nobody asks for anything (pool/compiler.py). torch exports the
network (inference/compile.py), ONNX Runtime answers the same pictures (inference/prove.py). A
folder whose network cannot be compiled is as good as any: torch serves it. Runs nothing itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from swiprd.folder.compiled_record import COMPILED, RECORD, CompiledRecord, load_record
from swiprd.folder.spec import PROGRAMS, Engine
from swiprd.pack import writer
from swiprd.pack.errors import NotProven, Unclear

_NEEDED = ("onnx", "onnxruntime")
_WORKSPACE = ".compiled"
_LONGEST = 300  # characters of a reason


class _Failed(Exception):
    """There is no compiled form; the text says why."""


def check_program(architecture: str, wanted: Engine) -> None:
    """See that no compiled form is demanded of a program.

    Raises:
        Unclear: it is.
    """
    if architecture in PROGRAMS and wanted == "onnx":
        raise Unclear("--engine onnx: a program is served as it is, by torch")


def add(place: Path, architecture: str, wanted: Engine) -> str:
    """Put compiled.onnx and compiled.toml into a folder that works; say which engine will serve.

    Whatever is half made when this raises is in the folder, too, and goes with it.

    Args:
        place: the folder, which nobody else can reach yet.
        wanted: torch has none made, onnx demands it.

    Raises:
        NotProven: onnx is demanded, and there is no compiled form.
        CannotWrite: the folder cannot be written to.
    """
    if wanted == "torch":
        return "torch (as --engine says)"
    if architecture in PROGRAMS:
        return "torch (a program is served as it is)"
    try:
        record = _add(place)
    except _Failed as error:
        if wanted == "onnx":
            raise NotProven(f"--engine onnx: there is no compiled form: {error}") from None
        return f"torch ({error})"
    if wanted == "auto" and (why := record.outpaced()):
        return f"torch ({why})"
    return f"onnx {record.versions['onnxruntime']}, within {record.difference:.2g} of torch"


def _add(place: Path) -> CompiledRecord:
    for library in _NEEDED:
        if find_spec(library) is None:
            raise _Failed(f"{library} is not installed")
    workspace = place / _WORKSPACE
    try:
        workspace.mkdir(mode=0o700)
        for module in ("compile", "prove"):
            _run(f"swiprd.inference.{module}", place, workspace)
        record = load_record(workspace)
        if record is None:
            raise _Failed("its record cannot be read")
        for name in (COMPILED, RECORD):
            (workspace / name).rename(place / name)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    writer.close(place)
    return record


def _run(module: str, place: Path, workspace: Path) -> None:
    """Run a module as a process, and kill it where a signal ends packing.

    Raises:
        _Failed: it has failed, and says why.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, place, workspace],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            check=False,
        )
    except OSError as error:
        raise _Failed(f"{module} cannot be started: {error.strerror}") from None
    if done.returncode == 0:
        return
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        raise _Failed(f"{module} was ended by {signal.Signals(-done.returncode).name}")
    # What is named is to be there tomorrow, and this folder has no name yet.
    reason = lines[-1] if lines else f"{module} ended with status {done.returncode}"
    raise _Failed(reason.replace(f"{workspace}/", "").replace(f"{place}/", "")[:_LONGEST])
