"""Step 11: what runs the network, with Debian's ONNX Runtime and without it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from check import check, journal, show, sure, wait_for
from host import PHOTO, SERVICE, SETTINGS, ask, own_model, rename, row, status


def engines() -> None:
    """ONNX Runtime serves what torch has proven; torch serves where it is not installed"""
    sure("systemctl", "stop", SERVICE)
    took = _first_answer()
    check(_model()["engine"] == "onnx", f"focus by onnx, the first answer after {took:.1f} s")
    check(_model()["difference"] <= 1e-5, f"within {_model()['difference']:.1g} of torch")
    check(not _has_torch(), "no torch in the forkserver")
    by_onnx = row()

    mine = own_model("uncompiled")
    rename(mine, "uncompiled")
    for name in ("compiled.onnx", "compiled.toml"):
        (mine / name).unlink()
    (SETTINGS / "swiprd.toml").write_text(f"model = '{mine}'\n")
    sure("systemctl", "restart", SERVICE)
    check(row() and _model()["engine"] == "torch", "a model without a compiled form: by torch")
    check(_has_torch(), "which is in the forkserver")
    # Where the host has other work, what compiles gets little of the processor.
    wait_for(lambda: _model()["engine"] == "onnx", "it was compiled and took over", seconds=300)
    check(True, f"compiled in the sandbox, and took over: {_model()['model']} by onnx")
    check(_close(row(), by_onnx), f"the same answer: {row().strip()}", by_onnx)
    sure("systemctl", "restart", SERVICE)
    check(row() and _model()["engine"] == "onnx", "from the cache at the next start")

    (SETTINGS / "swiprd.toml").unlink()
    shutil.rmtree(mine)
    sure("dpkg", "--remove", "--force-depends", "python3-onnxruntime")
    sure("systemctl", "stop", SERVICE)
    took = _first_answer()
    note = _model()["engine_note"]
    check(_model()["engine"] == "torch", f"without it by torch, after {took:.1f} s: {note}")
    check(_close(row(), by_onnx), f"the same answer: {row().strip()}", by_onnx)
    lines = journal("-u", "swipr*")
    check(not any("Schema error" in line for line in lines), "no 'Schema error' in the journal")
    check(show(SERVICE, "Result") == "success", "systemd had nothing to complain of")


def _model() -> dict[str, object]:
    return json.loads(ask("model", "--json").stdout)


def _first_answer() -> float:
    begun = time.monotonic()
    first = ask("predict", PHOTO)
    check(first.returncode == 0, "answered", first)
    return time.monotonic() - begun


def _has_torch() -> bool:
    return "libtorch" in Path(f"/proc/{status()['forkserver']['pid']}/maps").read_text()


def _close(one: str, other: str) -> bool:
    pairs = zip(map(float, one.split(",")), map(float, other.split(",")), strict=True)
    return all(abs(a - b) < 5e-3 for a, b in pairs)  # `draft` is resized otherwise without torch
