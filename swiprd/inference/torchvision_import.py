"""Import torchvision where it does not import by itself, and without what nobody here needs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch


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
