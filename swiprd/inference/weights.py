"""A weights file → its tensors, mapped. Nothing but tensors is read from it, and nothing is run."""

from __future__ import annotations

import importlib
import pickle
import re
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import torch

from swiprd.folder.toml_table import SpecError
from swiprd.inference.pickle_scan import Unwanted, screen
from swiprd.system.reason import first_line

SAFETENSORS = ".safetensors"
_RESAVE = "torch.save(torch.load(file, weights_only=True), file)"


def load_state(file: Path) -> dict[str, torch.Tensor]:
    """Map a weights file: a state_dict in torch's zip format, or `.safetensors`.

    What is in a pickle besides tensors is refused, never run.

    Raises:
        SpecError: it is no such file, or the library that it needs is not installed.
    """
    return _load_safetensors(file) if file.suffix == SAFETENSORS else _load_zip(file)


def _load_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        safetensors = importlib.import_module("safetensors")
    except ModuleNotFoundError:
        expected = "the library safetensors to be installed (pip install 'swipr[safetensors]')"
        raise SpecError(file, "", expected, "no module of that name") from None
    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in opened.offset_keys()}
    except Exception as error:  # SafetensorError, OSError, ValueError, and torch's for odd types
        reason = first_line(error)
        raise SpecError(
            file, "", "a file of safetensors", f"what cannot be read: {reason}"
        ) from error


def _load_zip(file: Path) -> dict[str, torch.Tensor]:
    state_dict = "a state_dict written by torch.save(module.state_dict(), file)"
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
        if magic[:1] == b"\x80":
            expected = "the zip format, which can be mapped"
            raise SpecError(file, "", expected, f"the legacy format; re-save it: {_RESAVE}")
        if magic != b"PK\x03\x04":
            raise SpecError(file, "", state_dict, "another kind of file")
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise SpecError(file, "", state_dict, "a program: TorchScript")
            for one in archive.infolist():
                # A tensor that was compressed afterwards would be mapped as if it were floats; a
                # pickle could unfold to a thousand times its size.
                if one.compress_type != zipfile.ZIP_STORED:
                    expected = "an archive with nothing compressed in it, as torch.save writes it"
                    found = f"{one.filename[:80]!r} compressed; re-save it: {_RESAVE}"
                    raise SpecError(file, "", expected, found)
        # With the reader that torch.load uses: two may differ about which bytes are the pickle.
        screen(BytesIO(torch._C.PyTorchFileReader(str(file)).get_record("data.pkl")), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols; they are read or refused
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except SpecError:
        raise
    except Unwanted as error:
        found = f"a pickle that asks for {error.first}" if error.first else str(error)
        raise SpecError(file, "", f"{state_dict}, tensors only", found) from None
    except zipfile.BadZipFile:
        raise SpecError(file, "", "a whole file", "a truncated or damaged one") from None
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"a pickle that asks for {wanted[1]}" if wanted else "a pickle of something else"
        raise SpecError(file, "", f"{state_dict}, tensors only", found) from None
    except Exception as error:
        # A damaged file can make torch raise nearly anything.
        reason = first_line(error)
        raise SpecError(file, "", state_dict, f"what cannot be read: {reason}") from error
    if not isinstance(state, dict):
        raise SpecError(file, "", state_dict, type(state).__name__)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            found = f"{type(value).__name__} (is this a checkpoint around the state_dict?)"
            raise SpecError(file, str(name), "a tensor", found)
    return state
