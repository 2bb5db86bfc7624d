"""What the daemon was told: defaults, then a TOML file, then the command line. Frozen.

A daemon reads one file, named after its unit: swiprd.toml, or swiprd@NAME.toml for an instance.
Every default works. Each limit is here, with its reason, and nowhere else.
"""

from __future__ import annotations

import argparse
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from swiprctl.protocol import DEFAULT_TIMEOUT, MAX_TIMEOUT
from swiprd.system.image_formats import FORMATS

FOLDER = Path("/etc/swipr")
DEFAULT_FILE = FOLDER / "swiprd.toml"
MODELS = (FOLDER / "models", Path("/var/lib/swipr/models"))  # an instance's model is in the first
DEFAULT_MODEL = Path(__file__).parent / "models" / "focus"


class ConfigError(Exception):
    """A setting that cannot be used; the text names the file, the key and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of them. Seconds, bytes, pixels and counts; None is "not set"."""

    model: Path = DEFAULT_MODEL
    device: str = "auto"  # cpu or cuda; auto takes a GPU where torch sees one
    engine: str = "auto"  # torch or onnx; auto takes a compiled form that has been proven
    timeout: float = DEFAULT_TIMEOUT  # a request's, where it names none
    max_timeout: float | None = None  # where it names a longer one; None: as `timeout`
    queue: int = 128  # requests waiting and running
    connections: int = 256
    first_byte: float = 5.0  # a new connection must say something within
    stall: float = 5.0  # a frame's next byte must come within
    slow_reader: float = 5.0  # an answer's next byte must be taken within
    formats: tuple[str, ...] = FORMATS  # of images; those that lack a decoder are refused
    max_image: int = 64 << 20  # bytes of a file
    max_inline: int = 256 << 20  # bytes of all frames being read at once
    max_pixels: int = 178_956_970  # where Pillow calls an image a decompression bomb
    max_decode: float = 8.0  # processor time for one; twice what the largest take
    idle_timeout: float = 0.0  # leave after so long without a request; 0: never
    load_timeout: float = 300.0  # a model must load and answer within
    workers: int | None = None  # None: as calibrated, or as the model's folder says
    threads: int | None = None
    batch: int | None = None
    worker_memory: int | None = None  # bytes that a worker may allocate; None: what there is
    max_requests: int = 0  # that a worker answers before it is replaced; 0: any number
    max_growth: int = 1 << 30  # bytes by which a worker may grow before it is replaced; 0: any
    remember: float = 300.0  # for so long an image that hung or crashed a worker is refused
    cache: Path | None = None  # where calibrations are kept

    @property
    def ceiling(self) -> float:
        """Seconds that no request gets more of, whatever its client names."""
        return self.timeout if self.max_timeout is None else self.max_timeout


INSTANCE_IDLE = 300.0  # an instance's idle_timeout, where nothing else is said
LEAST_IDLE = 60.0  # under systemd: it counts starts, and five within 200 s are too many

# What is a file's name, a unit's instance without escapes, and what `swiprctl --model` takes.
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST = 10**12  # a terabyte, thirty thousand years: above it are typing errors and infinity

_RANGES: dict[str, tuple[float, float]] = {
    "timeout": (0.001, MAX_TIMEOUT),  # every request has an end
    "max_timeout": (0.001, MAX_TIMEOUT),
    "queue": (1, _MOST),
    "connections": (1, _MOST),
    "first_byte": (0.001, _MOST),
    "stall": (0.001, _MOST),
    "slow_reader": (0.001, _MOST),
    "max_image": (1, _MOST),
    "max_inline": (1, _MOST),
    "max_pixels": (1, _MOST),
    "max_decode": (0.001, MAX_TIMEOUT),
    "idle_timeout": (0, _MOST),
    "load_timeout": (0.001, _MOST),
    "workers": (1, 256),  # as in model.toml
    "threads": (1, 256),
    "batch": (1, 256),
    "worker_memory": (1 << 20, _MOST),
    "max_requests": (0, _MOST),
    "max_growth": (0, _MOST),
    "remember": (0, _MOST),
}

