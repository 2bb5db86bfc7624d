"""Modules without memory: built for the names and shapes of their tensors, filled from a file."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Skeleton(TorchFunctionMode):
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
