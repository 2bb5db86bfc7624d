"""A Hugging Face folder with weights → an ONNX file, and what transformers answers, to prove it by.

    python -P -m swiprd.pack.hf_export FOLDER OUT PARENT < REQUEST

A process of its own, which leaves with all that it has imported, and with its parent; config.json
may tell of a network of any size, so it may have no more memory than there is. REQUEST is a line of
JSON (`Request`). Writes network.onnx and answers.json (`Answers`) into OUT, a directory
that is there and its caller's alone. Reads safetensors alone, runs no code from the folder and
opens no connection: transformers is told to before it is imported, and where to keep what it would
cache. Exits with 0, or with 1 and a line on standard error that says why.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from swiprd.inference.decode import decode
from swiprd.inference.onnx_model import INPUT, OUTPUT
from swiprd.inference.proof import others
from swiprd.inference.torchvision_import import import_torchvision
from swiprd.pack.hf_request import NETWORK, Answers, Request
from swiprd.system.kernel import die_with_parent
from swiprd.system.proc import bound_own_memory, offer_to_the_oom_killer
from swiprd.system.reason import first_line

_OPSETS = (17, 18)  # as inference/compile.py has it; and one more, which a few networks need
_MOST_LEVELS = 0.01
"""By how much of a level, of the 256 that a pixel has, our preparation of a picture may differ from
the image processor's: rounding in float32, and nothing that can be seen."""

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "USE_HUB_KERNELS": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


class CannotExport(Exception):
    """The folder cannot be packed; the text says why."""


