"""What lies in a Hugging Face folder: its two descriptions, read within bounds, and its network.

Such a folder is written by `save_pretrained` or by optimum: config.json says which network it is,
preprocessor_config.json how pictures are prepared, and beside them lies the network, as ONNX or as
safetensors. Unpickles nothing, follows no name out of the folder, and imports the standard library
alone.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swiprd.folder.toml_table import SpecError, Table, read
from swiprd.pack.errors import CannotOpen, NotWeights

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

_ONNX = ("model.onnx", "onnx/model.onnx")
_SAFETENSORS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_MOST = 32 << 20  # bytes: the names of ImageNet's 21,841 classes, twice, take 3 MB
_MOST_SHARDS = 1000

_OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_SAVE = (
    "save it as safetensors, with the transformers that wrote it:"
    " AutoModelForImageClassification.from_pretrained(FOLDER).save_pretrained(FOLDER,"
    " safe_serialization=True)"
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Where the network is: an ONNX file, or the weights that transformers reads."""

    kind: Literal["onnx", "safetensors"]
    file: Path


def is_hugging_face(path: Path) -> bool:
    """Whether it is a folder with one of the two, and not a model's folder of swipr's."""
    if (path / "model.toml").exists():
        return False
    return (path / CONFIG).is_file() or (path / PROCESSOR).is_file()


def read_json(file: Path, missing: str) -> Table:
    """Read a JSON file that holds an object; keys whose value is null count as absent.

    Args:
        missing: what is to be done where there is no such file.

    Raises:
        CannotOpen: it is not there, or cannot be read.
        NotWeights: it is no JSON object, or larger than 32 MiB.
    """
    if not os.path.lexists(file):
        raise CannotOpen(f"{file}: is not there: {missing}")
    try:
        data = read(file, _MOST)
    except SpecError as error:
        raise CannotOpen(f"{file}: cannot be read: {error.found}") from None
    try:
        values: Any = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError, too
        raise NotWeights(f"{file}: no JSON: {error}") from None
    if not isinstance(values, dict):
        raise NotWeights(f"{file}: holds no JSON object, but a {type(values).__name__}")
    held = {key: value for key, value in values.items() if value is not None}
    return Table(file, "", held, held)


def find_network(folder: Path) -> Network:
    """Find the network; an ONNX file before weights, since it needs nothing to be served.

    Raises:
        NotWeights: there is none that can be packed; names what there is instead.
        CannotOpen: the list of shards cannot be read, or one of them is not there.
    """
    for name in _ONNX:
        if (folder / name).is_file():
            return Network(kind="onnx", file=folder / name)
    if (folder / _ADAPTER).exists():
        raise NotWeights(
            f"{folder / _ADAPTER}: an adapter, to be put on a network that lies elsewhere: merge"
            " both and save that: model.merge_and_unload().save_pretrained(FOLDER)"
        )
    if (folder / _SAFETENSORS).is_file():
        return Network(kind="safetensors", file=folder / _SAFETENSORS)
    if (folder / _INDEX).is_file():
        _check_shards(folder)
        return Network(kind="safetensors", file=folder / _INDEX)
    for name in _OTHERS:
        if (folder / name).exists():
            raise NotWeights(f"{folder / name}: is not read: {_SAVE}")
    raise NotWeights(
        f"{folder}: has no network: none of {', '.join(_ONNX)}, {_SAFETENSORS} and {_INDEX}"
    )


def refuse_timm(config: Table, folder: Path) -> None:
    """Refuse a folder of timm's, whose config.json is of another kind.

    Raises:
        NotWeights: it is one; says how its weights are packed.
    """
    if config.has("pretrained_cfg") or config.has("architecture"):
        weights = shlex.quote(str(folder / _SAFETENSORS))
        name = config.text("architecture") if config.has("architecture") else "NAME"
        raise NotWeights(
            f"{folder / CONFIG}: of timm, not of transformers: pack its weights instead:"
            f" swiprd pack {weights} --architecture {shlex.quote(f'timm:{name}')}"
        )


def _check_shards(folder: Path) -> None:
    """See that all the files that the list of shards names lie beside it."""
    file = folder / _INDEX
    index = read_json(file, "")
    shards = index.value("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise NotWeights(str(index.fail("weight_map", "tensors' names and their files", shards)))
    names = set(map(str, shards.values()))
    if len(names) > _MOST_SHARDS:
        raise NotWeights(f"{file}: names {len(names)} files, and {_MOST_SHARDS} are the most")
    for name in sorted(names):
        if "/" in name or not name.endswith(".safetensors"):
            raise NotWeights(f'{file}: names "{name}", no safetensors file beside it')
        if not (folder / name).is_file():
            raise CannotOpen(f"{folder / name}: is not there, and {file} names it: fetch it, too")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")
