"""`swiprd pack`: from a command line to a folder that is proven to work, and what to type then."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import shutil
from pathlib import Path

import torch

from swiprd import terminal
from swiprd.bundle import PROGRAMS, Preprocess
from swiprd.config import MODELS
from swiprd.pack import folder, formats, labels, plan, recipes
from swiprd.pack.errors import CannotWrite, Interrupted, NotProven, PackError, Unclear
from swiprd.pack.folder import LABELS, Line
from swiprd.pack.formats import Format
from swiprd.pack.labels import Labels, Named
from swiprd.pack.naming import Tensors
from swiprd.pack.plan import Plan
from swiprd.pack.proof import Answer, prove, try_program
from swiprd.terminal import OutputFailed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WEIGHTS = "weights.pth"
_PROGRAMS = {"torchscript": "program.pt", "export": "program.pt2"}
_WHO = "swiprd pack"
_OUTPUT = "--output: which folder is to be made? -o FOLDER"


def run(options: argparse.Namespace) -> int:
    """Pack; return the exit status."""
    try:
        answer = _pack(options)
    except PackError as error:
        terminal.complain(_WHO, str(error))
        return error.exit_status
    except Interrupted as error:
        terminal.complain(_WHO, "interrupted; nothing was made")
        return error.exit_status
    except OutputFailed as error:
        terminal.complain(_WHO, f"{error}; nothing was made")
        return error.status
    try:
        _next(options, answer)
    except OutputFailed as error:
        terminal.complain(_WHO, f"{error}; {options.output} is made all the same")
        return error.status
    return 0


def _pack(options: argparse.Namespace) -> Answer:
    file: Path = options.checkpoint
    form = formats.recognise(file)
    plan.check_form(form, options.architecture)
    if options.output is not None:
        # Before the checkpoint is read, which may take a while.
        folder.check_place(options.output, replace=options.force)
        _name(options)
    digest = _digest(file)
    if form in PROGRAMS:
        return _pack_program(file, form, digest, options)
    return _pack_weights(file, form, digest, options)


def _pack_weights(file: Path, form: Format, digest: str, options: argparse.Namespace) -> Answer:
    made = plan.make(file, form, digest, options)
    _tell(made)
    missing = [*made.missing, *([_OUTPUT] if options.output is None else [])]
    if missing or made.named is None:
        raise Unclear("\n".join(missing))
    fit = made.fit
    lines = [
        Line(key="architecture", value=fit.architecture, why=made.why["architecture"]),
        *([Line(key="head", value=fit.head)] if fit.head != "default" else []),
        *([Line(key="match", value=fit.match)] if fit.match != "name" else []),
        Line(key="activation", value=made.activation, why=made.why["activation"]),
    ]
    with folder.making(options.output, replace=options.force, note=_warn) as place:
        _save(fit.tensors, place / _WEIGHTS, options.output)
        origin = f"{file.name}: {made.why['checkpoint']}, SHA-256 {digest}"
        _describe(place, options, lines, made.named, made.recipe, origin)
        return _prove(place, options, fit.tensors)


def _pack_program(file: Path, form: Format, digest: str, options: argparse.Namespace) -> Answer:
    plan.trust(file, form, options)
    told = plan.told_activation(options)
    given = labels.given(options.labels, options.labels_file)
    recipe = plan.override(recipes.plain("torchvision evaluates most models; assumed"), options)
    _say("checkpoint", f"{file}: {plan.FORMATS[form]}")
    _say("note", _CODE)
    outputs, *found = try_program(file, form, recipe.preprocess)
    activation, why = told or found
    _say("outputs", str(outputs))
    _say("activation", f"{activation} ({why})")
    _say("preprocess", f"{_summary(recipe.preprocess)} (as {recipe.source})")
    missing = [] if options.output else [_OUTPUT]
    try:
        named = labels.check(given, outputs)
    except Unclear as error:
        missing.insert(0, str(error))
    if missing:
        raise Unclear("\n".join(missing))
    lines = [
        Line(key="architecture", value=form, why="a program: it carries code"),
        Line(key="activation", value=activation, why=why),
    ]
    with folder.making(options.output, replace=options.force, note=_warn) as place:
        shutil.copyfile(file, place / _PROGRAMS[form])
        origin = f"{file.name}, SHA-256 {digest}"
        _describe(place, options, lines, named, recipe, origin, weights=_PROGRAMS[form])
        return _prove(place, options)


_CODE = (
    "IT CARRIES CODE, which whoever made the file has written. It runs here now, with your rights,"
    " and then in the daemon, which takes it only from a folder that root or the daemon's own user"
    " owns and nobody else can write to; this one gets the modes 0755 and 0644"
)


def _describe(
    place: Path,
    options: argparse.Namespace,
    lines: list[Line],
    named: Named,
    recipe: recipes.Recipe,
    origin: str,
    weights: str = _WEIGHTS,
) -> None:
    """Write model.toml and the labels."""
    value = "imagenet"
    if named.labels != "imagenet":
        value = LABELS
        (place / LABELS).write_text("".join(f"{one}\n" for one in named.labels), encoding="utf-8")
    every = [
        Line(key="name", value=_name(options)),
        *lines,
        Line(key="labels", value=value, why=named.source),
        Line(key="weights", value=weights),
        Line(key="sha256", value=_digest(place / weights), why=f"of {weights}"),
    ]
    text = folder.describe(every, recipe.preprocess, recipe.source, origin)
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
        reason, cause = str(error).splitlines()[0], error.__context__
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


def _prove(place: Path, options: argparse.Namespace, tensors: Tensors | None = None) -> Answer:
    folder.close(place)
    try:
        return prove(place)
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
    _say("checkpoint", made.why["checkpoint"])
    _say("architecture", f"{fit.architecture}{head} (by {made.why['architecture']})")
    _say("outputs", str(fit.classes))
    if made.named is not None:
        _say("labels", f"{_list(made.named.labels)} (from {made.named.source})")
    _say("activation", f"{made.activation} ({made.why['activation']})")
    _say("preprocess", f"{_summary(made.recipe.preprocess)} (as {made.recipe.source})")
    for note in made.notes:
        _say("note", note)


def _next(options: argparse.Namespace, answer: Answer) -> None:
    """Say what came out and what can be typed now."""
    path, name = shlex.quote(str(options.output)), answer.model_id.partition("@")[0]
    own = path if "/" in path else f"./{path}"  # without a slash it is the name of a system's model
    best = max(range(len(answer.row)), key=answer.row.__getitem__)
    _say("made", f"{options.output}: {answer.model_id}")
    _say(
        "proven",
        f"a test picture gets {answer.labels[best]} {answer.row[best]:.6g} in"
        f" {1000 * answer.seconds:.0f} ms",
    )
    _print(
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


def _warn(text: str) -> None:
    terminal.complain(_WHO, text)


def _say(what: str, text: str) -> None:
    _print(f"{what:12} {terminal.clean(text)}")


def _print(text: str) -> None:
    """Print, as long as somebody reads: `| head` is no reason to make no folder.

    Raises:
        OutputFailed: for any other reason than that.
    """
    try:
        terminal.put(text)
    except OutputFailed as error:
        if not error.unread:
            raise


def _summary(preprocess: Preprocess) -> str:
    edge = {"long": " (long edge)", "both": " (both edges)"}.get(preprocess.edge, "")
    size = f"resize {preprocess.resize}{edge}" if preprocess.resize else "no resize"
    if preprocess.edge == "square":
        size = f"square of the short edge, {size}"
    crops = "" if preprocess.crops == "center" else f" ({preprocess.crops})"
    turned = ", upright by EXIF" if preprocess.exif == "apply" else ""
    mean, std = (",".join(f"{one:g}" for one in v) for v in (preprocess.mean, preprocess.std))
    return (
        f"{size}, crop {preprocess.crop}{crops}, {preprocess.interpolation}{turned},"
        f" mean {mean}, std {std}"
    )


def _list(labels: Labels) -> str:
    if labels == "imagenet":
        return "imagenet"
    shown = ", ".join(labels[:6])
    return f"{shown}, … {len(labels)} in all" if len(labels) > 6 else shown


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
