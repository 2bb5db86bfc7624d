"""A bundle → a module in evaluation mode; a batch of crops → probabilities.

`load_model` runs in the forkserver, whose children inherit the module. It must therefore start no
thread and run no parallel region (a child's OpenMP would hang), run no forward pass, and copy no
weights: they stay mapped from the file, so that all workers share one copy in the page cache.
Decodes nothing and answers nobody.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import pickle
import platform
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import torch
from torch.overrides import TorchFunctionMode

from swiprd.bundle import Bundle, BundleError, identify


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A module that is ready to answer, and what it calls itself.

    Attributes:
        labels: one for each output, in their order.
        model_id: the name and a digest of what decides the answers; see `bundle.identify`.
        versions: of everything that has a say in the last digits of an answer.
        device: where the module lies: "cpu" or "cuda".
    """

    bundle: Bundle
    module: torch.nn.Module
    labels: tuple[str, ...]
    model_id: str
    versions: dict[str, str]
    device: str = "cpu"


def load_model(bundle: Bundle) -> LoadedModel:
    """Build the architecture without memory of its own and put the mapped weights into it.

    Inception v3 and GoogLeNet are built as trained from scratch, without torchvision's
    `transform_input`: for their published weights the bundle says mean = std = 0.5.

    Raises:
        BundleError: an unknown architecture, or weights that are not a state_dict of it; names
            the first tensor at fault.
    """
    torchvision = import_torchvision()
    _check_architecture(torchvision, bundle)
    labels = _labels(torchvision, bundle)
    state = _load_state(bundle)
    module = _build(torchvision, bundle, len(labels), state)
    _check_state(bundle, module.state_dict(), state, len(labels))
    module.load_state_dict(state, strict=True, assign=True)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            # Neither in the file nor computed by the constructor: there is no right value.
            raise BundleError(bundle.weights, name, "a value", "none")
    return LoadedModel(
        bundle=bundle,
        module=module.eval().requires_grad_(False),
        labels=labels,
        model_id=identify(bundle),
        versions={
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def probabilities(loaded: LoadedModel, crops: torch.Tensor) -> torch.Tensor:
    """Answer a batch: float32 crops of shape [images, crops, 3, h, w] → [images, labels], on CPU.

    With `log_softmax` the outputs are the logarithms of the probabilities, and softmax is what
    undoes that: it equals exp() there, and is also right for a checkpoint whose LogSoftmax was
    left out of the module that the weights were saved from.
    """
    images, count = crops.shape[:2]
    with torch.inference_mode():
        # Channels last: 33 ms instead of 58 for 25 crops through shufflenet_v2_x0_5, up to a tenth
        # less for other architectures and never more. The weights can stay as they are.
        batch = crops.flatten(0, 1).to(loaded.device, memory_format=torch.channels_last)
        outputs = loaded.module(batch).unflatten(0, (images, count))
        match loaded.bundle.preprocess.pool:
            case "logits":
                rows = _activate(loaded, outputs.mean(dim=1))
            case "logsumexp":
                rows = _activate(loaded, outputs.logsumexp(dim=1) - math.log(count))
            case "mean":
                rows = _activate(loaded, outputs).mean(dim=1)
        return rows.cpu()


def pick_device(wanted: str) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda", without initialising CUDA.

    Raises:
        RuntimeError: CUDA is wanted by name and this host or this torch has none.
    """
    if wanted == "cpu":
        return "cpu"
    # By NVML: the other way of asking initialises the driver, and then no child may use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise RuntimeError("CUDA is asked for, and torch finds no device for it")
    return "cpu"


def to_device(loaded: LoadedModel, device: str) -> LoadedModel:
    """Move the module to "cpu" or "cuda". Only in a worker: CUDA does not survive a fork."""
    if device == loaded.device:
        return loaded
    return replace(loaded, module=loaded.module.to(device), device=device)


def import_torchvision() -> ModuleType:
    """Import torchvision, beside a torch built without CUDA too, and without torch's compiler.

    The registry's torchvision has CUDA-built operators. Beside a CPU build of torch they cannot be
    loaded, and the import fails at the first mention of `torchvision::nms`. No classifier uses
    one, so it is enough to declare them. The failing attempt takes 4 ms.
    """
    try:
        with _compiler_deferred():
            return _import_mended()
    except (ImportError, AttributeError):
        # A torchvision that wants more of the compiler than ours knew of: let it have that.
        _forget_torchvision()
        return _import_mended()


_operators: Any = None  # the declarations live as long as this


def _import_mended() -> ModuleType:
    global _operators
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    library: Any = torch.library  # not typed throughout
    _operators = library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _forget_torchvision()
    return importlib.import_module("torchvision")


def _forget_torchvision() -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


@contextmanager
def _compiler_deferred() -> Iterator[None]:
    """Keep `import torchvision` from importing torch._dynamo: 0.9 s and 140 MB, for nothing here.

    One operator of object detection takes one function from it. It gets one of the same name that
    imports the real thing when called.
    """
    names = ("torch._dynamo", "torch._dynamo.utils")
    if names[0] in sys.modules:
        yield
        return
    package, utils = (ModuleType(name) for name in names)

    def is_compile_supported(device_type: str) -> Any:
        return importlib.import_module(names[1]).is_compile_supported(device_type)

    utils.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {names[0]: package, names[1]: utils}
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


class _Skeleton(TorchFunctionMode):
    """Build modules without memory: what would be weights lies on the meta device, unfilled.

    Like `with torch.device("meta")`, with two differences. Only torch.empty() goes there, so that
    tables which a constructor computes (RegNet's widths, Swin's indices) are real. And nothing is
    initialised: that would be thrown away, and on the meta device it imports torch._dynamo.
    """

    _FILLS = frozenset(
        getattr(torch.Tensor, name)
        for name in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        elif getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        elif func in self._FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


def _check_architecture(torchvision: ModuleType, bundle: Bundle) -> None:
    classifiers = torchvision.models.list_models(module=torchvision.models)
    if bundle.architecture not in classifiers:
        near = difflib.get_close_matches(bundle.architecture, classifiers, n=1)
        expected = near[0] if near else "a torchvision classifier, such as resnet50"
        raise BundleError(bundle.file, "architecture", expected, f'"{bundle.architecture}"')


def _labels(torchvision: ModuleType, bundle: Bundle) -> tuple[str, ...]:
    if bundle.labels != "imagenet":
        return bundle.labels
    weights = next(iter(torchvision.models.get_model_weights(bundle.architecture)))
    return tuple(weights.meta["categories"])


def _load_state(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Map the weights file. What is in a pickle besides tensors is refused, never run."""
    file = bundle.weights
    state_dict = "a state_dict written by torch.save(module.state_dict(), file)"
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
        if magic[:1] == b"\x80":
            expected = "the zip format, which can be mapped"
            mend = "torch.save(torch.load(file, weights_only=True), file)"
            raise BundleError(file, "", expected, f"the legacy format; re-save it: {mend}")
        if magic != b"PK\x03\x04":
            raise BundleError(file, "", state_dict, "another kind of file")
        with zipfile.ZipFile(file) as archive:
            # What was compressed afterwards would be mapped as if it were floats.
            stored = (one.compress_type == zipfile.ZIP_STORED for one in _tensors(archive))
            if not all(stored):
                raise BundleError(file, "", "tensors that are not compressed", "compressed ones")
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except BundleError:
        raise
    except zipfile.BadZipFile:
        raise BundleError(file, "", "a whole file", "a truncated or damaged one") from None
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"a pickle that asks for {wanted[1]}" if wanted else "a pickle of something else"
        raise BundleError(file, "", f"{state_dict}, tensors only", found) from None
    except Exception as error:
        # A damaged file can make torch raise nearly anything.
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise BundleError(file, "", state_dict, f"what cannot be read: {reason}") from error
    if not isinstance(state, dict):
        raise BundleError(file, "", state_dict, type(state).__name__)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            found = f"{type(value).__name__} (is this a checkpoint around the state_dict?)"
            raise BundleError(file, str(name), "a tensor", found)
    return state


def _tensors(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [one for one in archive.infolist() if "/data/" in one.filename]


def _build(
    torchvision: ModuleType, bundle: Bundle, classes: int, state: Mapping[str, torch.Tensor]
) -> torch.nn.Module:
    architecture, crop = bundle.architecture, bundle.preprocess.crop
    options: dict[str, Any] = {}
    if architecture in ("inception_v3", "googlenet"):
        # The heads that only training uses: in the file or not, the answers are the same.
        auxiliary = any(name.startswith(("AuxLogits.", "aux1.")) for name in state)
        options = {"init_weights": False, "aux_logits": auxiliary}
    elif architecture.startswith("vit_"):
        options = {"image_size": crop}
    elif architecture.startswith("maxvit_"):
        options = {"input_size": (crop, crop)}
    try:
        with _Skeleton():
            module: torch.nn.Module = torchvision.models.get_model(
                architecture, weights=None, num_classes=classes, **options
            )
    except (AssertionError, ValueError) as error:
        expected = f"a size that {architecture} takes"
        raise BundleError(bundle.file, "preprocess.crop", expected, f"{crop} ({error})") from None
    return module


def _check_state(
    bundle: Bundle,
    wanted: Mapping[str, torch.Tensor],
    state: dict[str, torch.Tensor],
    classes: int,
) -> None:
    """Compare names, shapes and types. Adds the step counts that old checkpoints lack.

    Raises:
        BundleError: naming the first tensor that differs.
    """
    for name, tensor in wanted.items():
        expected = f"{_describe(tensor)} ({bundle.architecture} with {classes} labels)"
        if name not in state:
            if name.endswith(".num_batches_tracked"):
                state[name] = torch.zeros((), dtype=torch.int64)  # of use in training only
                continue
            near = next((one for one in state if one.endswith(f".{name}")), None)
            found = f"nothing, but {near}" if near else "nothing"
            raise BundleError(bundle.weights, name, expected, found)
        if _describe(state[name]) != _describe(tensor):
            raise BundleError(bundle.weights, name, expected, _describe(state[name]))
    for name in state:
        if name not in wanted:
            expected = f"only the tensors of {bundle.architecture}"
            raise BundleError(bundle.weights, name, expected, "one more")


def _describe(tensor: torch.Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    layout = "" if tensor.layout is torch.strided else f" {tensor.layout}"
    return f"{kind}{layout} of shape {list(tensor.shape)}"


def _activate(loaded: LoadedModel, outputs: torch.Tensor) -> torch.Tensor:
    match loaded.bundle.activation:
        case "softmax" | "log_softmax":
            return outputs.softmax(dim=-1)
        case "sigmoid":
            return outputs.sigmoid()
        case "none":
            return outputs
