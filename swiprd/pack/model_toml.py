"""model.toml and the labels of what is packed: written. Imports nothing heavy."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from swiprd.pack import formats, writer
from swiprd.pack.errors import Unclear
from swiprd.pack.labels import Named
from swiprd.pack.told import Recipe
from swiprd.pack.writer import LABELS, Entry

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

OUTPUT = "--output: which folder is to be made? -o FOLDER"
"""What is to be asked for where it was not said."""

PROGRAM_FILES = {"torchscript": "program.pt", "export": "program.pt2"}
"""What a program is called in its folder."""


def check(options: argparse.Namespace) -> None:
    """See that the folder can be made, where one is named, and have its name.

    Raises:
        Unclear, CannotCreate: it cannot.
    """
    if options.output is not None:
        writer.check_place(options.output, replace=options.force)
        name_of(options)


def write(
    place: Path,
    options: argparse.Namespace,
    lines: Sequence[Entry],
    named: Named,
    recipe: Recipe,
    origin: str,
    weights: str,
) -> None:
    """Write model.toml and the labels.

    Args:
        place: the folder, with the weights in it.
        lines: what stands between the name and the labels.
        origin: what was packed.
        weights: the name of their file.
    """
    value = "imagenet"
    if named.labels != "imagenet":
        value = LABELS
        (place / LABELS).write_text("".join(f"{one}\n" for one in named.labels), encoding="utf-8")
    every = [
        Entry(key="name", value=name_of(options)),
        *lines,
        Entry(key="labels", value=value, why=named.source),
        Entry(key="weights", value=weights),
        Entry(key="sha256", value=digest(place / weights), why=f"of {weights}"),
    ]
    if options.engine != "auto":
        every.append(Entry(key="engine", value=options.engine, why="by --engine"))
    text = writer.describe(every, recipe.preprocess, recipe.source, origin)
    (place / "model.toml").write_text(text, encoding="utf-8")


def name_of(options: argparse.Namespace) -> str:
    """Return the model's name.

    Raises:
        Unclear: it cannot be one.
    """
    if options.name is None:
        found = options.output.resolve().name
        if _NAME.fullmatch(found):
            return str(found)
        raise Unclear(f"--name: the folder's name, \"{found}\", cannot be a model's; give another")
    if not _NAME.fullmatch(options.name):
        raise Unclear(
            f'--name: "{options.name}" is not up to 64 of A-Z a-z 0-9 . _ - with no sign in front'
        )
    return str(options.name)


def digest(file: Path) -> str:
    """Return the SHA-256 of a file that is packed, in hexadecimal."""
    with open(formats.open_checkpoint(file), "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
