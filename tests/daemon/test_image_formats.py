"""Which image formats a daemon reads: its setting, what is installed, and what it says of both."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess, forkservers
from imagefiles import encoded, heic, picture
from modelfolders import CLASSES

from swiprctl import Client
from swiprd.inference.decoders import readable
from swiprd.system.image_formats import FORMATS

pytestmark = pytest.mark.timeout(120)

needs_heic = pytest.mark.skipif("heic" not in readable(), reason="no pillow-heif")
needs_avif = pytest.mark.skipif("avif" not in readable(), reason="no AVIF in this Pillow")


def answer(daemon: DaemonProcess, data: bytes) -> str:
    """Ask about an image; what is wrong with it, or nothing."""
    with daemon.connect() as peer:
        reply = peer.ask(image=data, timeout=60.0)
    if reply.error is None:
        assert len(reply.fields["probabilities"]) == CLASSES
        return ""
    assert reply.error.code == "bad-image"
    return str(reply.error)


@needs_avif
@needs_heic
def test_a_daemon_reads_what_phones_take(daemon: DaemonProcess) -> None:
    assert answer(daemon, encoded(picture(64, 48), "AVIF")) == ""
    assert answer(daemon, heic(picture(64, 48))) == ""
    assert answer(daemon, heic(picture(256, 192), tile_size=64)) == ""
    with Client(str(daemon.path)) as client:
        model = client.model()
    assert model["formats"] == list(FORMATS)
    versions = model["versions"]
    assert isinstance(versions, dict)
    assert "pillow_heif" in versions


@needs_heic
def test_a_daemon_reads_what_it_is_told_to(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("--formats=heic,jpeg").wait_ready()
    assert answer(daemon, heic(picture(64, 48))) == ""
    assert answer(daemon, encoded(picture(64, 48), "JPEG")) == ""
    assert answer(daemon, encoded(picture(64, 48), "PNG")) == (
        "a PNG image, where swiprd is set to read JPEG or HEIC only (formats, in swiprd.toml)"
    )
    assert answer(daemon, b"none") == "not a JPEG or HEIC image"
    with Client(str(daemon.path)) as client:
        assert client.model()["formats"] == ["jpeg", "heic"]


def test_a_canary_is_read_whatever_the_setting_says(start_daemon: StartDaemon) -> None:
    """Or a daemon for PNGs alone would never be ready: the shipped canary is a JPEG."""
    daemon = start_daemon("--formats=png").wait_ready()
    assert answer(daemon, encoded(picture(64, 48), "PNG")) == ""
    assert "read PNG only" in answer(daemon, encoded(picture(64, 48), "JPEG"))


def test_a_daemon_without_the_decoder_says_what_to_install(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / "pillow_heif.py").write_text("raise ImportError")
    daemon = start_daemon(environment={"PYTHONPATH": str(lacking)}).wait_ready()
    told = answer(daemon, b"\0\0\0\x14ftypheic\0\0\0\0mif1" + bytes(99))
    assert told == (
        "a HEIC photograph; swiprd reads those where pillow-heif is installed:"
        " pip install pillow-heif, then swiprctl reload"
    )
    with Client(str(daemon.path)) as client:
        assert client.model()["formats"] == [one for one in readable() if one != "heic"]
    # What the words say to do, done.
    if "heic" in readable():
        (lacking / "pillow_heif.py").unlink()
        with Client(str(daemon.path)) as client:
            client.reload()
        assert answer(daemon, heic(picture(64, 48))) == ""


def test_no_thread_is_in_a_forkserver_that_has_all_decoders(daemon: DaemonProcess) -> None:
    """A fork would not have it."""
    found = [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in forkservers(daemon.pid)]
    assert found == [1]
