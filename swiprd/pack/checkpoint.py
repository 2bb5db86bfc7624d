"""A checkpoint's file → what lies in it, with nothing unpickled but tensors and plain values.

The file is copied into memory once, and everything reads that copy: the bytes that were screened
are the bytes that are loaded, and a training run that saves again cannot truncate a mapping.
A pickle is screened (`screen`) and then read by `torch.load(weights_only=True)`. What training
scripts leave beside the weights is let in as `Unread`, and no class of a library besides torch is:
numpy's dtype, for one, takes from a file the addresses that it reads at. Everything else ends in
`NotWeights`, with what to do instead.
"""

from __future__ import annotations

import hashlib
import importlib
import mmap
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Self, cast

import torch

from swiprd.inference.pickle_scan import INERT, Unwanted, screen
from swiprd.pack.errors import CannotOpen, NotWeights
from swiprd.pack.formats import MAX_SIZE, Format, open_checkpoint
from swiprd.system.reason import first_line

_LEGACY_PICKLES = 5  # magic number, version, sizes of types, what was saved, names of storages


class Unread:
    """Stands for a value that is no part of the weights (options, a path, a score), and is empty.

    A pickle can call it, with anything, and give it a state; neither has an effect, and there is
    no attribute to set.
    """

    __slots__ = ()

    def __new__(cls, *_: object) -> Self:
        """Take whatever the file passes."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Keep nothing."""

    def __setstate__(self, _: object) -> None:
        """Keep nothing."""


def read(file: Path, form: Format, digest: str | None = None) -> Any:
    """Read a checkpoint that `formats.recognise` told to be of `form`; return what it holds.

    Dictionaries come as plain `dict`s, tensors in them without gradient or attributes.

    Args:
        digest: SHA-256 that the file had before, in hexadecimal, to see that it is the same still.

    Raises:
        NotWeights: it asks for more than tensors and plain values, or it is damaged.
        CannotOpen: as `formats.open_checkpoint`; or there is another in its place by now.
    """
    with _copied(file, digest) as copy:
        if form == "safetensors":
            return _read_safetensors(file, copy)
        try:
            _screen(copy, form)
            with (
                torch.serialization.safe_globals([(Unread, name) for name in INERT]),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # of old pickle protocols; they are read or refused
                # Mapped, because torch before 2.10 believes a pickle that claims more values than
                # the archive has, and reads beyond them (GHSA-63cw-57p8-fm3p); of a mapping it
                # only takes slices.
                content = torch.load(
                    copy, map_location="cpu", weights_only=True, mmap=form == "zip"
                )
            return _plain(content)
        except Unwanted as error:
            raise NotWeights(f"{file}: {error}") from None
        except pickle.UnpicklingError as error:
            raise NotWeights(
                f"{file}: a pickle of something else ({first_line(error)}):"
                " torch.save(model.state_dict(), 'weights.pth') writes what can be read"
            ) from None
        except Exception as error:
            # A damaged file can make torch raise nearly anything.
            reason = first_line(error)
            raise NotWeights(
                f"{file}: truncated or damaged: fetch it or save it again ({reason})"
            ) from error


@contextmanager
def _copied(file: Path, digest: str | None) -> Iterator[str]:
    """Copy a file into memory; yield a path that leads to the copy and to nothing else.

    What is mapped from it stays when it is closed.
    """
    seen = hashlib.sha256()
    size = 0
    with (
        open(open_checkpoint(file), "rb") as opened,
        open(os.memfd_create("swipr", os.MFD_CLOEXEC), "wb") as copy,
    ):
        try:
            while data := opened.read(1 << 20):
                seen.update(data)
                copy.write(data)
                size += len(data)
                if size > MAX_SIZE:
                    raise NotWeights(f"{file}: grows while it is read; {MAX_SIZE} is the limit")
            copy.flush()
        except OSError as error:
            raise CannotOpen(f"{file}: {error.strerror}, while it was read into memory") from None
        if digest not in (None, seen.hexdigest()):
            raise CannotOpen(f"{file}: changed while it was read. Once it is complete, try again")
        yield f"/proc/self/fd/{copy.fileno()}"


def _screen(copy: str, form: Format) -> None:
    if form == "zip":
        # The reader that torch.load uses: two may differ about which bytes are the pickle.
        record = torch._C.PyTorchFileReader(copy).get_record("data.pkl")
        screen(BytesIO(record), 1)
        return
    with (
        open(copy, "rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        screen(cast("BytesIO", mapped), _LEGACY_PICKLES)


def _plain(content: Any) -> Any:
    """Return the content with every dictionary, and every tensor in one, made anew.

    A pickle may set attributes, of an OrderedDict (`_metadata`) or a parameter for example, and
    so put something else in the place of their methods. Dictionaries may hold each other.
    """
    if not isinstance(content, dict):
        return content
    made: dict[int, dict[Any, Any]] = {}
    found = [content]
    for one in found:  # which grows
        if id(one) not in made:
            made[id(one)] = {}
            found += [value for value in dict.values(one) if isinstance(value, dict)]
    filled = set()
    for one in found:
        if id(one) not in filled:
            filled.add(id(one))
            made[id(one)].update((key, _renewed(value, made)) for key, value in dict.items(one))
    return made[id(content)]


def _renewed(value: Any, made: dict[int, dict[Any, Any]]) -> Any:
    if isinstance(value, dict):
        return made[id(value)]
    return torch.Tensor.detach(value) if isinstance(value, torch.Tensor) else value


def _read_safetensors(file: Path, copy: str) -> dict[str, torch.Tensor]:
    try:
        library = importlib.import_module("safetensors.torch")
    except ModuleNotFoundError:
        raise NotWeights(
            f"{file}: safetensors, and the library that reads it is not installed:"
            " pip install safetensors"
        ) from None
    try:
        state: dict[str, torch.Tensor] = library.load_file(copy)
    except Exception as error:
        reason = first_line(error)
        raise NotWeights(f"{file}: not a whole safetensors file: {reason}") from error
    return state
