"""How many workers, threads and images a batch: measured on this host, once, and remembered.

After a model is first ready and while nobody asks for anything, each arrangement of the host's
cores runs the canary for a second or so in workers of its own (trials.py). The settings or the
model's folder override each figure; all three given, nothing is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from swiprd.config import Settings
from swiprd.folder.spec import ModelSpec
from swiprd.pool.calibration_file import CalibrationFile
from swiprd.pool.shape_search import Told, even_shape, search
from swiprd.pool.supervisor import Shape, Supervisor
from swiprd.pool.trials import Interrupted, Measurements
from swiprd.system.log import log


def choose_shape(settings: Settings, spec: ModelSpec, engine: str) -> Shape:
    """The shape to begin with: what is told, else what was measured, else one worker on all.

    Args:
        engine: what runs the network, as in `Loaded`.
    """
    told = _told(settings, spec) | {"alone": settings.threads or spec.serve.threads}
    found = calibration_file(settings, spec, engine).read() or even_shape(1, _cores(), 1)
    return replace(found, **{key: value for key, value in told.items() if value is not None})


def calibration_file(settings: Settings, spec: ModelSpec, engine: str) -> CalibrationFile:
    """Name the file for a model with these settings on this host."""
    return CalibrationFile(settings, spec, engine, _told(settings, spec), _cores())


async def calibrate(
    staff: Supervisor, spec: ModelSpec, settings: Settings, engine: str, quiet: Callable[[], bool]
) -> None:
    """Find the fastest shape, have the pool take it, and remember it for this engine."""
    told = _told(settings, spec)
    file = calibration_file(settings, spec, engine)
    if None not in told.values() or file.read() is not None:
        return
    measurements = Measurements(staff, quiet)
    try:
        best, rate = await search(measurements.rate, told, _cores())
    except Interrupted:
        return
    log.info(
        "calibrated: %d workers, %d threads each (%d for an image alone), %d images a batch:"
        " %.1f images/s",
        *(best.workers, best.threads, best.alone, best.batch, rate),
    )
    file.write(best, measurements.figures)
    staff.reshape(best)


def _told(settings: Settings, spec: ModelSpec) -> Told:
    return {
        "workers": settings.workers or spec.serve.workers,
        "threads": settings.threads or spec.serve.threads,
        "batch": settings.batch or spec.serve.batch,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))