_CHOICES = {"device": ("auto", "cpu", "cuda"), "engine": ("auto", "torch", "onnx")}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Offer each setting as an option of the command line."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"settings (default: {DEFAULT_FILE}, if any)"
    )
    parser.add_argument(
        "--instance",
        type=_instance,
        metavar="NAME",
        help=f"serve the model in {MODELS[0]}/NAME, or else {MODELS[1]}/NAME, with the settings"
        f" in {FOLDER}/swiprd@NAME.toml, if any",
    )
    for name, kind in _kinds().items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=_reader(name, kind),
            default=None,
            metavar=_METAVARS[kind],
            help=_help(name),
        )


def load_settings(options: argparse.Namespace, *, managed: bool = False) -> Settings:
    """Merge the defaults, the file and the command line.

    Args:
        managed: a service manager counts the daemon's starts: it may not leave at once when idle.

    Raises:
        ConfigError: the file or a value is not usable, or there is no model for the instance.
    """
    told: dict[str, Any] = {}
    file = DEFAULT_FILE
    if options.instance is not None:
        file = FOLDER / f"swiprd@{options.instance}.toml"
        told["idle_timeout"] = INSTANCE_IDLE
    caches = os.environ.get("CACHE_DIRECTORY")  # systemd.exec(5): one or more, colons between
    if caches:
        told["cache"] = Path(caches.split(":")[0])
    told |= _read(options.config or file, may_be_missing=options.config is None)
    for name in _kinds():
        value = getattr(options, name)
        if value is not None:
            told[name] = value
    if "cache" not in told:
        told["cache"] = _cache_home() / "swipr"
    if options.instance is not None and "model" not in told:
        told["model"] = _model_of(options.instance)
    if managed and 0 < told.get("idle_timeout", 0) < LEAST_IDLE:
        told["idle_timeout"] = LEAST_IDLE
    return Settings(**told)


def _model_of(instance: str) -> Path:
    folders = [folder / instance for folder in MODELS]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise ConfigError(f"no model named {instance}: there is no folder {folders[0]} or {folders[1]}")


def _instance(text: str) -> str:
    """Read --instance's value for argparse."""
    if not _INSTANCE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"expected up to 64 of A-Z a-z 0-9 . _ -, a letter or digit first, found {text!r}"
        )
    return text


def _cache_home() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a uid that has no name here, and no $HOME
        return Path("/var/cache")


def _read(file: Path, *, may_be_missing: bool) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            table = tomllib.load(stream)
    except FileNotFoundError as error:
        if may_be_missing:
            return {}
        raise ConfigError(f"{file}: {error.strerror}") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{file}: {error}") from None
    kinds = _kinds()
    told: dict[str, Any] = {}
    for key, value in table.items():
        kind = kinds.get(key)
        if kind is None:
            raise ConfigError(f"{file}: {key}: no such setting; there are {', '.join(kinds)}")
        try:
            told[key] = _checked(key, kind, value)
        except ValueError as error:
            raise ConfigError(f"{file}: {key}: {error}") from None
    return told


