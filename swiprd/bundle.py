"""A model's folder: model.toml read, checked and frozen into a `Bundle`.

Everything a person can get wrong in the file is refused here, with the file, the key, what was
expected and what was found; later code trusts the types. Standard library only: no torch, numpy
or Pillow, so that the front process may describe a model it never loads. Opens no weights, except
to digest them when model.toml records no `sha256`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

Activation = Literal["softmax", "sigmoid", "log_softmax", "none"]
Crops = Literal["center", "five", "ten", "grid"]
Pool = Literal["mean", "logits", "logsumexp"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

# The published statistics that every torchvision classifier's recipe carries.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BundleError(Exception):
    """A model's folder is not what it should be.

    Attributes:
        file: the file at fault.
        key: the key, line or tensor in it; empty where the file as a whole is meant.
        expected, found: two phrases that complete "expected …, found …".
    """

    def __init__(self, file: Path, key: str, expected: str, found: str) -> None:
        super().__init__(file, key, expected, found)
        self.file = file
        self.key = key
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else str(self.file)
        return f"{where}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture becomes crops. The defaults are torchvision's evaluation recipe.

    Attributes:
        resize: pixels that the named edge gets; None (`resize = 0` in the file) keeps the size.
        edge: which edge `resize` names; the other follows in proportion.
        enlarge: False leaves a picture alone whose edge is already shorter than `resize`.
        crop: edge of the square crops, in pixels.
        crops: where they are taken; `five` and `ten` as in torchvision, `grid` evenly spaced.
        grid: rows and columns of `grid`; None otherwise.
        pool: `mean` averages the crops' probabilities, `logits` their outputs before activation,
            `logsumexp` the exponentials of their outputs, and takes the logarithm: the crops that
            speak up decide, and those that have nothing to say change nothing.
        exif: `apply` turns the picture upright first; the plain torchvision loader ignores it.
        draft: let the JPEG decoder deliver a smaller picture, at least 1.5 times the resized one.
            Faster on large photos and no longer exact, hence off unless the file asks for it.
        mean, std: per channel (red, green, blue), of values from 0 to 1.
    """

    resize: int | None = 256
    edge: Literal["short", "long"] = "short"
    enlarge: bool = True
    crop: int = 224
    crops: Crops = "center"
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
class Bundle:
    """A checked description of a model; the weights file exists but has not been opened.

    Attributes:
        architecture: a torchvision classifier's name; checked when the model is loaded.
        sha256: of the weights, as recorded in the file; None where it records none.
        labels: in the order of the outputs, or "imagenet": torchvision's own thousand.
        activation: what turns the module's outputs into probabilities. `softmax` and `sigmoid`
            take logits; `log_softmax` takes a module that ends in LogSoftmax and undoes the
            logarithm; `none` passes the outputs on as they are.
    """

    folder: Path
    name: str
    architecture: str
    weights: Path
    sha256: str | None = None
    labels: tuple[str, ...] | Literal["imagenet"]
    activation: Activation
    preprocess: Preprocess = field(default_factory=Preprocess)
    serve: Serve = field(default_factory=Serve)
    canary: Canary | None = None

    @property
    def file(self) -> Path:
        """The model.toml that describes this model."""
        return self.folder / "model.toml"


def load_bundle(folder: Path) -> Bundle:
    """Read and check `folder`/model.toml.

    Raises:
        BundleError: naming the first thing that is wrong.
    """
    file = folder / "model.toml"
    try:
        values = tomllib.loads(_read(file).decode())
    except UnicodeDecodeError as error:
        raise BundleError(file, "", "UTF-8", f"byte {error.start} that is not") from None
    except (ValueError, RecursionError) as error:  # the parser's own, and int()'s and its depth
        raise BundleError(file, "", "TOML", f"an error in it: {error}") from None
    known = [one.name for one in fields(Bundle) if one.name != "folder"]
    table = _Table(file, "", values, known)
    labels = _labels(table, folder)
    activation: Activation = table.choice("activation", Activation)
    name = table.text("name")
    if not _NAME.fullmatch(name):
        raise table.fail("name", "up to 64 of A-Z a-z 0-9 . _ -, a letter or digit first", name)
    sha256 = table.text("sha256") if table.has("sha256") else None
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise table.fail("sha256", "64 hexadecimal digits in lower case", sha256)
    classes = IMAGENET_CLASSES if labels == "imagenet" else len(labels)
    return Bundle(
        folder=folder,
        name=name,
        architecture=table.text("architecture"),
        weights=table.path("weights", folder),
        sha256=sha256,
        labels=labels,
        activation=activation,
        preprocess=_preprocess(table.table("preprocess", Preprocess)),
        serve=_serve(table.table("serve", Serve)),
        canary=_canary(table, folder, classes, activation) if table.has("canary") else None,
    )


