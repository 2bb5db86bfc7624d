"""A model's folder: model.toml read, checked and frozen into a `ModelSpec`.

Everything a person can get wrong in the file is refused here, with the file, the key, what was
expected and what was found; later code trusts the types. Standard library only: no torch, numpy
or Pillow, so that the front process may describe a model it never loads. Opens no weights.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from swiprd.folder.toml_table import SpecError, Table, read

Activation = Literal["softmax", "sigmoid", "log_softmax", "none"]
Engine = Literal["auto", "torch", "onnx"]
Edge = Literal["short", "long", "both", "square"]
Crops = Literal["center", "five", "ten", "grid"]
Head = Literal["default", "fastai"]
Interpolation = Literal[
    "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "area", "grid_sample"
]
Match = Literal["name", "order"]
Pool = Literal["mean", "logits", "logsumexp"]

PROGRAMS = ("torchscript", "export")
"""Architectures that stand for a program with code of its own in place of weights."""

ONNX = "onnx"
"""The architecture that stands for an ONNX file in place of weights: no code, and no torch."""

# The published statistics that every torchvision classifier's recipe carries.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes crops. The defaults are torchvision's evaluation recipe.

    Attributes:
        resize: pixels that the named edge gets; None (`resize = 0` in the file) keeps the size.
        edge: which edge `resize` names; the other follows in proportion. `both` makes a square of
            the picture, as torchvision's Resize((n, n)) and fastai's `squish` do. `square` first
            cuts one of the short edge out of its middle, and resizes that, as fastai 2 does.
        enlarge: False leaves an edge alone that is already shorter than `resize`.
        crop: edge of the square crops, in pixels.
        crops: where they are taken; `five` and `ten` as in torchvision, `grid` evenly spaced.
        middle: where the middle crop, or the square, lies if that is between two pixels: `even`
            rounds halves to even, as torchvision does, `up` as fastai 0.7 and 1 do, `down` as
            fastai 2 does.
        grid: rows and columns of `grid`; None otherwise.
        pool: `mean` averages the crops' probabilities, `logits` their outputs before activation,
            `logsumexp` the exponentials of their outputs, and takes the logarithm: the crops that
            speak up decide, and those that have nothing to say change nothing.
        interpolation: one of Pillow's; `area`, OpenCV's INTER_AREA; or `grid_sample`, torch's after
            area pooling where the picture shrinks to less than half, as fastai 1 does.
        exif: `apply` turns the picture upright first; the plain torchvision loader ignores it.
        draft: let the JPEG decoder deliver a smaller picture, at least 1.5 times the resized one.
            Faster on large photos and no longer exact, hence off unless the file asks for it.
        mean, std: per channel (red, green, blue), of values from 0 to 1.
    """

    resize: int | None = 256
    edge: Edge = "short"
    enlarge: bool = True
    crop: int = 224
    crops: Crops = "center"
    middle: Literal["even", "up", "down"] = "even"
    grid: tuple[int, int] | None = None
    pool: Pool = "mean"
    interpolation: Interpolation = "bilinear"
    exif: Literal["ignore", "apply"] = "ignore"
    draft: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def crop_count(self) -> int:
        """How many crops every picture gives."""
        if self.crops == "grid":
            assert self.grid is not None
            return self.grid[0] * self.grid[1]
        return {"center": 1, "five": 5, "ten": 10}[self.crops]