def _reader(name: str, kind: type) -> Callable[[str], Any]:
    """What reads an option's text for argparse, in the same words as the file's errors."""

    def read(text: str) -> Any:
        try:
            value = text.split(",") if kind is tuple else kind(text)
        except ValueError:
            value = text  # of the wrong kind, which is what the error says then
        try:
            return _checked(name, kind, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _checked(name: str, kind: type, value: Any) -> Any:
    """A value of the setting's kind and within its range.

    Raises:
        ValueError: it is not; the text says what was expected and what was found.
    """
    if kind is Path and isinstance(value, str) and "\0" not in value:
        value = Path(value)
    if kind is tuple:
        return _formats(value)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool):
        raise ValueError(f"expected {_KIND_NAMES[kind]}, found {value!r}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"expected one of {', '.join(_CHOICES[name])}, found {value!r}")
    if name in _RANGES:
        least, most = _RANGES[name]
        if not value >= least:
            raise ValueError(f"expected at least {least:g}, found {value}")
        if not value <= most:
            raise ValueError(f"expected at most {most:g}, found {value}")
    return float(value) if kind is float else value


def _formats(value: Any) -> tuple[str, ...]:
    """Those of images that a list names, each once and in their own order.

    Raises:
        ValueError: it is not a list of them, or is empty.
    """
    named = value if isinstance(value, list) else [value]
    for one in named:
        if one not in FORMATS:
            raise ValueError(f"expected some of {', '.join(FORMATS)}, found {one!r}")
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of some of {', '.join(FORMATS)}, found {value!r}")
    return tuple(one for one in FORMATS if one in value)


def _kinds() -> dict[str, type]:
    hints = get_type_hints(Settings)
    kinds = {}
    for field in fields(Settings):
        hint = hints[field.name]
        kind = get_args(hint)[0] if isinstance(hint, UnionType) else hint
        kinds[field.name] = get_origin(kind) or kind
    return kinds


_METAVARS = {Path: "PATH", str: "NAME", int: "N", float: "SECONDS", tuple: "NAME,..."}

_KIND_NAMES: dict[type, str] = {
    Path: "a path",
    str: "a name",
    int: "a whole number",
    float: "a number",
}

_HELP = {
    "model": "the model's folder",
    "device": "cpu, cuda or auto: a GPU where there is one",
    "engine": "torch, onnx or auto: the compiled form where it has been proven",
    "timeout": "a request's deadline, where it names none",
    "max_timeout": "the longest deadline: what a request names beyond it is cut",
    "queue": "requests waiting and running",
    "connections": "clients at a time",
    "first_byte": "close a connection that says nothing for so long",
    "stall": "close a connection that stops in the middle of a frame for so long",
    "slow_reader": "close a connection that does not take its answers for so long",
    "formats": "of images that are read",
    "max_image": "bytes of an image's file",
    "max_inline": "bytes of all inline images being received at once",
    "max_pixels": "pixels of an image",
    "max_decode": "processor time for decoding an image",
    "idle_timeout": "leave after so long without a request",
    "load_timeout": "a model must load and answer within",
    "workers": "processes that work at once",
    "threads": "threads of each worker",
    "batch": "images a worker takes at once, of those that wait",
    "worker_memory": "bytes that a worker may allocate for its images",
    "max_requests": "replace a worker after so many requests; 0: never",
    "max_growth": "replace a worker that has grown by so many bytes; 0: never",
    "remember": "refuse an image that hung or crashed a worker for so long; 0: try it every time",
    "cache": "where calibrations are kept",
}

_OTHER_DEFAULTS = {
    "model": f"the one that is shipped, {DEFAULT_MODEL.name}, or the instance's",
    "max_timeout": "as timeout",
    "formats": f"{','.join(FORMATS)}, where their decoders are installed",
    "idle_timeout": f"0, never; {INSTANCE_IDLE:g} for an instance; under systemd at least"
    f" {LEAST_IDLE:g}",
    "workers": "calibrated",
    "threads": "calibrated",
    "batch": "calibrated",
    "worker_memory": "no bound",
    "cache": "$XDG_CACHE_HOME/swipr",
}
"""Defaults that need more words than the value in `Settings` says."""


def _help(name: str) -> str:
    return f"{_HELP[name]} (default: {_OTHER_DEFAULTS.get(name) or _shown(_DEFAULTS[name])})"


def _shown(value: object) -> str:
    if isinstance(value, int) and value and value % (1 << 20) == 0:
        return f"{value >> 20} MiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


_DEFAULTS = {field.name: field.default for field in fields(Settings)}
