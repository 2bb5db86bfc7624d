"""The file in which a calibration is kept: one for each model, host and set of settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from swiprd.config import Settings
from swiprd.folder.spec import ModelSpec
from swiprd.pool.shape_search import Told
from swiprd.pool.supervisor import Shape
from swiprd.system.log import log


class CalibrationFile:
    """Where the figures for one model on this host are kept.

    Args:
        engine: what runs the network, as in `Loaded`.
        told, cores: as in `shape_search`; with others, the figures are others, in another file.
    """

    def __init__(
        self, settings: Settings, spec: ModelSpec, engine: str, told: Told, cores: int
    ) -> None:
        self._settings = settings
        self._spec = spec
        self._engine = engine
        self._told = told
        self._cores = cores

    def path(self) -> Path:
        """Name the file, which need not be there.

        Raises:
            OSError: the model's files cannot be read.
        """
        digest = hashlib.sha256(self._spec.file.read_bytes())
        stat = self._spec.weights.stat()
        key = stat.st_size, stat.st_mtime_ns, self._told, self._settings.device
        digest.update(repr(key).encode())
        engine = self._engine, _version("torch"), _version("onnxruntime")
        digest.update(repr((self._cores, _processor(), engine)).encode())
        assert self._settings.cache is not None
        return self._settings.cache / f"{self._spec.name}-{digest.hexdigest()[:16]}.json"

    def read(self) -> Shape | None:
        """Return the shape that is kept; None where there is none that can be used."""
        try:
            kept: Any = json.loads(self.path().read_text())["shape"]
            shape = Shape(**kept)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        sane = all(isinstance(n, int) and 0 < n <= 1024 for n in asdict(shape).values())
        return shape if sane else None

    def write(self, shape: Shape, figures: dict[Shape, float]) -> None:
        """Keep a shape, and for people the images per second of all that were measured."""
        kept = {
            "shape": asdict(shape),
            "images_per_second": [
                {
                    "workers": tried.workers,
                    "threads": tried.threads,
                    "batch": tried.batch,
                    "rate": round(rate, 2),
                }
                for tried, rate in figures.items()
            ],
        }
        try:
            path = self.path()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(kept, indent=1))
            fresh.replace(path)
        except OSError as error:
            log.warning("the calibration could not be kept: %s; it will be made again", error)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
