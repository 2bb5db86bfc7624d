"""A checkpoint and what the command line says → everything that the folder will say, and why.

Decides; writes nothing and prints nothing. What only a person can know and has not said is
collected, so that it is asked for at once.
"""

from __future__ import annotations

import argparse
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiprd.folder.spec import PROGRAMS, Activation
from swiprd.inference.architectures import TIMM, classifiers
from swiprd.inference.state_dict import weighty
from swiprd.pack import checkpoint, convert, detect, find_weights, labels, preprocessing, told
from swiprd.pack.detect import Fit
from swiprd.pack.errors import NotWeights, Unclear
from swiprd.pack.find_weights import Tensors
from swiprd.pack.formats import Format
from swiprd.pack.labels import CHEST_XRAY_14, IMAGENET, Named
from swiprd.pack.told import Recipe

_SHOWN = 64  # characters of a name that is none

FORMATS: dict[Format, str] = {
    "zip": "torch.save()'s zip format",
    "legacy": "torch.save()'s legacy format",
    "safetensors": "safetensors",
    "torchscript": "a TorchScript program",
    "export": "a program of torch.export",
    "onnx": "ONNX",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the folder will hold.

    Attributes:
        fit: the weights and their architecture.
        why: for each of the facts below and of `fit`, where it is from.
        notes: what deserves a line of its own.
        missing: what must be said before a folder can be made, each naming its option.
    """

    fit: Fit
    activation: Activation
    named: Named | None
    recipe: Recipe
    why: dict[str, str]
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def make(file: Path, form: Format, digest: str, options: argparse.Namespace) -> Plan:
    """Read the checkpoint and infer what can be.

    Args:
        digest: SHA-256 of the checkpoint's file.

    Raises:
        PackError: it cannot be packed, has changed since, or the options contradict it.
    """
    content = checkpoint.read(file, form, digest)
    elsewhere = ""
    try:
        found = find_weights.find(content, options.key)
        elsewhere = _elsewhere(found)
        tensors, converted = convert.convert(find_weights.normalise(found.tensors))
        fit, how = _fit(tensors, content, options, elsewhere)
    except NotWeights as error:
        raise NotWeights(f"{file}: {error}{elsewhere}") from None
    if fit.crop is not None and options.crop not in (None, fit.crop):
        raise Unclear(f"--crop: the positions in these weights are for {fit.crop} pixels")
    recipe = _recipe(fit, digest, options)
    activation, why_activation = _activation(fit, options)
    named = labels.given(options.labels, options.labels_file) or _known(fit, content)
    missing = []
    try:
        named = labels.check(named, fit.classes)
    except Unclear as error:
        missing.append(str(error))
    held = f"{FORMATS[form]}, {len(weighty(found.tensors))} tensors"
    why = {
        "checkpoint": f'{held} under "{found.key}"' if found.key else held,
        "architecture": how,
        "activation": why_activation,
    }
    notes = [*_notes(found, fit, len(weighty(tensors))), converted, *recipe.notes]
    return Plan(
        fit=fit,
        activation=activation,
        named=named,
        recipe=recipe,
        why=why,
        notes=tuple(one for one in notes if one),
        missing=tuple(missing),
    )


def is_chexnet(fit: Fit) -> bool:
    """Whether these are CheXNet's weights: the wrapper's name, its Sequential, 14 outputs."""
    return (
        fit.architecture == "densenet121"
        and fit.classes == len(CHEST_XRAY_14)
        and fit.last == "classifier.0"
        and fit.prefix.endswith("densenet121.")
    )


def _elsewhere(found: find_weights.Found) -> str:
    """Say where the weights lay, if they were chosen among several: an average over training
    steps may lack buffers, which are no parameters."""
    if not found.others:
        return ""
    return f'; these lie under "{found.key}", and --key takes others: {", ".join(found.others)}'


def _fit(
    tensors: Tensors, content: Any, options: argparse.Namespace, elsewhere: str
) -> tuple[Fit, str]:
    """Find the architecture, or see that the one asked for is it."""
    count = len(weighty(tensors))
    asked = options.architecture
    if asked is not None:
        if not asked.startswith(TIMM):
            _check_name(asked, tensors)
        try:
            return detect.fit(tensors, asked, options.crop), "--architecture"
        except NotWeights as error:
            others = [one.architecture for one in detect.guess(tensors)]
            hint = f"; these are the tensors of {' or '.join(others)}" if others else ""
            raise NotWeights(f"not the weights of {asked}: {error}{hint}") from None
    fits = detect.guess(tensors)
    if len(fits) == 1:
        (fit,) = fits
        if fit.match == "order":
            return fit, f"the shapes of {count} tensors in their order"
        return fit, f"the names and shapes of {count} tensors"
    if fits:
        raise Unclear(
            "--architecture: several have exactly these tensors:"
            f" {', '.join(one.architecture for one in fits)}"
        )
    named = content.get("arch") if isinstance(content, dict) else None
    near = detect.nearest(tensors)
    hint = f". {near}" if near else ""
    if isinstance(named, str) and re.fullmatch(r"\w{1,64}", named):
        hint += f'. The checkpoint calls it "{named}": if that is timm\'s name, --architecture'
        hint += f" {TIMM}{named}"
    raise Unclear(
        "--architecture: no classifier of torchvision has exactly these tensors"
        f" ({detect.outline(tensors)}{elsewhere}){hint}. It can be {TIMM}NAME; a network of your"
        " own is packed as a program: torch.jit.trace(model.eval(), picture).save('model.pt')"
    )


def _check_name(asked: str, tensors: Tensors) -> None:
    """See that there is an architecture of this name.

    Raises:
        Unclear: there is none; the text says which one the tensors fit, or what is near by name.
    """
    known = classifiers()
    if asked in known:
        return
    fits = [one.architecture for one in detect.guess(tensors)]
    near = difflib.get_close_matches(asked, known, n=1)
    hint = "torchvision's classifiers have names such as resnet50; of timm's it is timm:NAME"
    if near:
        hint = f"did you mean {near[0]}?"
    if fits:
        hint = f"these are the tensors of {' or '.join(fits)}"
    raise Unclear(f"--architecture: there is no architecture {asked[:_SHOWN]!r}: {hint}")


def _recipe(fit: Fit, digest: str, options: argparse.Namespace) -> Recipe:
    if fit.head == "fastai":
        recipe = preprocessing.for_fastai(fit, options.crop or 224)
    elif fit.architecture.startswith(TIMM):
        recipe = preprocessing.for_timm(fit.architecture)
    elif is_chexnet(fit):
        recipe = preprocessing.for_chexnet()
    else:
        recipe = preprocessing.for_torchvision(fit, digest)
    return told.override(recipe, options)


def _activation(fit: Fit, options: argparse.Namespace) -> tuple[Activation, str]:
    given = told.activation(options)
    if given is not None:
        return given
    if is_chexnet(fit):
        return "sigmoid", "CheXNet ends in one"
    if fit.classes == 1:
        return "sigmoid", "a single output"
    several = "--multi-label where a picture can have several labels"
    if fit.match == "order":
        return "log_softmax", f"a fastai 0.7 learner ends in one; {several}"
    return "softmax", f"assumed; {several}"


def _known(fit: Fit, content: Any) -> Named | None:
    """Find labels that nobody has to be asked for."""
    beside = labels.beside(content, fit.classes)
    if beside is not None:
        return beside
    if is_chexnet(fit):
        return Named(labels=CHEST_XRAY_14, source="the 14 findings of ChestX-ray14, in its order")
    if fit.classes == IMAGENET:
        return Named(labels="imagenet", source="1000 outputs: ImageNet's, as torchvision has them")
    return None


def _notes(found: find_weights.Found, fit: Fit, given: int) -> list[str]:
    notes = []
    if found.others:
        averaged = (
            "the average over training steps (EMA); " if find_weights.is_average(found.key) else ""
        )
        others = ", ".join(found.others)
        notes.append(f'weights under "{found.key}": {averaged}--key takes others: {others}')
    if fit.last and not is_chexnet(fit):
        notes.append(
            f"the last layer is {fit.last}, in a Sequential; what has no weights there, before it"
            " or after, is not in the file. A Dropout changes nothing; --activation says so if"
            " there is a Sigmoid after it; with anything else, such as a ReLU, pack a program"
        )
    left = given - len(weighty(fit.tensors))
    if left > 0:
        notes.append(f"{left} tensors are no part of {fit.architecture} and are left out")
    return notes


def trust(file: Path, form: Format, options: argparse.Namespace) -> None:
    """See that the user has said to trust the program, since packing runs it.

    Raises:
        Unclear: nobody has.
    """
    what = FORMATS[form]
    if options.architecture is None:
        raise Unclear(
            f"{file}: {what}. It carries code, which runs now with your rights and later with the"
            f" daemon's. If you trust where it came from: --architecture {form}"
        )
    if options.architecture != form:
        raise Unclear(f"{file}: {what}: --architecture {form}, not {options.architecture}")
    if options.key is not None:
        raise Unclear("--key: a program has one set of weights")


def check_form(form: Format, asked: str | None) -> None:
    """See that no program is asked for where the file is none.

    Raises:
        Unclear: it is.
    """
    if asked in PROGRAMS and form not in PROGRAMS:
        raise Unclear(f"--architecture {asked}: the file is {FORMATS[form]}, not a program")
