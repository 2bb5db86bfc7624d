"""Score the focus model on real photographs that it never saw, beside the usual yardstick.

The yardstick is the variance of the Laplacian of the grey picture (Pech-Pacheco et al., "Diatom
autofocusing in brightfield microscopy", ICPR 2000). Every photograph is taken as it is and
blurred in known ways. photographs.py says which.
"""

import io
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.signal
import scipy.stats
import torch
from PIL import Image
from tqdm import tqdm

from swiprd.folder.spec import load_spec
from swiprd.inference.model import LoadedModel, load_model
from swiprd.inference.preprocess import preprocess, resized

Floats = npt.NDArray[np.floating]
Condition = Literal["clean", "poor light"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

GAUSSIAN_SIGMAS = (1.5, 2.0, 3.0, 5.0)
DISK_RADII = (2.0, 3.0, 5.0, 8.0)
MOTION_LENGTHS = (7, 11, 15, 25)
MOTION_ANGLES = (0, 35, 110)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One picture, what was done to it, and how sharp each method finds it (more is sharper)."""

    photograph: str
    blur: str
    model: float
    laplacian: float


def _disk(radius: float) -> Floats:
    reach = int(np.ceil(radius))
    fine = 8  # Subpixels a side, for a smooth rim.
    axis = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = np.hypot(axis[:, None], axis[None, :]) <= radius
    covered = inside.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).mean(axis=(1, 3))
    return np.asarray(covered / covered.sum(), dtype=np.float64)


def _line(length: int, degrees: float) -> Floats:
    reach = length // 2 + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    angle = np.deg2rad(degrees)
    along = np.linspace(-(length - 1) / 2, (length - 1) / 2, 20 * length)
    # Each point of the line falls on four pixels, by bilinear weights.
    for y, x in zip(reach + along * np.sin(angle), reach + along * np.cos(angle), strict=True):
        top, left = int(y), int(x)
        dy, dx = y - top, x - left
        kernel[top : top + 2, left : left + 2] += np.outer([1 - dy, dy], [1 - dx, dx])
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def blurs() -> Iterator[tuple[str, Floats]]:
    """Yield each blur's name and its kernel."""
    for sigma in GAUSSIAN_SIGMAS:
        axis = np.arange(-int(4 * sigma), int(4 * sigma) + 1)
        bell = np.exp(-0.5 * (axis / sigma) ** 2)
        yield f"gaussian {sigma:g}", np.outer(bell, bell) / bell.sum() ** 2
    for radius in DISK_RADII:
        yield f"disk {radius:g}", _disk(radius)
    for length in MOTION_LENGTHS:
        for degrees in MOTION_ANGLES:
            yield f"motion {length}", _line(length, degrees)


def blurred(image: Image.Image, kernel: Floats) -> Image.Image:
    """Return the picture convolved with a kernel, its edges mirrored."""
    reach = kernel.shape[0] // 2
    pixels = np.asarray(image, dtype=np.float32)
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    smooth = scipy.signal.oaconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1))
    return Image.fromarray(np.clip(smooth + 0.5, 0, 255).astype(np.uint8))


def recorded(image: Image.Image, condition: Condition, seed: int) -> Image.Image:
    """Return the picture as a camera would file it.

    clean: untouched. poor light: contrast reduced to between 0.3 and 1, noise of deviation 1 to
    12 (of 255), JPEG of quality 60 to 95.
    """
    if condition == "clean":
        return image
    pixels = np.asarray(image, dtype=np.float32)
    rng = np.random.default_rng(seed)
    pixels = (pixels - pixels.mean()) * rng.uniform(0.3, 1) + rng.uniform(60, 140)
    deviation, quality = np.exp(rng.uniform(0, np.log(12))), int(rng.integers(60, 96))
    noisy = pixels + deviation * rng.standard_normal(pixels.shape)
    stream = io.BytesIO()
    Image.fromarray(np.clip(noisy + 0.5, 0, 255).astype(np.uint8)).save(
        stream, "JPEG", quality=quality
    )
    return Image.open(stream).convert("RGB")


def view(path: Path, loaded: LoadedModel) -> Image.Image:
    """Return a photograph at the model's scale: a long side of 1,024 pixels, if it has as many."""
    with Image.open(path) as image:
        image.load()
    size = resized(*image.size, loaded.spec.preprocess)
    return image.convert("RGB").resize(size, Image.Resampling.BILINEAR)


def laplacian_variance(image: Image.Image) -> float:
    """Return the yardstick: the larger, the sharper."""
    return float(scipy.ndimage.laplace(np.asarray(image.convert("L"), dtype=np.float32)).var())