@dataclass(frozen=True, kw_only=True)
class Serve:
    """What overrides the daemon's calibration; None leaves it to be measured."""

    workers: int | None = None
    threads: int | None = None
    batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A picture whose answer shows that the model works; with the answer, where it is known."""

    image: Path
    probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A checked description of a model; the weights file exists but has not been opened.

    Attributes:
        architecture: a torchvision classifier's name, "timm:" and timm's name for one, a program's
            kind, `torchscript` or `export`, or `onnx`; checked when the model is loaded.
        head: `default` is the architecture's own last layer with an output for each label;
            `fastai` cuts the classifier off and puts fastai's in its place.
        match: how tensors of the file find their place: by `name`, or by `order` and shape.
        sha256: of the weights, as recorded in the file; None where it records none.
        labels: in the order of the outputs, or "imagenet": torchvision's own thousand.
        activation: what turns the module's outputs into probabilities. `softmax` and `sigmoid`
            take logits; `log_softmax` takes a module that ends in LogSoftmax and undoes the
            logarithm; `none` passes the outputs on as they are.
        engine: what runs the network: `torch`; `onnx`, its compiled form; or `auto`, the compiled
            form where there is one that has been proven. An ONNX file is served by `onnx` alone.
        output: of an ONNX file, the name of the output that counts; None where it has one only.
        thresholds: for each label, the probability from which on it counts as found; None where
            a model finds exactly one label.
    """

    folder: Path
    name: str
    architecture: str
    head: Head = "default"
    match: Match = "name"
    weights: Path
    sha256: str | None = None
    labels: tuple[str, ...] | Literal["imagenet"]
    activation: Activation
    engine: Engine = "auto"
    output: str | None = None
    thresholds: tuple[float, ...] | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    serve: Serve = field(default_factory=Serve)
    canary: Canary | None = None

    @property
    def carries_code(self) -> bool:
        """Whether loading runs code from the folder."""
        return self.architecture in PROGRAMS

    @property
    def is_onnx(self) -> bool:
        """Whether the network is an ONNX file, which needs no torch, and which torch cannot run."""
        return self.architecture == ONNX

    @property
    def file(self) -> Path:
        """The model.toml that describes this model."""
        return self.folder / "model.toml"


def load_spec(folder: Path) -> ModelSpec:
    """Read and check `folder`/model.toml.

    Raises:
        SpecError: naming the first thing that is wrong.
    """
    file = folder / "model.toml"
    try:
        values = tomllib.loads(read(file).decode())
    except UnicodeDecodeError as error:
        raise SpecError(file, "", "UTF-8", f"byte {error.start} that is not") from None
    except (ValueError, RecursionError) as error:  # the parser's own, and int()'s and its depth
        raise SpecError(file, "", "TOML", f"an error in it: {error}") from None
    known = [one.name for one in fields(ModelSpec) if one.name != "folder"]
    table = Table(file, "", values, known)
    labels = _labels(table, folder)
    activation: Activation = table.choice("activation", Activation)
    name = table.text("name")
    architecture = table.text("architecture")
    if not _NAME.fullmatch(name):
        raise table.fail("name", "up to 64 of A-Z a-z 0-9 . _ -, a letter or digit first", name)
    sha256 = table.text("sha256") if table.has("sha256") else None
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise table.fail("sha256", "64 hexadecimal digits in lower case", sha256)
    classes = IMAGENET_CLASSES if labels == "imagenet" else len(labels)
    engine: Engine = table.choice("engine", Engine, "auto")
    if architecture == ONNX and labels == "imagenet":
        expected = "a file of labels: beside an ONNX file there is no torchvision to have them"
        raise table.fail("labels", expected, labels)
    if architecture == ONNX and engine == "torch":
        raise table.fail("engine", "onnx or auto: torch runs no ONNX file", engine)
    return ModelSpec(
        folder=folder,
        name=name,
        architecture=architecture,
        head=_only_default(table, architecture, table.choice("head", Head, "default"), "head"),
        match=_only_default(table, architecture, table.choice("match", Match, "name"), "match"),
        weights=table.path("weights", folder),
        sha256=sha256,
        labels=labels,
        activation=activation,
        engine=engine,
        output=_output(table, architecture),
        thresholds=_thresholds(table, classes, activation),
        preprocess=_preprocess(table.table("preprocess", Preprocess)),
        serve=_serve(table.table("serve", Serve)),
        canary=_canary(table, folder, classes, activation) if table.has("canary") else None,
    )


