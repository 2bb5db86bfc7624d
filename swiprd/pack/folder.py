"""A model's folder, written whole or not at all.

It is made beside its place under another name, proven there by the caller, and renamed. The
folder and its files get the modes 0755 and 0644: a program must be writable by nobody but its
owner to be run, and the daemon's user must be able to read all of it. Knows no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swiprd.bundle import Preprocess
from swiprd.pack.errors import CannotCreate, CannotWrite

LABELS = "labels.txt"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A key of model.toml with its value and where that is from."""

    key: str
    value: object
    why: str = ""


@contextmanager
def making(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Give a folder to fill that becomes `folder` if nothing is raised, and else is gone.

    Args:
        replace: a model's folder that is there already is replaced, if it is one.

    Raises:
        CannotCreate: there is something in the way, or the folder cannot be made.
        CannotWrite: it cannot be written to.
    """
    check_place(folder, replace=replace)
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise CannotCreate(f"{folder}: cannot be made: {error.strerror}") from None
    try:
        made.chmod(0o755)
        yield made
        for file in made.iterdir():
            file.chmod(0o644)
            _flush(file)
        _put(made, folder)
    except OSError as error:
        raise CannotWrite(f"{folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_place(folder: Path, *, replace: bool) -> None:
    """See that `folder` can be made.

    Raises:
        CannotCreate: it is there and not to be replaced, or what it would lie in is not there.
    """
    if not folder.parent.is_dir():
        raise CannotCreate(f"{folder}: there is no folder {folder.parent}: make it first")
    if not os.path.lexists(folder):
        return
    if not replace:
        raise CannotCreate(f"{folder}: is there already; --force replaces it")
    if folder.is_symlink() or not (folder / "model.toml").is_file():
        raise CannotCreate(f"{folder}: is no model's folder, and is not replaced")


def describe(lines: Sequence[Line], preprocess: Preprocess, source: str, origin: str) -> str:
    """Write model.toml.

    Args:
        source: where the preprocessing is from.
        origin: what was packed.
    """
    texts = [f"# Made by swiprd pack from {_comment(origin)}", *map(_line, lines)]
    texts += ["", f"[preprocess]  # as {_comment(source)}"]
    texts += [_line(Line(key=key, value=value)) for key, value in _keys(preprocess)]
    return "\n".join(texts) + "\n"


def _keys(preprocess: Preprocess) -> Iterator[tuple[str, object]]:
    """Yield what stands under [preprocess]: all that says how, and of the rest what differs."""
    yield "resize", preprocess.resize or 0
    if preprocess.edge != "short":
        yield "edge", preprocess.edge
    yield "crop", preprocess.crop
    yield "crops", preprocess.crops
    if preprocess.middle != "even":
        yield "middle", preprocess.middle
    yield "interpolation", preprocess.interpolation
    yield "exif", preprocess.exif
    yield "mean", list(preprocess.mean)
    yield "std", list(preprocess.std)


def _line(line: Line) -> str:
    # Of strings, numbers and lists of numbers JSON's text is TOML's.
    text = f"{line.key} = {json.dumps(line.value, ensure_ascii=False)}"
    return f"{text}  # {_comment(line.why)}" if line.why else text


def _comment(text: str) -> str:
    """Return text that cannot end a comment: names come from strangers' files."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _put(made: Path, folder: Path) -> None:
    if not os.path.lexists(folder):
        made.rename(folder)
        return
    old = made.with_name(f"{made.name}.old")
    folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
