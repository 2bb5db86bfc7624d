"""Photograph make-believe scenes: lens, focus, shake, sensor and file.

Blur is what tells the two labels apart; noise, tone, sharpening and compression are drawn alike
for both, so that none of them gives the label away. Nothing is read from disk.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage
from PIL import Image, ImageFilter

from swiprd.models.focus.scenes import SIDE, Bytes, Floats, Rng, log_uniform, smooth_field

SHARP = 0
BLURRED = 1

# Pixels around the view that the blur may draw from; the kernels reach at most this far.
MARGIN = 32

# Blur in pixels, as the deviation along its widest direction. Optics, demosaicing and resizing
# leave every photograph a little soft: up to SHARP_MOST it counts as sharp. What is blurred is so
# on top of that, and by no less than the least of its kind. Nothing is drawn between, where people
# would not agree either.
SHARP_MOST = 0.9
BLURRED_MOST = 8.0


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What light and camera the photographs are taken with; shares are of all photographs.

    Attributes:
        noiseless: share without any noise; the others' goes from 0.002 to `noise` (1 is white).
        blotchy: share of the noisy ones whose noise is smoothed, by up to `blotch` pixels.
        least_contrast: the scene's contrast is multiplied by something from this to 1.4.
        recorded: share that goes through JPEG, at qualities down to `worst_quality`.
        two_planes: share with a subject before a background, one of them out of focus.
    """

    noiseless: float
    noise: float
    blotchy: float
    blotch: float
    least_contrast: float
    recorded: float
    worst_quality: int
    two_planes: float


HARD = Conditions(
    noiseless=0.2,
    noise=0.05,
    blotchy=0.4,
    blotch=1.2,
    least_contrast=0.3,
    recorded=0.8,
    worst_quality=40,
    two_planes=0.3,
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
    two_planes=0.4,
)
"""Good light: fine texture is not to be taken for noise."""

_SHRINKING = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)

Complexes = npt.NDArray[np.complex64]


def _disk(rng: Rng, sigma: float) -> Floats:
    """Return a defocused point: the aperture's shape, a disk or a polygon; deviation radius/2."""
    radius = 2 * sigma
    y, x = np.mgrid[-MARGIN : MARGIN + 1, -MARGIN : MARGIN + 1].astype(np.float32)
    distance = np.hypot(x, y)
    if rng.random() < 0.3:
        blades = int(rng.integers(5, 9))
        sector = 2 * np.pi / blades
        angle = (np.arctan2(y, x) + rng.uniform(0, sector)) % sector - sector / 2
        distance = distance * np.cos(angle) / np.cos(sector / 2)
    # The rim covers its pixels in part.
    return np.asarray(np.clip(radius - distance + 0.5, 0, 1), dtype=np.float32)


def _gaussian(rng: Rng, sigma: float) -> Floats:
    """Return a bell, round or squeezed one way."""
    y, x = np.mgrid[-MARGIN : MARGIN + 1, -MARGIN : MARGIN + 1].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    other = sigma * (rng.uniform(0.4, 1) if rng.random() < 0.3 else 1)
    u = (x * np.cos(angle) + y * np.sin(angle)) / sigma
    v = (-x * np.sin(angle) + y * np.cos(angle)) / other
    return np.asarray(np.exp(-0.5 * (u**2 + v**2)), dtype=np.float32)


def _motion(rng: Rng, sigma: float) -> Floats:
    """Return the track of a moved point: a line (deviation length/sqrt(12)) or a shaken curve."""
    steps = 400
    if rng.random() < 0.6:
        track = np.linspace(-0.5, 0.5, steps)[:, None] * np.array([[1.0, 0.0]])
    else:
        turns = np.cumsum(rng.normal(0, log_uniform(rng, 0.5, 4) / np.sqrt(steps), steps))
        track = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], axis=1), axis=0)
    track = track - track.mean(axis=0)
    widest = np.sqrt(np.linalg.eigvalsh(np.cov(track.T))[-1])
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    track = track @ turn * (sigma / widest)
    track = np.clip(track, 1 - MARGIN, MARGIN - 1) + MARGIN
    # Each instant falls on four pixels, by bilinear weights.
    kernel = np.zeros((2 * MARGIN + 1, 2 * MARGIN + 1), dtype=np.float32)
    whole = np.floor(track).astype(int)
    part = track - whole
    for dx in (0, 1):
        for dy in (0, 1):
            share = np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1])
            np.add.at(kernel, (whole[:, 1] + dy, whole[:, 0] + dx), share)
    return kernel


