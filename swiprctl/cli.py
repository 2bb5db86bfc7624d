"""The command `swiprctl`: arguments in, rows out, exit status back.

Data goes to standard output and words to standard error. What only some commands need is imported
where they need it: a fresh process for one image is to cost little more than bare Python.
"""

from __future__ import annotations

import os
import sys

from swiprctl.arguments import Arguments, parse
from swiprctl.client import Client
from swiprctl.errors import SwiprError, UsageError
from swiprctl.inputs import DIRECTORY
from swiprctl.output import INTERRUPTED, OutputFailed, Writer, leave, on_terminal, say, show, write
from swiprctl.rows import Prediction, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from swiprctl.condition import Condition
    from swiprctl.names import Names
    from swiprctl.output import Format, Sink
    from swiprctl.resuming import Remaining

_SOME_FAILED = 1
_NO_PATH = "''"  # how an empty one is shown
_SELECT_FAILED = 2  # as grep has it


def run() -> NoReturn:
    """Be the console script."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:
            os.open(os.devnull, os.O_RDWR)  # or the next thing opened would pass for it
    leave(main(sys.argv[1:]))


def main(words: list[str]) -> int:
    """Run one command line; give the exit status."""
    arguments = Arguments()
    try:
        return _run(parse(words, arguments))
    except SwiprError as error:
        for line in error.lines():
            say(line)
        if isinstance(error, UsageError):
            say("try 'swiprctl --help'")
        return _SELECT_FAILED if arguments.command == "select" else error.exit_status
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
    if arguments.command in ("list", "stop"):
        from swiprctl.inquiry import list_daemons, stop_daemons

        return list_daemons(arguments) if arguments.command == "list" else stop_daemons(arguments)
    if arguments.command == "sheet":
        from swiprctl.sheet import run as make_sheet

        return make_sheet(arguments)
    if arguments.several:
        from swiprctl.progress import outlive_signals

        outlive_signals()
    with Client(
        arguments.socket,
        timeout=arguments.timeout,
        autostart=arguments.autostart,
        notify=say if on_terminal() and not arguments.quiet else None,
        model=arguments.model,
        trace=say if arguments.verbose else None,
        labels=arguments.names_labels,
        named_errors=False,
    ) as client:
        if arguments.verbose:
            say(f"socket {client.socket_path}")
        if arguments.command == "select":
            from swiprctl.selection import select

            return select(arguments, _put(), lambda sink: _predict(client, arguments, sink))
        if arguments.command == "predict":
            return _predict(client, arguments)
        from swiprctl.inquiry import inquire

        return inquire(client, arguments)


def _predict(client: Client, arguments: Arguments, sink: Sink | None = None) -> int:
    """Have inputs answered: from their source, by the client, into the sink.

    A source gives inputs as `predict_many` takes them. What else gives them, a walk of folders
    say, stands beside `Names`: `close()`, and an `error` that ended it early.
    """
    condition = _condition(arguments) if sink is None else None  # before a file is begun anew
    names = _names(arguments) if arguments.listed else None
    inputs: Iterable[str | int | None]
    inputs = names or [0 if path == "-" else path for path in arguments.paths]
    if arguments.recursive:
        inputs = _walk(inputs, arguments)
    remaining = _remaining(client, arguments, inputs) if arguments.output is not None else None
    inputs = inputs if remaining is None else remaining
    sink = sink or _sink(client, arguments, remaining, condition)
    try:
        if arguments.several:
            status = _predict_several(client, arguments, inputs, sink)
        else:
            status = _run_through(client, arguments, inputs, sink)
    finally:
        sink.close()
        if names is not None:
            names.close()
    if names is not None and names.error is not None:
        say(str(names.error))
        status = _SOME_FAILED
    if remaining is not None and arguments.verbose:
        say(f"{arguments.output}: {remaining.present} of the inputs were in it")
    return status


def _remaining(
    client: Client, arguments: Arguments, inputs: Iterable[str | int | None]
) -> Remaining:
    """Open the output file, for the inputs that it has no row of."""
    from swiprctl.resuming import begin

    return begin(
        arguments.output or "",
        arguments.row_options,
        inputs,
        client.model,
        resume=arguments.resume,
        force=arguments.force,
        patience=arguments.timeout,
    )


def _walk(inputs: Iterable[str | int | None], arguments: Arguments) -> Iterable[str | int | None]:
    """Have the folders among the inputs walked."""
    from swiprctl.walk import Walk

    return Walk(
        inputs,
        hidden=arguments.hidden,
        follow=arguments.follow,
        one_file_system=arguments.one_file_system,
        patience=arguments.timeout,
    )


def _predict_several(
    client: Client, arguments: Arguments, inputs: Iterable[str | int | None], sink: Sink
) -> int:
    """Show how far it is."""
    from swiprctl.progress import Progress
    from swiprctl.tally import Tally

    tally = Tally(sink, inputs)
    loud = not arguments.quiet
    with Progress(tally, line=loud and arguments.progress, summary=loud):
        status = _run_through(client, arguments, inputs, tally)
    if arguments.recursive and not (tally.done or tally.present) and loud and on_terminal():
        say(f"no images: {tally.skipped:,} other files, by their first bytes; see --hidden and -L")
    return status


def _run_through(
    client: Client, arguments: Arguments, inputs: Iterable[str | int | None], sink: Sink
) -> int:
    status = 0
    for source, answer in client.predict_many(inputs):
        path = "-" if source == 0 else str(source)
        failure = sink.take(path, answer)
        if failure is not None:
            if not arguments.errors:
                say(f"{path or _NO_PATH}: {failure}{_advice(failure, arguments)}")
            status = _SOME_FAILED if arguments.several else failure.exit_status
        elif arguments.verbose and isinstance(answer, Prediction):
            say(f"{path}: {_timings(answer)}")
    sink.finish()
    return status


def _advice(failure: SwiprError, arguments: Arguments) -> str:
    if str(failure) == DIRECTORY and not arguments.recursive:
        return "; with -r, the images in it are asked about"
    return ""


def _condition(arguments: Arguments) -> Condition | None:
    if arguments.where is None:
        return None
    from swiprctl.expression import parse as parse_condition

    return parse_condition(arguments.where)


def _sink(
    client: Client, arguments: Arguments, remaining: Remaining | None, condition: Condition | None
) -> Sink:
    """Put together where the answers go: at the end always a `Writer`, or a `FileWriter`.

    What picks among answers (a condition) or watches them (progress) is a `Sink` of its own, in a
    module that is imported here if it is asked for, and stands before the others:
    `sink = Condition(sink, …)`. What has to know of all that is written to a terminal, to clear its
    own line first, wraps `put`.
    """
    sink = _writer(client, arguments, remaining)
    if condition is None:
        return sink
    from swiprctl.selection import Where

    return Where(sink, condition)


def _writer(client: Client, arguments: Arguments, remaining: Remaining | None) -> Sink:
    """Make the last sink, which writes."""
    put = _put()
    with_path = arguments.with_path
    if with_path is None:
        with_path = arguments.several or remaining is not None
    format = _format(arguments, with_path)
    ask: Callable[[], Iterable[str]] = tuple
    if isinstance(format, Table):
        ask = lambda: map(str, _labels(client))  # noqa: E731 - a client is not asked for nothing
    if remaining is not None:
        from swiprctl.resuming import FileWriter

        return FileWriter(
            format,
            remaining=remaining,
            header=arguments.header and isinstance(format, Table),
            failures=arguments.errors,
            ask=ask,
        )
    if arguments.sort is None:
        return Writer(format, put, header=arguments.header, failures=arguments.errors, ask=ask)
    from swiprctl.sorting import SortedWriter

    return SortedWriter(
        format,
        put,
        label=arguments.sort,
        reverse=arguments.reverse,
        limit=arguments.limit,
        header=arguments.header,
        failures=arguments.errors,
        ask=ask,
    )


def _put() -> Callable[[bytes], None]:
    return show if sys.stdout is not None and os.isatty(1) else write


def _labels(client: Client) -> list[object]:
    labels = client.model().get("labels")
    return labels if isinstance(labels, list) else []


def _format(arguments: Arguments, with_path: bool) -> Format:
    name = arguments.format_name
    if name == "jsonl":
        from swiprctl.formats import JsonLines

        return JsonLines(most=arguments.top)
    table = Table
    if name == "tsv":
        from swiprctl.formats import Tsv

        table = Tsv
    return table(
        path=with_path,
        model=arguments.with_model,
        failures=arguments.errors,
        pairs=arguments.labels,
        most=arguments.top,
    )


def _names(arguments: Arguments) -> Names:
    """Open the list of inputs."""
    from swiprctl.names import Names

    if arguments.files0_from is not None:
        return Names(arguments.files0_from, b"\0")
    return Names(arguments.files_from or "", b"\n")


def _timings(answer: Prediction) -> str:
    parts = [f"{name} {1000 * getattr(answer, name):.1f} ms" for name in ("queued", "decode")]
    return f"{', '.join(parts)}, infer {1000 * answer.infer:.1f} ms, model {answer.model}"