class _Logits(torch.nn.Module):
    """A network of transformers that takes crops, red first, and gives its outputs alone."""

    def __init__(self, network: torch.nn.Module, flipped: bool) -> None:
        super().__init__()
        self.network = network
        self._flipped = flipped

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Answer a batch: [n, 3, h, w] → [n, labels]."""
        if self._flipped:
            crops = crops.flip(1)
        outputs: torch.Tensor = self.network(pixel_values=crops, return_dict=True).logits
        return outputs


def export(folder: Path, out: Path, request: Request) -> None:
    """Write `out`/network.onnx and `out`/answers.json.

    Raises:
        CannotExport: transformers is not installed, does not read the folder, prepares pictures
            otherwise, or torch cannot export the network.
        OSError: a file cannot be written.
    """
    transformers = _import_transformers(out)
    module = _Logits(_load(transformers, folder, request), request.flipped).eval()
    pictures = list(others())
    crops = [decode(one, request.preprocess) for one in pictures]
    if request.backend:
        _compare(transformers, folder, request, pictures, crops)
    rows = [_answer(module, one, request).tolist() for one in crops]
    _export(module, request.preprocess.crop, out / NETWORK)
    versions = {"torch": str(torch.__version__), "transformers": str(transformers.__version__)}
    Answers(rows=np.array(rows), versions=versions).write(out)


def _import_transformers(out: Path) -> ModuleType:
    """Import transformers, told to stay offline.

    Raises:
        CannotExport: it is not installed, or cannot be imported.
    """
    os.environ |= _QUIET | {"HF_HOME": str(out / "home")}
    import_torchvision()  # which transformers imports, where it can
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise CannotExport(f"transformers cannot be imported: {first_line(error)}") from None
    transformers.logging.set_verbosity_error()
    return transformers


def _load(transformers: Any, folder: Path, request: Request) -> torch.nn.Module:
    """Load the network with its weights.

    Raises:
        CannotExport: transformers has no such class of its own, or the weights are not its.
    """
    name = request.architecture
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    classes = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    known = {one for some in classes for one in ([some] if isinstance(some, str) else some)}
    if name not in known:
        raise CannotExport(
            f"transformers {transformers.__version__} has no image classifier {name}, and code of"
            " the folder's own is not run"
        )
    try:
        network, found = getattr(transformers, name).from_pretrained(
            str(folder.absolute()),
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            # The plain operations, which can be exported, and of no kernel that is fetched.
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:
        # Of a damaged file, a config of nonsense, shapes that do not fit: classes of all kinds.
        raise CannotExport(f"transformers does not load it: {first_line(error, 300)}") from None
    if missing := sorted(found["missing_keys"]):
        raise CannotExport(
            f"the weights lack {missing[0]}, one of {len(missing)} that {name} has: was it saved"
            " before it was trained as a classifier?"
        )
    loaded: torch.nn.Module = network.eval()
    return loaded


def _compare(
    transformers: Any,
    folder: Path,
    request: Request,
    pictures: list[bytes],
    crops: list[np.ndarray],
) -> None:
    """See that the folder's own image processor makes the same of the pictures.

    Raises:
        CannotExport: it does not, or cannot be loaded.
    """
    try:
        prepare = transformers.AutoImageProcessor.from_pretrained(
            str(folder.absolute()),
            backend=request.backend,
            local_files_only=True,
            trust_remote_code=False,
        )
        made = [_prepared(prepare, one) for one in pictures]
    except Exception as error:
        raise CannotExport(f"its image processor fails: {first_line(error, 300)}") from None
    scale = 255 * np.array(request.preprocess.std).reshape(3, 1, 1)
    for theirs, (ours,) in zip(made, crops, strict=True):
        ours = ours[::-1] if request.flipped else ours
        if theirs.shape != ours.shape:
            raise CannotExport(f"its image processor gives {theirs.shape}, swipr {ours.shape}")
        levels = float((np.abs(theirs - ours) * scale).max())
        if not levels <= _MOST_LEVELS:
            raise CannotExport(
                "its image processor prepares pictures in a way that swipr does not: a pixel"
                f" differs by {levels:.3g} of 256 levels"
            )


def _prepared(prepare: Callable[..., Any], picture: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    values: np.ndarray = np.asarray(prepare(images=image, return_tensors="np")["pixel_values"])[0]
    return values


def _answer(module: _Logits, crops: np.ndarray, request: Request) -> np.ndarray:
    """Answer a picture with probabilities: float64 [labels].

    Raises:
        CannotExport: the network fails, or has not as many outputs as there are labels.
    """
    try:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(crops)).double()
    except Exception as error:
        # A network for pictures of another size, for one: each has its own words.
        raise CannotExport(f"the network fails on a picture: {first_line(error, 300)}") from None
    if tuple(outputs.shape) != (1, request.labels):
        found = list(outputs.shape)
        raise CannotExport(f"{found} outputs for a picture, where {request.labels} have names")
    match request.activation:
        case "softmax" | "log_softmax":
            outputs = outputs.softmax(dim=1)
        case "sigmoid":
            outputs = outputs.sigmoid()
    row: np.ndarray = outputs[0].numpy()
    if not np.isfinite(row).all():
        raise CannotExport("the answer to a picture is not a number: NaNs in the weights?")
    return row


def _export(module: _Logits, crop: int, file: Path) -> None:
    for opset in _OPSETS:
        try:
            return _export_as(module, crop, file, opset)
        except ModuleNotFoundError as error:
            raise CannotExport(f"torch's exporter needs {error.name}: pip install onnx") from None
        except Exception as error:
            # An operator that it does not know, or a file beyond the 2 GB of its format.
            reason = first_line(error, 300)
    raise CannotExport(f"torch does not export it: {reason}")


def _export_as(module: _Logits, crop: int, file: Path, opset: int) -> None:
    torch.onnx.export(
        module,
        (torch.zeros(2, 3, crop, crop),),  # two: a trace may take one for granted
        str(file),
        dynamo=False,
        opset_version=opset,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
    )


def main(arguments: list[str]) -> int:
    """Run for the command line; return the exit status."""
    folder, out = map(Path, arguments[:2])
    die_with_parent(int(arguments[2]))
    offer_to_the_oom_killer()
    bound_own_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    warnings.simplefilter("ignore")  # of tracing, and of the exporter's age: they fill a page
    logging.disable(logging.WARNING)
    try:
        export(folder, out, Request.from_json(sys.stdin.buffer.readline()))
    except (CannotExport, OSError) as error:
        print(first_line(error, 1000), file=sys.stderr)
        return 1
    except MemoryError:
        print("exporting it takes more memory than there is", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
