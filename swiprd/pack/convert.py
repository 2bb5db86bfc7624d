"""Tensors as a checkpoint has them → as a model's folder has them: float32, in memory of their own.

The workers of a daemon map the file and compute in float32; so what was stored with less (or more)
is converted once, here.
"""

from __future__ import annotations

from collections import Counter

import torch

from swiprd.pack.errors import NotWeights
from swiprd.pack.find_weights import Tensors


def convert(tensors: Tensors) -> tuple[Tensors, str]:
    """Return the tensors as they are to be written, and what was converted, in words.

    Raises:
        NotWeights: one is sparse, nested, quantised or complex, has no values, or claims more than
            it holds.
    """
    found: Tensors = {}
    changed: Counter[str] = Counter()
    for name, tensor in tensors.items():
        _check(name, tensor)
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            changed[str(tensor.dtype).removeprefix("torch.")] += 1
        found[name] = _own(tensor)
    said = ", ".join(f"{count} of {kind}" for kind, count in changed.items())
    return found, f"tensors become float32: {said}" if said else ""


def _check(name: str, tensor: torch.Tensor) -> None:
    # Of a nested or a meta tensor, much of what is asked below cannot be told.
    for faulty, kind in (
        (tensor.is_nested, "nested"),
        (tensor.is_quantized, "quantised"),
        (tensor.layout is not torch.strided or tensor.is_complex(), "sparse or complex"),
    ):
        if faulty:
            raise NotWeights(f"{name}: {kind}, which swipr does not run: save the float32 model")
    if tensor.is_meta:
        raise NotWeights(
            f"{name}: without values, of the meta device: save the model once its weights are there"
        )
    storage = tensor.untyped_storage()
    # A pickle can set attributes of a storage, and what writes it would call them as its methods.
    if any(hasattr(torch.UntypedStorage, one) for one in vars(storage)):
        raise NotWeights(f"{name}: its storage has methods of its own: save the state_dict again")
    # A few bytes may be declared a terabyte by a stride of 0; copying would then fill the memory.
    if tensor.numel() * tensor.element_size() > storage.nbytes():
        raise NotWeights(f"{name}: {list(tensor.shape)} values, where the file holds fewer")


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return it without gradient, dense, and not as a window on something larger."""
    tensor = tensor.detach()
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    tensor = tensor.contiguous()
    if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
        tensor = tensor.clone()
    return tensor
