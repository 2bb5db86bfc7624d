"""How many workers, threads and images a batch: measured on this host, once, and remembered.

After a model is first ready and while nobody asks for anything, each arrangement of the host's
cores runs the canary for a second or so in workers of its own. A request that comes meanwhile is
served as ever, and the measurement begun is thrown away and made again later. The settings or the
model's folder override each figure; all three given, nothing is measured.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

from swiprctl.errors import SwiprError
from swiprctl.protocol import Reply
from swiprd.admission import Job
from swiprd.attachment import Attachment
from swiprd.bundle import Bundle
from swiprd.children import Worker
from swiprd.config import Settings
from swiprd.lifecycle import State
from swiprd.log import log
from swiprd.memfd import sealed_memfd
from swiprd.probe import CANARY_LIMITS
from swiprd.supervisor import Shape, Supervisor

_LEAST_SECONDS = 0.8  # a measurement takes so long at least,
_LEAST_ANSWERS = 12  # until there were so many answers,
_MOST_SECONDS = 6.0  # but no longer than this
_SPREAD_MARGIN = 1.05  # more workers must be worth so much: they take more memory
_ALONE_MARGIN = 1.05  # more threads for an image alone must be this much faster
_BATCH_MARGIN = 1.1  # larger batches must be this much better: less is noise
_BATCHES = (2, 4, 8)
_MOST_WORKERS = 8
_POLL = 0.5  # seconds between looks whether the daemon is quiet


class Interrupted(Exception):
    """A request came, or a worker died: the measurement is worth nothing."""


def choose_shape(settings: Settings, bundle: Bundle) -> Shape:
    """The shape to begin with: what is told, else what was measured, else one worker on all."""
    told = _told(settings, bundle) | {"alone": settings.threads or bundle.serve.threads}
    found = _remembered(settings, bundle) or _shape(1, _cores(), 1)
    return replace(found, **{key: value for key, value in told.items() if value is not None})


async def calibrate(
    staff: Supervisor, bundle: Bundle, settings: Settings, quiet: Callable[[], bool]
) -> None:
    """Find the fastest shape, have the pool take it, and remember it."""
    told = _told(settings, bundle)
    if None not in told.values() or _remembered(settings, bundle) is not None:
        return
    while not staff.closing:
        while not quiet():
            await asyncio.sleep(_POLL)
        try:
            best, rate, figures = await _search(staff, told, quiet)
        except Interrupted:
            await asyncio.sleep(_POLL)
            continue
        log.info(
            "calibrated: %d workers, %d threads each (%d for an image alone), %d images a batch:"
            " %.1f images/s",
            *(best.workers, best.threads, best.alone, best.batch, rate),
        )
        _remember(settings, bundle, best, figures)
        staff.reshape(best)
        return


async def _search(
    staff: Supervisor, told: dict[str, int | None], quiet: Callable[[], bool]
) -> tuple[Shape, float, dict[Shape, float]]:
    """Return the best shape, its images per second, and those of all that were tried."""
    figures: dict[Shape, float] = {}
    best: Shape | None = None
    for shape in _spreads(told):
        figures[shape] = await _measure(staff, shape, quiet)
        if best is None or figures[shape] > figures[best] * _SPREAD_MARGIN:
            best = shape
    assert best is not None
    alone = best.threads
    if best.workers > 1 and (widest := _shape(1, _cores(), best.batch)) in figures:
        single = replace(best, workers=1)
        figures[single] = await _measure(staff, single, quiet)
        if figures[widest] > figures[single] * _ALONE_MARGIN:
            alone = widest.threads
    if told["batch"] is None:
        larger = [replace(best, batch=batch) for batch in _BATCHES]
        for shape in larger:
            figures[shape] = await _measure(staff, shape, quiet)
        largest = max(larger, key=lambda s: figures[s])
        if figures[largest] > figures[best] * _BATCH_MARGIN:
            best = largest
    return replace(best, alone=alone), figures[best], figures


def _spreads(told: dict[str, int | None]) -> list[Shape]:
    """Ways to spread the cores, fewest workers first: they use the least memory."""
    cores = _cores()
    batch = told["batch"] or 1
    if told["workers"] is not None or told["threads"] is not None:
        workers = told["workers"] or max(1, cores // (told["threads"] or 1))
        threads = told["threads"] or max(1, cores // workers)
        return [_shape(workers, threads, batch)]
    return [
        _shape(workers, cores // workers, batch)
        for workers in range(1, min(cores, _MOST_WORKERS) + 1)
        if cores % workers == 0
    ]


def _shape(workers: int, threads: int, batch: int) -> Shape:
    return Shape(workers=workers, threads=threads, batch=batch, alone=threads)


async def _measure(staff: Supervisor, shape: Shape, quiet: Callable[[], bool]) -> float:
    """Images per second of a shape.

    Raises:
        Interrupted: the host was not left alone meanwhile.
    """
    trial = _Trial(staff, shape)
    try:
        return await trial.run(quiet)
    finally:
        trial.close()


class _Trial:
    """Workers of one shape that answer the canary over and over."""

    def __init__(self, staff: Supervisor, shape: Shape) -> None:
        assert staff.canary is not None
        self._loop = asyncio.get_running_loop()
        self._shape = shape
        self._image = Attachment.of(sealed_memfd(staff.canary.image))
        self._ids = count(1)
        self._warm: set[int] = set()
        self._all_warm = self._loop.create_future()
        self._answers = 0
        self._going = True
        self._workers: list[Worker] = []
        for _ in range(shape.workers):
            worker = staff.fork_for_trial(on_forked=self._give, on_reply=self._replied)
            if worker is not None:
                self._workers.append(worker)

    async def run(self, quiet: Callable[[], bool]) -> float:
        """Warm up, count for a while, return images per second."""
        begun: float | None = None
        waited = 0.0
        while True:
            await asyncio.sleep(0.05)
            waited += 0.05
            alive = all(w.state is not State.GONE for w in self._workers)
            if not quiet() or not alive or len(self._workers) < self._shape.workers:
                raise Interrupted
            if begun is None:
                if len(self._warm) == self._shape.workers:
                    begun, self._answers = self._loop.time(), 0
                elif waited > 10 * _MOST_SECONDS:
                    raise Interrupted
                continue
            elapsed = self._loop.time() - begun
            enough = self._answers >= _LEAST_ANSWERS * self._shape.workers
            if elapsed >= _LEAST_SECONDS and (enough or elapsed >= _MOST_SECONDS):
                return self._answers / elapsed

    def close(self) -> None:
        """Kill the workers: what they still compute is of no use."""
        self._going = False
        for worker in self._workers:
            worker.jobs.clear()
            worker.kill("the measurement is over")
        self._image.close()

    def _give(self, worker: Worker) -> None:
        now = self._loop.time()
        worker.give(
            [
                Job(
                    id=next(self._ids),
                    uid=0,
                    owner=self,
                    image=self._image,
                    arrived=now,
                    deadline=now,
                    timeout=None,
                    done=_ignore,
                )
                for _ in range(self._shape.batch)
            ],
            CANARY_LIMITS,
            self._shape.threads,
        )

    def _replied(self, worker: Worker, _job: Job, _reply: Reply) -> None:
        self._answers += 1
        if not worker.jobs and self._going:
            self._warm.add(worker.number)
            self._give(worker)


def _ignore(_job: Job, _outcome: dict[str, object] | SwiprError) -> None:
    """Nobody waits for a trial's rows."""


