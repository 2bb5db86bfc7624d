"""More images hang than there are workers and stand-ins: all others are answered all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess, Peer, as_uid, open_to_all
from fronts import NOBODY, as_root
from venom import Venom, environment

from swiprctl.errors import DeadlineExceeded, ShuttingDown, SwiprError

pytestmark = pytest.mark.timeout(120)

HANGING = 12
GOOD = 40


@pytest.fixture
def start_poisoned(start_daemon: StartDaemon, tmp_path: Path) -> StartDaemon:
    """Start daemons that venom works on."""

    def start(*arguments: str) -> DaemonProcess:
        return start_daemon(*arguments, environment=environment(tmp_path / "site")).wait_ready()

    return start


def hanging(photo: bytes, number: int) -> bytes:
    """An image of its own each time, so that none is known by another."""
    return photo + b"%d" % number + Venom.HANG.value


def ask_for_all(
    daemon: DaemonProcess, photos: list[bytes], timeout: float
) -> tuple[list[SwiprError | None], list[SwiprError | None]]:
    """Ask for all at once, the hanging ones first; what became of them, and of the good ones."""
    with daemon.connect() as peer:
        for number in range(HANGING):
            peer.send(number, image=hanging(photos[0], number), timeout=timeout)
        for number in range(HANGING, HANGING + GOOD):
            peer.send(number, image=photos[number % 8], timeout=timeout)
        errors = {reply.id: reply.error for reply in (peer.receive() for _ in range(52))}
    return [errors[n] for n in range(HANGING)], [errors[n] for n in range(HANGING, HANGING + GOOD)]


@pytest.mark.parametrize("batch", [1, 4])
def test_good_pictures_get_their_rows_beside_many_that_hang(
    start_poisoned: StartDaemon, photos: list[bytes], batch: int
) -> None:
    daemon = start_poisoned("--workers=2", "--threads=1", f"--batch={batch}", "--max-timeout=16")
    hung, good = ask_for_all(daemon, photos, 16.0)
    assert good == [None] * GOOD
    assert all(isinstance(error, DeadlineExceeded) for error in hung), hung
    kills = daemon.status()["kills"]["total"]

    hung, good = ask_for_all(daemon, photos, 16.0)
    assert good == [None] * GOOD
    assert all("remembered" in str(error) for error in hung), hung
    assert daemon.status()["kills"]["total"] == kills, "what hung once has hung again"


@as_root
def test_another_uid_is_answered_when_every_place_is_stuck(
    start_poisoned: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_poisoned("--max-timeout=3600")  # of one worker, and four that may stand in

    def ask() -> str:
        with Peer(path) as peer:
            return str([peer.ask(image=photo, timeout=25.0).error for photo in photos])

    with open_to_all(daemon.path) as path, daemon.connect() as peer:
        daemon.path.chmod(0o666)
        for number in range(HANGING):
            peer.send(number, image=hanging(photos[0], number), timeout=3600.0)
        daemon.wait_status(lambda s: sum(w["stuck"] for w in s["workers"]) == 5)
        assert as_uid(NOBODY, ask) == str([None] * len(photos))
        # What is still under way ends with the daemon.
        daemon.process.send_signal(signal.SIGTERM)
        errors = [peer.receive().error for _ in range(HANGING)]
        assert all(isinstance(error, ShuttingDown | DeadlineExceeded) for error in errors), errors


def test_it_leaves_though_pictures_hang(start_poisoned: StartDaemon, photos: list[bytes]) -> None:
    daemon = start_poisoned("--max-timeout=3600")
    with daemon.connect() as peer:
        for number in range(8):
            peer.send(number, image=hanging(photos[0], number), timeout=3600.0)
        daemon.wait_status(lambda s: sum(w["stuck"] for w in s["workers"]) == 5)
        daemon.process.send_signal(signal.SIGTERM)
        errors = [peer.receive().error for _ in range(8)]
        assert all(isinstance(error, ShuttingDown) for error in errors), errors
    assert daemon.process.wait(20) == 0


def test_a_slow_picture_gets_its_row_and_is_not_suspected_afterwards(
    start_poisoned: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_poisoned()
    with daemon.connect() as peer:
        for _ in range(2):
            assert peer.ask(image=photos[0] + Venom.SLOW.value, timeout=20.0).error is None
        assert daemon.status()["poison"]["remembered"] == 0


def test_copies_of_an_image_that_hangs_wait_for_what_becomes_of_the_first(
    start_poisoned: StartDaemon, tmp_path: Path, photos: list[bytes]
) -> None:
    daemon = start_poisoned("--max-timeout=6")
    with daemon.connect() as peer:
        peer.send(0, image=hanging(photos[0], 0), timeout=6.0)
        daemon.wait_status(lambda s: any(w["stuck"] for w in s["workers"]))
        file = tmp_path / "copy"
        file.write_bytes(photos[1])
        for number in range(1, 20):
            peer.send(number, image=hanging(photos[0], 0), timeout=6.0)
        descriptor = os.open(file, os.O_RDONLY)
        peer.send(20, descriptor=descriptor, timeout=5.0)
        os.close(descriptor)
        errors = {reply.id: reply.error for reply in (peer.receive() for _ in range(21))}
    assert errors.pop(20) is None
    assert all(isinstance(error, DeadlineExceeded) for error in errors.values()), errors
    assert daemon.status()["kills"]["total"] == 1


def ask_as(daemon: DaemonProcess, uid: int, image: bytes, timeout: float, times: int = 1) -> str:
    """What another uid is told of an image, the last time that it asks for it."""

    def ask() -> str:
        with Peer(path) as peer:
            return str([peer.ask(image=image, timeout=timeout).error for _ in range(times)][-1])

    with open_to_all(daemon.path) as path:
        daemon.path.chmod(0o666)
        return as_uid(uid, ask)


@as_root
def test_who_gives_an_image_too_little_has_it_refused_to_nobody_else(
    start_poisoned: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_poisoned()
    image = photos[0] + Venom.SLOW.value
    for uid in (NOBODY, NOBODY - 1, NOBODY - 2):
        assert "remembered" in ask_as(daemon, uid, image, 1.0, times=2)
    with daemon.connect() as peer:
        assert "remembered" not in str(peer.ask(image=image, timeout=1.0).error)


@as_root
def test_an_image_that_hangs_costs_few_uids_a_worker(
    start_poisoned: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_poisoned("--timeout=3")
    image = hanging(photos[0], 0)
    for uid in (NOBODY, NOBODY - 1):
        assert "its worker was killed" in ask_as(daemon, uid, image, 3.0)
    with daemon.connect() as peer:
        assert "remembered" in str(peer.ask(image=image, timeout=3.0).error)
    assert daemon.status()["kills"]["total"] == 2
