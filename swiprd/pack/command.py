"""`swiprd pack`: from a command line to a folder that is proven to work, and what to type then."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from swiprd.config import MODELS
from swiprd.folder import consent, trusted_programs
from swiprd.folder.trusted_programs import Code, NoRecord
from swiprd.pack import formats, telling
from swiprd.pack.errors import Interrupted, PackError
from swiprd.pack.model_toml import PROGRAM_FILES
from swiprd.pack.trial import Answer
from swiprd.system import console
from swiprd.system.console import OutputFailed
from swiprd.system.reason import first_line


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
    form = formats.recognise(options.checkpoint)
    if form == "onnx":
        from swiprd.pack import from_onnx

        return *from_onnx.pack(options.checkpoint, options), None
    try:
        from swiprd.pack import from_torch  # takes seconds, and need not be there for the above
    except ImportError as error:
        reason = f"torch reads it, and cannot be imported here: {first_line(error)}"
        raise PackError(f"{options.checkpoint}: {reason}") from None

    return from_torch.pack(options.checkpoint, form, options)


def _record(output: Path, code: Code) -> None:
    """Note that the user trusts the program; say so, or that it could not be done."""
    program = output.absolute() / PROGRAM_FILES[code.kind]
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