def _told(settings: Settings, bundle: Bundle) -> dict[str, int | None]:
    return {
        "workers": settings.workers or bundle.serve.workers,
        "threads": settings.threads or bundle.serve.threads,
        "batch": settings.batch or bundle.serve.batch,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _file(settings: Settings, bundle: Bundle) -> Path:
    """Where the figures for this model on this host are kept: a new key forgets the old ones."""
    digest = hashlib.sha256(bundle.file.read_bytes())
    stat = bundle.weights.stat()
    told = _told(settings, bundle)
    digest.update(repr((stat.st_size, stat.st_mtime_ns, told, settings.device)).encode())
    digest.update(repr((_cores(), _processor(), _torch_version())).encode())
    assert settings.cache is not None
    return settings.cache / f"{bundle.name}-{digest.hexdigest()[:16]}.json"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _remembered(settings: Settings, bundle: Bundle) -> Shape | None:
    try:
        kept: Any = json.loads(_file(settings, bundle).read_text())["shape"]
        shape = Shape(**kept)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sane = all(isinstance(n, int) and 0 < n <= 1024 for n in asdict(shape).values())
    return shape if sane else None


def _remember(
    settings: Settings, bundle: Bundle, shape: Shape, figures: dict[Shape, float]
) -> None:
    kept = {
        "shape": asdict(shape),
        "images_per_second": [
            {
                "workers": tried.workers,
                "threads": tried.threads,
                "batch": tried.batch,
                "rate": round(rate, 2),
            }
            for tried, rate in figures.items()
        ],
    }
    try:
        file = _file(settings, bundle)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(kept, indent=1))
        fresh.replace(file)
    except OSError as error:
        log.warning("the calibration could not be kept: %s; it will be made again", error)