def identify(bundle: Bundle) -> str:
    """Return the model's id: its name, "@", and 12 hexadecimal digits of what decides its answers.

    Those digest model.toml, the labels and the SHA-256 of the weights: the recorded one, which is
    believed, or else the file's own (about a second per gigabyte).

    Raises:
        BundleError: a file has gone since `load_bundle`.
    """
    digest = hashlib.sha256()
    labels = b"imagenet" if bundle.labels == "imagenet" else "\n".join(bundle.labels).encode()
    weights = bundle.sha256 or digest_weights(bundle)
    for part in (_read(bundle.file), labels, weights.encode()):
        digest.update(hashlib.sha256(part).digest())
    return f"{bundle.name}@{digest.hexdigest()[:12]}"


def digest_weights(bundle: Bundle) -> str:
    """Return the SHA-256 of the weights file as it is now, in hexadecimal.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        with bundle.weights.open("rb") as weights:
            return hashlib.file_digest(weights, "sha256").hexdigest()
    except OSError as error:
        found = error.strerror or str(error)
        raise BundleError(bundle.weights, "", "a readable file", found) from None


class _Table:
    """One table of model.toml; every getter names the key at fault."""

    def __init__(self, file: Path, prefix: str, values: Any, known: Iterable[str]) -> None:
        if not isinstance(values, dict):
            raise BundleError(file, prefix.rstrip("."), "a table", _show(values))
        self._file = file
        self._prefix = prefix
        self._values: dict[str, Any] = values
        known = list(known)
        for key in values:
            # First of all: a misspelt key also leaves a required one missing, and this says why.
            if key not in known:
                near = difflib.get_close_matches(key, known, n=2)
                expected = " or ".join(near) if near else "one of " + ", ".join(known)
                raise BundleError(file, prefix + key, expected, "an unknown key")

    def fail(self, key: str, expected: str, found: Any) -> BundleError:
        """Make the error for `key`, showing `found` as the file has it."""
        return BundleError(self._file, self._prefix + key, expected, _show(found))

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str) -> str:
        """Return a required string."""
        value = self._values.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(key, "a string", value)
        return value

    def choice(self, key: str, among: Any, default: Any = None) -> Any:
        """Return one of the strings of the Literal `among`; required without a default."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or value not in get_args(among):
            raise self.fail(key, "one of " + ", ".join(get_args(among)), value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false", value)
        return value

    def whole(self, key: str, low: int, high: int) -> int | None:
        """Return a whole number, or None where the key is absent."""
        value = self._values.get(key)
        if value is not None and not _is_whole(value, low, high):
            raise self.fail(key, f"a whole number from {low} to {high}", value)
        return value

    def wholes(self, key: str, count: int, low: int, high: int) -> tuple[int, ...]:
        """Return a required array of `count` whole numbers."""
        value = self._values.get(key)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(_is_whole(one, low, high) for one in value)
        ):
            raise self.fail(key, f"{count} whole numbers from {low} to {high}", value)
        return tuple(value)

    def numbers(self, key: str, count: int, what: str = "finite numbers") -> tuple[float, ...]:
        """Return a required array of `count` finite numbers."""
        value = self._values.get(key)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(type(one) in (int, float) and math.isfinite(one) for one in value)
        ):
            raise self.fail(key, f"{count} {what}", value)
        return tuple(float(one) for one in value)

    def path(self, key: str, folder: Path) -> Path:
        """Return the path of an existing file that is named relative to `folder`.

        A symbolic link may lead elsewhere: whoever can make one in the folder can as well write
        the file. A name may not: a model folder must work wherever it is put.
        """
        value = self.text(key)
        name = PurePosixPath(value)
        if name.is_absolute() or ".." in name.parts:
            raise self.fail(key, "a path inside the model's folder", value)
        if "\0" in value or not (folder / name).is_file():
            raise self.fail(key, f"a file in {folder}", value)
        return folder / name

    def table(self, key: str, kind: type[Preprocess | Serve | Canary]) -> _Table:
        """Return the table `key`, empty where absent, whose keys are the fields of `kind`."""
        known = (one.name for one in fields(kind))
        return _Table(self._file, f"{self._prefix}{key}.", self._values.get(key, {}), known)


