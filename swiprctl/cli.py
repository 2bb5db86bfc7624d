"""The command `swiprctl`: arguments in, rows out, exit status back.

Data goes to standard output and words to standard error. What only some commands need is imported
where they need it: a fresh process for one image is to cost little more than bare Python.
"""

from __future__ import annotations

import os
import sys

from swiprctl.arguments import Arguments, parse
from swiprctl.client import Client, Prediction
from swiprctl.errors import BadRequest, SwiprError, UsageError
from swiprctl.names import Names
from swiprctl.rows import best, header, json_line, pair_row, row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_SOME_FAILED = 1
_EX_IOERR = 74
_INTERRUPTED = 128 + 2
_PIPE_BROKEN = 128 + 13


class _OutputFailed(Exception):
    """Standard output takes nothing more; `status` is what to exit with."""

    def __init__(self, status: int) -> None:
        self.status = status


def run() -> NoReturn:
    """Be the console script.

    Leaves without tearing the interpreter down, which takes 1 to 2 ms, for nothing: no file is
    unflushed, and the kernel closes the rest.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:
            os.open(os.devnull, os.O_RDWR)  # or the next thing opened would pass for it
    status = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:  # already told, or nobody is there to be told
            pass
    os._exit(status)


def main(words: list[str]) -> int:
    """Run one command line; give the exit status."""
    try:
        return _run(parse(words))
    except UsageError as error:
        _say(str(error))
        _say("try 'swiprctl --help'")
        return error.exit_status
    except SwiprError as error:
        _say(str(error))
        return error.exit_status
    except _OutputFailed as error:
        return error.status
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run(arguments: Arguments) -> int:
    if arguments.command == "help":
        from swiprctl.help import TEXT

        _write(TEXT.encode())
        return 0
    if arguments.command == "version":
        from swiprctl.version import __version__

        _write(f"swiprctl {__version__}\n".encode())
        return 0
    with Client(
        arguments.socket,
        timeout=arguments.timeout,
        autostart=arguments.autostart,
        notify=_say if sys.stderr is not None and sys.stderr.isatty() else None,
        model=arguments.model,
        trace=_say if arguments.verbose else None,
    ) as client:
        if arguments.verbose:
            _say(f"socket {client.socket_path}")
        if arguments.command == "predict":
            return _predict(client, arguments)
        return _inquire(client, arguments)


def _predict(client: Client, arguments: Arguments) -> int:
    several = arguments.listed or len(arguments.paths) > 1
    with_path = several if arguments.with_path is None else arguments.with_path
    if arguments.files0_from is not None:
        names = Names([], arguments.files0_from, b"\0")
    else:
        names = Names(arguments.paths, arguments.files_from)
    labels = _Labels(client)
    header_due = arguments.header
    status = 0
    try:
        for source, answer in client.predict_many(names):
            path = "-" if source == 0 else str(source)
            if isinstance(answer, SwiprError):
                _say(f"{path}: {answer}")
                status = _SOME_FAILED if several else answer.exit_status
                continue
            if header_due:
                # Not sooner: a daemon that is still loading knows no labels yet.
                line = header(labels.of(answer), path=with_path, model=arguments.with_model)
                _write(line)
                header_due = False
            _write(_line(answer, labels, arguments, path, with_path))
            if arguments.verbose:
                _say(f"{path}: {_timings(answer)}")
    finally:
        names.close()
    if names.error is not None:
        _say(str(names.error))
        status = _SOME_FAILED
    return status


def _line(
    answer: Prediction, labels: _Labels, arguments: Arguments, path: str, with_path: bool
) -> bytes:
    """Make what is printed of one image."""
    if arguments.json:
        return json_line(answer, labels.of(answer), path, most=arguments.top)
    front = path if with_path else None
    model = answer.model if arguments.with_model else None
    if not arguments.labels and arguments.top is None:
        return row(answer.probabilities, front, model=model)
    names = labels.of(answer)
    thresholds = labels.thresholds if arguments.top is None else None
    pairs = best(names, answer.probabilities, most=arguments.top, thresholds=thresholds)
    return pair_row(pairs, front, model=model)


class _Labels:
    """The labels of the model that answered; asked for when first needed, and after a reload.

    Attributes:
        thresholds: one for each of them, or None where the model has none; known after `of`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._model = ""
        self._labels: list[str] = []
        self.thresholds: list[float] | None = None

    def of(self, prediction: Prediction) -> list[str]:
        """Give one for each probability.

        Raises:
            BadRequest: the daemon names none, or not as many.
        """
        if self._model != prediction.model:
            fields = self._client.model()
            labels = fields.get("labels")
            if not isinstance(labels, list):
                raise BadRequest("the daemon does not name its labels")
            self._labels = [str(label) for label in labels]
            self.thresholds = _thresholds(fields.get("thresholds"), len(labels))
            self._model = prediction.model
        if len(self._labels) != len(prediction.probabilities):
            raise BadRequest(
                f"the daemon names {len(self._labels)} labels"
                f" for {len(prediction.probabilities)} probabilities"
            )
        return self._labels


def _thresholds(value: object, labels: int) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != labels:
        raise BadRequest("the daemon does not name a threshold for each label")
    if not all(type(one) in (int, float) for one in value):
        raise BadRequest("the daemon names thresholds that are no numbers")
    return value


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
    _write(f"{text}\n".encode(encoding, "backslashreplace"))
    return 0


def _timings(answer: Prediction) -> str:
    parts = [f"{name} {1000 * getattr(answer, name):.1f} ms" for name in ("queued", "decode")]
    return f"{', '.join(parts)}, infer {1000 * answer.infer:.1f} ms, model {answer.model}"


def _write(data: bytes) -> None:
    """Put data on standard output at once.

    Raises:
        _OutputFailed: it takes nothing more.
    """
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        raise _OutputFailed(_PIPE_BROKEN) from error  # as SIGPIPE would; `| head` is no mistake
    except OSError as error:
        _say(f"standard output: {error.strerror or error}")
        raise _OutputFailed(_EX_IOERR) from error


def _say(text: str) -> None:
    """Put one line on standard error. Paths keep their bytes, except where they would break the
    line or, on a terminal, do things to it."""
    if sys.stderr is None:
        return
    terminal = sys.stderr.isatty()
    shown = "".join(
        f"\\x{ord(c) & 0xFF:02x}" if c in "\r\n" or (terminal and _unsafe(c)) else c for c in text
    )
    line = f"swiprctl: {shown}\n"
    try:
        try:
            data = os.fsencode(line)
        except UnicodeEncodeError:  # the locale has not all characters; the path has its bytes
            data = line.encode("utf-8", "surrogateescape")
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
    except (OSError, ValueError):
        pass  # nobody is there to be told


def _unsafe(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xDC80 <= code <= 0xDCFF
