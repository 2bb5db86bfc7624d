"""Teach the network on generated photographs: the examples, the loss and the loop.

Reads no picture. The only file it touches is the state that lets a run be taken up again.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from swiprd.training.focus import recipe
from swiprd.training.focus.camera import BLURRED, EVERYDAY, HARD, SHARP, Conditions, photograph
from swiprd.training.focus.evaluate import area_under_curve
from swiprd.training.focus.scenes import Bytes

MEAN, STD = recipe.PREPROCESS.mean[0], recipe.PREPROCESS.std[0]

TILES = 2  # A training example is TILES x TILES crops of one photograph, judged together.
HARD_SHARE = 0.4  # Of the photographs; the others are taken in everyday conditions.

# Share of the steps, and the crops' edge in them: small ones first, which cost half as much.
_PHASES = ((5 / 6, 96), (1 / 6, recipe.PREPROCESS.crop))
# The rate rises for so many steps, is held, and falls to nothing over this share of all steps.
_WARM_UP = 275
_COOL_DOWN = 0.5
# A batch comes back once, mirrored, so many batches later: a photograph takes longer to generate
# than to learn from (Choi et al., "Faster neural network training with data echoing", 2019).
_ECHO_AFTER = 24
# How many blurred photographs are mixed into every example to make it as large as a real one.
_MIXED_IN = 5
_MIXED_WEIGHT = 0.5

# First words of the seeds, so that no two streams of random numbers are the same; drawing.py has
# those of scenes.
_EXAMPLE_STREAM, _HELD_OUT_STREAM, _ECHO_STREAM, _MIXING_STREAM = 3, 4, 6, 7


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the network is taught. `state`: a file to take an interrupted run up from."""

    seed: int = 1
    steps: int = 16000
    batch: int = 32
    held_out: int = 384
    rate: float = 3e-3
    decay: float = 0.02
    workers: int = 2
    state: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The loss of every step, and (step, area under the ROC curve on held-out scenes)."""

    losses: list[float]
    areas: list[tuple[int, float]]


class Examples(Dataset[tuple[torch.Tensor, int]]):
    """Photographs taken when asked for; each depends on its index and the seed alone."""

    def __init__(
        self, scenes: Bytes, seed: tuple[int, ...], first: int, count: int, side: int
    ) -> None:
        self._scenes = scenes
        self._seed = seed
        self._first = first
        self._count = count
        self._side = side

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index >= self._count:
            raise IndexError(index)
        rng = np.random.default_rng([*self._seed, self._first + index])
        label = index % 2
        conditions: Conditions = HARD if rng.random() < HARD_SHARE else EVERYDAY
        taken = photograph(rng, self._scenes, label, self._side, conditions)
        return torch.from_numpy(taken.copy()), label


def outputs_of_tiles(model: nn.Module, photographs: torch.Tensor) -> torch.Tensor:
    """Return the outputs for each tile: [photographs, TILES * TILES, labels].

    photographs: uint8, N x side x side x 3; a tile is 1 / TILES of the side.
    """
    count, crop = len(photographs), photographs.shape[1] // TILES
    tiles = photographs.view(count, TILES, crop, TILES, crop, 3).permute(0, 1, 3, 5, 2, 4)
    tiles = tiles.reshape(-1, 3, crop, crop).contiguous(memory_format=torch.channels_last)
    rows: torch.Tensor = model((tiles.float() / 255 - MEAN) / STD)
    return rows.view(count, TILES * TILES, -1)


def _pool(outputs: torch.Tensor) -> torch.Tensor:
    """Join the tiles' outputs as the daemon joins those of crops, but for a constant."""
    return outputs.logsumexp(dim=1)