def _labels(table: _Table, folder: Path) -> tuple[str, ...] | Literal["imagenet"]:
    if table.text("labels") == "imagenet":
        return "imagenet"
    file = table.path("labels", folder)
    try:
        # utf-8-sig: an editor's byte order mark must not become part of the first label.
        text = _read(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BundleError(file, "", "UTF-8", f"byte {error.start} that is not") from None
    lines: dict[str, int] = {}
    # Not splitlines(): that also splits at characters which a label may not contain anyway.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        label = line.strip()
        if not label:
            raise BundleError(file, f"line {number}", "a label", "a blank line")
        if not label.isprintable():
            raise BundleError(file, f"line {number}", "printable characters", repr(label))
        if label in lines:
            found = f'"{label}" again, as in line {lines[label]}'
            raise BundleError(file, f"line {number}", "a label of its own", found)
        lines[label] = number
    return tuple(lines)


def _preprocess(table: _Table) -> Preprocess:
    plain = Preprocess()
    crops: Crops = table.choice("crops", Crops, plain.crops)
    if table.has("grid") and crops != "grid":
        raise table.fail("grid", 'none unless crops = "grid"', table.wholes("grid", 2, 1, 8))
    grid = table.wholes("grid", 2, 1, 8) if crops == "grid" else None
    resize = table.whole("resize", 0, 4096)
    return Preprocess(
        resize=plain.resize if resize is None else resize or None,
        edge=table.choice("edge", Literal["short", "long"], plain.edge),
        enlarge=table.flag("enlarge", plain.enlarge),
        crop=table.whole("crop", 1, 4096) or plain.crop,
        crops=crops,
        grid=(grid[0], grid[1]) if grid else None,
        pool=table.choice("pool", Pool, plain.pool),
        interpolation=table.choice("interpolation", Interpolation, plain.interpolation),
        exif=table.choice("exif", Literal["ignore", "apply"], plain.exif),
        draft=table.flag("draft", plain.draft),
        mean=_rgb(table, "mean", plain.mean, "finite numbers"),
        std=_rgb(table, "std", plain.std, "numbers above 0"),
    )


def _rgb(
    table: _Table, key: str, default: tuple[float, float, float], what: str
) -> tuple[float, float, float]:
    if not table.has(key):
        return default
    red, green, blue = table.numbers(key, 3, what)
    if key == "std" and min(red, green, blue) <= 0:
        raise table.fail(key, f"3 {what}", [red, green, blue])
    return red, green, blue


def _serve(table: _Table) -> Serve:
    return Serve(**{one.name: table.whole(one.name, 1, 256) for one in fields(Serve)})


def _canary(table: _Table, folder: Path, classes: int, activation: Activation) -> Canary:
    canary = table.table("canary", Canary)
    image = canary.path("image", folder)
    if not canary.has("probabilities"):
        return Canary(image=image)
    what = "probabilities, one a label"
    values = canary.numbers("probabilities", classes, what)
    if activation != "none" and not all(0 <= one <= 1 for one in values):
        raise canary.fail("probabilities", f"{classes} {what}", list(values))
    return Canary(image=image, probabilities=values)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(file, "", "a readable file", error.strerror or str(error)) from None


def _is_whole(value: Any, low: int, high: int) -> bool:
    # In Python True is an int; in TOML it is not.
    return type(value) is int and low <= value <= high


def _show(value: Any) -> str:
    """Show a value much as model.toml has it, cut short."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} values"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 80 else shown[:79] + "…"
