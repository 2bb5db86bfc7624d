"""Whatever a checkpoint holds → one state_dict under the names that the architecture has.

Finds the weights among optimizer and options, takes away what wrappers put before names, and
undoes names of the past. Touches no values and knows no architecture: what it is to be called is
an argument.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swiprd.pack.errors import NotWeights, Unclear

Tensors = dict[str, torch.Tensor]

# What training scripts call the weights, best first. An average over training steps (EMA) is what
# they evaluate where they keep one.
_AVERAGES = (
    *("state_dict_ema", "model_ema_state_dict", "ema_state_dict", "model_ema", "ema_model"),
    *("params_ema", "ema"),
)
_WEIGHTS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("weights", "params"),
)

# Wrappers: DataParallel (also around a part: `features.module.0`), torch.compile, FSDP and
# activation checkpointing. No classifier of torchvision or timm has a part of such a name.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_OLD_NAMES = (
    # torchvision until 0.2: names with a dot for what lies in a dense layer.
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    # torchvision 0.12: the multilayer perceptron of a vision transformer.
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
_DEEPEST = 3  # {"checkpoint": {"model": {"state_dict": …}}}
_COUNTERS = ("n_averaged",)  # torch.optim.swa_utils.AveragedModel


@dataclass(frozen=True, kw_only=True)
class Found:
    """The weights in a checkpoint.

    Attributes:
        key: where they lay, such as "state_dict" or "model_ema.module"; empty for all of it.
        others: keys under which there are tensors, too.
    """

    tensors: Tensors
    key: str = ""
    others: tuple[str, ...] = ()


def find(content: Any, key: str | None = None) -> Found:
    """Find the weights in what a checkpoint holds.

    Args:
        key: where to look; a dot leads into the next dictionary, or is part of what stands before
            the names of one network of several. None looks in the usual places.

    Raises:
        NotWeights: there are none.
        Unclear: there are several and none has a usual name, or `key` leads nowhere.
    """
    if not isinstance(content, Mapping):
        raise NotWeights(f"holds a {type(content).__name__} and no state_dict")
    places = dict(_places(content))
    if key is not None:
        if key not in places:
            return _part(places, key)
        return Found(tensors=places[key], key=key, others=_without(places, key))
    if not places:
        there = ", ".join(str(one) for one in list(content)[:8]) or "nothing"
        raise NotWeights(f"no weights in it; it holds {there}")
    # Averages first, wherever they lie; then what lies least deep.
    for names in (_AVERAGES, ("",), _WEIGHTS):
        for name in names:
            for place in sorted(places, key=lambda one: one.count(".")):
                if name in (place.partition(".")[0], place.rpartition(".")[2]):
                    return Found(tensors=places[place], key=place, others=_without(places, place))
    if len(places) == 1:
        ((place, tensors),) = places.items()
        return Found(tensors=tensors, key=place)
    raise Unclear(f"weights in several places; choose with --key: {', '.join(places)}")


def is_average(key: str) -> bool:
    """Whether a key is one of an average over training steps."""
    return not {*_AVERAGES}.isdisjoint(key.split("."))


def normalise(tensors: Tensors) -> Tensors:
    """Return the tensors without wrappers in their names, and with today's names; same order.

    Raises:
        NotWeights: two of them would be called the same.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name in _COUNTERS:
            continue
        short = _WRAPPERS.sub("", name)
        for old, new in _OLD_NAMES:
            short = old.sub(new, short)
        if short in found:
            raise NotWeights(f"{name}: another tensor is called {short}, too")
        found[short] = tensor
    return found