def loss_of(outputs: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return the loss of one batch's photographs, and of mixtures of them.

    A real photograph has nine times as many crops as an example. So every example is judged a
    second time with the tiles of some blurred ones: one in focus somewhere stays sharp, and of
    many blurred tiles none may look sharp.
    """
    plain = nn.functional.cross_entropy(_pool(outputs), labels)
    blurred = torch.nonzero(labels == BLURRED)[:, 0]
    chosen = torch.from_numpy(rng.integers(len(blurred), size=(len(labels), _MIXED_IN)))
    others = outputs[blurred[chosen]].flatten(1, 2)
    mixed = nn.functional.cross_entropy(_pool(torch.cat([outputs, others], dim=1)), labels)
    return plain + _MIXED_WEIGHT * mixed


def held_out_area(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the area under the ROC curve on photographs of scenes that are not trained on."""
    model.eval()
    scores, labels = [], []
    with torch.inference_mode():
        for photographs, truth in batches:
            rows = _pool(outputs_of_tiles(model, photographs))
            scores.append((rows[:, SHARP] - rows[:, BLURRED]).numpy())
            labels.append(truth.numpy())
    score, label = np.concatenate(scores), np.concatenate(labels)
    return area_under_curve(score[label == SHARP], score[label != SHARP])


def _phase_ends(steps: int) -> Iterator[tuple[int, int]]:
    """Yield (step at which it ends, edge of the crops) for each phase."""
    share = 0.0
    for part, crop in _PHASES:
        share += part
        yield round(steps * share), crop


def _batches(plan: Plan, scenes: Bytes, begun: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what is left after `begun` steps: new batches and, in turn, mirrored earlier ones."""
    step = begun
    for end, crop in _phase_ends(plan.steps):
        if step >= end:
            continue
        count = (end - step) * plan.batch
        seed = (_EXAMPLE_STREAM, plan.seed)
        examples = Examples(scenes, seed, step * plan.batch, count, TILES * crop)
        # Fork, so that the scenes are shared and not copied.
        loader = DataLoader(
            examples,
            plan.batch,
            num_workers=plan.workers,
            multiprocessing_context="fork" if plan.workers else None,
        )
        earlier: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        for batch in loader:
            earlier.append(batch)
            yield batch
            step += 1
            if len(earlier) > _ECHO_AFTER and step < end:
                photographs, labels = earlier.popleft()
                yield _mirrored(photographs, (_ECHO_STREAM, plan.seed, step)), labels
                step += 1
            if step >= end:
                break


def _mirrored(photographs: torch.Tensor, seed: tuple[int, ...]) -> torch.Tensor:
    """Mirror a batch, and turn it by a right angle or not: blur has no preferred direction."""
    flipped = photographs.flip(2)
    turned = flipped.transpose(1, 2) if np.random.default_rng(seed).random() < 0.5 else flipped
    return turned.contiguous()


def teach(model: nn.Module, plan: Plan, scenes: Bytes, unseen: Bytes) -> Record:
    """Train the model in place, and leave it in evaluation mode.

    scenes, unseen: N x SIDE x SIDE x 3, to train on and to hold out.
    """
    side = TILES * recipe.PREPROCESS.crop
    held_out = Examples(unseen, (_HELD_OUT_STREAM, plan.seed), 0, plan.held_out, side)
    held_out_batches = list(DataLoader(held_out, plan.batch))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), plan.rate, weight_decay=plan.decay)
    warm_up, cool_down = min(_WARM_UP, plan.steps // 3), round(plan.steps * _COOL_DOWN)
    moving = warm_up + cool_down + 1  # Steps in which the rate changes.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, plan.rate, total_steps=moving, pct_start=(warm_up + 1) / moving
    )
    record = Record(losses=[], areas=[])
    parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
    if plan.state is not None and plan.state.exists():
        kept = torch.load(plan.state, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        record.losses.extend(kept["losses"])
        record.areas.extend((step, area) for step, area in kept["areas"])
    begun = len(record.losses)
    bar = tqdm(_batches(plan, scenes, begun), "training", plan.steps, initial=begun, unit="step")
    for step, (photographs, labels) in enumerate(bar, start=begun + 1):
        model.train()
        rng = np.random.default_rng((_MIXING_STREAM, plan.seed, step))
        loss = loss_of(outputs_of_tiles(model, photographs), labels, rng)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step <= warm_up or step > plan.steps - cool_down:
            schedule.step()
        record.losses.append(loss.item())
        if step % 500 == 0 or step == plan.steps:
            record.areas.append((step, held_out_area(model, held_out_batches)))
        if plan.state is not None and step % 250 == 0:
            kept = {name: part.state_dict() for name, part in parts.items()}
            partial = plan.state.with_suffix(".partial")
            torch.save({**kept, "losses": record.losses, "areas": record.areas}, partial)
            partial.replace(plan.state)
        shown = f"{record.areas[-1][1]:.4f}" if record.areas else "-"
        bar.set_postfix(loss=f"{np.mean(record.losses[-50:]):.3f}", held_out=shown, refresh=False)
    model.eval()
    return record
