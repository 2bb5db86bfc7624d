"""`swiprd pack`: from a command line to a folder that is proven to work, and what to type then."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import shutil
from pathlib import Path
from typing import BinaryIO

import torch

from swiprd.config import MODELS
from swiprd.folder import consent, trusted_programs
from swiprd.folder.spec import PROGRAMS
from swiprd.folder.toml_table import SpecError
from swiprd.folder.trusted_programs import Code, NoRecord
from swiprd.pack import compiled, formats, labels, plan, preprocessing, telling, writer
from swiprd.pack.errors import CannotOpen, CannotWrite, Interrupted, NotProven, PackError, Unclear
from swiprd.pack.find_weights import Tensors
from swiprd.pack.formats import Format
from swiprd.pack.labels import Named
from swiprd.pack.plan import Plan
from swiprd.pack.verify import Answer, prove, try_program
from swiprd.pack.writer import LABELS, Entry
from swiprd.system import console
from swiprd.system.console import OutputFailed
from swiprd.system.reason import first_line

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WEIGHTS = "weights.pth"
_PROGRAMS = {"torchscript": "program.pt", "export": "program.pt2"}
_OUTPUT = "--output: which folder is to be made? -o FOLDER"


def run(options: argparse.Namespace) -> int:
    """Pack; return the exit status."""
    try:
        answer, engine, code = _pack(options)
    except PackError as error:
        console.complain(telling.WHO, str(error))
        return error.exit_status
    except Interrupted as error:
        console.complain(telling.WHO, "interrupted; nothing was made")
        return error.exit_status
    except OutputFailed as error:
        console.complain(telling.WHO, f"{error}; nothing was made")
        return error.status
    try:
        if code is not None:
            _record(options.output, code)
        _next(options, answer, engine)
    except OutputFailed as error:
        console.complain(telling.WHO, f"{error}; {options.output} is made all the same")
        return error.status
    return 0


def _pack(options: argparse.Namespace) -> tuple[Answer, str, Code | None]:
    """Make the folder; return how it answers, what will serve it, and the program in it."""
    file: Path = options.checkpoint
    form = formats.recognise(file)
    plan.check_form(form, options.architecture)
    compiled.check_program(form, options.engine)
    if options.output is not None:
        # Before the checkpoint is read, which may take a while.
        writer.check_place(options.output, replace=options.force)
        _name(options)
    if form in PROGRAMS:
        plan.trust(file, form, options)
        try:
            opened, code = consent.copy(file, form)  # what is tried is what is packed and trusted
        except SpecError as error:
            raise CannotOpen(f"{file}: {error.found}") from None
        with opened:
            return *_pack_program(file, opened, code, form, options), code
    return *_pack_weights(file, form, _digest(file), options), None


def _pack_weights(
    file: Path, form: Format, digest: str, options: argparse.Namespace
) -> tuple[Answer, str]:
    made = plan.make(file, form, digest, options)
    _tell(made)
    missing = [*made.missing, *([_OUTPUT] if options.output is None else [])]
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
        _describe(place, options, lines, made.named, made.recipe, origin)
        answer = _prove(place, options, fit.tensors)
        return answer, compiled.add(place, fit.architecture, options.engine)


def _pack_program(
    file: Path, opened: BinaryIO, code: Code, form: Format, options: argparse.Namespace
) -> tuple[Answer, str]:
    told = plan.told_activation(options)
    given = labels.given(options.labels, options.labels_file)
    recipe = plan.override(
        preprocessing.plain("torchvision evaluates most models; assumed"), options
    )
    telling.say("checkpoint", f"{file}: {plan.FORMATS[form]}")
    telling.say("note", _CODE)
    outputs, *found = try_program(file, opened, form, recipe.preprocess)
    activation, why = told or found
    telling.say("outputs", str(outputs))
    telling.say("activation", f"{activation} ({why})")
    telling.say("preprocess", f"{telling.summary(recipe.preprocess)} (as {recipe.source})")
    missing = [] if options.output else [_OUTPUT]
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
        with (place / _PROGRAMS[form]).open("wb") as target:
            shutil.copyfileobj(opened, target)
        origin = f"{file.name}, SHA-256 {code.sha256}"
        _describe(place, options, lines, named, recipe, origin, weights=_PROGRAMS[form])
        answer = _prove(place, options, trusted=code)
        return answer, compiled.add(place, form, options.engine)


def _record(output: Path, code: Code) -> None:
    """Note that the user trusts the program; say so, or that it could not be done."""
    program = output.absolute() / _PROGRAMS[code.kind]
    try:
        record = trusted_programs.record(code, program)
    except NoRecord as error:
        telling.warn(
            f"that you trust the program cannot be recorded: {error}. Until 'swiprd trust"
            f" {shlex.quote(str(output))}' can, it runs only below {consent.roots()},"
            " where root has put it"
        )
    else:
        telling.say("trusted", f"SHA-256 {code.sha256}, from now on: see {record}")


_CODE = (
    "IT CARRIES CODE, which whoever made the file has written. It runs here now, and from now on"
    " wherever you ask for it, with your rights. The system's daemon runs it only from a folder"
    f" below {consent.roots()} that nobody but root and the daemon's user can write to"
)


def _describe(
    place: Path,
    options: argparse.Namespace,
    lines: list[Entry],
    named: Named,
    recipe: preprocessing.Recipe,
    origin: str,
    weights: str = _WEIGHTS,
) -> None:
    """Write model.toml and the labels."""
    value = "imagenet"
    if named.labels != "imagenet":
        value = LABELS
        (place / LABELS).write_text("".join(f"{one}\n" for one in named.labels), encoding="utf-8")
    every = [
        Entry(key="name", value=_name(options)),
        *lines,
        Entry(key="labels", value=value, why=named.source),
        Entry(key="weights", value=weights),
        Entry(key="sha256", value=_digest(place / weights), why=f"of {weights}"),
    ]
    if options.engine != "auto":
        every.append(Entry(key="engine", value=options.engine, why="by --engine"))
    text = writer.describe(every, recipe.preprocess, recipe.source, origin)
    (place / "model.toml").write_text(text, encoding="utf-8")


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


def _next(options: argparse.Namespace, answer: Answer, engine: str) -> None:
    """Say what came out and what can be typed now."""
    path, name = shlex.quote(str(options.output)), answer.model_id.partition("@")[0]
    own = path if "/" in path else f"./{path}"  # without a slash it is the name of a system's model
    best = max(range(len(answer.row)), key=answer.row.__getitem__)
    telling.say("made", f"{options.output}: {answer.model_id}")
    telling.say(
        "proven",
        f"a test picture gets {answer.labels[best]} {answer.row[best]:.6g} in"
        f" {1000 * answer.seconds:.0f} ms",
    )
    telling.say("engine", engine)
    telling.put(
        f"""
Try it:
  swiprd check {path} photo.jpg
Ask it, through a daemon of your own that is started for it:
  swiprctl --model {own} predict photo.jpg
Or as a service for everybody on this host:
  sudo cp -r {path} {MODELS[1]}/{name}
  sudo systemctl enable --now swiprd@{name}.socket
  swiprctl --model {name} predict photo.jpg"""
    )


def _name(options: argparse.Namespace) -> str:
    """Return the model's name.

    Raises:
        Unclear: it cannot be one.
    """
    if options.name is None:
        found = options.output.resolve().name
        if _NAME.fullmatch(found):
            return str(found)
        raise Unclear(f"--name: the folder's name, \"{found}\", cannot be a model's; give another")
    if not _NAME.fullmatch(options.name):
        raise Unclear(
            f'--name: "{options.name}" is not up to 64 of A-Z a-z 0-9 . _ - with no sign in front'
        )
    return str(options.name)


def _digest(file: Path) -> str:
    with open(formats.open_checkpoint(file), "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
