"""The command `swiprctl`: arguments in, rows out, exit status back.

Data goes to standard output and words to standard error. What only some commands need is imported
where they need it: a fresh process for one image is to cost little more than bare Python.
"""

from __future__ import annotations

import os
import sys

from swiprctl.arguments import Arguments, parse
from swiprctl.client import Client
from swiprctl.errors import SwiprError, TryLater, UsageError
from swiprctl.output import INTERRUPTED, OutputFailed, leave, on_terminal, say, write
from swiprctl.rows import Prediction, best, header, json_line, pair_row, row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from swiprctl.inputs import Input
    from swiprctl.names import Names

_SOME_FAILED = 1


def run() -> NoReturn:
    """Be the console script."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:
            os.open(os.devnull, os.O_RDWR)  # or the next thing opened would pass for it
    leave(main(sys.argv[1:]))


def main(words: list[str]) -> int:
    """Run one command line; give the exit status."""
    try:
        return _run(parse(words))
    except UsageError as error:
        say(str(error))
        say("try 'swiprctl --help'")
        return error.exit_status
    except SwiprError as error:
        say(str(error))
        return error.exit_status
    except OutputFailed as error:
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Arguments) -> int:
    if arguments.command == "help":
        from swiprctl.help import TEXT

        write(TEXT.encode())
        return 0
    if arguments.command == "version":
        from swiprctl.version import __version__

        write(f"swiprctl {__version__}\n".encode())
        return 0
    with Client(
        arguments.socket,
        timeout=arguments.timeout,
        autostart=arguments.autostart,
        notify=say if on_terminal() else None,
        model=arguments.model,
        trace=say if arguments.verbose else None,
        labels=arguments.names_labels,
        named_errors=False,
    ) as client:
        if arguments.verbose:
            say(f"socket {client.socket_path}")
        if arguments.command == "predict":
            return _predict(client, arguments)
        return _inquire(client, arguments)


def _predict(client: Client, arguments: Arguments) -> int:
    several = arguments.listed or len(arguments.paths) > 1
    with_path = several if arguments.with_path is None else arguments.with_path
    names = _names(arguments) if arguments.listed else None
    inputs: Iterable[Input | None]
    inputs = names or [0 if path == "-" else path for path in arguments.paths]
    heading: tuple[str, ...] | None = None
    status = 0
    try:
        for source, answer in client.predict_many(inputs):
            path = "-" if source == 0 else str(source)
            if isinstance(answer, Prediction) and arguments.header:
                if heading is None:
                    # Not sooner: a daemon that is still loading knows no labels yet.
                    heading = answer.labels or ()
                    write(header(heading, path=with_path, model=arguments.with_model))
                elif heading != answer.labels:
                    answer = TryLater(
                        f"{answer.model} has answered, which has other labels than the model whose"
                        " labels are in the header; ask again"
                    )
            if isinstance(answer, SwiprError):
                say(f"{path}: {answer}")
                status = _SOME_FAILED if several else answer.exit_status
                continue
            write(_line(answer, arguments, path, with_path))
            if arguments.verbose:
                say(f"{path}: {_timings(answer)}")
    finally:
        if names is not None:
            names.close()
    if names is not None and names.error is not None:
        say(str(names.error))
        status = _SOME_FAILED
    return status


def _names(arguments: Arguments) -> Names:
    """Open the list of inputs."""
    from swiprctl.names import Names

    if arguments.files0_from is not None:
        return Names(arguments.files0_from, b"\0")
    return Names(arguments.files_from or "", b"\n")


def _line(answer: Prediction, arguments: Arguments, path: str, with_path: bool) -> bytes:
    """Make what is printed of one image."""
    labels = answer.labels or ()
    if arguments.json:
        return json_line(answer, labels, path, most=arguments.top)
    front = path if with_path else None
    model = answer.model if arguments.with_model else None
    if not arguments.labels and arguments.top is None:
        return row(answer.probabilities, front, model=model)
    thresholds = answer.thresholds if arguments.top is None else None
    pairs = best(labels, answer.probabilities, most=arguments.top, thresholds=thresholds)
    return pair_row(pairs, front, model=model)


def _inquire(client: Client, arguments: Arguments) -> int:
    fields = getattr(client, arguments.command)()
    if arguments.prometheus:
        from swiprctl.prometheus import samples

        text = "\n".join(samples(fields, client.socket_path))
    elif arguments.json:
        import json

        text = json.dumps(fields, indent=2, default=repr)
    elif arguments.command == "reload":
        text = f"now serving {fields.get('model', 'the model')}"
    elif arguments.command == "ping":
        from swiprctl.report import duration

        seconds = fields.get("seconds")
        took = f" in {duration(seconds)}" if isinstance(seconds, int | float) else ""
        text = f"{fields.get('model', 'the model')} answers as it should{took}"
    else:
        from swiprctl.report import lines

        text = "\n".join(lines(fields))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    write(f"{text}\n".encode(encoding, "backslashreplace"))
    return 0


def _timings(answer: Prediction) -> str:
    parts = [f"{name} {1000 * getattr(answer, name):.1f} ms" for name in ("queued", "decode")]
    return f"{', '.join(parts)}, infer {1000 * answer.infer:.1f} ms, model {answer.model}"