def strip(tensors: Tensors, wanted: Collection[str]) -> tuple[Tensors, str]:
    """Take away what stands before all names that are `wanted`; return the rest and the prefix.

    What has another prefix (a loss with weights of its own) is left out. Where nothing fits, all
    is returned as it is.

    Raises:
        Unclear: there are several networks of these names (a student and its teacher), and none
            is called an average.
    """
    prefixes = {
        name.removesuffix(one)
        for one in list(wanted)[:1]
        for name in tensors
        if name == one or name.endswith(f".{one}")
    }
    hits = {prefix: sum(prefix + one in tensors for one in wanted) for prefix in prefixes}
    most = max(hits.values(), default=0)
    best = sorted(prefix for prefix in prefixes if hits[prefix] == most)
    best = [one for one in best if is_average(one)] or best
    # The last layer's two may have other names (`unwrap_last`); with fewer, nothing is packed.
    if len(best) > 1 and "" not in best and most >= max(1, len(wanted) - 2):
        there = ", ".join(one.removesuffix(".") for one in best)
        raise Unclear(f"several networks of the same names; choose with --key: {there}")
    prefix = min(best, key=len, default="")
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}, prefix


def unwrap_last(tensors: Tensors, last: str) -> tuple[Tensors, str]:
    """Undo a Sequential around the last layer: `classifier.0.weight` → `classifier.weight`.

    Args:
        last: name of the last layer, such as "classifier" or "fc".

    Returns:
        The tensors, and the layer's name in the file; the same where it is in no Sequential.

    Raises:
        NotWeights: there are several layers in it.
    """
    inside = re.compile(re.escape(last) + r"\.((?:\w+\.)*)(weight|bias)")
    matches = {name: match for name in tensors if (match := inside.fullmatch(name))}
    between = {match[1] for match in matches.values()}
    if len(between) > 1:
        layers = ", ".join(sorted(f"{last}.{one}".rstrip(".") for one in between))
        raise NotWeights(
            f"a last layer of several parts ({layers}), and what lies between them is not in the"
            " file: export the model with torch.jit.trace() or torch.export, and pack that"
        )
    if between in (set(), {""}):
        return tensors, last
    renamed = {
        f"{last}.{matches[name][2]}" if name in matches else name: tensor
        for name, tensor in tensors.items()
    }
    return renamed, f"{last}.{between.pop()}".rstrip(".")


def _places(content: Mapping[Any, Any]) -> Iterable[tuple[str, Tensors]]:
    """Yield every dictionary with weights in it, by its dotted key; at most three deep.

    What lies least deep comes first. No dictionary is looked through twice: a few small ones that
    hold each other have millions of ways through them.
    """
    seen: dict[int, Tensors] = {}
    level: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    for _ in range(_DEEPEST + 1):
        below = []
        for place, held in level:
            again = id(held) in seen
            tensors = seen[id(held)] if again else _weights(held)
            seen[id(held)] = tensors
            if tensors:
                yield place, tensors
            elif not again:
                below += [
                    (f"{place}.{name}" if place else name, value)
                    for name, value in held.items()
                    if isinstance(name, str) and isinstance(value, Mapping)
                ]
        level = below


def _weights(held: Mapping[Any, Any]) -> Tensors:
    """Return the tensors of a dictionary if they are weights, else none."""
    tensors = {
        name: value
        for name, value in held.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    # A lone tensor is a score or a mask; an optimizer counts its parameters: {0: {…}, 1: {…}}.
    known = any(name.rpartition(".")[2] in ("weight", "weight_g") for name in tensors)
    return tensors if known else {}


def _part(places: Mapping[str, Tensors], key: str) -> Found:
    """Find one network of several by what stands before its names, wrappers aside.

    Raises:
        Unclear: there is none, or it is in several dictionaries.
    """
    parts = {}
    for place, tensors in places.items():
        start = f"{key.removeprefix(f'{place}.')}."
        part = {n: t for n, t in tensors.items() if _WRAPPERS.sub("", n).startswith(start)}
        if part:
            parts[f"{place}.{start}".strip(".")] = part
    if len(parts) > 1:
        raise Unclear(f'weights under "{key}" in several places; --key can be: {", ".join(parts)}')
    for place, part in parts.items():
        return Found(tensors=part, key=place)
    there = ", ".join(place for place in places if place) or "no others"
    raise Unclear(f'no weights under "{key}"; --key can be: {there}')


def _without(places: Mapping[str, Tensors], key: str) -> tuple[str, ...]:
    return tuple(one for one in places if one != key)
