"""What torch reads → a model's folder that is proven to work: weights, or a program."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import BinaryIO

import torch

from swiprd.folder import consent
from swiprd.folder.spec import PROGRAMS
from swiprd.folder.toml_table import SpecError
from swiprd.folder.trusted_programs import Code
from swiprd.pack import compiled, labels, model_toml, plan, telling, told, writer
from swiprd.pack.errors import CannotOpen, CannotWrite, NotProven, Unclear
from swiprd.pack.find_weights import Tensors
from swiprd.pack.formats import Format
from swiprd.pack.model_toml import PROGRAM_FILES
from swiprd.pack.plan import Plan
from swiprd.pack.trial import Answer
from swiprd.pack.verify import prove, try_program
from swiprd.pack.writer import Entry
from swiprd.system.reason import first_line

_WEIGHTS = "weights.pth"
_CODE = (
    "IT CARRIES CODE, which whoever made the file has written. It runs here now, and from now on"
    " wherever you ask for it, with your rights. The system's daemon runs it only from a folder"
    f" below {consent.roots()} that nobody but root and the daemon's user can write to"
)


def pack(file: Path, form: Format, options: argparse.Namespace) -> tuple[Answer, str, Code | None]:
    """Make the folder; return how it answers, what will serve it, and the program in it.

    Raises:
        PackError: it cannot be packed, or the command line must say more.
    """
    plan.check_form(form, options.architecture)
    compiled.check_program(form, options.engine)
    model_toml.check(options)  # before the checkpoint is read, which may take a while
    if form in PROGRAMS:
        plan.trust(file, form, options)
        try:
            opened, code = consent.copy(file, form)  # what is tried is what is packed and trusted
        except SpecError as error:
            raise CannotOpen(f"{file}: {error.found}") from None
        with opened:
            return *_pack_program(file, opened, code, form, options), code
    return *_pack_weights(file, form, model_toml.digest(file), options), None


def _pack_weights(
    file: Path, form: Format, digest: str, options: argparse.Namespace
) -> tuple[Answer, str]:
    made = plan.make(file, form, digest, options)
    _tell(made)
    missing = [*made.missing, *([model_toml.OUTPUT] if options.output is None else [])]
    if missing or made.named is None:
        raise Unclear("\n".join(missing))
    fit = made.fit
    lines = [
        Entry(key="architecture", value=fit.architecture, why=made.why["architecture"]),
        *([Entry(key="head", value=fit.head)] if fit.head != "default" else []),
        *([Entry(key="match", value=fit.match)] if fit.match != "name" else []),
        Entry(key="activation", value=made.activation, why=made.why["activation"]),
    ]
    with writer.making(options.output, replace=options.force, note=telling.warn) as place:
        _save(fit.tensors, place / _WEIGHTS, options.output)
        origin = f"{file.name}: {made.why['checkpoint']}, SHA-256 {digest}"
        model_toml.write(place, options, lines, made.named, made.recipe, origin, _WEIGHTS)
        answer = _prove(place, options, fit.tensors)
        return answer, compiled.add(place, fit.architecture, options.engine)


def _pack_program(
    file: Path, opened: BinaryIO, code: Code, form: Format, options: argparse.Namespace
) -> tuple[Answer, str]:
    known = told.activation(options)
    given = labels.given(options.labels, options.labels_file)
    recipe = told.override(told.plain("torchvision evaluates most models; assumed"), options)
    telling.say("checkpoint", f"{file}: {plan.FORMATS[form]}")
    telling.say("note", _CODE)
    outputs, *found = try_program(file, opened, form, recipe.preprocess)
    activation, why = known or found
    telling.say("outputs", str(outputs))
    telling.say("activation", f"{activation} ({why})")
    telling.say("preprocess", f"{telling.summary(recipe.preprocess)} (as {recipe.source})")
    for note in recipe.notes:
        telling.say("note", note)
    missing = [] if options.output else [model_toml.OUTPUT]
    try:
        named = labels.check(given, outputs)
    except Unclear as error:
        missing.insert(0, str(error))
    if missing:
        raise Unclear("\n".join(missing))
    lines = [
        Entry(key="architecture", value=form, why="a program: it carries code"),
        Entry(key="activation", value=activation, why=why),
    ]
    with writer.making(options.output, replace=options.force, note=telling.warn) as place:
        opened.seek(0)
        with (place / PROGRAM_FILES[form]).open("wb") as target:
            shutil.copyfileobj(opened, target)
        origin = f"{file.name}, SHA-256 {code.sha256}"
        model_toml.write(place, options, lines, named, recipe, origin, weights=PROGRAM_FILES[form])
        answer = _prove(place, options, trusted=code)
        return answer, compiled.add(place, form, options.engine)


def _save(tensors: Tensors, weights: Path, output: Path) -> None:
    """Write the weights.

    Raises:
        CannotWrite: the disk is full, or similar.
    """
    try:
        # A file of ours: torch's own says in such a case at which byte it was surprised.
        with weights.open("wb") as opened:
            torch.save(tensors, opened)
    except RuntimeError as error:
        reason, cause = first_line(error), error.__context__
        if isinstance(cause, OSError):
            reason = cause.strerror or reason
        raise CannotWrite(f"{output}: {reason}") from None


def _not_numbers(tensors: Tensors) -> str:
    """Say which of the weights make every answer a NaN, and what helps, or nothing."""
    bad = [name for name, one in tensors.items() if not bool(torch.isfinite(one).all())]
    if not bad:
        return ""
    return (
        f' NaNs or infinities are in {len(bad)} of {len(tensors)} tensors, such as "{bad[0]}": did'
        " the training diverge? Take a checkpoint from before that"
    )


def _prove(
    place: Path,
    options: argparse.Namespace,
    tensors: Tensors | None = None,
    trusted: Code | None = None,
) -> Answer:
    writer.close(place)
    try:
        return prove(place, trusted)
    except NotProven as error:
        # It lies elsewhere until it is proven.
        said = str(error).replace(str(place), str(options.output))
        if not said.startswith(str(options.output)):
            said = f"{options.checkpoint}: {said}"
        raise NotProven(said + _not_numbers(tensors or {})) from None


def _tell(made: Plan) -> None:
    """Say what was inferred, and from what."""
    fit = made.fit
    head = " with fastai's head" if fit.head == "fastai" else ""
    telling.say("checkpoint", made.why["checkpoint"])
    telling.say("architecture", f"{fit.architecture}{head} (by {made.why['architecture']})")
    telling.say("outputs", str(fit.classes))
    if made.named is not None:
        telling.say("labels", f"{telling.names(made.named.labels)} (from {made.named.source})")
    telling.say("activation", f"{made.activation} ({made.why['activation']})")
    telling.say(
        "preprocess", f"{telling.summary(made.recipe.preprocess)} (as {made.recipe.source})"
    )
    for note in made.notes:
        telling.say("note", note)
