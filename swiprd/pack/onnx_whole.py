"""An ONNX file, and the tensors that it keeps in others, → one file in memory.

Nothing is opened but what lies beside the file: no absolute name, none with "..", no link. Needs
the onnx package, only where there are other files. Imports no torch, and runs nothing.
"""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import PROT_READ, mmap
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from swiprd.folder.onnx_file import MOST, BadOnnx, OnnxFile, inspect
from swiprd.pack.errors import CannotOpen, NotWeights
from swiprd.pack.formats import open_checkpoint

_ELSEWHERE = "copy it beside the ONNX file, or export again, into one file"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """One file.

    Attributes:
        opened: a copy in memory, which only this process has.
        contents: what is in it.
        joined: the names of the files whose tensors were put into it.
    """

    opened: BinaryIO
    contents: OnnxFile
    joined: tuple[str, ...]


@contextmanager
def whole(file: Path) -> Iterator[Whole]:
    """Read a file and those that it needs; the copy is gone afterwards.

    Raises:
        CannotOpen: a file cannot be read.
        NotWeights: it is not fit to be served; the text says why, and what to do.
    """
    with open(os.memfd_create("swipr", os.MFD_CLOEXEC), "w+b") as copy:
        with open(open_checkpoint(file), "rb") as opened:
            _copy(file, opened, copy)
        contents = _look(file, copy)
        joined = tuple(sorted(contents.external))
        if joined:
            data = _join(file, copy, joined)
            copy.seek(0)
            copy.truncate()
            copy.write(data)
            copy.flush()
            contents = _look(file, copy)
        yield Whole(opened=copy, contents=contents, joined=joined)


def _copy(file: Path, opened: BinaryIO, copy: BinaryIO) -> None:
    size = 0
    try:
        while data := opened.read(1 << 20):
            copy.write(data)
            size += len(data)
            if size > MOST:
                raise NotWeights(
                    f"{file}: more than {MOST} bytes, ONNX's own limit for one file: pack the"
                    " checkpoint that it was exported from"
                )
        copy.flush()
    except OSError as error:
        raise CannotOpen(f"{file}: {error.strerror}, while it was read into memory") from None


def _look(file: Path, copy: BinaryIO) -> OnnxFile:
    try:
        with mmap(copy.fileno(), 0, prot=PROT_READ) as mapped:
            return inspect(mapped)
    except BadOnnx as error:
        raise NotWeights(f"{file}: {error}") from None


def _join(file: Path, copy: BinaryIO, names: tuple[str, ...]) -> bytes:
    """Put the tensors of other files into the network.

    Raises:
        NotWeights, CannotOpen: they are not there, or there is more than ONNX's limit of it all.
    """
    sizes = {name: _size(file, name) for name in names}
    if os.fstat(copy.fileno()).st_size + sum(sizes.values()) > MOST:
        raise NotWeights(
            f"{file}: with {', '.join(names)} it has more than {MOST} bytes, ONNX's own limit for"
            " one file: pack the checkpoint that it was exported from"
        )
    try:
        onnx = importlib.import_module("onnx")
    except ImportError:
        raise NotWeights(
            f"{file}: has tensors in another file ({names[0]}), and the library that makes one of"
            " both is not installed: pip install onnx"
        ) from None
    copy.seek(0)
    try:
        model = onnx.ModelProto.FromString(copy.read())
    except Exception as error:  # protobuf's own, which is not of the standard library
        raise NotWeights(f"{file}: truncated or damaged: fetch or export it again") from error
    data = {name: _read(file, name) for name in names}
    for tensor in _tensors(model, onnx.TensorProto):
        _fill(file, tensor, data)
    try:
        return bytes(model.SerializeToString())
    except Exception as error:  # protobuf's own again: more than its 2 GB
        raise NotWeights(f"{file}: cannot be made one file: {error}") from None


def _tensors(message: Any, kind: type) -> Iterator[Any]:
    """Yield every tensor inside a message, wherever it is."""
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        for one in (value,) if hasattr(value, "ListFields") else value:
            if isinstance(one, kind):
                yield one
            else:
                yield from _tensors(one, kind)


def _fill(file: Path, tensor: Any, data: dict[str, bytes]) -> None:
    """Give a tensor the values that it has elsewhere.

    Raises:
        NotWeights: they are not there.
    """
    said = {one.key: one.value for one in tensor.external_data}
    if not said and not tensor.data_location:
        return
    held = data.get(said.get("location", ""))
    if held is None:
        raise NotWeights(f"{file}: damaged: {tensor.name[:60]!r} does not say which file it is in")
    start, size = (said.get(key, "0") or "0" for key in ("offset", "length"))
    # Not too many digits: Python reads only so many.
    if not all(one.isascii() and one.isdigit() and len(one) < 20 for one in (start, size)):
        raise NotWeights(f"{file}: damaged: a tensor without its place in {said['location']}")
    begin, length = int(start), int(size) or len(held) - int(start)
    if begin + length > len(held) or length < 0:
        raise NotWeights(
            f"{file.parent / said['location']}: truncated: {len(held)} bytes, where"
            f" {tensor.name[:60]!r} ends at {begin + length}: fetch or export both again"
        )
    tensor.raw_data = held[begin : begin + length]
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _open(file: Path, name: str) -> int:
    """Open what a tensor names; return the descriptor, which the caller closes.

    Raises:
        NotWeights: it does not lie beside the ONNX file.
        CannotOpen: it cannot be opened.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise NotWeights(
            f"{file}: has tensors in {name!r}, and only files beside it are read: {_ELSEWHERE}"
        )
    folder = -1
    try:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for number, part in enumerate(path.parts, start=1):
            # Step by step, and through no link: it would lead wherever whoever made it likes.
            kind = os.O_DIRECTORY if number < len(path.parts) else os.O_NONBLOCK
            step = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=folder)
            os.close(folder)
            folder = step
        if not stat.S_ISREG(os.fstat(folder).st_mode):
            raise OSError(0, "no regular file")
    except OSError as error:
        if folder >= 0:
            os.close(folder)
        why = error.strerror
        if (file.parent / path).is_symlink():
            why = f"a link, which may lead anywhere: {_ELSEWHERE}"
        raise CannotOpen(f"{file.parent / path}: {why} ({file.name} has tensors in it)") from None
    return folder


def _size(file: Path, name: str) -> int:
    opened = _open(file, name)
    try:
        return os.fstat(opened).st_size
    finally:
        os.close(opened)


def _read(file: Path, name: str) -> bytes:
    with open(_open(file, name), "rb") as opened:
        data = opened.read(MOST + 1)
    if len(data) > MOST:
        raise NotWeights(f"{file.parent / name}: grows while it is read; {MOST} bytes is the most")
    return data
