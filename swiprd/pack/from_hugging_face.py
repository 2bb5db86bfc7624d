"""A Hugging Face folder → a model's folder that is proven to work. Imports neither torch nor
transformers.

Two files say all but the network: config.json the labels, preprocessor_config.json the recipe. An
ONNX file beside them is packed as any other; weights are exported by a process of its own, and the
export is proven to answer as transformers does. What is made is served by ONNX Runtime alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from swiprd.folder.compiled_record import MOST_DIFFERENCE
from swiprd.folder.spec import ONNX, load_spec
from swiprd.folder.toml_table import SpecError
from swiprd.inference.decode import decode
from swiprd.inference.onnx_model import NoCompiledForm
from swiprd.inference.onnx_probe import Probe, ProbeFailed, probe
from swiprd.inference.proof import others
from swiprd.inference.separate import Separate, SeparateFailed
from swiprd.pack import from_onnx, labels, model_toml, onnx_activation, telling, told, writer
from swiprd.pack.errors import NotProven, NotWeights, Unclear
from swiprd.pack.hf_config import Config, read_config
from swiprd.pack.hf_folder import CONFIG, PROCESSOR, Network, find_network
from swiprd.pack.hf_processor import Processor, read_processor
from swiprd.pack.hf_request import NETWORK, Answers, Request
from swiprd.pack.labels import Named
from swiprd.pack.onnx_whole import Whole, whole
from swiprd.pack.told import Recipe
from swiprd.pack.trial import Answer
from swiprd.pack.writer import Entry

_FILE = "model.onnx"
_WORKSPACE = ".export"
_LONGEST = 400  # characters of a reason
_PATIENCE = 900.0  # seconds for an export; the largest classifiers of transformers take some 60


def pack(folder: Path, options: argparse.Namespace) -> tuple[Answer, str]:
    """Make the folder; return how it answers, and what will serve it.

    Raises:
        PackError: it cannot be packed, or the command line must say more.
    """
    _check(options)
    model_toml.check(options)
    config = read_config(folder)
    processor = read_processor(folder, config.model_type, config.version)
    network = find_network(folder)
    _check_network(network, processor)
    recipe = told.override(processor.recipe, options)
    activation, why = told.activation(options) or (config.activation, config.why)
    named = labels.given(options.labels, options.labels_file) or config.named
    _tell(folder, network, config, named, recipe)
    missing = [] if options.output else [model_toml.OUTPUT]
    try:
        _check_labels(named, config)
    except Unclear as error:
        missing.insert(0, str(error))
    if missing:
        raise Unclear("\n".join(missing))
    with writer.making(options.output, replace=options.force, note=telling.warn) as place:
        answers = None
        file = network.file
        if network.kind == "safetensors":
            request = Request(
                architecture=config.architecture,
                labels=config.named.count(),
                activation=activation,
                preprocess=recipe.preprocess,
                flipped=processor.flipped,
                backend=processor.backend if recipe is processor.recipe else "",
            )
            file, answers = _export(folder, place, request)
        with whole(file) as one:
            found = _probe(network.file, one, recipe, named)
            activation, why = onnx_activation.choose(
                one.contents,
                found,
                told.activation(options),
                (activation, why),
                asks=network.kind == "onnx",  # transformers' own networks give none
            )
            one.opened.seek(0)
            with (place / _FILE).open("wb") as target:
                shutil.copyfileobj(one.opened, target)
        shutil.rmtree(place / _WORKSPACE, ignore_errors=True)
        lines = [
            Entry(key="architecture", value=ONNX, why="an ONNX file: torch is not needed"),
            Entry(key="activation", value=activation, why=why),
        ]
        origin = f"{folder.resolve().name}: {config.architecture}, {network.file.name}"
        model_toml.write(place, options, lines, named, recipe, origin, _FILE)
        telling.say("activation", f"{activation} ({why})")
        answer = from_onnx.prove(place, options)
        engine = f"onnx {found.version}"
        if answers is not None:
            made = f"transformers {answers.versions['transformers']}"
            largest = difference(place, folder, answers)
            engine += f", within {largest:.2g} of {made}"
        return answer, engine


def _check(options: argparse.Namespace) -> None:
    """See that nothing is asked for that does not go with such a folder.

    Raises:
        Unclear: it is.
    """
    if options.architecture is not None:
        raise Unclear(f"--architecture {options.architecture}: {CONFIG} says it: leave it out")
    if options.engine == "torch":
        raise Unclear("--engine torch: what is made is an ONNX file: leave it out")
    if options.key is not None:
        raise Unclear(f"--key {options.key}: a Hugging Face folder has one network: leave it out")
    if options.labels == "imagenet":
        raise Unclear(f"--labels imagenet: {CONFIG} names the outputs; --labels-file gives others")


def _check_network(network: Network, processor: Processor) -> None:
    """See that the network can be packed here.

    Raises:
        NotWeights: it cannot.
    """
    if network.kind == "onnx":
        if processor.flipped:
            raise NotWeights(
                f"{network.file.with_name(PROCESSOR)}: do_flip_channel_order: the network takes"
                " blue, green and red, and an ONNX file is served as it is: pack the folder with"
                " model.safetensors in place of it"
            )
        return
    for library in ("transformers", "torch", "onnx"):
        if find_spec(library) is None:
            raise NotWeights(
                f"{network.file}: weights, which transformers makes a network of, and {library} is"
                " not installed: pip install 'swipr[transformers]'; or put model.onnx beside them,"
                " as optimum-cli export onnx writes it"
            )


def _check_labels(named: Named, config: Config) -> None:
    """See that there is a label for each output.

    Raises:
        Unclear: there is not.
    """
    outputs = config.named.count()
    if named.count() != outputs:
        raise Unclear(
            f"--labels: {named.count()} labels ({named.source}), where {CONFIG} has {outputs}"
        )


def _tell(folder: Path, network: Network, config: Config, named: Named, recipe: Recipe) -> None:
    place = network.file.relative_to(folder)
    telling.say("checkpoint", f"a Hugging Face folder: {config.architecture}, {place}")
    telling.say("outputs", str(config.named.count()))
    telling.say("labels", f"{telling.names(named.labels)} (from {named.source})")
    telling.say("preprocess", f"{telling.summary(recipe.preprocess)} (as {recipe.source})")
    for note in (*(config.notes if named is config.named else ()), *recipe.notes):
        telling.say("note", note)


def _export(folder: Path, place: Path, request: Request) -> tuple[Path, Answers]:
    """Have the weights exported; return the ONNX file, and what transformers answers.

    Raises:
        NotWeights: it cannot be done; the text says why.
    """
    workspace = place / _WORKSPACE
    workspace.mkdir(mode=0o700)
    program = [sys.executable, "-P", "-m", "swiprd.pack.hf_export"]
    try:
        done = subprocess.run(
            [*program, folder.absolute(), workspace, str(os.getpid())],
            input=request.to_json() + b"\n",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotWeights(
            f"{folder}: exporting it takes more than {_PATIENCE:g} s: is the network that {CONFIG}"
            " describes the one of these weights?"
        ) from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = ", as the kernel does where memory runs out" if name == "SIGKILL" else ""
        raise NotProven(f"{folder}: the process that exports it was ended by {name}{why}")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exporting it ended with status {done.returncode}"
        raise NotWeights(f"{folder}: {reason[:_LONGEST]}")
    return workspace / NETWORK, Answers.read(workspace)


def _probe(file: Path, one: Whole, recipe: Recipe, named: Named) -> Probe:
    """Find what the network takes and gives, and see that it is what the descriptions say.

    Raises:
        NotWeights: it is not.
    """
    crop = recipe.preprocess.crop
    copy = Path(f"/proc/{os.getpid()}/fd/{one.opened.fileno()}")
    try:
        found = probe(copy, crop, None)
    except ProbeFailed as error:
        raise NotWeights(f"{file}: {error}") from None
    if found.edge not in (None, crop):
        raise NotWeights(
            f"{file}: takes pictures of {found.edge} pixels only, and {PROCESSOR} makes {crop}"
        )
    if found.labels != named.count():
        raise NotWeights(
            f"{file}: gives {found.labels} outputs, and {CONFIG} names {named.count()}"
        )
    return found


def difference(place: Path, folder: Path, answers: Answers) -> float:
    """Return by how much the folder's probabilities differ from transformers' at most.

    Raises:
        NotProven: by more than is allowed.
    """
    spec = load_spec(place)
    try:
        with Separate(spec, place, answers.rows.shape[1], threads=1) as separate:
            rows = [separate.answer(decode(one, spec.preprocess))[0] for one in others()]
    except (SpecError, NoCompiledForm, SeparateFailed) as error:
        raise NotProven(f"{folder}: {error}") from None
    # Outputs of any size are as exact as their own digits.
    unit = np.maximum(1, np.abs(answers.rows)) if spec.activation == "none" else 1.0
    difference = float((np.abs(np.array(rows) - answers.rows) / unit).max())
    if not difference <= MOST_DIFFERENCE:
        raise NotProven(
            f"{folder}: the export differs from transformers by {difference:.1e}, where"
            f" {MOST_DIFFERENCE:.0e} is the most: export it with optimum-cli and pack that"
        )
    return difference
