"""Photograph make-believe scenes: lens, focus, shake, sensor and file.

Blur is what tells the two labels apart; noise, tone, sharpening and compression are drawn alike
for both, so that none of them gives the label away. Nothing is read from disk.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from PIL import Image, ImageFilter

from swiprd.training.focus.optics import (
    MARGIN,
    Transfer,
    filtered,
    focused,
    out_of_focus,
    spoiled,
)
from swiprd.training.focus.scenes import SIDE, Bytes, Floats, Rng, log_uniform, smooth_field

SHARP = 0
BLURRED = 1


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What light and camera the photographs are taken with; shares are of all photographs.

    Attributes:
        noiseless: share without any noise; the others' goes from 0.002 to `noise` (1 is white).
        blotchy: share of the noisy ones whose noise is smoothed, by up to `blotch` pixels.
        least_contrast: the scene's contrast is multiplied by something from this to 1.4.
        recorded: share that goes through JPEG, at qualities down to `worst_quality`.
        two_planes: share with a subject before a background, one of them out of focus.
        tilted: share that leaves the plane of focus little by little.
    """

    noiseless: float
    noise: float
    blotchy: float
    blotch: float
    least_contrast: float
    recorded: float
    worst_quality: int
    two_planes: float
    tilted: float


HARD = Conditions(
    noiseless=0.2,
    noise=0.05,
    blotchy=0.4,
    blotch=1.2,
    least_contrast=0.3,
    recorded=0.8,
    worst_quality=40,
    two_planes=0.3,
    tilted=0.12,
)
"""Poor light and thrifty files: what the variance of the Laplacian fails at."""

EVERYDAY = Conditions(
    noiseless=0.6,
    noise=0.025,
    blotchy=0.2,
    blotch=0.6,
    least_contrast=0.5,
    recorded=0.6,
    worst_quality=60,
    two_planes=0.35,
    tilted=0.15,
)
"""Good light: fine texture is not to be taken for noise."""

_SHRINKING = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def _view(rng: Rng, scene: Bytes, side: int) -> Bytes:
    """Return part of a scene, turned and shrunk, so that its edges get a photograph's softness."""
    length = min(SIDE, round(side * rng.uniform(1.25, 2.0)))
    corners = rng.integers(0, SIDE - length + 1, (2, 2)).tolist()
    parts = [scene[top : top + length, left : left + length] for top, left in corners]
    # The busier of two, as a photographer would: nobody can judge an empty wall.
    chosen = max(parts, key=lambda one: np.abs(np.diff(one[::2, ::2, 1].astype(np.int16))).mean())
    part = Image.fromarray(chosen)
    part = part.resize((side, side), _SHRINKING[int(rng.integers(4))])
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.rot90(np.asarray(part, dtype=np.uint8), int(rng.integers(4)))


def _plane(rng: Rng, side: int) -> Floats:
    """Return where the nearer plane is: 1 in a blob or on one side of a wavy line; else 0."""
    field = smooth_field(rng, side, side, int(rng.integers(3, 6)))
    if rng.random() < 0.5:  # One compact subject.
        y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
        cy, cx = rng.uniform(0.2, 0.8, 2)
        field = 0.3 * field + 4 * (rng.uniform(0.2, 0.45) - np.hypot(y - cy, x - cx))
        level = 0.0
    else:
        level = float(np.quantile(field, rng.uniform(0.25, 0.75)))
    mask = (field > level).astype(np.float32)
    return np.asarray(scipy.ndimage.gaussian_filter(mask, 0.5, truncate=3), dtype=np.float32)


def _expose(rng: Rng, picture: Bytes, gamma: float, least_contrast: float) -> Floats:
    """Return the light, to be shown with `gamma`, at a random contrast, brightness and tone."""
    if rng.random() < 0.2:
        grey = np.asarray(Image.fromarray(picture).convert("L"))
        picture = np.repeat(grey[:, :, None], 3, axis=2)
    contrast = log_uniform(rng, least_contrast, 1.4)
    level = float(picture.mean()) / 255
    target = np.clip(level + rng.normal(0, 0.15), 0.08, 0.9)
    levels = np.clip((np.arange(256) / 255 - level) * contrast + target, 0, 1)
    levels = levels ** (log_uniform(rng, 0.6, 1.7) * gamma)
    return np.asarray(levels.astype(np.float32)[picture], dtype=np.float32)


