"""Make the `focus` model from nothing: scenes, photographs of them, a network, its files.

    python -m swiprd.models.focus.train                # writes everything this folder ships
    python -m swiprd.models.focus.train --evaluate     # scores what is there on real photographs

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
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from swiprd.bundle import load_bundle
from swiprd.model import load_model
from swiprd.models.focus import recipe
from swiprd.models.focus.camera import EVERYDAY, HARD, SHARP, Conditions, photograph
from swiprd.models.focus.drawing import (
    CLOSEUP_STREAM,
    HELD_OUT_SCENE_STREAM,
    SCENE_STREAM,
    TEXTURE_STREAM,
    TEXTURES,
    draw_scenes,
)
from swiprd.models.focus.evaluate import (
    CONDITIONS,
    TEST,
    TUNE,
    Judged,
    area_under_curve,
    find_photographs,
    judge_photograph,
    table,
)
from swiprd.models.focus.plots import plot_roc, plot_training
from swiprd.models.focus.scenes import Bytes, draw_scene, make_textures

CROP = recipe.PREPROCESS.crop
MEAN, STD = recipe.PREPROCESS.mean[0], recipe.PREPROCESS.std[0]

TILES = 2  # A training example is TILES x TILES crops of one photograph, judged together.
EXAMPLE_SIDE = TILES * CROP
CANARY_SCENE = 4
CANARY_SIDE = 384

# First words of the seeds, so that no two streams of random numbers are the same; those of scenes
# are drawing.py's.
_EXAMPLE_STREAM, _HELD_OUT_STREAM = 3, 4

# Conditions, rate, share of `Settings.steps`, and whether half of the scenes are close-ups. First
# what is hard, at a high rate; then what is usual, at a lower one; then surfaces and print, which
# after the first two alone the network takes for noise (brick, fur) or for sharp though they are
# smeared (a printed page).
_STAGES = (
    (HARD, 3e-3, 1.0, False),
    (EVERYDAY, 1.5e-3, 1.0, False),
    (EVERYDAY, 1.5e-3, 2 / 3, True),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the weights depend on, and how hard to work.

    `steps` are taken in the longest stage. `first` is where the weights before the last stage are
    kept; where they are there already, the earlier stages are not run again.
    """

    seed: int = 1
    scenes: int = 1500
    steps: int = 1500
    batch: int = 32
    held_out: int = 384
    decay: float = 0.02
    workers: int = 2
    threads: int = 1
    out: Path = Path(__file__).parent
    cache: Path | None = None
    first: Path | None = None


def _training_scenes(settings: Settings) -> Bytes:
    if settings.cache is not None and settings.cache.exists():
        return np.asarray(np.load(settings.cache))
    scenes = draw_scenes(SCENE_STREAM, settings.seed, settings.scenes, settings.workers)
    if settings.cache is not None:
        np.save(settings.cache, scenes)
    return scenes


class Examples(Dataset[tuple[torch.Tensor, int]]):
    """Photographs taken when asked for; each depends on its index and the seed alone."""

    def __init__(
        self, scenes: Bytes, seed: tuple[int, ...], count: int, conditions: Conditions
    ) -> None:
        self._scenes = scenes
        self._seed = seed
        self._count = count
        self._conditions = conditions

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index >= self._count:
            raise IndexError(index)
        rng = np.random.default_rng([*self._seed, index])
        label = index % 2
        taken = photograph(rng, self._scenes, label, EXAMPLE_SIDE, self._conditions)
        return torch.from_numpy(taken.copy()), label


def judge(model: nn.Module, photographs: torch.Tensor) -> torch.Tensor:
    """Return one row of logits a photograph: the mean over its tiles, as the daemon pools them.

    photographs: uint8, N x EXAMPLE_SIDE x EXAMPLE_SIDE x 3.

    Training through the mean lets an empty or far crop abstain and a sharp subject outweigh its
    blurred background, which crops trained one by one cannot learn.
    """
    count, crop = len(photographs), CROP
    tiles = photographs.view(count, TILES, crop, TILES, crop, 3).permute(0, 1, 3, 5, 2, 4)
    tiles = tiles.reshape(-1, 3, crop, crop).contiguous(memory_format=torch.channels_last)
    rows: torch.Tensor = model((tiles.float() / 255 - MEAN) / STD)
    return rows.view(count, TILES * TILES, 2).mean(dim=1)


