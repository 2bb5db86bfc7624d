"""Which real photographs the focus model is scored on, and where they are on this host.

Nothing here is trained on. They were chosen by eye, before any was scored: camera photographs with
something in focus at a long side of 1,024 pixels. Those of one source are all in one group.
"""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

INSTALLED = ("skimage", "matplotlib", "sklearn", "ultralytics", "imgaug")
"""Python packages that bring photographs; what is installed of them is found without a folder."""


def _listed(name: str) -> tuple[str, ...]:
    """Return the lines of a list beside this file, but for comments and empty ones."""
    lines = Path(__file__).with_name(name).read_text().splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


TUNE = _listed("tune.txt")
VALIDATION = _listed("validation.txt")

SCIKIT_IMAGE = tuple(name for name in TUNE if name.startswith("skimage/"))
SCIKIT_IMAGE_SOFT = tuple(
    f"skimage/data/{name}"
    for name in ("moon.png", "retina.jpg", "clock_motion.png", "cell.png", "text.png")
)
"""The rest of its photographs, soft as they come: in neither group."""

BLURRED = (
    "skimage/data/clock_motion.png",
    "mate/nature/Storm.jpg",
    "examples/data/licenseplate_motion.jpg",
    "examples/data/text_defocus.jpg",
    "examples/data/text_motion.jpg",
    "examples/data/basketball1.png",
)
"""Blurred when they were taken, not by a kernel; from the sources of tune.txt."""

_LONGEST = max(len(Path(name).parts) for name in (*TUNE, *VALIDATION, *BLURRED))


def find_photographs(names: Iterable[str], folder: Path | None) -> dict[str, Path]:
    """Return those of the named photographs that are on this host.

    names: the ends of their paths. folder: where packages were unpacked, looked through whole.
    """
    found: dict[str, Path] = {}
    if folder is not None:
        for path in sorted(folder.rglob("*")):
            for length in range(1, _LONGEST + 1):
                found.setdefault("/".join(path.parts[-length:]), path)
    names = tuple(names)
    for package in INSTALLED:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            home = Path(spec.origin).parent
            for name in names:
                for place in (home.parent / name, home / name):
                    if place.exists():
                        found[name] = place
    return {name: found[name] for name in names if name in found}
