"""The daemon as a whole: real processes, real signals, a real recording of sd_notify."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import (
    PATIENCE,
    Peer,
    as_uid,
    descendants,
    forkservers,
    freeze,
    is_alive,
    open_to_all,
    signal_if_there,
    wait_until,
)
from modelfolders import CLASSES, make_folder

from swiprctl.errors import DeadlineExceeded, LoadingFailed, ShuttingDown, WorkerCrashed
from swiprd.pool.keeper import MAX_KILLED_LOADS

pytestmark = pytest.mark.timeout(120)

WATCHDOG = {"WATCHDOG_USEC": "2000000"}


def open_image(path: Path) -> int:
    return os.open(path, os.O_RDONLY)


@pytest.fixture
def slow(slow_image: Path) -> Iterator[int]:
    descriptor = open_image(slow_image)
    yield descriptor
    os.close(descriptor)


class TestReady:
    def test_ready_is_told_once_a_worker_has_answered(self, start_daemon: StartDaemon) -> None:
        daemon = start_daemon().wait_ready()
        assert daemon.told.index(daemon.told[-1]) == len(daemon.told) - 1
        assert not any("READY=1" in line for line in daemon.told[:-1])
        assert "STATUS=serving tiny@" in daemon.told[-1]
        status = daemon.status()
        assert status["state"] == "ready"
        assert max(w["answered"] for w in status["workers"]) >= 1

    def test_a_wrong_canary_is_never_ready_and_a_repaired_one_is(
        self, start_daemon: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        row = ", ".join(["0.1"] * CLASSES)
        model = make_folder(tmp_path / "model", extra=f"probabilities = [{row}]\n")
        daemon = start_daemon(model=model)
        assert "the canary" in daemon.wait_told("STATUS=the model cannot be loaded")
        with daemon.connect() as peer:
            error = peer.ask(image=photos[0]).error
            assert isinstance(error, LoadingFailed)
            assert "expected" in str(error)
        assert not any("READY=1" in line for line in daemon.told + daemon.read_told())
        make_folder(model)
        daemon.wait_ready()
        with daemon.connect() as peer:
            assert len(peer.ask(image=photos[0]).fields["probabilities"]) == CLASSES

    def test_a_model_that_cannot_be_loaded_is_an_answer_not_an_exit(
        self, start_daemon: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        model = make_folder(tmp_path / "model")
        (model / "weights.pth").write_bytes(b"no weights")
        daemon = start_daemon(model=model)
        daemon.wait_told("STATUS=the model cannot be loaded")
        with daemon.connect() as peer:
            error = peer.ask(image=photos[0]).error
            assert isinstance(error, LoadingFailed)
            assert "weights.pth" in str(error)
            assert peer.ask("status").fields["state"] == "loading-failed"
        assert daemon.stop() == 0

    def test_nor_is_one_that_fails_in_a_way_nobody_foresaw(
        self, start_daemon: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        model = make_folder(tmp_path / "model")
        (model / "model.toml").write_text("name = " + "[" * 20_000)  # too deep for the parser
        daemon = start_daemon(model=model)
        daemon.wait_told("STATUS=the model cannot be loaded")
        with daemon.connect() as peer:
            assert isinstance(peer.ask(image=photos[0]).error, LoadingFailed)
        make_folder(model)
        daemon.wait_ready()

    def test_requests_that_come_while_it_loads_are_answered(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon()
        wait_until(daemon.path.exists, "the socket")
        with daemon.connect() as peer:
            for number, photo in enumerate(photos):
                peer.send(number, image=photo)
            assert not any("READY=1" in line for line in daemon.read_told())
            replies = [peer.receive() for _ in photos]
        assert {reply.id for reply in replies} == set(range(len(photos)))
        assert all(reply.error is None for reply in replies)

    def test_a_forkserver_killed_while_it_loads_is_replaced(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon()
        wait_until(lambda: forkservers(daemon.pid), "the forkserver")
        with daemon.connect() as peer:
            peer.send(1, image=photos[0])
            os.kill(forkservers(daemon.pid)[0], signal.SIGKILL)
            assert peer.receive().error is None
        assert daemon.status()["forkserver"]["restarts"] == 1

    def test_one_that_is_killed_again_and_again_is_told(self, start_daemon: StartDaemon) -> None:
        daemon = start_daemon()
        killed: set[int] = set()

        def given_up() -> bool:
            for pid in set(forkservers(daemon.pid)) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            return any("the process that loads the model" in line for line in daemon.read_told())

        wait_until(given_up, "the manager is told")
        assert len(killed) == 1 + MAX_KILLED_LOADS

    def test_a_deadline_that_a_client_named_holds_while_it_loads(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon()
        wait_until(daemon.path.exists, "the socket")
        with daemon.connect() as peer:
            assert isinstance(peer.ask(image=photos[0], timeout=0.05).error, DeadlineExceeded)


class TestWatchdog:
    def test_signs_of_life_follow_ready(self, start_daemon: StartDaemon) -> None:
        daemon = start_daemon(environment=WATCHDOG).wait_ready()
        assert not any("WATCHDOG=1" in line for line in daemon.told)
        daemon.wait_told("WATCHDOG=1")
        daemon.wait_told("WATCHDOG=1")

    def test_a_front_whose_workers_answer_nothing_gives_none(
        self, start_daemon: StartDaemon
    ) -> None:
        daemon = start_daemon(environment=WATCHDOG).wait_ready()
        daemon.wait_told("WATCHDOG=1")
        status = daemon.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)
        forkserver = status["forkserver"]["pid"]
        # The forkserver too, or else it replaces what stands still, as it should.
        for pid in [forkserver, *daemon.workers()]:
            freeze(pid)
        daemon.read_told()
        time.sleep(2.0)  # a whole interval: absence has no event
        late = daemon.read_told()
        os.kill(forkserver, signal.SIGCONT)
        assert sum("WATCHDOG=1" in line for line in late) <= 1  # one may have been on its way
        daemon.wait_told("WATCHDOG=1")


class TestDeadline:
    def test_a_worker_stuck_in_c_is_killed_and_the_standby_answers(
        self, start_daemon: StartDaemon, photos: list[bytes], slow: int
    ) -> None:
        daemon = start_daemon().wait_ready()
        daemon.wait_status(lambda s: len(s["workers"]) == 2)
        before = daemon.workers()
        with daemon.connect() as stuck, daemon.connect() as other:
            stuck.send(1, descriptor=slow, timeout=0.4)
            other.send(2, image=photos[0])
            assert isinstance(stuck.receive().error, DeadlineExceeded)
            assert other.receive().error is None
        status = daemon.wait_status(
            lambda s: [w["state"] for w in s["workers"]] == ["idle", "idle"]
        )
        after = {w["pid"] for w in status["workers"]}
        (victim,) = set(before) - after
        assert not is_alive(victim)
        assert status["kills"]["last"][-1]["why"] == "deadline"

    def test_what_a_stopped_worker_has_is_answered_by_another(
        self, start_daemon: StartDaemon, photos: list[bytes], slow: int
    ) -> None:
        daemon = start_daemon("--workers=2", "--threads=1", "--batch=1").wait_ready()
        daemon.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 3)
        with daemon.connect() as stuck, daemon.connect() as other:
            stuck.send(1, descriptor=slow, timeout=8.0)
            daemon.wait_status(lambda s: any(w["state"] == "busy" for w in s["workers"]))
            (busy,) = daemon.workers("busy")
            freeze(busy)
            for photo in photos:
                assert other.ask(image=photo).error is None
            assert stuck.receive().error is None
            wait_until(lambda: not is_alive(busy), "the stopped worker is killed")

    def test_it_covers_the_queue(
        self, start_daemon: StartDaemon, photos: list[bytes], slow: int
    ) -> None:
        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            peer.send(1, descriptor=slow, timeout=5)
            peer.send(2, image=photos[0], timeout=0.2)
            reply = peer.receive()
            assert reply.id == 2
            assert isinstance(reply.error, DeadlineExceeded)

    def test_neighbours_in_a_batch_get_their_rows(
        self, start_daemon: StartDaemon, photos: list[bytes], slow: int
    ) -> None:
        daemon = start_daemon("--workers=1", "--threads=1", "--batch=4").wait_ready()
        with daemon.connect() as peer:
            peer.send(0, descriptor=slow, timeout=8)  # holds the worker, so that a batch forms
            for number, photo in enumerate(photos[:4], start=1):
                peer.send(number, image=photo)
            peer.send(9, descriptor=slow, timeout=3)
            for number, photo in enumerate(photos[4:], start=5):
                peer.send(number, image=photo)
            replies = {r.id: r for r in (peer.receive() for _ in range(10))}
        assert all(replies[i].error is None for i in range(1, 9))


class TestKilled:
    def test_a_worker_killed_at_work_costs_its_client_nothing(
        self, start_daemon: StartDaemon, slow: int
    ) -> None:
        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            peer.send(1, descriptor=slow)
            status = daemon.wait_status(lambda s: any(w["state"] == "busy" for w in s["workers"]))
            (busy,) = [w["pid"] for w in status["workers"] if w["state"] == "busy"]
            os.kill(busy, signal.SIGKILL)
            assert peer.receive().error is None
        assert daemon.status()["kills"]["last"][-1]["why"] == "SIGKILL"

    def test_an_image_that_crashes_two_workers_is_to_blame(
        self, start_daemon: StartDaemon, slow: int, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            peer.send(1, descriptor=slow)
            hit: set[int] = set()
            for _ in range(2):
                status = daemon.wait_status(
                    lambda s: any(
                        w["state"] == "busy" and w["pid"] not in hit for w in s["workers"]
                    )
                )
                (busy,) = [w["pid"] for w in status["workers"] if w["state"] == "busy"]
                hit.add(busy)
                os.kill(busy, signal.SIGSEGV)
            error = peer.receive().error
            assert isinstance(error, WorkerCrashed)
            assert "SIGSEGV" in str(error)
            assert peer.ask(image=photos[0]).error is None

    def test_weights_that_were_cut_short_in_use_are_named(
        self, start_daemon: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        make_folder(tmp_path / "model")
        daemon = start_daemon(model=tmp_path / "model").wait_ready()
        os.truncate(tmp_path / "model" / "weights.pth", 4096)
        with daemon.connect() as peer:
            error = peer.ask(image=photos[0]).error
        assert isinstance(error, LoadingFailed)
        assert "SIGBUS (were the weights overwritten" in str(error)

    def test_nor_are_they_the_fault_of_an_image(
        self, start_daemon: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        weights = make_folder(tmp_path / "model") / "weights.pth"
        daemon = start_daemon(model=tmp_path / "model").wait_ready()
        daemon.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)
        good = weights.read_bytes()
        os.truncate(weights, 4096)
        with daemon.connect() as peer:
            assert peer.ask(image=photos[0]).error is not None
            daemon.wait_status(lambda s: s["state"] == "loading-failed")
            assert daemon.status()["poison"]["remembered"] == 0
            weights.write_bytes(good)
            daemon.wait_status(lambda s: s["state"] == "ready")
            assert peer.ask(image=photos[0]).error is None

    def test_the_forkserver_is_replaced(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            first = peer.ask(image=photos[0]).fields["probabilities"]
            workers = daemon.workers()
            os.kill(daemon.status()["forkserver"]["pid"], signal.SIGKILL)
            wait_until(lambda: not any(map(is_alive, workers)), "its workers are gone")
            assert peer.ask(image=photos[0]).fields["probabilities"] == pytest.approx(
                first, abs=1e-6
            )
        assert daemon.status()["forkserver"]["restarts"] == 1

    def test_a_forkserver_that_stands_still_is_replaced(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        status = daemon.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)
        freeze(status["forkserver"]["pid"])
        for worker in status["workers"]:
            os.kill(worker["pid"], signal.SIGKILL)
        with daemon.connect() as peer:
            error = peer.ask(image=photos[0], timeout=PATIENCE).error
            assert error is None, daemon.log.read_text()
        assert daemon.status()["forkserver"]["restarts"] == 1

    def test_nothing_survives_the_front(self, start_daemon: StartDaemon, slow: int) -> None:
        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            peer.send(1, descriptor=slow)
            daemon.wait_status(lambda s: {w["state"] for w in s["workers"]} == {"busy", "idle"})
            family = daemon.family()
            assert len(family) == 5  # front, intake, forkserver and two workers
            daemon.process.kill()
            daemon.process.wait()
            died = time.monotonic()
            wait_until(lambda: not any(map(is_alive, family)), "all of it is gone")
            assert time.monotonic() - died < 1.0 + 2.0  # a second, and a busy machine's excuse


class TestLeaving:
    def test_sigterm_answers_what_was_accepted(
        self, start_daemon: StartDaemon, photos: list[bytes], slow: int
    ) -> None:
        daemon = start_daemon().wait_ready()
        family = daemon.family()
        with daemon.connect() as peer:
            peer.send(0, descriptor=slow)
            for number, photo in enumerate(photos, start=1):
                peer.send(number, image=photo)
            daemon.wait_status(lambda s: s["queue"]["total"] == 1 + len(photos))
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_told("STOPPING=1")
            peer.send(99, image=photos[0])
            replies = {r.id: r for r in (peer.receive() for _ in range(2 + len(photos)))}
            assert isinstance(replies.pop(99).error, ShuttingDown)
            assert all(reply.error is None for reply in replies.values())
            with pytest.raises(EOFError):
                peer.receive()
        assert daemon.process.wait(PATIENCE) == 0
        assert not any(map(is_alive, family))
        assert not daemon.path.exists()

    def test_it_leaves_when_idle_and_takes_its_socket_along(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon("--idle-timeout=0.5").wait_ready()
        with daemon.connect() as peer:
            assert peer.ask(image=photos[0]).error is None
        assert daemon.process.wait(PATIENCE) == 0
        assert not daemon.path.exists()


class TestReload:
    def test_a_good_model_takes_over(
        self, start_daemon: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        model = make_folder(tmp_path / "model", seed=1)
        daemon = start_daemon(model=model).wait_ready()
        with daemon.connect() as peer:
            old = peer.ask(image=photos[0]).fields
            make_folder(model, seed=2)
            reply = peer.ask("reload")
            assert reply.error is None
            new = peer.ask(image=photos[0]).fields
            assert new["model"] == reply.fields["model"] != old["model"]
            assert new["probabilities"] != pytest.approx(old["probabilities"], abs=1e-3)
        daemon.wait_status(lambda s: len(s["workers"]) == 2)
        wait_until(
            lambda: (
                len(descendants(forkservers(daemon.pid)[0])) == 2
                and len(forkservers(daemon.pid)) == 1
            ),
            "the old model's processes are gone",
        )

    def test_a_broken_one_does_not(
        self, start_daemon: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        model = make_folder(tmp_path / "model")
        daemon = start_daemon(model=model).wait_ready()
        with daemon.connect() as peer:
            old = peer.ask(image=photos[0]).fields
            (model / "labels.txt").write_text("one\ntwo\n")
            assert isinstance(peer.ask("reload").error, LoadingFailed)
            assert peer.ask(image=photos[0]).fields["model"] == old["model"]
            assert "classifier" in daemon.status()["reload_error"] or "weights" in str(
                daemon.status()["reload_error"]
            )

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes two uids, hence root")
    def test_another_uid_may_not(self, start_daemon: StartDaemon) -> None:
        daemon = start_daemon().wait_ready()
        daemon.path.chmod(0o666)
        with open_to_all(daemon.path) as path:

            def ask() -> str:
                with Peer(path) as peer:
                    error = peer.ask("reload").error
                    return f"{error.code} {peer.ask('status').fields['state']}"

            assert as_uid(65534, ask) == "forbidden ready"


class TestFamily:
    def test_the_front_has_neither_torch_nor_numpy_nor_pillow(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            assert peer.ask(image=photos[0]).error is None
            assert peer.ask("ping").error is None
            assert peer.ask("model").error is None
        maps = Path(f"/proc/{daemon.pid}/maps").read_text()
        for library in ("torch", "numpy", "PIL", "_imaging"):
            assert f"/{library}" not in maps, library

    def test_the_forkserver_has_one_thread_and_only_the_workers_compute(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon("--workers=1", "--threads=2", "--batch=1").wait_ready()
        with daemon.connect() as peer:
            for photo in photos:
                assert peer.ask(image=photo).error is None
        forkserver = daemon.status()["forkserver"]["pid"]
        assert os.listdir(f"/proc/{forkserver}/task") == [str(forkserver)]

    def test_weights_are_mapped_and_shared(self, start_daemon: StartDaemon) -> None:
        daemon = start_daemon().wait_ready()
        for pid in [daemon.status()["forkserver"]["pid"], *daemon.workers()]:
            assert "weights.pth" in Path(f"/proc/{pid}/maps").read_text()


def test_it_serves_under_systemd_socket_activate(
    tmp_path: Path, tiny_model: Path, photos: list[bytes]
) -> None:
    path = tmp_path / "s.sock"
    activator = subprocess.Popen(
        [
            *("systemd-socket-activate", "-l", str(path), "-E", "PATH"),
            *(sys.executable, "-P", "-m", "swiprd", "serve"),
            *("--model", str(tiny_model), "--cache", str(tmp_path), "--config", os.devnull),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(path.is_socket, "the socket")
        with Peer(path) as peer:
            reply = peer.ask(image=photos[0])
            assert len(reply.fields["probabilities"]) == CLASSES
        activator.send_signal(signal.SIGTERM)  # it is the daemon by now: it execs
        _, words = activator.communicate(timeout=PATIENCE)
        assert activator.returncode == 0, words.decode()
        assert path.exists(), "a passed socket is not the daemon's to remove"
    finally:
        signal_if_there(activator.pid, signal.SIGKILL)
        activator.wait()
        assert activator.stderr is not None
        activator.stderr.close()
