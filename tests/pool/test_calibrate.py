"""calibrate.py: which shapes are tried, what is remembered, and one daemon that does both."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from daemonprocess import DaemonProcess, serving, wait_until

from swiprd.config import Settings
from swiprd.folder.spec import ModelSpec, load_spec
from swiprd.pool import trials
from swiprd.pool.calibrate import calibrate, calibration_file, choose_shape
from swiprd.pool.pool import Shape
from swiprd.pool.shape_search import search, spreads
from swiprd.pool.trials import AT_ONCE, SHARE, Budget, Interrupted, Measurements, Tally

pytestmark = pytest.mark.timeout(120)

NOT_TOLD: dict[str, int | None] = {"workers": None, "threads": None, "batch": None}


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.pth").write_bytes(b"weights")
    (folder / "labels.txt").write_text("sharp\nblurred\n")
    (folder / "model.toml").write_text(
        'name = "v1.2"\narchitecture = "resnet18"\nactivation = "softmax"\n'
        'weights = "weights.pth"\nlabels = "labels.txt"\n'
    )
    return load_spec(folder)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache" / "swipr")


def cores(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have the host look as if it had so many."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(number)))


def shape(workers: int, threads: int, batch: int = 1) -> Shape:
    return Shape(workers=workers, threads=threads, batch=batch, alone=threads)


class TestSpreads:
    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (1, [(1, 1)]),
            (2, [(1, 2), (2, 1)]),
            (3, [(1, 3), (3, 1)]),
            (4, [(1, 4), (2, 2), (4, 1)]),
            (6, [(1, 6), (2, 3), (3, 2), (6, 1)]),
            (64, [(1, 64), (2, 32), (4, 16), (8, 8)]),
        ],
    )
    def test_fewest_workers_first_and_never_more_threads_than_cores(
        self, number: int, expected: list[tuple[int, int]]
    ) -> None:
        found = spreads(NOT_TOLD, number)
        assert found == [shape(*pair) for pair in expected]
        assert all(one.workers * one.threads <= number for one in found)

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            ({"workers": 2}, shape(2, 4)),
            ({"threads": 2}, shape(4, 2)),
            ({"workers": 3, "threads": 5}, shape(3, 5)),
            ({"workers": 100}, shape(100, 1)),
            ({"threads": 100}, shape(1, 100)),
            ({"workers": 1, "batch": 4}, shape(1, 8, 4)),
        ],
    )
    def test_what_is_told_is_not_tried_otherwise(
        self, told: dict[str, int | None], expected: Shape
    ) -> None:
        assert spreads(NOT_TOLD | told, 8) == [expected]

    def test_a_batch_that_is_told_goes_with_each(self) -> None:
        assert spreads(NOT_TOLD | {"batch": 4}, 2) == [shape(1, 2, 4), shape(2, 1, 4)]


class TestSearch:
    """Which shape follows from which figures (images per second), on two cores."""

    @pytest.mark.parametrize(
        ("rates", "expected", "alone"),
        [
            # resnext50 on idle cores: two threads for one image, two workers for many.
            ({(1, 2, 1): 11.5, (2, 1, 1): 15.0, (1, 1, 1): 7.5}, (2, 1, 1), 2),
            # mobilenet_v3_small: a second thread is of no use.
            ({(1, 2, 1): 80.0, (2, 1, 1): 150.0, (1, 1, 1): 78.0}, (2, 1, 1), 1),
            ({(1, 2, 1): 24.0, (2, 1, 1): 20.0}, (1, 2, 1), 2),
            # Hardly faster is not worth the memory of a worker, nor the wait for a batch.
            ({(1, 2, 1): 24.0, (2, 1, 1): 25.0}, (1, 2, 1), 2),
            ({(1, 2, 1): 24.0, (2, 1, 1): 25.0, (1, 2, 8): 26.0}, (1, 2, 1), 2),
            ({(1, 2, 1): 9.0, (2, 1, 1): 8.0, (1, 2, 4): 12.0}, (1, 2, 4), 2),
            ({(1, 2, 1): 9.0, (2, 1, 1): 12.0, (1, 1, 1): 6.0, (2, 1, 8): 15.0}, (2, 1, 8), 2),
        ],
    )
    def test_the_best_shape(
        self,
        rates: dict[tuple[int, int, int], float],
        expected: tuple[int, int, int],
        alone: int,
    ) -> None:
        async def measure(tried: Shape) -> float:
            key = tried.workers, tried.threads, tried.batch
            return rates.get(key, rates.get((*key[:2], 1), 0.0))

        best, rate = asyncio.run(search(measure, NOT_TOLD, 2))
        assert best == replace(shape(*expected), alone=alone)
        assert rate == rates[expected]


class TestBudget:
    def test_so_much_at_once_and_then_a_share(self) -> None:
        budget = Budget(100.0)
        budget.spend(AT_ONCE, 100.0)
        assert budget.wait(100.0) == 0.0
        budget.spend(2.0, 100.0)
        assert budget.wait(100.0) == pytest.approx(2.0 / SHARE)
        assert budget.wait(100.0 + 2.0 / SHARE) == pytest.approx(0.0)

    def test_what_is_not_used_is_not_saved_up(self) -> None:
        budget = Budget(0.0)
        budget.spend(AT_ONCE + 1.0, 1e6)
        assert budget.wait(1e6) == pytest.approx(1.0 / SHARE)

    def test_no_more_than_the_share_in_the_long_run(self) -> None:
        budget = Budget(0.0)
        now = spent = 0.0
        while now < 3600.0:
            now += budget.wait(now) + 1.0
            budget.spend(1.0, now)
            spent += 1.0
        assert spent <= AT_ONCE + SHARE * now + 1.0


class TestInterruptions:
    """Measurements of a pool that is asked for something else again and again."""

    def measure(
        self, monkeypatch: pytest.MonkeyPatch, answers: list[int], *shapes: Shape
    ) -> tuple[list[Shape], list[float], Measurements]:
        """Each try counts so many answers, one a second; 0 and below: it is interrupted then."""
        tries: list[Shape] = []
        left = iter(answers)
        staff: Any = SimpleNamespace(closing=False)

        async def count_answers(_staff: Any, tried: Shape, tally: Tally, _quiet: Any) -> None:
            tries.append(tried)
            number = next(left)
            tally.answers += abs(number)
            tally.seconds += abs(number)
            if number <= 0:
                raise Interrupted

        async def sleep(_seconds: float) -> None:
            """Nobody has to wait for this."""

        async def rates() -> tuple[list[float], Measurements]:
            measurements = Measurements(staff, lambda: True)
            return [await measurements.rate(one) for one in shapes], measurements

        monkeypatch.setattr(trials, "count_answers", count_answers)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        found, measurements = asyncio.run(rates())
        return tries, found, measurements

    def test_what_was_counted_before_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one, two = shape(1, 2), shape(2, 1)
        tries, found, kept = self.measure(monkeypatch, [6, -2, -3, 0, 4], one, two, one)
        assert tries == [one, two, two, two, two]
        assert found == [1.0, 1.0, 1.0]
        assert kept.figures == {one: 1.0, two: 1.0}

    def test_it_comes_to_an_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tries, found, _ = self.measure(monkeypatch, [0] * 100, shape(1, 2))
        assert len(tries) == 12
        assert found == [0.0]


class TestMemory:
    def test_what_is_remembered_comes_back(self, settings: Settings, spec: ModelSpec) -> None:
        best = shape(3, 2, 4)
        assert calibration_file(settings, spec, "torch").read() is None
        calibration_file(settings, spec, "torch").write(best, {shape(1, 6): 10.0, best: 23.456})
        assert calibration_file(settings, spec, "torch").read() == best
        assert choose_shape(settings, spec, "torch") == best

    def test_the_file_is_for_people_too(self, settings: Settings, spec: ModelSpec) -> None:
        best = shape(2, 1)
        calibration_file(settings, spec, "torch").write(best, {shape(1, 2): 176.0, best: 338.125})
        assert settings.cache is not None
        (file,) = settings.cache.iterdir()
        assert file.name.startswith("v1.2-")
        assert file.suffix == ".json"
        assert json.loads(file.read_text()) == {
            "shape": asdict(best),
            "images_per_second": [
                {"workers": 1, "threads": 2, "batch": 1, "rate": 176.0},
                {"workers": 2, "threads": 1, "batch": 1, "rate": 338.12},
            ],
        }
        assert settings.cache.stat().st_mode & 0o077 == 0

    def test_nothing_known_is_one_worker_on_all_cores(
        self, monkeypatch: pytest.MonkeyPatch, settings: Settings, spec: ModelSpec
    ) -> None:
        cores(monkeypatch, 6)
        assert choose_shape(settings, spec, "torch") == shape(1, 6)

    def test_settings_win_over_the_models_folder_and_that_over_memory(
        self, settings: Settings, spec: ModelSpec
    ) -> None:
        spec = replace(spec, serve=replace(spec.serve, workers=3, threads=5))
        settings = replace(settings, workers=7)
        calibration_file(settings, spec, "torch").write(shape(1, 1, 8), {})
        assert choose_shape(settings, spec, "torch") == shape(7, 5, 8)

    @pytest.mark.parametrize("what", ["weights", "model.toml", "device", "told", "cores"])
    def test_another_model_or_host_has_a_memory_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch, settings: Settings, spec: ModelSpec, what: str
    ) -> None:
        calibration_file(settings, spec, "torch").write(shape(3, 2), {})
        match what:
            case "weights":
                spec.weights.write_bytes(b"other weights")
            case "model.toml":
                spec.file.write_text(spec.file.read_text() + "# new\n")
            case "device":
                settings = replace(settings, device="cuda")
            case "told":
                settings = replace(settings, batch=2)
            case "cores":
                cores(monkeypatch, 999)
        assert calibration_file(settings, spec, "torch").read() is None

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "5",
            "null",
            '"shape"',
            "{}",
            '{"shape": null}',
            '{"shape": []}',
            '{"shape": {}}',
            '{"shape": {"workers": 1, "threads": 2, "batch": 1}}',
            '{"shape": {"workers": 1, "threads": 2, "batch": 1, "alone": 1, "more": 1}}',
            '{"shape": {"workers": 0, "threads": 2, "batch": 1, "alone": 2}}',
            '{"shape": {"workers": -1, "threads": 2, "batch": 1, "alone": 2}}',
            '{"shape": {"workers": "1", "threads": 2, "batch": 1, "alone": 2}}',
            '{"shape": {"workers": 1.5, "threads": 2, "batch": 1, "alone": 2}}',
            '{"shape": {"workers": 1e999, "threads": 2, "batch": 1, "alone": 2}}',
            '{"shape": {"workers": 1000000, "threads": 2, "batch": 1, "alone": 2}}',
            "\x00" * 100,
            b"\xff\xfe",
        ],
        ids=repr,
    )
    def test_a_corrupt_file_is_no_memory(
        self,
        monkeypatch: pytest.MonkeyPatch,
        settings: Settings,
        spec: ModelSpec,
        text: str | bytes,
    ) -> None:
        cores(monkeypatch, 2)
        calibration_file(settings, spec, "torch").write(shape(2, 1), {})
        calibration_file(settings, spec, "torch").path().write_bytes(
            text if isinstance(text, bytes) else text.encode()
        )
        assert calibration_file(settings, spec, "torch").read() is None
        assert choose_shape(settings, spec, "torch") == shape(1, 2)
        calibration_file(settings, spec, "torch").write(shape(2, 1), {})
        assert calibration_file(settings, spec, "torch").read() == shape(2, 1)

    @pytest.mark.parametrize("broken", ["not a folder", "full", "in the way"])
    def test_a_cache_that_cannot_be_written_is_a_warning(
        self, settings: Settings, spec: ModelSpec, caplog: pytest.LogCaptureFixture, broken: str
    ) -> None:
        assert settings.cache is not None
        match broken:
            case "not a folder":
                settings.cache.parent.write_text("a file")
            case "full":
                settings = replace(settings, cache=Path("/dev/full"))
            case "in the way":
                calibration_file(settings, spec, "torch").path().mkdir(parents=True)
        with caplog.at_level(logging.WARNING, "swiprd"):
            calibration_file(settings, spec, "torch").write(shape(1, 1), {})
        assert "the calibration could not be kept" in caplog.text
        assert calibration_file(settings, spec, "torch").read() is None

    def test_all_told_nothing_is_measured(self, settings: Settings, spec: ModelSpec) -> None:
        told = replace(settings, workers=1, threads=1, batch=1)
        no_pool: Any = None  # so that any use of it fails
        asyncio.run(calibrate(no_pool, spec, told, "torch", lambda: True))

    def test_what_is_remembered_is_not_measured_again(
        self, settings: Settings, spec: ModelSpec
    ) -> None:
        calibration_file(settings, spec, "torch").write(shape(1, 1), {})
        no_pool: Any = None
        asyncio.run(calibrate(no_pool, spec, settings, "torch", lambda: True))


class TestDaemon:
    def test_it_measures_once_and_answers_meanwhile(
        self, tmp_path: Path, tiny_model: Path, photos: list[bytes]
    ) -> None:
        cache = tmp_path / "cache"
        first = DaemonProcess(tmp_path / "first", "--cache", str(cache), model=tiny_model)
        try:
            first.wait_ready()
            cpus = len(os.sched_getaffinity(0))
            assert first.status()["shape"] == asdict(shape(1, cpus)), "until it is measured"
            # The forkserver, a worker and the standby; what is more is being measured.
            wait_until(lambda: len(serving(first.pid)) > 3, "a worker that is measured")
            with first.connect() as peer:
                for photo in photos:
                    assert peer.ask(image=photo).error is None
            wait_until(lambda: list(cache.glob("*.json")), "the figures")
            (file,) = cache.glob("*.json")
            kept = json.loads(file.read_text())
            status = first.wait_status(lambda s: s["shape"] == kept["shape"])
            assert "calibrated: " in first.log.read_text()
            assert all(one["rate"] > 0 for one in kept["images_per_second"])
            tried = [
                {k: v for k, v in one.items() if k != "rate"} for one in kept["images_per_second"]
            ]
            assert {k: v for k, v in kept["shape"].items() if k != "alone"} in tried
            assert kept["shape"]["threads"] <= kept["shape"]["alone"] <= cpus
            assert len(tried) == len({tuple(one.values()) for one in tried}) >= 4
            assert status["kills"]["total"] == 0, "what was measured is not an accident"
            size = 1 + kept["shape"]["workers"] + 1
            wait_until(lambda: len(serving(first.pid)) == size, "only what serves is left")
            with first.connect() as peer:
                assert peer.ask(image=photos[0]).error is None
            assert first.stop() == 0
        finally:
            first.end()

        second = DaemonProcess(tmp_path / "second", "--cache", str(cache), model=tiny_model)
        try:
            second.wait_ready()
            second.wait_status(lambda s: len(s["workers"]) == kept["shape"]["workers"] + 1)
            assert second.status()["shape"] == kept["shape"]
            time.sleep(2.0)  # it would have begun by then: absence has no event
            assert len(serving(second.pid)) == size
            assert list(cache.iterdir()) == [file]
            assert json.loads(file.read_text()) == kept
            assert "calibrated" not in second.log.read_text()
        finally:
            second.end()

    def test_it_ends_though_somebody_asks_all_the_time(
        self, tmp_path: Path, tiny_model: Path, photos: list[bytes]
    ) -> None:
        cache = tmp_path / "cache"
        daemon = DaemonProcess(tmp_path / "one", "--cache", str(cache), model=tiny_model)
        try:
            daemon.wait_ready()
            until = time.monotonic() + 100.0
            with daemon.connect() as peer:
                while not list(cache.glob("*.json")) and time.monotonic() < until:
                    assert peer.ask(image=photos[0]).error is None
                    time.sleep(4.0)  # what is being tried: so long it is quiet each time
            assert list(cache.glob("*.json"))
        finally:
            daemon.end()

    def test_an_image_alone_gets_the_threads_that_were_measured_for_it(
        self, tmp_path: Path, tiny_model: Path, photos: list[bytes]
    ) -> None:
        cache = tmp_path / "cache"
        wide = replace(shape(1, 1), alone=2)
        calibration_file(Settings(cache=cache), load_spec(tiny_model), "torch").write(
            wide, {wide: 1.0}
        )
        daemon = DaemonProcess(tmp_path / "one", "--cache", str(cache), model=tiny_model)
        try:
            daemon.wait_ready()
            assert daemon.status()["shape"] == asdict(wide)
            assert {len(os.listdir(f"/proc/{pid}/task")) for pid in daemon.workers()} == {1}
            with daemon.connect() as peer:
                assert peer.ask(image=photos[0]).error is None
            assert 2 in {len(os.listdir(f"/proc/{pid}/task")) for pid in daemon.workers()}
        finally:
            daemon.stop()
            daemon.end()
