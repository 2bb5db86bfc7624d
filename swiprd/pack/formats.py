"""A file → what kind of checkpoint it is, by its first bytes and a zip's list of members.

Reads no pickle and no tensor. The name of the file does not count: fastai 0.7 calls torch's
legacy format `.h5`, and others call a state_dict `.tar`. Standard library only.
"""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import Literal

from swiprd.pack.errors import CannotOpen, NotWeights

Format = Literal["zip", "legacy", "safetensors", "torchscript", "export", "onnx"]

# The largest torchvision classifier has 2.6 GB of weights; with Adam's state, three times that.
MAX_SIZE = 16 << 30

# torch.serialization.MAGIC_NUMBER, pickled with protocol 2: how the legacy format begins.
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_MAX_HEADER = 100_000_000  # where the safetensors library gives up
_ONNX_VERSIONS = range(3, 32)  # ir_version, the first field; TensorFlow's SavedModel has 1 there

_CONVERT = "make an ONNX file of it (python -m tf2onnx.convert), which can be packed"

_OTHERS = (
    (b"\x89HDF\r\n\x1a\n", f"HDF5, probably a Keras model: {_CONVERT}"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first (gunzip)"),
    (b"BZh", "compressed with bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"GGUF", "GGUF, the weights of a language model"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"<", "a web page or XML: was the download refused?"),
)
_RESAVE = "re-save it with torch.save(model.state_dict(), 'weights.pth')"


def open_checkpoint(file: Path) -> int:
    """Open for reading; return the descriptor, which the caller closes.

    Raises:
        CannotOpen: it is not there, not readable, or not a regular file.
        NotWeights: empty or larger than `MAX_SIZE`.
    """
    try:
        # Non-blocking: opening a pipe would wait for a process that writes to it.
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CannotOpen(f"{file}: {reason}") from None
    try:
        _check(file, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def recognise(file: Path) -> Format:
    """Tell the format of a checkpoint.

    Raises:
        CannotOpen: as `open_checkpoint`.
        NotWeights: another kind of file; says which, where its first bytes tell.
    """
    with open(open_checkpoint(file), "rb") as opened:
        head = opened.read(512)
        if head.startswith(b"PK"):
            return _recognise_zip(file)
    # Eight bytes of length, which may look like anything else below, then JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER:
        return "safetensors"
    if head.startswith(_LEGACY):
        return "legacy"
    if head[:1] == b"\x80":
        raise NotWeights(f"{file}: a pickle, but none that torch.save() wrote: {_RESAVE}")
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise NotWeights(f"{file}: {what}")
    if head[4:8] == b"TFL3":
        raise NotWeights(f"{file}: a TensorFlow Lite model: {_CONVERT}")
    if head[257:262] == b"ustar":
        raise NotWeights(f"{file}: a tar archive: unpack it first")
    if head[:1] == b"\x08" and head[1] in _ONNX_VERSIONS:
        return "onnx"
    if head[:3] == b"\x08\x01\x12" or head[:1] == b"\x0a":
        raise NotWeights(f"{file}: looks like a TensorFlow graph: {_CONVERT}")
    raise NotWeights(
        f"{file}: not a checkpoint: neither torch.save()'s formats, nor safetensors, nor ONNX"
    )


def _check(file: Path, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise CannotOpen(f"{file}: {_describe_folder(file)}")
    if not stat.S_ISREG(info.st_mode):
        raise CannotOpen(f"{file}: not a regular file")
    if info.st_size == 0:
        raise NotWeights(f"{file}: empty")
    if info.st_size > MAX_SIZE:
        raise NotWeights(f"{file}: {info.st_size} bytes, where {MAX_SIZE} is the limit")


def _describe_folder(folder: Path) -> str:
    if (folder / "model.toml").exists():
        return "a folder that is packed already: swiprd check tells whether it works"
    if (folder / "saved_model.pb").exists():
        return f"a TensorFlow SavedModel: {_CONVERT}"
    return "a folder: name the checkpoint in it"


def _recognise_zip(file: Path) -> Format:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError):
        raise NotWeights(f"{file}: truncated or damaged: fetch it again") from None
    # torch puts everything in one folder, named after the file or "archive".
    names = {one.filename.partition("/")[2] or one.filename for one in members}
    bare = {one.filename for one in members}
    if "archive_format" in names or "serialized_exported_program.json" in names | bare:
        return "export"
    if {"data.pkl", "constants.pkl"} <= names:
        return "torchscript"
    if "data.pkl" in names:
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise NotWeights(f"{file}: zipped again and compressed: {_RESAVE}")
        return "zip"
    if {"config.json", "model.weights.h5"} <= bare:
        raise NotWeights(f"{file}: a Keras model: {_CONVERT}")
    inside = next(iter(sorted(bare)), None)
    what = f"which holds {inside}: unpack it first" if inside else "and an empty one"
    raise NotWeights(f"{file}: a zip archive, {what}")
