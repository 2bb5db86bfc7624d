"""How many workers, threads and images a batch: measured on this host, once, and remembered.

After a model is first ready and while nobody asks for anything, each arrangement of the host's
cores runs the canary for a second or so in workers of its own (measuring.py). The settings or the
model's folder override each figure; all three given, nothing is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from swiprd.config import Settings
from swiprd.folder.spec import ModelSpec
from swiprd.pool.supervisor import Shape, Supervisor
from swiprd.pool.trials import Interrupted, Measurements
from swiprd.system.log import log

_SPREAD_MARGIN = 1.05  # more workers must be worth so much: they take more memory
_ALONE_MARGIN = 1.05  # more threads for an image alone must be this much faster
_BATCH_MARGIN = 1.1  # larger batches must be this much better: less is noise
_BATCHES = (2, 4, 8)
_MOST_WORKERS = 8


def choose_shape(settings: Settings, spec: ModelSpec) -> Shape:
    """The shape to begin with: what is told, else what was measured, else one worker on all."""
    told = _told(settings, spec) | {"alone": settings.threads or spec.serve.threads}
    found = _remembered(settings, spec) or _shape(1, _cores(), 1)
    return replace(found, **{key: value for key, value in told.items() if value is not None})


async def calibrate(
    staff: Supervisor, spec: ModelSpec, settings: Settings, quiet: Callable[[], bool]
) -> None:
    """Find the fastest shape, have the pool take it, and remember it."""
    told = _told(settings, spec)
    if None not in told.values() or _remembered(settings, spec) is not None:
        return
    measurements = Measurements(staff, quiet)
    try:
        best, rate = await _search(measurements.rate, told)
    except Interrupted:
        return
    log.info(
        "calibrated: %d workers, %d threads each (%d for an image alone), %d images a batch:"
        " %.1f images/s",
        *(best.workers, best.threads, best.alone, best.batch, rate),
    )
    _remember(settings, spec, best, measurements.figures)
    staff.reshape(best)


async def _search(
    measure: Callable[[Shape], Awaitable[float]], told: dict[str, int | None]
) -> tuple[Shape, float]:
    """Return the best shape, and its images per second.

    Args:
        measure: gives those of a shape.
    """
    figures: dict[Shape, float] = {}
    best: Shape | None = None
    for shape in _spreads(told):
        figures[shape] = await measure(shape)
        if best is None or figures[shape] > figures[best] * _SPREAD_MARGIN:
            best = shape
    assert best is not None
    alone = best.threads
    if best.workers > 1 and (widest := _shape(1, _cores(), best.batch)) in figures:
        single = replace(best, workers=1)
        figures[single] = await measure(single)
        if figures[widest] > figures[single] * _ALONE_MARGIN:
            alone = widest.threads
    if told["batch"] is None:
        larger = [replace(best, batch=batch) for batch in _BATCHES]
        for shape in larger:
            figures[shape] = await measure(shape)
        largest = max(larger, key=lambda s: figures[s])
        if figures[largest] > figures[best] * _BATCH_MARGIN:
            best = largest
    return replace(best, alone=alone), figures[best]


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


def _told(settings: Settings, spec: ModelSpec) -> dict[str, int | None]:
    return {
        "workers": settings.workers or spec.serve.workers,
        "threads": settings.threads or spec.serve.threads,
        "batch": settings.batch or spec.serve.batch,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _file(settings: Settings, spec: ModelSpec) -> Path:
    """Where the figures for this model on this host are kept: a new key forgets the old ones."""
    digest = hashlib.sha256(spec.file.read_bytes())
    stat = spec.weights.stat()
    told = _told(settings, spec)
    digest.update(repr((stat.st_size, stat.st_mtime_ns, told, settings.device)).encode())
    digest.update(repr((_cores(), _processor(), _torch_version())).encode())
    assert settings.cache is not None
    return settings.cache / f"{spec.name}-{digest.hexdigest()[:16]}.json"


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


def _remembered(settings: Settings, spec: ModelSpec) -> Shape | None:
    try:
        kept: Any = json.loads(_file(settings, spec).read_text())["shape"]
        shape = Shape(**kept)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sane = all(isinstance(n, int) and 0 < n <= 1024 for n in asdict(shape).values())
    return shape if sane else None


def _remember(
    settings: Settings, spec: ModelSpec, shape: Shape, figures: dict[Shape, float]
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
        file = _file(settings, spec)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(kept, indent=1))
        fresh.replace(file)
    except OSError as error:
        log.warning("the calibration could not be kept: %s; it will be made again", error)
