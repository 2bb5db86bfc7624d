"""Modules to be filled from a file: built for their tensors' names and shapes, not their values."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Skeleton(TorchFunctionMode):
    """Build modules without memory: what would be weights lies on the meta device, unfilled.

    Like `with torch.device("meta")`, with two differences. Only torch.empty() goes there, so that
    tables which a constructor computes (RegNet's widths, Swin's indices) are real. And nothing is
    initialised: that would be thrown away, and on the meta device it imports torch._dynamo.

    Args:
        meta: False leaves the weights where they are, for constructors that fill tables of their
            own after torch.empty(). Pages that nobody writes to take no memory either.
    """

    _FILLS = frozenset(
        getattr(torch.Tensor, name)
        for name in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
    )

    def __init__(self, *, meta: bool = True) -> None:
        super().__init__()
        self._meta = meta

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._meta and func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        elif getattr(func, "__module__", None) == "torch.nn.init" or func in self._FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta or isinstance(tensor, torch.nn.Parameter):
                return tensor
        return func(*args, **kwargs)
