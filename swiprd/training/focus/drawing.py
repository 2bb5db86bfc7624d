"""Draw many scenes in several processes; the same ones for any number of processes."""

import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from tqdm import tqdm

from swiprd.training.focus.scenes import (
    SIDE,
    Bytes,
    Floats,
    draw_closeup,
    draw_scene,
    make_textures,
)

TEXTURES = 60

# First words of the seeds, so that no two streams of random numbers are the same.
TEXTURE_STREAM, SCENE_STREAM, HELD_OUT_SCENE_STREAM, CLOSEUP_STREAM = 0, 1, 2, 5

_textures: list[Floats] = []  # Of a drawing process; filled once by _begin_drawing.


def _begin_drawing(seed: int) -> None:
    _textures[:] = make_textures(np.random.default_rng([TEXTURE_STREAM, seed]), TEXTURES)


def _draw(seed: tuple[int, int, int]) -> Bytes:
    draw = draw_closeup if seed[0] == CLOSEUP_STREAM else draw_scene
    return draw(np.random.default_rng(seed), _textures)


def draw_scenes(stream: int, seed: int, count: int, workers: int) -> Bytes:
    """Return count x SIDE x SIDE x 3; the same for any number of workers."""
    scenes = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    seeds = [(stream, seed, index) for index in range(count)]
    with ExitStack() as stack:
        if workers:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(workers, _begin_drawing, (seed,)))
            drawn: Iterator[Bytes] = pool.imap(_draw, seeds, chunksize=8)
        else:
            _begin_drawing(seed)
            drawn = map(_draw, seeds)
        for index, scene in enumerate(tqdm(drawn, "drawing scenes", count, unit="scene")):
            scenes[index] = scene
    return scenes
