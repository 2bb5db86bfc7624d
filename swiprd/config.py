"""What the daemon was told: defaults, then a TOML file, then the command line. Frozen.

Every default works. Each limit is here, with its reason, and nowhere else.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from swiprctl.protocol import DEFAULT_TIMEOUT

DEFAULT_FILE = Path("/etc/swipr/swiprd.toml")
DEFAULT_MODEL = Path(__file__).parent / "models" / "focus"


class ConfigError(Exception):
    """A setting that cannot be used; the text names the file, the key and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of them. Seconds, bytes, pixels and counts; None is "not set"."""

    model: Path = DEFAULT_MODEL
    device: str = "auto"  # cpu, cuda, cuda:N; auto takes a GPU where torch sees one
    timeout: float = DEFAULT_TIMEOUT  # a request's, where it names none
    queue: int = 128  # requests waiting and running
    connections: int = 256
    first_byte: float = 5.0  # a new connection must say something within
    stall: float = 5.0  # a frame's next byte must come within
    slow_reader: float = 5.0  # an answer's next byte must be taken within
    max_image: int = 64 << 20  # bytes of a file
    max_inline: int = 256 << 20  # bytes of all frames being read at once
    max_pixels: int = 178_956_970  # where Pillow calls an image a decompression bomb
    idle_timeout: float = 0.0  # leave after so long without a request; 0: never
    load_timeout: float = 300.0  # a model must load and answer within
    workers: int | None = None  # None: as calibrated, or as the model's folder says
    threads: int | None = None
    batch: int | None = None
    cache: Path | None = None  # where calibrations are kept


_AT_LEAST = {
    "timeout": 0.001,
    "queue": 1,
    "connections": 1,
    "first_byte": 0.001,
    "stall": 0.001,
    "slow_reader": 0.001,
    "max_image": 1,
    "max_inline": 1,
    "max_pixels": 1,
    "load_timeout": 0.001,
    "workers": 1,
    "threads": 1,
    "batch": 1,
    "idle_timeout": 0.0,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Offer each setting as an option of the command line."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"settings (default: {DEFAULT_FILE}, if any)"
    )
    for name, kind in _kinds().items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            default=None,
            metavar={Path: "PATH", str: "NAME", int: "N", float: "SECONDS"}[kind],
            help=_HELP[name],
        )


def load_settings(options: argparse.Namespace) -> Settings:
    """Merge the defaults, the file and the command line.

    Raises:
        ConfigError: the file or a value is not usable.
    """
    told: dict[str, Any] = {}
    cache = os.environ.get("CACHE_DIRECTORY")  # systemd.exec(5)
    if cache:
        told["cache"] = Path(cache)
    if options.config is not None or DEFAULT_FILE.exists():
        told |= _read(options.config or DEFAULT_FILE)
    for name in _kinds():
        value = getattr(options, name)
        if value is not None:
            told[name] = _checked(value, name, "the command line", "--" + name.replace("_", "-"))
    settings = Settings(**told)
    if settings.cache is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        settings = Settings(**(told | {"cache": Path(home) / "swipr"}))
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    kinds = _kinds()
    told: dict[str, Any] = {}
    for key, value in table.items():
        kind = kinds.get(key)
        if kind is None:
            raise ConfigError(f"{file}: {key}: no such setting; there are {', '.join(kinds)}")
        if kind is Path and isinstance(value, str):
            value = Path(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"{file}: {key}: expected {_KIND_NAMES[kind]}, found {value!r}")
        told[key] = _checked(value, key, str(file), key)
    return told


def _checked(value: Any, name: str, where: str, key: str) -> Any:
    least = _AT_LEAST.get(name)
    if least is not None and not value >= least:
        raise ConfigError(f"{where}: {key}: expected at least {least:g}, found {value}")
    return value


def _kinds() -> dict[str, type]:
    hints = get_type_hints(Settings)
    kinds = {}
    for field in fields(Settings):
        hint = hints[field.name]
        kinds[field.name] = get_args(hint)[0] if isinstance(hint, UnionType) else hint
    return kinds


_KIND_NAMES: dict[type, str] = {
    Path: "a path",
    str: "a name",
    int: "a whole number",
    float: "a number",
}

_HELP = {
    "model": "the model's folder (default: the one that is shipped, focus)",
    "device": "cpu, cuda, cuda:N, or auto (default): a GPU where there is one",
    "timeout": "a request's deadline, where it names none (default: 10)",
    "queue": "requests waiting and running (default: 128)",
    "connections": "clients at a time (default: 256)",
    "first_byte": "close a connection that says nothing for so long (default: 5)",
    "stall": "close a connection that stops in the middle of a frame for so long (default: 5)",
    "slow_reader": "close a connection that does not take its answers for so long (default: 5)",
    "max_image": "bytes of an image's file (default: 64 MiB)",
    "max_inline": "bytes of all inline images being received at once (default: 256 MiB)",
    "max_pixels": "pixels of an image (default: 178956970)",
    "idle_timeout": "leave after so long without a request (default: 0, never)",
    "load_timeout": "a model must load and answer within (default: 300)",
    "workers": "processes that work at once (default: calibrated)",
    "threads": "threads of each worker (default: calibrated)",
    "batch": "images a worker takes at once, of those that wait (default: calibrated)",
    "cache": "where calibrations are kept (default: $XDG_CACHE_HOME/swipr)",
}