def held_out_area(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the area under the ROC curve on photographs of scenes that are not trained on."""
    model.eval()
    scores, labels = [], []
    with torch.inference_mode():
        for photographs, truth in batches:
            rows = judge(model, photographs)
            scores.append((rows[:, SHARP] - rows[:, 1 - SHARP]).numpy())
            labels.append(truth.numpy())
    score, label = np.concatenate(scores), np.concatenate(labels)
    return area_under_curve(score[label == SHARP], score[label != SHARP])


def train(settings: Settings) -> tuple[nn.Module, list[float], list[tuple[int, float]]]:
    """Return the trained model, its loss a step, and (step, held-out area) now and then."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    scenes = _training_scenes(settings)
    few = max(2, settings.held_out // 6)
    unseen = draw_scenes(HELD_OUT_SCENE_STREAM, settings.seed, few, settings.workers)
    model = recipe.build_network()
    losses: list[float] = []
    areas: list[tuple[int, float]] = []
    last = len(_STAGES) - 1
    begun = settings.first is not None and settings.first.exists()
    if settings.first is not None and begun:
        model.load_state_dict(torch.load(settings.first, weights_only=True))
    for stage, (conditions, rate, share, closeups) in enumerate(_STAGES):
        if stage < last and begun:
            continue
        if closeups:
            half = settings.scenes // 2
            close = draw_scenes(CLOSEUP_STREAM, settings.seed, half, settings.workers)
            scenes = np.concatenate([scenes[:half], close])
        # The first stage's numbers are those of a training that has no other.
        more = (stage,) if stage else ()
        seed = (_HELD_OUT_STREAM, settings.seed, *more)
        held_out = Examples(unseen, seed, settings.held_out, conditions)
        seed = (_EXAMPLE_STREAM, settings.seed, *more)
        steps = max(1, round(settings.steps * share))
        examples = Examples(scenes, seed, steps * settings.batch, conditions)
        _run_stage(settings, model, steps, examples, held_out, rate, losses, areas)
        if stage == last - 1 and settings.first is not None:
            recipe.save_weights(model, settings.first)
    return model.eval(), losses, areas


def _run_stage(
    settings: Settings,
    model: nn.Module,
    steps: int,
    examples: Examples,
    held_out: Examples,
    rate: float,
    losses: list[float],
    areas: list[tuple[int, float]],
) -> None:
    held_out_batches = list(DataLoader(held_out, settings.batch))
    # Fork, so that the scenes are shared and not copied.
    loader = DataLoader(
        examples,
        settings.batch,
        num_workers=settings.workers,
        multiprocessing_context="fork" if settings.workers else None,
    )
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps + 1, pct_start=0.08
    )
    bar = tqdm(loader, "training", unit="step")
    for step, (photographs, labels) in enumerate(bar, start=1):
        model.train()
        loss = nn.functional.cross_entropy(judge(model, photographs), labels, label_smoothing=0.01)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 200 == 0 or step == steps:
            areas.append((len(losses), held_out_area(model, held_out_batches)))
        shown = f"{areas[-1][1]:.4f}" if areas else "-"
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", held_out=shown, refresh=False)


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
    model, losses, areas = train(settings)
    recipe.save_weights(model, settings.out / "weights.pth")
    save_canary(settings.out / "canary.jpg", settings.seed)
    recipe.describe(settings.out)
    plot_training(settings.out / "training.png", losses, areas)
    print(
        f"{settings.scenes} scenes, {len(losses) * settings.batch} photographs, "
        f"held-out AUC {areas[-1][1]:.4f}, {(time.monotonic() - start) / 60:.1f} min"
    )


def evaluate(folder: Path, photos: Path | None) -> None:
    """Print the scores on real photographs, and draw those of the test set."""
    loaded = load_model(load_bundle(folder))
    drawn: dict[str, list[Judged]] = {}
    for title, names in (("tune", TUNE), ("test", TEST)):
        paths = find_photographs(names, photos)
        for condition in CONDITIONS:
            judged = [
                one
                for path in tqdm(paths.values(), f"{title}, {condition}", unit="photo")
                for one in judge_photograph(loaded, path, condition)
            ]
            print(f"\n### {title}, {condition}: {len(judged)} pictures of {len(paths)} photographs")
            print(f"\n{table(judged)}")
            if title == "test":
                drawn[condition] = judged
        if missing := sorted(set(names) - set(paths)):
            print(f"not on this host: {', '.join(missing)}")
    plot_roc(folder / "roc.png", drawn)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    standard = Settings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--evaluate", action="store_true", help="score the model in --out instead")
    parser.add_argument("--photos", type=Path, help="folder with more photographs for --evaluate")
    for name in ("seed", "scenes", "steps", "batch", "held-out", "workers", "threads"):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(standard, name.replace("-", "_"))
        )
    parser.add_argument("--out", type=Path, default=standard.out, help="folder to write to")
    parser.add_argument("--cache", type=Path, help="keep the scenes in this .npy file")
    parser.add_argument("--first", type=Path, help="keep the weights before the last stage here")
    options = vars(parser.parse_args(arguments))
    only_evaluate, photos = options.pop("evaluate"), options.pop("photos")
    settings = Settings(**options)
    if only_evaluate:
        torch.set_num_threads(settings.threads)
        evaluate(settings.out, photos)
    else:
        make(settings)


if __name__ == "__main__":
    main()
