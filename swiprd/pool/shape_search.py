"""Which shape of the pool is the fastest, asked with as few measurements as will do. Pure.

A shape says how many workers there are, how many threads each has and how many images a batch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from swiprd.pool.supervisor import Shape

Told = dict[str, int | None]
"""What the settings or the model's folder say of workers, threads and batch; None: nothing."""

_SPREAD_MARGIN = 1.05  # more workers must be worth so much: they take more memory
_ALONE_MARGIN = 1.05  # more threads for an image alone must be this much faster
_BATCH_MARGIN = 1.1  # larger batches must be this much better: less is noise
_BATCHES = (2, 4, 8)
_MOST_WORKERS = 8


async def search(
    measure: Callable[[Shape], Awaitable[float]], told: Told, cores: int
) -> tuple[Shape, float]:
    """Return the best shape, and its images per second.

    Args:
        measure: gives those of a shape.
    """
    figures: dict[Shape, float] = {}
    best: Shape | None = None
    for shape in spreads(told, cores):
        figures[shape] = await measure(shape)
        if best is None or figures[shape] > figures[best] * _SPREAD_MARGIN:
            best = shape
    assert best is not None
    alone = best.threads
    if best.workers > 1 and (widest := even_shape(1, cores, best.batch)) in figures:
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


def spreads(told: Told, cores: int) -> list[Shape]:
    """Ways to spread the cores, fewest workers first: they use the least memory."""
    batch = told["batch"] or 1
    if told["workers"] is not None or told["threads"] is not None:
        workers = told["workers"] or max(1, cores // (told["threads"] or 1))
        threads = told["threads"] or max(1, cores // workers)
        return [even_shape(workers, threads, batch)]
    return [
        even_shape(workers, cores // workers, batch)
        for workers in range(1, min(cores, _MOST_WORKERS) + 1)
        if cores % workers == 0
    ]


def even_shape(workers: int, threads: int, batch: int) -> Shape:
    """A shape whose workers have as many threads for an image alone as for one among many."""
    return Shape(workers=workers, threads=threads, batch=batch, alone=threads)
