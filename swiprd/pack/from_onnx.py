"""An ONNX file → a model's folder that is proven to work. Imports no torch.

The file is copied as it is, with the tensors that it keeps elsewhere put into it. What it takes and
gives is found by trying it in a process of its own, as it will be served.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from swiprd.folder.model_id import identify
from swiprd.folder.onnx_file import OnnxFile
from swiprd.folder.spec import ONNX, Activation, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference import decode
from swiprd.inference.onnx_model import NoCompiledForm
from swiprd.inference.onnx_probe import Probe, ProbeFailed, probe
from swiprd.inference.separate import Separate, SeparateFailed
from swiprd.pack import labels, model_toml, onnx_activation, onnx_facts, telling, told, writer
from swiprd.pack.errors import NotProven, NotWeights, Unclear
from swiprd.pack.labels import IMAGENET, Named
from swiprd.pack.onnx_activation import Reasoned
from swiprd.pack.onnx_whole import Whole, whole
from swiprd.pack.trial import Answer, picture
from swiprd.pack.writer import Entry

_FILE = "model.onnx"
_USUAL = 224  # pixels that a network is tried with which takes any


def pack(file: Path, options: argparse.Namespace) -> tuple[Answer, str]:
    """Make the folder; return how it answers, and what will serve it.

    Raises:
        PackError: it cannot be packed, or the command line must say more.
    """
    _check(options)
    model_toml.check(options)  # before the file is read, which may take a while
    digest = model_toml.digest(file)
    with whole(file) as one:
        found = _probe(file, one, options)
        return _pack(file, one, found, digest, options)


def _check(options: argparse.Namespace) -> None:
    """See that nothing is asked for that an ONNX file cannot do.

    Raises:
        Unclear: it is.
    """
    if options.architecture not in (None, ONNX):
        raise Unclear(f"--architecture {options.architecture}: the file is ONNX: leave it out")
    if options.engine == "torch":
        raise Unclear("--engine torch: torch runs no ONNX file: leave it out")


def _probe(file: Path, one: Whole, options: argparse.Namespace) -> Probe:
    copy = Path(f"/proc/{os.getpid()}/fd/{one.opened.fileno()}")
    try:
        found = probe(copy, options.crop or _USUAL, options.key)
    except ProbeFailed as error:
        if error.key == "output":
            raise Unclear(f"--key: which output counts? {error}") from None
        raise NotWeights(f"{file}: {error}") from None
    if options.crop is not None and found.edge not in (None, options.crop):
        raise Unclear(f"--crop {options.crop}: the file takes pictures of {found.edge} pixels only")
    return found


def _pack(
    file: Path, one: Whole, found: Probe, digest: str, options: argparse.Namespace
) -> tuple[Answer, str]:
    activation, why = _activation(one.contents, found, options)
    recipe = told.override(
        onnx_facts.recipe(
            one.contents, edge=found.edge, channels_last=found.channels_last, crop=options.crop
        ),
        options,
    )
    missing = []
    if (options.mean is None or options.std is None) and not onnx_facts.knows_values(
        one.contents, channels_last=found.channels_last
    ):
        missing.append(f"--mean and --std: {onnx_facts.KERAS_VALUES}")
    named, note = _labels(one.contents, found.labels, options)
    try:
        named = labels.check(named, found.labels)
    except Unclear as error:
        missing.insert(0, str(error))
    _tell(one, found, activation, why)
    if named is not None:
        telling.say("labels", f"{telling.names(named.labels)} (from {named.source})")
    telling.say("preprocess", f"{telling.summary(recipe.preprocess)} (as {recipe.source})")
    for one_note in filter(None, (note, *recipe.notes)):
        telling.say("note", one_note)
    if options.output is None:
        missing.append(model_toml.OUTPUT)
    if missing or named is None:
        raise Unclear("\n".join(missing))
    several = [Entry(key="output", value=found.output, why="--key")] if options.key else []
    lines = [
        Entry(key="architecture", value=ONNX, why="an ONNX file: torch is not needed"),
        *several,
        Entry(key="activation", value=activation, why=why),
    ]
    with writer.making(options.output, replace=options.force, note=telling.warn) as place:
        one.opened.seek(0)
        with (place / _FILE).open("wb") as target:
            shutil.copyfileobj(one.opened, target)
        origin = f"{file.name}, SHA-256 {digest}"
        model_toml.write(place, options, lines, named, recipe, origin, _FILE)
        return prove(place, options), f"onnx {found.version}"


def _activation(
    contents: OnnxFile, found: Probe, options: argparse.Namespace
) -> tuple[Activation, str]:
    """Decide what makes probabilities of the outputs.

    Raises:
        Unclear: they are, and the command line would have it done again.
    """
    if found.labels == 1:
        otherwise: Reasoned = ("sigmoid", "a single output")
    else:
        several = "--multi-label where a picture can have several labels"
        otherwise = ("softmax", f"assumed; {several}")
    given = told.activation(options)
    return onnx_activation.choose(contents, found, given, otherwise, asks=True)


def _labels(
    contents: OnnxFile, classes: int, options: argparse.Namespace
) -> tuple[Named | None, str]:
    """Find the labels; and a note about them, or nothing."""
    named = labels.given(options.labels, options.labels_file)
    if named is not None and named.labels != "imagenet":
        return named, ""
    if named is None:
        found = onnx_facts.labels(contents, classes)
        if found[0] is not None or classes != IMAGENET:
            return found
    try:
        torchvision = import_module("swiprd.inference.torchvision_import").import_torchvision()
    except ImportError:
        if named is None:
            return None, ""
        raise Unclear(
            "--labels imagenet: they are torchvision's, which is not installed: --labels-file FILE"
        ) from None
    categories = list(torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"])
    names, note = onnx_facts.distinct(categories)
    source = named.source if named else "1000 outputs: ImageNet's, as torchvision has them"
    return Named(labels=tuple(names), source=source), note


def _tell(one: Whole, found: Probe, activation: Activation, why: str) -> None:
    producer = f", written by {one.contents.producer}" if one.contents.producer else ""
    telling.say("checkpoint", f"ONNX{producer}, {one.contents.parameters} parameters")
    edge = found.edge or "any"
    layout = (
        f"{edge} x {edge} x 3, as Keras has it" if found.channels_last else f"3 x {edge} x {edge}"
    )
    batch = "" if found.batch is None else f", {found.batch} at once"
    telling.say("input", layout + batch)
    telling.say("outputs", str(found.labels))
    telling.say("activation", f"{activation} ({why})")
    if one.joined:
        telling.say("note", f"put into the one file: the tensors of {', '.join(one.joined)}")


def prove(place: Path, options: argparse.Namespace) -> Answer:
    """Load the folder as it will be served, and answer a picture.

    Raises:
        NotProven: it does not answer, or with what is not a number.
    """
    writer.close(place)
    try:
        spec = load_spec(place)
        assert spec.labels != "imagenet"
        with Separate(spec, place, len(spec.labels), threads=1) as separate:
            begun = time.perf_counter()
            crops = decode.decode(picture(), spec.preprocess)
            row, _ = separate.answer(crops)
            seconds = time.perf_counter() - begun
        model_id = identify(spec)
    except (SpecError, NoCompiledForm, SeparateFailed) as error:
        # It lies elsewhere until it is proven.
        raise NotProven(str(error).replace(str(place), str(options.output))) from None
    if not np.isfinite(row).all():
        raise NotProven(f"{options.checkpoint}: the answer to a picture is not a number")
    return Answer(labels=spec.labels, row=tuple(row.tolist()), seconds=seconds, model_id=model_id)
