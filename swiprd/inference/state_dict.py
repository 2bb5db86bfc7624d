"""A checkpoint's tensors → a module's, by name or by order; verified one by one.

Touches no file and no values. What only training counts (`num_batches_tracked`) is never missed,
nor wrong: a home-made average over training steps makes floats of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

Tensors = Mapping[str, torch.Tensor]

_COUNTER = "num_batches_tracked"


class TensorMismatch(Exception):
    """A tensor is not what the module needs.

    Attributes:
        tensor: its name, in the file where it is there, else in the module.
        expected, found: two phrases that complete "expected …, found …".
    """

    def __init__(self, tensor: str, expected: str, found: str) -> None:
        super().__init__(tensor, expected, found)
        self.tensor = tensor
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return f"{self.tensor}: expected {self.expected}, found {self.found}"


def weighty(state: Tensors) -> list[tuple[str, torch.Tensor]]:
    """Return names and tensors in their order, without the step counts."""
    return [one for one in state.items() if one[0].rpartition(".")[2] != _COUNTER]


def match_by_name(wanted: Tensors, state: Tensors, what: str) -> dict[str, torch.Tensor]:
    """Return `state` completed to what `wanted` names; its shapes and types are the same.

    Args:
        wanted: the module's own tensors, values aside.
        what: the module in words, for the errors.

    Raises:
        TensorMismatch: naming the first tensor that differs.
    """
    found = dict(state)
    for name, tensor in wanted.items():
        expected = f"{describe(tensor)} ({what})"
        if name.rpartition(".")[2] == _COUNTER:
            if name not in found or describe(found[name]) != describe(tensor):
                found[name] = torch.zeros((), dtype=torch.int64)
            continue
        if name not in found:
            near = next((one for one in found if one.endswith(f".{name}")), None)
            raise TensorMismatch(name, expected, f"nothing, but {near}" if near else "nothing")
        if describe(found[name]) != describe(tensor):
            raise TensorMismatch(name, expected, describe(found[name]))
    for name in found:
        if name not in wanted:
            raise TensorMismatch(name, f"only the tensors of {what}", "one more")
    return found


def match_by_order(wanted: Tensors, state: Tensors, what: str) -> dict[str, torch.Tensor]:
    """Return `state` under the names of `wanted`: the first for the first, and so on.

    Every pair must have one shape and one type. Two tensors of the same shape that a file holds
    in another order than the module are taken for each other: it is the order that is trusted.

    Raises:
        TensorMismatch: naming the first tensor that differs, in the file and in the module.
    """
    ours, theirs = weighty(wanted), weighty(state)
    found = {name: torch.zeros((), dtype=torch.int64) for name in wanted}
    for (name, tensor), (given, values) in zip(ours, theirs, strict=False):
        if describe(values) != describe(tensor):
            raise TensorMismatch(
                given, f"{describe(tensor)}, as {name} has it ({what})", describe(values)
            )
        found[name] = values
    if len(theirs) < len(ours):
        name, tensor = ours[len(theirs)]
        after = f" after {theirs[-1][0]}" if theirs else ""
        raise TensorMismatch(name, f"{describe(tensor)} ({what})", f"nothing more{after}")
    if len(theirs) > len(ours):
        raise TensorMismatch(theirs[len(ours)][0], f"only the tensors of {what}", "one more")
    return found


def describe(tensor: torch.Tensor) -> str:
    """Say what a tensor is, values aside."""
    kind = str(tensor.dtype).removeprefix("torch.")
    layout = "" if tensor.layout is torch.strided else f" {tensor.layout}"
    return f"{kind}{layout} of shape {list(tensor.shape)}"


def shapes(module: torch.nn.Module) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Yield a module's tensors in the order in which `match_by_order` takes them."""
    for name, tensor in weighty(module.state_dict()):
        yield name, tuple(tensor.shape)