def _noise(rng: Rng, picture: Floats, conditions: Conditions) -> Floats:
    """Add a sensor's noise: a floor, and shot noise that grows with the light's square root."""
    if rng.random() < conditions.noiseless:
        return picture
    strength = log_uniform(rng, 0.002, conditions.noise)
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    grey = rng.uniform(0, 1)  # Part of it common to the three colours.
    noise = noise * (1 - grey) + noise[:, :, :1] * grey
    if rng.random() < conditions.blotchy:  # Demosaicing and denoising leave it blotchy.
        blotch = rng.uniform(0.4, conditions.blotch)
        noise = scipy.ndimage.gaussian_filter(noise, (blotch, blotch, 0), truncate=3)
        noise *= rng.uniform(0.5, 1) / max(float(noise.std()), 1e-6)
    floor = rng.uniform(0.2, 1)
    shot = floor + (1 - floor) * np.sqrt(np.clip(picture, 0, 1))
    return np.asarray(picture + strength * noise * shot, dtype=np.float32)


def _file(rng: Rng, image: Image.Image, conditions: Conditions) -> Bytes:
    """Sharpen as cameras do, then save and read back as JPEG; each in some of the pictures."""
    if rng.random() < 0.4:
        radius, amount = rng.uniform(0.5, 1.6), int(rng.integers(20, 130))
        image = image.filter(ImageFilter.UnsharpMask(radius, amount, 0))
    if rng.random() < conditions.recorded:
        stream = io.BytesIO()
        quality = int(100 - log_uniform(rng, 3, 100 - conditions.worst_quality))
        image.save(stream, "JPEG", quality=quality, subsampling=int(rng.integers(3)))
        image = Image.open(stream)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _two_planes(rng: Rng, near: Floats, far: Floats, focus: Transfer) -> Floats:
    """Return a subject and what is before or behind it, out of focus: bokeh is not blur.

    near: what has the picture's focus. All are side x side x 3, in light.
    """
    side = len(near)
    away = out_of_focus(rng, side)
    mask = _plane(rng, side)[:, :, None]
    if rng.random() < 0.7:  # The subject is before it, and its outline as sharp as itself.
        shown = filtered(near * mask, focus)
        return shown + filtered(far, away) * (1 - filtered(mask, focus))
    return filtered(far * mask, away) + filtered(near, focus) * (1 - filtered(mask, away))


def _tilted(rng: Rng, light: Floats, focus: Transfer) -> Floats:
    """Return a meadow or a table: out of focus little by little, from a strip on."""
    side = len(light)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    angle, centre = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.65, 2)
    distance = np.abs((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle))
    strip, slope = rng.uniform(0.08, 0.3), log_uniform(rng, 0.03, 0.4)
    share = np.clip((distance - strip) / slope, 0, 1)[:, :, None]
    away = filtered(light, focus * out_of_focus(rng, side))
    return np.asarray(filtered(light, focus) * (1 - share) + away * share, dtype=np.float32)


def photograph(
    rng: Rng, scenes: Sequence[Bytes] | Bytes, label: int, side: int, conditions: Conditions
) -> Bytes:
    """Return a side x side x 3 photograph that is SHARP (somewhere, at least) or BLURRED."""
    full = side + 2 * MARGIN
    picture = _view(rng, scenes[int(rng.integers(len(scenes)))], full)
    focus = spoiled(rng, full) if label == BLURRED else focused(rng, full)
    # Light adds up before the tone curve, so true blur makes bright points win; editors and
    # resizers blur after it. Both occur; 2 is near enough to the usual 2.2, and faster.
    gamma = int(rng.integers(1, 3))
    light = _expose(rng, picture, gamma, conditions.least_contrast)
    kind = rng.random()
    if kind < conditions.two_planes:
        background = _view(rng, scenes[int(rng.integers(len(scenes)))], full)
        far = _expose(rng, background, gamma, conditions.least_contrast)
        light = _two_planes(rng, light, far, focus)
    elif kind < conditions.two_planes + conditions.tilted:
        light = _tilted(rng, light, focus)
    else:
        light = filtered(light, focus)
    shown = np.clip(light[MARGIN:-MARGIN, MARGIN:-MARGIN], 0, 1)
    shown = np.sqrt(shown) if gamma == 2 else shown
    pixels = np.clip(_noise(rng, shown, conditions) * 255 + 0.5, 0, 255).astype(np.uint8)
    return _file(rng, Image.fromarray(pixels), conditions)
