"""From a model's folder to a pool that has answered its canary, or the reason why not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from swiprctl.errors import LoadingFailed
from swiprd.config import Settings
from swiprd.folder.canary_image import canary_of
from swiprd.folder.spec import ModelSpec, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.pool.calibrate import choose_shape
from swiprd.pool.compiler import compiled_directory
from swiprd.pool.pool import Owner, Pool
from swiprd.pool.recycling import RecyclingLimits
from swiprd.system.log import log
from swiprd.system.messages import Limits, Load

Signature = tuple[tuple[str, int, int], ...]


async def load(
    settings: Settings,
    owner: Owner,
    ids: Iterator[int],
    pools: set[Pool],
    on_given_up: Callable[[Pool, LoadingFailed], None],
) -> tuple[Pool, ModelSpec]:
    """Start a pool on the model's folder and see it answer.

    Args:
        pools: the pool is in here for as long as it has processes.

    Raises:
        LoadingFailed: with the reason; nothing of the pool is left.
    """
    try:
        spec = load_spec(settings.model)
        canary = canary_of(spec)
    except SpecError as error:
        raise LoadingFailed(str(error)) from None
    pool = Pool(
        owner,
        load=Load(
            folder=str(spec.folder),
            device=settings.device,
            memory=settings.worker_memory,
            engine=settings.engine,
            compiled=str(compiled_directory(settings, spec) or ""),
        ),
        shape=choose_shape(settings, spec, engine="torch"),
        limits=Limits(
            max_bytes=settings.max_image,
            max_pixels=settings.max_pixels,
            max_decode=settings.max_decode,
            formats=settings.formats,
        ),
        canary=canary,
        ids=ids,
        wear=RecyclingLimits(requests=settings.max_requests, growth=settings.max_growth),
        on_given_up=on_given_up,
    )
    pools.add(pool)
    try:
        await asyncio.wait_for(pool.staff.start(), settings.load_timeout)
    except TimeoutError:
        pool.staff.forkserver.kill()
        await close(pool, pools)
        raise LoadingFailed(
            f"{spec.file}: the model did not answer within {settings.load_timeout:g} s"
        ) from None
    except BaseException:
        await close(pool, pools)
        raise
    if pool.staff.loaded.engine != "torch":  # which was not known before
        pool.staff.reshape(choose_shape(settings, spec, pool.staff.loaded.engine))
    log.info("%s has answered the canary", pool.staff.loaded.model)
    return pool, spec


async def close(pool: Pool, pools: set[Pool]) -> None:
    """Let a pool's processes leave, and wait until they have."""
    pool.staff.close()
    await pool.staff.forkserver.wait_closed()
    pools.discard(pool)


def signature(folder: Path) -> Signature:
    """What changes when somebody repairs a model: names, sizes and times of its files."""
    try:
        entries = [(entry.name, entry.stat()) for entry in os.scandir(folder)]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in entries))
