"""config.json of a Hugging Face folder → which network it is, its labels and its activation.

Reads the description alone. What asks for code of its own, or is no image classifier, ends here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiprd.folder.spec import Activation
from swiprd.folder.toml_table import SpecError, Table
from swiprd.pack.errors import NotWeights
from swiprd.pack.hf_folder import CONFIG, read_json, refuse_timm
from swiprd.pack.labels import Named
from swiprd.pack.onnx_facts import distinct

_CLASSIFIER = "ForImageClassification"
_SINGLE, _MULTI, _REGRESSION = (
    *("single_label_classification", "multi_label_classification"),
    "regression",
)
_MOST_LABELS = 1 << 16
_UNNAMED = 2  # labels where the file tells of none, as transformers has it


@dataclass(frozen=True, kw_only=True)
class Config:
    """What config.json says.

    Attributes:
        architecture: transformers' class, such as ViTForImageClassification.
        model_type: transformers' name of the family, such as vit; "" where none is told.
        version: the first number of the transformers that wrote the file; 0 where none is told.
        own_code: whether it asks for code that is not transformers'.
        named: the labels, and where they are from.
        activation, why: what makes the outputs probabilities, and what says so.
        notes: what deserves a line of its own.
    """

    architecture: str
    model_type: str
    version: int
    own_code: bool
    named: Named
    activation: Activation
    why: str
    notes: tuple[str, ...]


def read_config(folder: Path) -> Config:
    """Read `folder`/config.json.

    Raises:
        CannotOpen: it cannot be read.
        NotWeights: it tells of no image classifier, or of what cannot be packed.
    """
    table = read_json(folder / CONFIG, "every folder of transformers has one")
    refuse_timm(table, folder)
    try:
        architecture = _architecture(table)
        model_type = table.text("model_type") if table.has("model_type") else ""
        written = table.text("transformers_version") if table.has("transformers_version") else ""
        labels, notes = _labels(table)
        activation, why = _activation(table, len(labels))
    except SpecError as error:
        raise NotWeights(str(error)) from None
    return Config(
        architecture=architecture,
        model_type=model_type,
        version=int(found[0]) if (found := re.match(r"\d{1,4}(?=\.)", written)) else 0,
        own_code=table.has("auto_map"),
        named=Named(labels=labels, source=f"id2label in {CONFIG}"),
        activation=activation,
        why=why,
        notes=notes,
    )


def _architecture(table: Table) -> str:
    """Return the network's class.

    Raises:
        SpecError: it is no image classifier, or one whose weights are not floats.
    """
    expected = f"the class of an image classifier, such as ViT{_CLASSIFIER}"
    names = table.value("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise table.fail("architectures", f"a list of {expected}", names)
    name: str = names[0]
    if not name.isidentifier() or not name.isascii():
        raise table.fail("architectures", expected, name)
    if _CLASSIFIER not in name:
        if name.endswith(("Model", "Backbone")):
            expected += "; an encoder has no outputs to name, and needs to be trained with a head"
        raise table.fail("architectures", expected, name)
    if name.startswith("TimmWrapper"):
        expected = "a network of transformers' own; of timm's, pack model.safetensors itself"
        raise table.fail("architectures", f"{expected} with --architecture timm:NAME", name)
    if table.has("quantization_config"):
        found = table.value("quantization_config")
        raise table.fail("quantization_config", "none: save the float32 model", found)
    return name


def _labels(table: Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labels in the order of the outputs, and notes about them.

    Raises:
        SpecError: they do not name outputs from 0 on.
    """
    names: Any = table.value("id2label")
    if names is None:
        count = table.whole("num_labels", 1, _MOST_LABELS) or _UNNAMED
        names = {str(number): f"LABEL_{number}" for number in range(count)}
    expected = "the outputs' numbers, each from 0 on once, and their names"
    if not isinstance(names, dict) or not 1 <= len(names) <= _MOST_LABELS:
        raise table.fail("id2label", expected, names)
    found: list[str] = []
    for number in range(len(names)):
        label = names.get(str(number))
        if not isinstance(label, str):
            raise table.fail(f"id2label.{number}", expected, label)
        label = " ".join(label.split())  # a line break in a name would be two labels
        if not label or not label.isprintable():
            raise table.fail(f"id2label.{number}", "a name that can be printed", label)
        found.append(label)
    notes = []
    if found == [f"LABEL_{number}" for number in range(len(found))]:
        notes.append(f"{CONFIG} calls the outputs {found[0]}, …: --labels gives them names")
    unique, changed = distinct(found)
    return tuple(unique), tuple(one for one in (*notes, changed) if one)


def _activation(table: Table, outputs: int) -> tuple[Activation, str]:
    """Return what transformers' own pipeline puts behind the network.

    Raises:
        SpecError: the outputs are no probabilities of labels.
    """
    kind = table.text("problem_type") if table.has("problem_type") else None
    if kind not in (None, _SINGLE, _MULTI):
        expected = f"{_SINGLE} or {_MULTI}"
        if kind == _REGRESSION:
            expected += ": what a regression answers are no probabilities"
        raise table.fail("problem_type", expected, kind)
    if kind == _MULTI:
        return "sigmoid", f"problem_type in {CONFIG}"
    if outputs == 1:
        return "sigmoid", "a single output"
    return "softmax", f"problem_type in {CONFIG}" if kind else "as transformers has it"