def _labels(table: Table, folder: Path) -> tuple[str, ...] | Literal["imagenet"]:
    if table.text("labels") == "imagenet":
        return "imagenet"
    file = table.path("labels", folder)
    try:
        # utf-8-sig: an editor's byte order mark must not become part of the first label.
        text = read(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(file, "", "UTF-8", f"byte {error.start} that is not") from None
    lines: dict[str, int] = {}
    # Not splitlines(): that also splits at characters which a label may not contain anyway.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        label = line.strip()
        if not label:
            raise SpecError(file, f"line {number}", "a label", "a blank line")
        if not label.isprintable():
            raise SpecError(file, f"line {number}", "printable characters", repr(label))
        if label in lines:
            found = f'"{label}" again, as in line {lines[label]}'
            raise SpecError(file, f"line {number}", "a label of its own", found)
        lines[label] = number
    return tuple(lines)


def _preprocess(table: Table) -> Preprocess:
    plain = Preprocess()
    crops: Crops = table.choice("crops", Crops, plain.crops)
    if table.has("grid") and crops != "grid":
        raise table.fail("grid", 'none unless crops = "grid"', table.wholes("grid", 2, 1, 8))
    grid = table.wholes("grid", 2, 1, 8) if crops == "grid" else None
    resize = table.whole("resize", 0, 4096)
    return Preprocess(
        resize=plain.resize if resize is None else resize or None,
        edge=table.choice("edge", Edge, plain.edge),
        enlarge=table.flag("enlarge", plain.enlarge),
        crop=table.whole("crop", 1, 4096) or plain.crop,
        crops=crops,
        middle=table.choice("middle", Literal["even", "up", "down"], plain.middle),
        grid=(grid[0], grid[1]) if grid else None,
        pool=table.choice("pool", Pool, plain.pool),
        interpolation=table.choice("interpolation", Interpolation, plain.interpolation),
        exif=table.choice("exif", Literal["ignore", "apply"], plain.exif),
        draft=table.flag("draft", plain.draft),
        mean=_rgb(table, "mean", plain.mean, "finite numbers"),
        std=_rgb(table, "std", plain.std, "numbers above 0"),
    )


def _rgb(
    table: Table, key: str, default: tuple[float, float, float], what: str
) -> tuple[float, float, float]:
    if not table.has(key):
        return default
    red, green, blue = table.numbers(key, 3, what)
    if key == "std" and min(red, green, blue) <= 0:
        raise table.fail(key, f"3 {what}", [red, green, blue])
    return red, green, blue


def _only_default(table: Table, architecture: str, value: Any, key: str) -> Any:
    """Refuse for a program, or an ONNX file, what says how an architecture is built and filled."""
    if architecture in (*PROGRAMS, ONNX) and table.has(key):
        raise table.fail(key, f'none with architecture = "{architecture}"', value)
    return value


def _output(table: Table, architecture: str) -> str | None:
    if not table.has("output"):
        return None
    name = table.text("output")
    if architecture != ONNX:
        raise table.fail("output", f'none unless architecture = "{ONNX}"', name)
    return name


def _thresholds(table: Table, classes: int, activation: Activation) -> tuple[float, ...] | None:
    if not table.has("thresholds"):
        return None
    what = "numbers from 0 to 1, one a label"
    values = table.numbers("thresholds", classes, what)
    if not all(0 <= one <= 1 for one in values):
        raise table.fail("thresholds", f"{classes} {what}", list(values))
    if activation != "sigmoid":
        # Of labels that share one probability the largest is the answer, whatever it is.
        raise table.fail("thresholds", 'none unless activation = "sigmoid"', list(values))
    return values


def _serve(table: Table) -> Serve:
    return Serve(**{one.name: table.whole(one.name, 1, 256) for one in fields(Serve)})


def _canary(table: Table, folder: Path, classes: int, activation: Activation) -> Canary:
    canary = table.table("canary", Canary)
    image = canary.path("image", folder)
    if not canary.has("probabilities"):
        return Canary(image=image)
    what = "probabilities, one a label"
    values = canary.numbers("probabilities", classes, what)
    if activation != "none" and not all(0 <= one <= 1 for one in values):
        raise canary.fail("probabilities", f"{classes} {what}", list(values))
    return Canary(image=image, probabilities=values)