def sharpness(loaded: LoadedModel, image: Image.Image) -> float:
    """Return the model's probability of "sharp", by the daemon's own code."""
    crops = preprocess(image, loaded.spec.preprocess)
    return float(loaded.probabilities(crops[None])[0, loaded.labels.index("sharp")])


def judge(
    loaded: LoadedModel,
    name: str,
    path: Path,
    condition: Condition,
    kernels: Iterable[tuple[str, Floats]],
) -> Iterator[Judged]:
    """Judge a photograph, called `name`, as it is and then blurred by each of the kernels."""
    whole = view(path, loaded)
    versions = chain([("none", whole)], ((blur, blurred(whole, one)) for blur, one in kernels))
    for step, (blur, version) in enumerate(versions):
        seen = recorded(version, condition, seed=sum(whole.size) + step)
        yield Judged(
            photograph=name,
            blur=blur,
            model=sharpness(loaded, seen),
            laplacian=laplacian_variance(seen),
        )


_loaded: list[LoadedModel] = []  # Of a judging process; filled once by _begin_judging.


def _begin_judging(folder: Path) -> None:
    torch.set_num_threads(1)
    _loaded[:] = [load_model(load_spec(folder))]


def _judge_all_blurs(task: tuple[str, Path, Condition]) -> list[Judged]:
    return list(judge(_loaded[0], *task, blurs()))


def judge_all(
    folder: Path, paths: Mapping[str, Path], condition: Condition, workers: int
) -> list[Judged]:
    """Judge photographs and all their blurs with the model in a folder, in several processes."""
    tasks = [(name, path, condition) for name, path in paths.items()]
    context = multiprocessing.get_context("spawn")
    with context.Pool(max(1, workers), _begin_judging, (folder,)) as pool:
        done = tqdm(pool.imap(_judge_all_blurs, tasks), condition, len(tasks), unit="photo")
        return [one for photograph in done for one in photograph]


def area_under_curve(sharp: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Return the chance that a sharp picture scores above a blurred one; ties count half."""
    sharp, other = np.asarray(sharp), np.asarray(other)
    ranks = scipy.stats.rankdata(np.concatenate([sharp, other]))
    won = ranks[: len(sharp)].sum() - len(sharp) * (len(sharp) + 1) / 2
    return float(won / (len(sharp) * len(other)))


def areas(judged: Sequence[Judged], blur: str = "") -> tuple[float, float]:
    """Return the model's and the yardstick's area, for the blurs whose names begin so."""
    sharp = [one for one in judged if one.blur == "none"]
    other = [one for one in judged if one.blur != "none" and one.blur.startswith(blur)]
    return (
        area_under_curve([one.model for one in sharp], [one.model for one in other]),
        area_under_curve([one.laplacian for one in sharp], [one.laplacian for one in other]),
    )


def found(judged: Sequence[Judged]) -> tuple[float, float]:
    """Return the shares of sharp and of blurred pictures that are got right at 0.5."""
    sharp = np.array([one.model > 0.5 for one in judged if one.blur == "none"])
    other = np.array([one.model <= 0.5 for one in judged if one.blur != "none"])
    return float(sharp.mean()), float(other.mean())


def balanced_accuracy(judged: Sequence[Judged]) -> float:
    """Return the mean of the shares of sharp and of blurred pictures got right at 0.5."""
    return sum(found(judged)) / 2


def mistakes(judged: Sequence[Judged]) -> list[str]:
    """Return a line for each photograph that is on the wrong side of 0.5, as it is or blurred."""
    lines: dict[str, list[str]] = {}
    for one in judged:
        if (one.model > 0.5) != (one.blur == "none"):
            lines.setdefault(one.photograph, []).append(f"{one.blur} {one.model:.2f}")
    return [f"{name} ({'; '.join(wrong)})" for name, wrong in lines.items()]


def table(judged: Sequence[Judged]) -> str:
    """Return the scores as a Markdown table."""
    lines = ["| blur | model | variance of Laplacian |", "|---|---|---|"]
    names = list(dict.fromkeys(one.blur for one in judged if one.blur != "none"))
    for label, prefix in (
        ("all", ""),
        *((f"all {kind}", f"{kind} ") for kind in ("gaussian", "disk", "motion")),
        *((name, name) for name in names),
    ):
        model, laplacian = areas(judged, prefix)
        lines.append(f"| {label} | {model:.4f} | {laplacian:.4f} |")
    sharp, other = found(judged)
    lines.append(f"\nBalanced accuracy at 0.5: {balanced_accuracy(judged):.4f}")
    lines.append(f"Right at 0.5: {sharp:.4f} of the sharp, {other:.4f} of the blurred")
    return "\n".join(lines)
