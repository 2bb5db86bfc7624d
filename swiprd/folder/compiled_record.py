"""compiled.toml: what the compiled form beside it was made from, and how far it was proven.

The compiled form, compiled.onnx, answers in place of the weights. It may do so only while its
record says that it was made from these weights and this model.toml, and that these very bytes were
proven. A record that is damaged, or somebody else's, counts as none. Standard library only; neither
makes a compiled form nor runs one (inference/compile.py, prove.py, onnx_model.py).
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from swiprd.folder.model_id import digest_answers, digest_weights
from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import SpecError, read

COMPILED = "compiled.onnx"
RECORD = "compiled.toml"

FAILED = "failed.txt"
"""In the cache, in place of a form that could not be made: the reason."""

LIBRARIES = ("torch", "onnx", "onnxruntime")
"""What makes a form and proves it."""

FORMAT = 1
"""Of the record, and of what a compiled form's inputs and outputs are. No other one is read."""

MOST_DIFFERENCE = 1e-5
"""How far a probability of the compiled form may be from torch's. Where there is no activation, and
outputs are no probabilities, of those larger than 1 it is this fraction."""

_MARGIN = 1.05  # of torch's processor time: less is noise

_MOST = 4 << 20
"""Bytes that are read of a record: a thousand labels take 20 KB."""

_HEAD = """\
# Made by swiprd: compiled.onnx was proven to answer as the weights do. Not to be edited; without
# this file, or with another compiled.onnx, it is made again.
"""


@dataclass(frozen=True, kw_only=True)
class CompiledRecord:
    """A proven compiled form.

    Attributes:
        directory: where it lies, with its record; not written into it.
        format: `FORMAT` when it was made.
        digest: the SHA-256 of what decides its answers, the weights' included (model_id.py).
        sha256: of compiled.onnx.
        versions: of torch, torchvision and onnx, which made it, onnxruntime, which proved it, and
            swipr.
        difference: the largest between a probability of its own and torch's, as seen when it was
            proven; see `MOST_DIFFERENCE`.
        pictures: how many it was proven with.
        batches: in batches of how many.
        seconds, torch_seconds: of one thread's processor time for a picture, of both engines.
        labels: the thousand that a model with `labels = "imagenet"` takes from torchvision, which
            is not imported where a compiled form serves; else none.
    """

    directory: Path
    format: int = FORMAT
    digest: str
    sha256: str
    versions: Mapping[str, str]
    difference: float
    pictures: int
    batches: tuple[int, ...]
    seconds: float
    torch_seconds: float
    labels: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """The compiled form."""
        return self.directory / COMPILED

    def outpaced(self) -> str:
        """Return why torch is the better choice; nothing where it is not.

        A draw is the compiled form's, which starts sooner and takes less memory.
        """
        if self.seconds <= self.torch_seconds * _MARGIN:
            return ""
        return (
            f"torch is faster: {self.torch_seconds * 1e3:.1f} ms of a processor for an image, the"
            f" compiled form takes {self.seconds * 1e3:.1f}"
        )


def load_record(directory: Path) -> CompiledRecord | None:
    """Read `directory`/compiled.toml; None where there is none that can be used. Never blocks."""
    try:
        values = tomllib.loads(read(directory / RECORD, _MOST).decode())
        return _parse(directory, values)
    except (SpecError, ValueError, RecursionError, KeyError, TypeError, OverflowError):
        # ValueError: not UTF-8, not TOML, or a value of another kind; RecursionError: tomllib's
        return None


def is_there(directory: Path) -> bool:
    """Whether there is anything of a compiled form, fit to be used or not."""
    return any(os.path.lexists(directory / name) for name in (COMPILED, RECORD))


def write_record(record: CompiledRecord) -> None:
    """Write compiled.toml, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    lines = [_HEAD.rstrip("\n")]
    versions = sorted(record.versions.items())
    for one in fields(record):
        if one.name not in ("directory", "versions"):
            lines.append(f"{one.name} = {_toml(getattr(record, one.name))}")
    lines += ["", "[versions]", *(f"{_toml(name)} = {_toml(value)}" for name, value in versions)]
    fresh = record.directory / f"{RECORD}.new"
    with fresh.open("w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(record.directory / RECORD)


def is_current(
    record: CompiledRecord,
    spec: ModelSpec,
    *,
    compiled: str | None = None,
    weights: str | None = None,
) -> str:
    """Return why a compiled form may not answer for `spec`; nothing where it may.

    Reads the weights and compiled.onnx: about a second per gigabyte. The weights' own digest
    counts, whatever model.toml says it is: they may have been replaced.

    Args:
        compiled, weights: the SHA-256 of compiled.onnx and of the weights, by those who have just
            read them.
    """
    if record.format != FORMAT:
        return f"{record.directory / RECORD} has format {record.format}, where {FORMAT} is read"
    if record.difference > MOST_DIFFERENCE:
        return f"{record.directory / RECORD} tells of a difference of {record.difference:.1e}"
    try:
        compiled = compiled or digest_file(record.file)
    except OSError as error:
        return f"{record.file} cannot be read: {error.strerror or error}"
    if compiled != record.sha256:
        return f"{record.file} is not the file that was proven"
    try:
        weights = weights or digest_weights(spec)
    except SpecError as error:
        return str(error)
    if digest_answers(spec, weights) != record.digest:
        return f"{record.file} was made from other weights, other labels or another model.toml"
    return ""


def open_compiled(file: Path) -> io.BufferedReader:
    """Open a compiled form for reading. Never blocks: a named pipe is refused, not waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    opened = _open(file)
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError(errno.EINVAL, "no regular file", str(file))
    return opened


def _open(file: Path) -> io.BufferedReader:
    return open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


def digest_file(file: Path) -> str:
    """Return a compiled form's SHA-256 in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with open_compiled(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _parse(directory: Path, values: dict[str, Any]) -> CompiledRecord:
    """Take the values of a record.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: one is missing or of another kind.
    """
    versions = values["versions"]
    if not isinstance(versions, dict):
        raise TypeError("versions")
    return CompiledRecord(
        directory=directory,
        format=_whole(values["format"]),
        digest=_text(values["digest"]),
        sha256=_text(values["sha256"]),
        versions={name: _text(value) for name, value in versions.items()},
        difference=_number(values["difference"]),
        pictures=_whole(values["pictures"]),
        batches=tuple(map(_whole, _array(values["batches"]))),
        seconds=_number(values["seconds"]),
        torch_seconds=_number(values["torch_seconds"]),
        labels=tuple(map(_text, _array(values["labels"]))),
    )


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return float(value)


def _toml(value: object) -> str:
    # Of strings, numbers and lists of those JSON's text is TOML's, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
