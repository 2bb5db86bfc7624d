"""Which engine a daemon serves with, and how the compiled form takes over from torch."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import PATIENCE, DaemonProcess, forkservers, own_children
from modelfolders import make_folder

from swiprctl.client import Client

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.timeout(300)

LONGEST = 4 * PATIENCE  # seconds for a form to be compiled and proven, on a busy host


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


def engine_of(daemon: DaemonProcess) -> object:
    with Client(str(daemon.path)) as client:
        return client.model()["engine"]


def wait_for_onnx(daemon: DaemonProcess) -> None:
    until = time.monotonic() + LONGEST
    while engine_of(daemon) != "onnx":
        assert time.monotonic() < until, daemon.log.read_text()
        hurry(daemon)
        time.sleep(0.2)


def hurry(daemon: DaemonProcess) -> None:
    """Have what compiles run like any other process: beside busy ones it might never have a turn.

    Only root may; elsewhere the host has to be quiet.
    """
    for pid in own_children(daemon.pid):
        with contextlib.suppress(OSError):
            if b"swiprd.inference." in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def wait_for_quiet(daemon: DaemonProcess) -> None:
    """Wait until a form would be in the making: it is begun after a second without a request."""
    ready = daemon.status()["uptime"]
    daemon.wait_status(lambda s: s["uptime"] > ready + 4)


def has_torch(daemon: DaemonProcess) -> list[bool]:
    """Whether libtorch is mapped, of each forkserver."""
    return ["libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in forkservers(daemon.pid)]


Start = Callable[..., DaemonProcess]
Find = Callable[[], list[Path]]


@pytest.fixture
def start(start_daemon: StartDaemon, tmp_path: Path, folder: Path) -> Start:
    """Start one daemon after the other on the same model and the same cache."""

    def start(engine: str = "auto") -> DaemonProcess:
        return start_daemon(f"--engine={engine}", f"--cache={tmp_path}/cache", model=folder)

    return start


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[], list[Path]]:
    return lambda: sorted(tmp_path.glob("cache/compiled/*/compiled.onnx"))


def test_the_compiled_form_takes_over_and_is_there_at_the_next_start(
    start: Start, photos: list[bytes]
) -> None:
    daemon = start().wait_ready()
    with Client(str(daemon.path)) as client:
        before = client.predict(photos[0])
        model = client.model()
        assert model["engine"] == "torch"
        yet = "there is no compiled form yet: one is made in quiet time"
        assert model["engine_note"] == yet
    wait_for_onnx(daemon)
    with Client(str(daemon.path)) as client:
        after = client.predict(photos[0])
        model = client.model()
        assert after.model == before.model, "it gives the same answers: it is the same model"
        assert after.probabilities == pytest.approx(before.probabilities, abs=1e-5)
        assert 0 <= model["difference"] <= 1e-5  # type: ignore[operator]
        assert client.status()["requests"]["outcomes"] == {"ok": 2}  # type: ignore[index]
    daemon.stop()
    again = start().wait_ready()
    assert engine_of(again) == "onnx"
    assert has_torch(again) == [False]
    with Client(str(again.path)) as client:
        assert client.predict(photos[0]).probabilities == after.probabilities


def test_no_request_is_lost_while_it_takes_over(
    start: Start, compiled: Find, photos: list[bytes]
) -> None:
    daemon = start().wait_ready()
    with Client(str(daemon.path)) as client:
        expected = client.predict(photos[0]).probabilities
        until = time.monotonic() + LONGEST
        while client.model()["engine"] != "onnx":  # it waits for quiet before it begins, only then
            hurry(daemon)
            time.sleep(1.2 if not compiled() else 0)
            assert client.predict(photos[0]).probabilities == pytest.approx(expected, abs=1e-5)
            assert time.monotonic() < until
        assert set(client.status()["requests"]["outcomes"]) == {"ok"}  # type: ignore[call-overload]


def test_a_damaged_form_is_made_again_and_never_served(
    start: Start, compiled: Find, photos: list[bytes]
) -> None:
    daemon = start().wait_ready()
    wait_for_onnx(daemon)
    with Client(str(daemon.path)) as client:
        expected = client.predict(photos[0]).probabilities
    daemon.stop()
    (file,) = compiled()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    again = start().wait_ready()
    with Client(str(again.path)) as client:
        model = client.model()
        assert model["engine"] == "torch"
        assert "is not the file that was proven" in str(model["engine_note"])
        assert client.predict(photos[0]).probabilities == pytest.approx(expected, abs=1e-5)
    wait_for_onnx(again)
    with Client(str(again.path)) as client:
        assert client.predict(photos[0]).probabilities == expected


def test_torch_is_left_alone_where_it_is_demanded(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    file = folder / "model.toml"
    file.write_text('engine = "torch"\n' + file.read_text())
    daemon = start().wait_ready()
    wait_for_quiet(daemon)
    assert not (tmp_path / "cache" / "compiled").exists()
    assert engine_of(daemon) == "torch"


def test_onnx_that_is_demanded_and_not_there_is_a_named_failure(start: Start) -> None:
    daemon = start("onnx").wait_listening()
    status = daemon.wait_status(lambda s: s["state"] == "loading-failed")
    expected = "engine: expected a compiled form that can serve, found none: 'swiprd pack' makes"
    assert expected in status["reason"]


def test_a_form_in_the_folder_is_served(start: Start, folder: Path, compiled: Find) -> None:
    daemon = start().wait_ready()
    wait_for_onnx(daemon)
    daemon.stop()
    (file,) = compiled()
    for name in ("compiled.onnx", "compiled.toml"):
        shutil.copy(file.with_name(name), folder / name)
    shutil.rmtree(file.parent)
    again = start("onnx").wait_ready()
    assert engine_of(again) == "onnx"


def test_a_form_that_is_slower_than_torch_is_not_made_again(start: Start, compiled: Find) -> None:
    daemon = start().wait_ready()
    wait_for_onnx(daemon)
    daemon.stop()
    (file,) = compiled()
    record = file.with_name("compiled.toml")
    record.write_text(re.sub("^seconds = .*", "seconds = 9.0", record.read_text(), flags=re.M))
    written = file.stat()
    again = start().wait_ready()
    wait_for_quiet(again)
    with Client(str(again.path)) as client:
        model = client.model()
    assert model["engine"] == "torch"
    assert "torch is faster" in str(model["engine_note"])
    assert file.stat() == written
    assert os.listdir(file.parent.parent) == [file.parent.name], "none is being made"
