"""Make the `focus` model from nothing: scenes, photographs of them, a network, its files.

    python -m swiprd.training.focus.train                # writes everything this folder ships
    python -m swiprd.training.focus.train --evaluate     # scores what is there on real photographs

Needs the extra `train`. Reads no picture and no weights that it did not make, but by --evaluate.
"""

import argparse
import ctypes
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from swiprd.folder.spec import load_spec
from swiprd.inference.model import load_model
from swiprd.training.focus import recipe
from swiprd.training.focus.drawing import (
    CLOSEUP_STREAM,
    HELD_OUT_SCENE_STREAM,
    SCENE_STREAM,
    TEXTURE_STREAM,
    TEXTURES,
    draw_scenes,
)
from swiprd.training.focus.evaluate import (
    CONDITIONS,
    Judged,
    judge_all,
    mistakes,
    sharpness,
    table,
    view,
)
from swiprd.training.focus.learning import Plan, Record, teach
from swiprd.training.focus.photographs import BLURRED, TUNE, VALIDATION, find_photographs
from swiprd.training.focus.plots import plot_roc, plot_training
from swiprd.training.focus.scenes import draw_scene, make_textures

CANARY_SCENE = 4
CANARY_SIDE = 384


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the weights depend on, where they go, and how hard to work."""

    seed: int = 1
    scenes: int = 1200
    closeups: int = 600
    steps: int = Plan.steps
    batch: int = Plan.batch
    held_out: int = Plan.held_out
    workers: int = Plan.workers
    threads: int = 1
    out: Path = recipe.HERE
    state: Path | None = None


def train(settings: Settings) -> tuple[nn.Module, Record]:
    """Return the trained model, and how it went."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    seed, workers = settings.seed, settings.workers
    scenes = np.concatenate(
        [
            draw_scenes(SCENE_STREAM, seed, settings.scenes, workers),
            draw_scenes(CLOSEUP_STREAM, seed, settings.closeups, workers),
        ]
    )
    few = max(2, settings.held_out // 6)
    unseen = draw_scenes(HELD_OUT_SCENE_STREAM, seed, few, workers)
    plan = Plan(
        seed=seed,
        steps=settings.steps,
        batch=settings.batch,
        held_out=settings.held_out,
        workers=workers,
        state=settings.state,
    )
    model = recipe.build_network()
    return model, teach(model, plan, scenes, unseen)


def save_canary(path: Path, seed: int) -> None:
    """Write one plain, busy, sharp photograph of a scene that is not trained on."""
    textures = make_textures(np.random.default_rng([TEXTURE_STREAM, seed]), TEXTURES)
    scene = draw_scene(np.random.default_rng(CANARY_SCENE), textures)
    image = Image.fromarray(scene).resize((CANARY_SIDE, CANARY_SIDE), Image.Resampling.BILINEAR)
    image.save(path, "JPEG", quality=88)


def _keep_memory() -> None:
    """Tell glibc to keep what is freed: large arrays come and go, and fresh pages cost a third."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def make(settings: Settings) -> None:
    """Train, and write the folder's files."""
    _keep_memory()
    settings.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    model, record = train(settings)
    recipe.save_weights(model, settings.out / "weights.pth")
    save_canary(settings.out / "canary.jpg", settings.seed)
    recipe.describe(settings.out)
    plot_training(settings.out / "training.png", record.losses, record.areas)
    print(
        f"{len(record.losses)} steps, held-out AUC {record.areas[-1][1]:.4f}, "
        f"{(time.monotonic() - start) / 60:.1f} min"
    )


def evaluate(folder: Path, photos: Path | None, workers: int) -> None:
    """Print the scores on real photographs, and draw the ROC curves of the validation group."""
    loaded = load_model(load_spec(folder))
    drawn: dict[str, list[Judged]] = {}
    for title, names in (("tune", TUNE), ("validation", VALIDATION)):
        paths = find_photographs(names, photos)
        if missing := [name for name in names if name not in paths]:
            print(f"\n{title}: {len(missing)} of {len(names)} are not here: {', '.join(missing)}")
        for condition in CONDITIONS if paths else ():
            judged = judge_all(folder, paths, condition, workers)
            print(f"\n### {title}, {condition}: {len(judged)} pictures of {len(paths)} photographs")
            print(f"\n{table(judged)}\n\nWrong at 0.5: {', '.join(mistakes(judged)) or 'none'}")
            if title == "validation":
                drawn[f"{title}, {condition}"] = judged
    for name, path in find_photographs(BLURRED, photos).items():
        print(f"blurred when taken: {name}: {sharpness(loaded, view(path, loaded)):.3f} sharp")
    if drawn:
        plot_roc(folder / "roc.png", drawn)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    standard = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--evaluate", action="store_true", help="score the model in --out instead")
    parser.add_argument("--photos", type=Path, help="folder of unpacked packages for --evaluate")
    for name in ("seed", "scenes", "closeups", "steps", "batch", "held-out", "workers", "threads"):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(standard, name.replace("-", "_"))
        )
    parser.add_argument("--out", type=Path, default=standard.out, help="folder to write to")
    parser.add_argument("--state", type=Path, help="keep the run in this file; go on from there")
    options = vars(parser.parse_args(arguments))
    only_evaluate, photos = options.pop("evaluate"), options.pop("photos")
    settings = Settings(**options)
    if only_evaluate:
        torch.set_num_threads(settings.threads)
        evaluate(settings.out, photos, settings.workers)
    else:
        make(settings)


if __name__ == "__main__":
    main()
