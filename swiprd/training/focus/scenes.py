"""Draw make-believe photographs: everything in them is as sharp as it can be.

No lens, sensor or file is imitated here; camera.py does that. Nothing is read from disk.

A scene is a "dead leaves" picture: shapes whose sizes follow a power law cover one another.
Such pictures share the edge and scale statistics of photographs (Lee, Mumford and Huang,
"Occlusion models for natural images", IJCV 41, 2001). Each leaf carries a texture with a 1/f
spectrum, as natural surfaces have (Field, JOSA A 4, 1987), or a regular one; strokes, text, soft
light and empty skies are added because real photographs have them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 768
TEXTURE_SIDE = 512

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator
Colour = tuple[int, int, int]


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _coloured_noise(rng: Rng) -> Floats:
    """Return noise with a power-law spectrum, perhaps stretched one way as hair and wood are."""
    side = TEXTURE_SIDE
    fy = np.fft.fftfreq(side)[:, None]
    fx = np.fft.rfftfreq(side)[None, :]
    angle = rng.uniform(0, np.pi)
    # Stretched further, it would look like motion: nothing but streaks, even to us.
    stretch = log_uniform(rng, 1.5, 5) if rng.random() < 0.3 else 1.0
    along = (fx * np.cos(angle) + fy * np.sin(angle)) * stretch
    across = -fx * np.sin(angle) + fy * np.cos(angle)
    radius = np.sqrt(along**2 + across**2) + 1.0 / side
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * radius ** -rng.uniform(0.5, 1.7)
    return np.asarray(np.fft.irfft2(spectrum, s=(side, side)), dtype=np.float32)


def _pattern(rng: Rng, warp: Floats) -> Floats:
    """Return stripes, checks, tiles or bricks, bent by a smooth field."""
    side = TEXTURE_SIDE
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    bend = rng.choice([0.0, 4.0, 16.0])
    u = x * np.cos(angle) + y * np.sin(angle) + bend * warp
    v = -x * np.sin(angle) + y * np.cos(angle) + bend * warp.T
    period = log_uniform(rng, 5, 90)
    kind = rng.integers(4)
    if kind == 0:
        value = np.sin(2 * np.pi * u / period)
    elif kind == 1:
        value = np.sign(np.sin(2 * np.pi * u / period)) * np.sign(np.sin(2 * np.pi * v / period))
    elif kind == 2:
        duty = rng.uniform(0.1, 0.6)
        value = ((u / period) % 1.0 < duty) * 2.0 - 1.0
    else:
        row = np.floor(u / period)
        joint = log_uniform(rng, 0.04, 0.2)
        in_row = (u / period) % 1.0 < joint
        in_brick = ((v / (2.2 * period) + 0.5 * (row % 2)) % 1.0) < joint / 2.2
        value = np.where(in_row | in_brick, -1.5, 0.3)
    return np.asarray(value, dtype=np.float32)


def make_textures(rng: Rng, count: int) -> list[Floats]:
    """Return `count` square fields of mean 0 and deviation 1."""
    textures: list[Floats] = []
    for index in range(count):
        field = _coloured_noise(rng)
        field = (field - field.mean()) / field.std()
        if index % 3 == 1:
            field = _pattern(rng, field) + rng.uniform(0, 0.6) * field
        elif index % 3 == 2:
            # Thresholded noise has true edges: foliage, stones, fur against shade.
            field = np.tanh(field * log_uniform(rng, 1, 20)) + rng.uniform(0.05, 0.4) * field
        textures.append(np.clip((field - field.mean()) / field.std(), -3, 3))
    return textures


def smooth_field(rng: Rng, height: int, width: int, nodes: int) -> Floats:
    """Return a field without edges: `nodes` random values a side, interpolated; deviation ~1."""
    coarse = Image.fromarray(rng.standard_normal((nodes, nodes)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


class Painter:
    """One canvas and the palette it is painted with."""

    def __init__(self, rng: Rng, textures: Sequence[Floats]) -> None:
        self._rng = rng
        self._textures = textures
        self._palette = rng.uniform(0, 1, (int(rng.integers(3, 9)), 3)) ** rng.uniform(0.7, 1.6)
        self._saturation = rng.choice([0.0, 0.2, 0.4, 0.9], p=[0.2, 0.3, 0.35, 0.15])
        self._roughness = log_uniform(rng, 0.01, 0.3)
        # Petals, grass and clouds in focus have outlines that are wide and a grain that is fine.
        self._feather = log_uniform(rng, 1, 10) if rng.random() < 0.2 else 0.0
        self.canvas = Image.new("RGB", (SIDE, SIDE), self.colour())

    def colour(self) -> Colour:
        """Return a colour near one of the palette's."""
        rng = self._rng
        rgb = self._palette[rng.integers(len(self._palette))] + rng.normal(0, 0.08, 3)
        grey = rgb.mean()
        r, g, b = np.clip((grey + (rgb - grey) * self._saturation) * 255, 0, 255).astype(int)
        return int(r), int(g), int(b)

    def surface(self, width: int, height: int) -> Image.Image:
        """Return a textured, shaded rectangle."""
        rng = self._rng
        base = np.asarray(self.colour(), dtype=np.float32)
        value = np.zeros((height, width), dtype=np.float32)
        if self._feather or rng.random() < 0.75:
            texture = self._textures[int(rng.integers(len(self._textures)))]
            top = int(rng.integers(TEXTURE_SIDE))
            left = int(rng.integers(TEXTURE_SIDE))
            rows = np.arange(top, top + height) % TEXTURE_SIDE
            columns = np.arange(left, left + width) % TEXTURE_SIDE
            value += self._roughness * log_uniform(rng, 0.3, 2) * texture[np.ix_(rows, columns)]
        if rng.random() < 0.7:
            value += rng.uniform(0, 0.3) * smooth_field(rng, height, width, int(rng.integers(2, 5)))
        tint = 1 + 0.25 * self._saturation * rng.standard_normal(3)
        pixels = base + value[:, :, None] * (255 * tint.astype(np.float32))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def leaf(self, radius: float) -> None:
        """Cover a random place with a disk, an ellipse or a polygon."""
        rng = self._rng
        size = max(2, int(2 * radius))
        x, y = (int(v) for v in rng.integers(-size // 2, SIDE - size // 2, 2))
        points = self._outline(size)
        if radius < 7:  # Too small to carry a texture; and there are many.
            shape = [(x + px, y + py) for px, py in points]
            ImageDraw.Draw(self.canvas).polygon(shape, fill=self.colour())
            return
        mask = Image.new("L", (size, size))
        ImageDraw.Draw(mask).polygon(points, fill=255)
        if self._feather:
            mask = mask.filter(ImageFilter.GaussianBlur(min(self._feather, size / 8)))
        self.canvas.paste(self.surface(size, size), (x, y), mask)

    def _outline(self, size: int) -> list[tuple[float, float]]:
        rng = self._rng
        if rng.random() < 0.5:
            angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            radii = np.ones(40)
        else:
            corners = int(rng.integers(3, 9))
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            radii = rng.uniform(0.5, 1, corners)
        flat = rng.uniform(0.3, 1)
        turn = rng.uniform(0, np.pi)
        u, v = radii * np.cos(angles), radii * np.sin(angles) * flat
        x = size / 2 * (1 + u * np.cos(turn) - v * np.sin(turn))
        y = size / 2 * (1 + u * np.sin(turn) + v * np.cos(turn))
        return list(zip(x.tolist(), y.tolist(), strict=True))

    def strokes(self) -> None:
        """Draw a bundle of thin curves: hair, grass, twigs, wires."""
        rng = self._rng
        draw = ImageDraw.Draw(self.canvas)
        centre = rng.uniform(0, SIDE, 2)
        spread = log_uniform(rng, 20, 400)
        heading = rng.uniform(0, 2 * np.pi)
        disorder = log_uniform(rng, 0.02, 1.5)
        length = log_uniform(rng, 20, 400)
        widest = int(rng.integers(1, 6))
        for _ in range(int(log_uniform(rng, 2, 200))):
            start = centre + spread * rng.standard_normal(2)
            angle = heading + disorder * rng.standard_normal()
            turns = angle + np.cumsum(rng.normal(0, 0.15, 5))
            steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * length / 5
            points = np.vstack([start, start + np.cumsum(steps, axis=0)])
            draw.line(
                [(float(px), float(py)) for px, py in points],
                fill=self.colour(),
                width=int(rng.integers(1, widest + 1)),
            )

    def text(self) -> None:
        """Write some lines of nonsense at an angle."""
        rng = self._rng
        letters = np.array(
            list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789    ")
        )
        lines = int(rng.integers(1, 12))
        words = ["".join(rng.choice(letters, int(rng.integers(4, 40)))) for _ in range(lines)]
        # Pillow's own font: nothing has to be installed.
        font: Any = ImageFont.load_default(size=log_uniform(rng, 14, 90))
        mask = Image.new("L", (SIDE, SIDE))
        corner = (int(rng.integers(-50, SIDE // 2)), int(rng.integers(-50, SIDE - 100)))
        ImageDraw.Draw(mask).multiline_text(corner, "\n".join(words), fill=255, font=font)
        if rng.random() < 0.5:
            mask = mask.rotate(rng.normal(0, 20), Image.Resampling.BILINEAR)
        self.canvas.paste(self.colour(), (0, 0, SIDE, SIDE), mask)

    def light(self) -> None:
        """Lay a smooth light over everything, as shade and vignetting do."""
        rng = self._rng
        gain = np.exp(rng.uniform(0, 0.35) * smooth_field(rng, SIDE, SIDE, int(rng.integers(2, 6))))
        pixels = np.asarray(self.canvas, dtype=np.float32) * gain[:, :, None]
        self.canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def page(self) -> None:
        """Fill everything with small print."""
        rng = self._rng
        paper, ink = (
            ((235, 232, 225), (25, 25, 30)) if rng.random() < 0.8 else ((30,) * 3, (220,) * 3)
        )
        self.canvas.paste(paper, (0, 0, SIDE, SIDE))
        letters = np.array(
            list("abcdefghijklmnopqrstuvwxyz" * 3 + "ABCDEFGHIJKLMNOP,.;-  " + " " * 12)
        )
        size = log_uniform(rng, 12, 40)
        font: Any = ImageFont.load_default(size=size)
        columns = int(2 * SIDE / size)
        lines = ["".join(rng.choice(letters, columns)) for _ in range(int(SIDE / size))]
        if rng.random() < 0.5:  # Paragraphs and margins.
            lines = [line if rng.random() < 0.75 else line[: columns // 5] for line in lines]
        mask = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(mask).multiline_text((0, 0), "\n".join(lines), fill=255, font=font)
        mask = mask.rotate(rng.normal(0, 4), Image.Resampling.BILINEAR)
        self.canvas.paste(ink, (0, 0, SIDE, SIDE), mask)

    def wall(self) -> None:
        """Fill everything with one surface: stone, fur, cloth, skin; perhaps of two layers."""
        rng = self._rng
        field = _coloured_noise(rng)
        textures = [(field - field.mean()) / field.std()]
        if rng.random() < 0.5:
            textures.append(self._textures[int(rng.integers(len(self._textures)))])
        rows = columns = np.arange(SIDE) % TEXTURE_SIDE
        value = np.zeros((SIDE, SIDE), dtype=np.float32)
        for texture in textures:
            value += log_uniform(rng, 0.02, 0.25) * texture[np.ix_(rows, columns)]
        base, other = np.asarray(self.colour(), np.float32), np.asarray(self.colour(), np.float32)
        blend = np.clip(0.5 + value, 0, 1)[:, :, None] if rng.random() < 0.5 else np.float32(0.5)
        pixels = base * blend + other * (1 - blend) + 255 * value[:, :, None]
        self.canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_closeup(rng: Rng, textures: Sequence[Floats]) -> Bytes:
    """Return one scene, SIDE x SIDE x 3, that is all one thing: a surface, hair, or a page."""
    painter = Painter(rng, textures)
    if rng.random() < 0.2:
        painter.page()
    else:
        painter.wall()
        for _ in range(int(rng.choice([0, 1, 6], p=[0.6, 0.2, 0.2]))):
            painter.strokes()
        for _ in range(int(rng.choice([0, 2, 20], p=[0.6, 0.2, 0.2]))):
            painter.leaf(log_uniform(rng, 3, 120))
    if rng.random() < 0.7:
        painter.light()
    return np.asarray(painter.canvas, dtype=np.uint8)


def draw_scene(rng: Rng, textures: Sequence[Floats]) -> Bytes:
    """Return one scene, SIDE x SIDE x 3."""
    painter = Painter(rng, textures)
    if rng.random() < 0.6:
        painter.canvas.paste(painter.surface(SIDE, SIDE), (0, 0))
    largest = log_uniform(rng, 40, 350)
    smallest = log_uniform(rng, 2, 12)
    count = int(log_uniform(rng, 10, 1200))
    # Area density r^-3 is the scale-invariant one (Lee, Mumford and Huang, section 3), drawn by
    # inverting its distribution function between the two ends.
    u = rng.random(count)
    radii = (smallest**-2 + u * (largest**-2 - smallest**-2)) ** -0.5
    # That law seldom draws a large leaf; most pictures need some to fill them.
    large = int(log_uniform(rng, 1, 80)) if rng.random() < 0.85 else 0
    radii = np.append(radii, rng.uniform(15, 40 + largest, large))
    if rng.random() < 0.5:
        radii = -np.sort(-radii)  # Small ones last, all seen: crumbs on a table.
    else:
        rng.shuffle(radii)
    for radius in radii:
        painter.leaf(float(radius))
    for _ in range(int(rng.choice([0, 1, 2, 4], p=[0.4, 0.3, 0.2, 0.1]))):
        painter.strokes()
    if rng.random() < 0.2:
        painter.text()
    if rng.random() < 0.6:
        painter.light()
    return np.asarray(painter.canvas, dtype=np.uint8)
