"""What makes a picture soft: defocus, movement and imperfect optics, as transfer functions.

Deviations are in pixels, along a blur's widest direction. Nothing is read from disk.
"""

import numpy as np
import numpy.typing as npt
import scipy.fft

from swiprd.training.focus.scenes import Floats, Rng, log_uniform

Complexes = npt.NDArray[np.complex64]
Transfer = Complexes | Floats  # Of a square picture: side x (side // 2 + 1).

# Pixels around the view that the blur may draw from; the kernels reach at most this far.
MARGIN = 32

# Blur in pixels, as the deviation along its widest direction. Optics, demosaicing and resizing
# leave every photograph a little soft: up to SHARP_MOST it counts as sharp. What is blurred is so
# on top of that, and by no less than the least of its kind. Nothing is drawn between, where people
# would not agree either.
SHARP_MOST = 0.9
# A petal, a cloud, brick: some things have no finer edges than this, and are in focus all the same.
SOFT_MOST = 1.15
SOFT_SHARE = 0.1
BLURRED_MOST = 8.0


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
    if rng.random() < 0.7:
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
_LEAST = (1.35, 1.0, 1.6)  # A disk of radius 2, a line of 5.5 pixels.
_SPOILING = (0.2, 0.27, 0.53)
_BEHIND = (0.35, 0.55, 0.1)


def focused(rng: Rng, side: int) -> Transfer:
    """Return what a good photograph is softened by."""
    soft = rng.random() < SOFT_SHARE
    return _softness(
        rng.uniform(SHARP_MOST, SOFT_MOST) if soft else rng.uniform(0, SHARP_MOST), side
    )


def spoiled(rng: Rng, side: int) -> Transfer:
    """Return a blur that nobody would take for sharp; half of them are not far from the least."""
    kind = int(rng.choice(3, p=_SPOILING))
    least = _LEAST[kind]
    most = 2.5 * least if rng.random() < 0.5 else BLURRED_MOST
    blur = _transfer(_BLURS[kind](rng, log_uniform(rng, least, most)), side)
    return blur * _softness(rng.uniform(0, SHARP_MOST), side)


def out_of_focus(rng: Rng, side: int) -> Complexes:
    """Return the blur of a plane before or behind the subject's."""
    blur = _BLURS[int(rng.choice(3, p=_BEHIND))]
    return _transfer(blur(rng, log_uniform(rng, 1.5, BLURRED_MOST)), side)


def filtered(picture: Floats, transfer: Transfer) -> Floats:
    """Filter a picture, side x side x channels; its edges wrap round and are to be cut off."""
    side = picture.shape[0]
    spectrum = scipy.fft.rfft2(picture, axes=(0, 1)) * transfer[:, :, None]
    return np.asarray(scipy.fft.irfft2(spectrum, s=(side, side), axes=(0, 1)), dtype=np.float32)