def _transfer(kernel: Floats, side: int) -> Complexes:
    """Return a kernel's transfer function on a square picture."""
    grid = np.zeros((side, side), dtype=np.float32)
    grid[: 2 * MARGIN + 1, : 2 * MARGIN + 1] = kernel / kernel.sum()
    shifted = np.roll(grid, (-MARGIN, -MARGIN), axis=(0, 1))
    return np.asarray(scipy.fft.rfft2(shifted), dtype=np.complex64)


def _softness(sigma: float, side: int) -> Floats:
    """Return the transfer function of a Gaussian too small to be drawn on the pixel grid."""
    fy = np.fft.fftfreq(side)[:, None]
    fx = np.fft.rfftfreq(side)[None, :]
    return np.asarray(np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2)), dtype=np.float32)


# Each kind of blur, its least deviation, and how often it spoils a photograph, or only the plane
# that is not the subject's.
_BLURS = (_gaussian, _disk, _motion)
_LEAST = (1.3, 0.95, 1.4)  # A disk of radius 1.9, a line of 5 pixels.
_SPOILING = (0.25, 0.3, 0.45)
_BEHIND = (0.35, 0.55, 0.1)


def _spoil(rng: Rng, side: int) -> Complexes:
    """Return a blur that nobody would take for sharp; half of them are not far from the least."""
    kind = int(rng.choice(3, p=_SPOILING))
    least = _LEAST[kind]
    most = 2.5 * least if rng.random() < 0.5 else BLURRED_MOST
    return _transfer(_BLURS[kind](rng, log_uniform(rng, least, most)), side)


def _out_of_focus(rng: Rng, side: int) -> Complexes:
    """Return the blur of a plane before or behind the subject's."""
    blur = _BLURS[int(rng.choice(3, p=_BEHIND))]
    return _transfer(blur(rng, log_uniform(rng, 1.5, BLURRED_MOST)), side)


def _apply(picture: Floats, transfer: Complexes | Floats) -> Floats:
    """Filter a picture, side x side x channels; its edges wrap round and are to be cut off."""
    side = picture.shape[0]
    spectrum = scipy.fft.rfft2(picture, axes=(0, 1)) * transfer[:, :, None]
    return np.asarray(scipy.fft.irfft2(spectrum, s=(side, side), axes=(0, 1)), dtype=np.float32)


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


def photograph(
    rng: Rng, scenes: Sequence[Bytes] | Bytes, label: int, side: int, conditions: Conditions
) -> Bytes:
    """Return a side x side x 3 photograph that is SHARP (somewhere, at least) or BLURRED."""
    full = side + 2 * MARGIN
    picture = _view(rng, scenes[int(rng.integers(len(scenes)))], full)
    focus: Complexes | Floats = _softness(rng.uniform(0, SHARP_MOST), full)
    if label == BLURRED:
        focus = focus * _spoil(rng, full)
    two_planes = rng.random() < conditions.two_planes
    # Light adds up before the tone curve, so true blur makes bright points win; editors and
    # resizers blur after it. Both occur; 2 is near enough to the usual 2.2, and faster.
    gamma = int(rng.integers(1, 3))
    light = _expose(rng, picture, gamma, conditions.least_contrast)
    if two_planes:
        # One plane has the picture's focus, the other is out of focus: bokeh is not blur.
        background = _view(rng, scenes[int(rng.integers(len(scenes)))], full)
        other = _expose(rng, background, gamma, conditions.least_contrast)
        away = _out_of_focus(rng, full)
        mask = _plane(rng, full)[:, :, None]
        if rng.random() < 0.7:  # The subject is near, and its outline as sharp as itself.
            light = _apply(light * mask, focus) + _apply(other, away) * (1 - _apply(mask, focus))
        else:
            light = _apply(other * mask, away) + _apply(light, focus) * (1 - _apply(mask, away))
    else:
        light = _apply(light, focus)
    shown = np.clip(light[MARGIN:-MARGIN, MARGIN:-MARGIN], 0, 1)
    shown = np.sqrt(shown) if gamma == 2 else shown
    pixels = np.clip(_noise(rng, shown, conditions) * 255 + 0.5, 0, 255).astype(np.uint8)
    return _file(rng, Image.fromarray(pixels), conditions)
