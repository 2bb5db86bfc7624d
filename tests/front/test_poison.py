"""Images that hang or crash their worker: what they get, what others get, what is remembered."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import DaemonProcess
from venom import Venom, environment

from swiprctl.errors import BadImage, DeadlineExceeded, Overloaded, TooLarge, WorkerCrashed
from swiprd.front.poison import Poison
from swiprd.intake.recognition import recognise
from swiprd.pool import stragglers
from swiprd.pool.job import Job
from swiprd.pool.stragglers import UsualTime
from swiprd.system.attachment import Attachment, Identity
from swiprd.system.memfd import sealed_memfd

pytestmark = pytest.mark.timeout(60)

UID = 1000
IMAGE = Identity(100, b"a")
OTHER = Identity(100, b"b")
CRASHED = WorkerCrashed("it crashed")
LATE = DeadlineExceeded("not done within 4.0 s")


class TestMemory:
    def test_what_crashed_is_told_again_with_the_time_that_is_left(self) -> None:
        poison = Poison(300.0)
        poison.remember(IMAGE, CRASHED, 10.0)
        error = poison.recall(IMAGE, 60.0, uid=UID, patience=1e9)
        assert isinstance(error, WorkerCrashed)
        assert str(error).startswith("it crashed; it is remembered")
        assert "another 250 s" in str(error)
        assert poison.recall(OTHER, 60.0, uid=UID, patience=1.0) is None
        assert poison.refused == 1

    def test_it_is_forgotten_in_time(self) -> None:
        poison = Poison(300.0)
        poison.remember(IMAGE, CRASHED, 10.0)
        assert poison.recall(IMAGE, 310.0, uid=UID, patience=1.0) is None
        assert len(poison) == 0

    def test_who_gives_a_hanging_image_much_longer_may_try(self) -> None:
        poison = Poison(300.0)
        poison.remember(IMAGE, LATE, 0.0, uid=UID, ran=4.0)
        assert isinstance(poison.recall(IMAGE, 1.0, uid=UID, patience=16.0), DeadlineExceeded)
        assert poison.recall(IMAGE, 1.0, uid=UID, patience=16.1) is None

    def test_a_suspect_is_known_and_not_refused(self) -> None:
        poison = Poison(300.0)
        poison.suspect(IMAGE, 0.0, uid=UID)
        assert poison.suspects(IMAGE, 1.0, uid=UID)
        assert not poison.suspects(OTHER, 1.0, uid=UID)
        assert poison.recall(IMAGE, 1.0, uid=UID, patience=0.0) is None
        assert not poison.suspects(IMAGE, 300.0, uid=UID)

    def test_it_is_no_suspect_any_more_when_it_has_been_answered(self) -> None:
        poison = Poison(300.0)
        poison.suspect(IMAGE, 0.0, uid=UID)
        poison.absolve(IMAGE)
        assert not poison.suspects(IMAGE, 1.0, uid=UID)
        assert len(poison) == 0

    def test_what_is_known_already_is_not_suspected_instead(self) -> None:
        poison = Poison(300.0)
        poison.remember(IMAGE, LATE, 0.0, uid=UID, ran=4.0)
        poison.suspect(IMAGE, 1.0, uid=UID)
        assert isinstance(poison.recall(IMAGE, 1.0, uid=UID, patience=16.0), DeadlineExceeded)

    def test_the_least_recently_seen_makes_room(self) -> None:
        poison = Poison(300.0, most=2)
        poison.remember(IMAGE, CRASHED, 0.0)
        poison.remember(OTHER, CRASHED, 1.0)
        poison.recall(IMAGE, 2.0, uid=UID, patience=1.0)
        poison.remember(Identity(7, b""), CRASHED, 3.0)
        assert len(poison) == 2
        assert poison.recall(OTHER, 4.0, uid=UID, patience=1.0) is None
        assert poison.recall(IMAGE, 4.0, uid=UID, patience=1.0) is not None

    def test_what_is_over_makes_room_first(self) -> None:
        poison = Poison(10.0, most=2)
        poison.remember(IMAGE, CRASHED, 0.0)
        poison.remember(OTHER, CRASHED, 9.0)
        poison.recall(IMAGE, 9.5, uid=UID, patience=1.0)
        poison.remember(Identity(7, b""), CRASHED, 11.0)
        assert poison.recall(OTHER, 12.0, uid=UID, patience=1.0) is not None

    def test_again_counts_from_then(self) -> None:
        poison = Poison(10.0)
        poison.remember(IMAGE, CRASHED, 0.0)
        poison.remember(IMAGE, CRASHED, 8.0)
        assert len(poison) == 1
        assert poison.recall(IMAGE, 17.0, uid=UID, patience=1.0) is not None
        assert poison.recall(IMAGE, 18.0, uid=UID, patience=1.0) is None

    def test_it_can_be_switched_off(self) -> None:
        poison = Poison(0.0)
        poison.remember(IMAGE, CRASHED, 0.0)
        assert len(poison) == 0

    def test_what_one_uid_found_out_counts_for_that_uid(self) -> None:
        poison = Poison(300.0)
        poison.suspect(IMAGE, 0.0, uid=UID)
        assert not poison.suspects(IMAGE, 1.0, uid=UID + 1)
        for _ in range(5):
            poison.remember(IMAGE, LATE, 0.0, uid=UID, ran=4.0)
        assert not poison.suspects(IMAGE, 1.0, uid=UID + 1)
        assert poison.recall(IMAGE, 1.0, uid=UID + 1, patience=1.0) is None
        assert poison.recall(IMAGE, 1.0, uid=UID, patience=1.0) is not None

    def test_what_two_uids_found_out_counts_for_all(self) -> None:
        poison = Poison(300.0)
        poison.suspect(IMAGE, 0.0, uid=1)
        poison.suspect(IMAGE, 0.0, uid=2)
        assert poison.suspects(IMAGE, 1.0, uid=3)
        assert poison.recall(IMAGE, 1.0, uid=3, patience=1.0) is None
        poison.remember(IMAGE, LATE, 0.0, uid=1, ran=9.0)
        assert poison.recall(IMAGE, 1.0, uid=3, patience=1.0) is None
        poison.remember(IMAGE, LATE, 0.0, uid=2, ran=4.0)
        assert poison.recall(IMAGE, 1.0, uid=3, patience=16.1) is None
        assert isinstance(poison.recall(IMAGE, 1.0, uid=3, patience=16.0), DeadlineExceeded)
        assert poison.recall(IMAGE, 300.0, uid=3, patience=16.0) is None

    def test_what_proves_nothing_counts_for_nobody_else_however_many_find_it(self) -> None:
        poison = Poison(300.0)
        for uid in range(1000):
            poison.remember(IMAGE, LATE, 0.0, uid=uid, ran=0.6, proves=False)
        assert not poison.suspects(IMAGE, 1.0, uid=2000)
        assert poison.recall(IMAGE, 1.0, uid=2000, patience=1.0) is None
        assert poison.recall(IMAGE, 1.0, uid=999, patience=1.0) is not None

    def test_nor_does_it_push_out_what_proves_something(self) -> None:
        poison = Poison(300.0)
        for uid in (1, 2):
            poison.remember(IMAGE, LATE, 0.0, uid=uid, ran=9.0)
        for uid in range(3, 1000):
            poison.remember(IMAGE, LATE, 0.0, uid=uid, ran=0.6, proves=False)
        assert poison.recall(IMAGE, 1.0, uid=2000, patience=9.0) is not None

    def test_a_crash_counts_for_all(self) -> None:
        poison = Poison(300.0)
        poison.remember(IMAGE, CRASHED, 0.0)
        assert poison.suspects(IMAGE, 1.0, uid=7)
        assert isinstance(poison.recall(IMAGE, 1.0, uid=7, patience=1e9), WorkerCrashed)


class TestRecognition:
    @pytest.fixture
    def opened(self) -> Iterator[list[int]]:
        """Descriptors to be closed."""
        descriptors: list[int] = []
        yield descriptors
        for descriptor in descriptors:
            os.close(descriptor)

    def test_a_file_is_itself_until_it_changes(self, tmp_path: Path, opened: list[int]) -> None:
        file = tmp_path / "a"
        file.write_bytes(b"12345")
        os.utime(file, ns=(0, 1))
        opened += [os.open(file, os.O_RDONLY) for _ in range(2)]
        first = recognise(opened[0], 100)
        assert first is not None
        assert first == recognise(opened[1], 100)
        os.utime(file, ns=(0, 2))
        assert recognise(opened[0], 100) != first
        (tmp_path / "b").write_bytes(b"12345")
        os.utime(tmp_path / "b", ns=(0, 2))
        opened.append(os.open(tmp_path / "b", os.O_RDONLY))
        assert recognise(opened[2], 100) != recognise(opened[0], 100)

    def test_sealed_bytes_are_known_by_what_they_are(self, opened: list[int]) -> None:
        opened += [sealed_memfd(data) for data in (b"12345", b"12345", b"12346")]
        one, same, other = (recognise(descriptor, 100) for descriptor in opened)
        assert one == same != other

    def test_what_may_still_change_is_not_known_by_its_bytes(self, opened: list[int]) -> None:
        for _ in range(2):
            opened.append(os.memfd_create("x", os.MFD_ALLOW_SEALING))
            os.write(opened[-1], b"12345")
        assert recognise(opened[0], 100) != recognise(opened[1], 100)

    def test_a_file_over_the_limit_is_nobody_s_image(self, opened: list[int]) -> None:
        opened += [sealed_memfd(b"12345"), os.memfd_create("x", os.MFD_ALLOW_SEALING)]
        os.ftruncate(opened[1], 1 << 50)
        fcntl.fcntl(opened[1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        fcntl.fcntl(opened[1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert recognise(opened[0], 5) is not None
        assert recognise(opened[0], 4) is None
        assert recognise(opened[1], 64 << 20) is None

    def test_a_pipe_is_nobody(self, opened: list[int]) -> None:
        opened += os.pipe()
        assert recognise(opened[0], 100) is None


def test_patience_follows_what_batches_take() -> None:
    usual = UsualTime()
    assert usual.patience(100.0) == 0.5
    for _ in range(100):
        usual.learn(1.0)
    assert usual.patience(100.0) == pytest.approx(8.0)
    usual.learn(0.0)
    assert 7.0 < usual.patience(100.0) < 8.0
    assert usual.patience(10.0) == 2.5, "each image of a batch can still be tried alone"
    assert usual.patience(0.1) == 0.5


def test_patience_is_shorter_where_nobody_can_stand_in() -> None:
    usual = UsualTime()
    for _ in range(10):
        usual.learn(0.3)
    assert usual.patience(100.0) == pytest.approx(2.4)
    assert usual.patience(100.0, crowded=True) == pytest.approx(0.8)
    assert usual.patience(4.0, crowded=True) == 0.5


class TestGivingWay:
    """Which of the jobs whose workers are stuck goes."""

    def job(self, uid: int, started: float, *, unheard: bool = False) -> Job:
        job = Job(
            id=0,
            uid=uid,
            owner=None,
            image=Attachment(),
            arrived=0.0,
            deadline=40.0,
            timeout=None,
            done=lambda _job, _outcome: None,
        )
        job.started, job.unheard = started, unheard
        return job

    def test_the_newest_of_the_uid_that_has_the_most(self) -> None:
        a = [self.job(1, started) for started in (1.0, 3.0, 2.0)]
        b = [self.job(2, started) for started in (4.0, 5.0)]
        assert stragglers.giving_way([*a, *b]) is a[1]
        assert stragglers.giving_way([]) is None

    def test_first_one_that_nobody_waits_for(self) -> None:
        left = self.job(2, 0.5, unheard=True)
        assert stragglers.giving_way([self.job(1, 1.0), left, self.job(1, 2.0)]) is left

    def test_for_a_suspect_the_oldest_that_has_had_its_time(self) -> None:
        a = [self.job(1, started) for started in (3.0, 1.0, 2.0)]
        waits = self.job(1, 0.0)
        assert stragglers.proof(waits) == 10.0
        assert stragglers.proved(a, a, waits, 10.5) is None
        assert stragglers.proved(a, a, waits, 12.5) is a[1]

    def test_nobody_goes_for_a_uid_that_has_as_many(self) -> None:
        one, other = self.job(1, 1.0), self.job(2, 2.0)
        assert stragglers.proved([one], [one], other, 30.0) is one
        both = [one, other]
        assert stragglers.proved(both, both, self.job(2, 0.0), 30.0) is other
        assert stragglers.proved(both, both, self.job(2, 0.0), 11.5) is None

    def test_what_computes_goes_only_if_nobody_waits_for_it(self) -> None:
        stuck = [self.job(1, 1.0), self.job(1, 2.0)]
        assert stragglers.proved(stuck, stuck[1:], self.job(1, 0.0), 30.0) is stuck[1]
        assert stragglers.proved(stuck, [], self.job(1, 0.0), 30.0) is None
        stuck.append(self.job(1, 3.0, unheard=True))
        assert stragglers.proved(stuck, stuck, self.job(1, 0.0), 4.0) is stuck[2]


def test_what_computes_has_had_its_processor_time_and_what_hangs_its_time() -> None:
    assert stragglers.effort(10.0, 0.02) == 10.0
    assert stragglers.effort(10.0, 2.0) == 2.0
    assert stragglers.hangs(10.0, 0.02)
    assert not stragglers.hangs(10.0, 2.0)


@pytest.fixture
def start_poisoned(start_daemon: StartDaemon, tmp_path: Path) -> StartDaemon:
    """Start daemons that venom works on."""

    def start(*arguments: str) -> DaemonProcess:
        return start_daemon(*arguments, environment=environment(tmp_path / "site")).wait_ready()

    return start


def poisoned(folder: Path, venom: Venom, photo: bytes) -> Path:
    file = folder / f"{venom.name}.jpg"
    file.write_bytes(photo + venom.value)
    return file


class TestDaemon:
    def test_one_that_hangs_holds_nobody_up(
        self, start_poisoned: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()  # of one worker, and the standby
        with daemon.connect() as stuck, daemon.connect() as other:
            with open(poisoned(tmp_path, Venom.SPIN, photos[0]), "rb") as file:
                stuck.send(1, descriptor=file.fileno(), timeout=5.0)
            for photo in photos:
                assert other.ask(image=photo, timeout=4.9).error is None
            assert daemon.status()["queue"]["total"] == 1, "the other should still run"
            assert isinstance(stuck.receive().error, DeadlineExceeded)
        daemon.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)

    def test_those_in_one_batch_with_it_get_their_rows(
        self, start_poisoned: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned("--workers=1", "--threads=1", "--batch=4")
        file = poisoned(tmp_path, Venom.HANG, photos[0])
        with daemon.connect() as peer, open(file, "rb") as image:
            for number, photo in enumerate(photos):
                if number == 2:
                    peer.send(99, descriptor=image.fileno(), timeout=6.0)
                peer.send(number, image=photo, timeout=6.0)
            replies = {r.id: r.error for r in (peer.receive() for _ in range(len(photos) + 1))}
        assert isinstance(replies.pop(99), DeadlineExceeded)
        assert set(replies.values()) == {None}

    def test_a_longer_deadline_than_the_daemons_is_cut(
        self, start_poisoned: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned("--max-timeout=3", "--remember=0")
        file = poisoned(tmp_path, Venom.HANG, photos[0])
        with daemon.connect() as peer, open(file, "rb") as image:
            assert peer.ask("model").fields["max_timeout"] == 3.0
            error = peer.ask(descriptor=image.fileno(), timeout=3600.0).error
            assert isinstance(error, DeadlineExceeded)
            assert "the longest that this daemon gives (max_timeout)" in str(error)
            error = peer.ask(descriptor=image.fileno(), timeout=1.0).error
            assert isinstance(error, DeadlineExceeded)
            assert "max_timeout" not in str(error)

    def test_scans_without_end_are_no_picture(self, start_daemon: StartDaemon) -> None:
        from imagefiles import many_scans

        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            assert peer.ask(image=many_scans(400)).error is None
            error = peer.ask(image=many_scans(100_000)).error
            assert isinstance(error, BadImage)
            assert "more than 500 scans" in str(error)
        assert daemon.status()["kills"]["total"] == 0

    def test_a_decoder_has_a_bound_of_processor_time(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned("--max-decode=1")
        with daemon.connect() as peer:
            errors = [peer.ask(image=photos[0] + Venom.SPIN.value).error for _ in range(2)]
            assert all(isinstance(error, BadImage) for error in errors)
            assert "more than 1 s of processor time" in str(errors[0])
            assert "remembered" in str(errors[1])
            assert daemon.status()["kills"]["total"] == 1
            assert peer.ask(image=photos[0]).error is None

    def test_it_is_refused_at_once_until_it_changes(
        self, start_poisoned: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        file = poisoned(tmp_path, Venom.HANG, photos[0])
        with daemon.connect() as peer:
            with open(file, "rb") as image:
                assert isinstance(
                    peer.ask(descriptor=image.fileno(), timeout=2.0).error, DeadlineExceeded
                )
            kills = daemon.status()["kills"]["total"]
            begun = time.monotonic()
            with open(file, "rb") as image:
                error = peer.ask(descriptor=image.fileno(), timeout=2.0).error
            assert time.monotonic() - begun < 2.0
            assert isinstance(error, DeadlineExceeded)
            assert "remembered" in str(error)
            status = daemon.status()
            assert status["kills"]["total"] == kills
            assert status["poison"] == {"remembered": 1, "refused": 1}
            file.write_bytes(photos[1])
            with open(file, "rb") as image:
                assert peer.ask(descriptor=image.fileno()).error is None

    def test_a_short_deadline_condemns_no_image(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        with daemon.connect() as peer:
            image = photos[0] + Venom.HANG.value
            assert isinstance(peer.ask(image=image, timeout=0.1).error, DeadlineExceeded)
            assert daemon.status()["poison"]["remembered"] == 0

    def test_bytes_that_crash_are_known_again(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        image = photos[0] + Venom.CRASH.value
        with daemon.connect() as peer:
            errors = [peer.ask(image=image).error for _ in range(3)]
            assert all(isinstance(error, WorkerCrashed) for error in errors)
            assert ["remembered" in str(error) for error in errors] == [False, True, True]
            assert daemon.status()["kills"]["total"] == 2
            assert peer.ask(image=photos[0]).error is None

    def test_those_that_wait_meanwhile_are_told_too(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        image = photos[0] + Venom.CRASH.value
        with daemon.connect() as peer:
            for number in range(10):
                peer.send(number, image=image)
            errors = [peer.receive().error for _ in range(10)]
        assert all(isinstance(error, WorkerCrashed) for error in errors)
        assert daemon.status()["kills"]["total"] <= 4

    def test_one_that_eats_memory_is_too_large(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned("--worker-memory", str(256 << 20))
        with daemon.connect() as peer:
            for _ in range(2):
                assert isinstance(peer.ask(image=photos[0] + Venom.EAT.value).error, TooLarge)
                assert peer.ask(image=photos[0]).error is None
        assert daemon.status()["kills"]["total"] == 0


class TestEstimate:
    def test_one_slow_picture_makes_an_idle_daemon_refuse_nobody(
        self, start_poisoned: StartDaemon, tmp_path: Path, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        with daemon.connect() as one, daemon.connect() as other:
            with open(poisoned(tmp_path, Venom.SLOW, photos[0]), "rb") as file:
                assert one.ask(descriptor=file.fileno(), timeout=9.0).error is None
            for number in range(20):
                other.send(number, image=photos[number % 8], timeout=8.0)
            assert [other.receive().error for _ in range(20)] == [None] * 20
        assert daemon.status()["requests"]["refused"] == 0

    def test_nor_does_it_refuse_who_gives_less_than_that_took(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        with daemon.connect() as peer:
            assert peer.ask(image=photos[0] + Venom.SLOW.value, timeout=9.0).error is None
            assert peer.ask(image=photos[1], timeout=2.9).error is None, "that took 3 s"

    def test_requests_of_a_millisecond_kill_no_workers_even_before_the_first_answer(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        with daemon.connect() as peer:
            errors = [peer.ask(image=photos[n % 8], timeout=0.001).error for n in range(30)]
        assert {type(error) for error in errors} == {DeadlineExceeded}
        assert daemon.status()["kills"]["total"] == 0

    def test_requests_of_a_millisecond_kill_no_workers_in_a_row(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        with daemon.connect() as peer:
            assert peer.ask(image=photos[0]).error is None
            errors = [peer.ask(image=photos[n % 8], timeout=0.001).error for n in range(30)]
            assert {type(error) for error in errors} == {DeadlineExceeded}
            assert daemon.status()["kills"]["total"] == 0
            assert peer.ask(image=photos[1], timeout=5.0).error is None

    def test_nor_do_those_that_are_hardly_longer(
        self, start_poisoned: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_poisoned()
        with daemon.connect() as peer:
            errors = [
                peer.ask(image=photos[0] + bytes([n]) + Venom.SPIN.value, timeout=0.1).error
                for n in range(20)
            ]
        assert not [error for error in errors if error is None]
        kills = daemon.status()["kills"]["total"]
        assert kills < 10, kills
        assert isinstance(errors[-1], Overloaded)
