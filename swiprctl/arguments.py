"""The command line: words in, one `Arguments` out, or a `UsageError`.

Written by hand, because argparse and the `re` it brings take 8 ms to import, a third of what a
whole `swiprctl predict` may cost. Options may stand before or behind the command, as in
`swiprctl --model chexnet predict x.png`. Prints nothing.
"""

from __future__ import annotations

from swiprctl.errors import UsageError
from swiprctl.protocol import MAX_TIMEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = ("predict", "select", "sheet", "status", "model", "ping", "list", "reload", "stop")

_ALL = frozenset(COMMANDS)
_ANY = _ALL - {"list", "sheet"}  # of those that are about one daemon
_PREDICT = frozenset({"predict"})
_SELECT = frozenset({"select"})
_IMAGES = _PREDICT | _SELECT
_SHEET = frozenset({"sheet"})

FORMATS = ("csv", "tsv", "jsonl")
_BY_SUFFIX = {"csv": "csv", "tsv": "tsv", "tab": "tsv", "jsonl": "jsonl", "ndjson": "jsonl"}

# option: what it sets, to what (None: to the word that follows), and with which commands
_OPTIONS: dict[str, tuple[str, object, frozenset[str]]] = {
    "--socket": ("socket", None, _ANY),
    "--model": ("model", None, _ANY),
    "--timeout": ("timeout", None, _ALL - _SHEET),
    "--no-autostart": ("autostart", False, _ANY),
    "--verbose": ("verbose", True, _ANY),
    "-v": ("verbose", True, _ANY),
    "--json": ("json", True, frozenset({"predict", "status", "model", "list"})),
    "--prometheus": ("prometheus", True, frozenset({"status"})),
    "--all": ("all", True, frozenset({"stop"})),
    "--files-from": ("files_from", None, _IMAGES),
    "--files0-from": ("files0_from", None, _IMAGES),
    "--recursive": ("recursive", True, _IMAGES),
    "-r": ("recursive", True, _IMAGES),
    "--hidden": ("hidden", True, _IMAGES),
    "--follow": ("follow", True, _IMAGES),
    "-L": ("follow", True, _IMAGES),
    "--one-file-system": ("one_file_system", True, _IMAGES),
    "--no-progress": ("progress", False, _IMAGES),
    "--quiet": ("quiet", True, _ANY),
    "-q": ("quiet", True, _ANY),
    "--with-filename": ("with_path", True, _PREDICT),
    "-H": ("with_path", True, _PREDICT),
    "--no-filename": ("with_path", False, _PREDICT),
    "-h": ("with_path", False, _PREDICT),
    "--header": ("header", True, _PREDICT),
    "--labels": ("labels", True, _PREDICT),
    "--top": ("top", None, _PREDICT),
    "--with-model": ("with_model", True, _PREDICT),
    "--format": ("format", None, _PREDICT),
    "--errors": ("errors", True, _PREDICT),
    "--sort": ("sort", None, _PREDICT),
    "--reverse": ("reverse", True, _PREDICT),
    "--limit": ("limit", None, _PREDICT),
    "--where": ("where", None, _PREDICT),
    "--invert-match": ("invert", True, _SELECT),  # and -v, see _check
    "--null": ("null", True, _SELECT),
    "-0": ("null", True, _SELECT),
    "--relative-to": ("relative_to", None, _SHEET),
    "--output": ("output", None, _PREDICT),
    "--resume": ("resume", True, _PREDICT),
    "--force": ("force", True, _PREDICT),
}


class Arguments:
    """What the user wants. `command` is also `help` or `version`."""

    def __init__(self) -> None:
        self.command = ""
        self.paths: list[str] = []
        self.socket: str | None = None
        self.model: str | None = None
        self.timeout: float | None = None
        self.autostart = True
        self.verbose = False
        self.json = False
        self.prometheus = False
        self.all = False
        self.files_from: str | None = None
        self.files0_from: str | None = None
        self.recursive = False
        self.hidden = False
        self.follow = False
        self.one_file_system = False
        self.progress = True
        self.quiet = False
        self.with_path: bool | None = None
        self.header = False
        self.labels = False
        self.top: int | None = None
        self.with_model = False
        self.format: str | None = None
        self.errors = False
        self.sort: str | None = None
        self.reverse = False
        self.limit: int | None = None
        self.where: str | None = None
        self.invert = False
        self.null = False
        self.relative_to: str | None = None
        self.output: str | None = None
        self.resume = False
        self.force = False

    @property
    def names_labels(self) -> bool:
        """Whether labels are printed, or needed for what is."""
        return self.where is not None or (
            self.command == "predict"
            and (
                self.header
                or self.labels
                or self.json
                or self.errors
                or self.format_name == "jsonl"
                or self.top is not None
                or self.sort is not None
            )
        )

    @property
    def several(self) -> bool:
        """Whether there may be more inputs than one."""
        return self.listed or self.recursive or len(self.paths) > 1

    @property
    def format_name(self) -> str:
        """The format of what `predict` prints; empty where the output file's name says none."""
        if self.json or self.format is not None:
            return self.format or "jsonl"
        if self.output is None:
            return "csv"
        return _BY_SUFFIX.get(self.output.rpartition(".")[2].lower(), "")

    @property
    def row_options(self) -> str:
        """The options that decide what rows look like, as words."""
        words = [f"--format={self.format_name}"]
        if self.format_name != "jsonl":
            words += ["--header"] * self.header + ["--with-model"] * self.with_model
            words += ["--labels"] * self.labels
        words += ["--errors"] * self.errors
        words += [] if self.where is None else [f"--where={self.where}"]
        return " ".join(words if self.top is None else [*words, f"--top={self.top}"])

    @property
    def listed(self) -> bool:
        """Whether the inputs are in a list."""
        return self.files_from is not None or self.files0_from is not None


def parse(words: list[str], arguments: Arguments | None = None) -> Arguments:
    """Read a command line, without the program's name.

    Args:
        arguments: what to fill in: it has the command even where the rest makes no sense.

    Raises:
        UsageError: it asks for something that does not exist, or for too little.
    """
    arguments = arguments or Arguments()
    used: list[str] = []  # options, to be checked against the command, which may come later
    rest = iter(words)
    for word in rest:
        if word == "--":
            for operand in rest:
                _operand(arguments, operand)
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if name in ("--help", "--version"):
                arguments.command = name.removeprefix("--")
                return arguments
            used.append(_set(arguments, name, value if equals else None, rest))
        elif word.startswith("-") and word != "-":
            if word == "-V" or (word == "-h" and not arguments.command):
                arguments.command = "version" if word == "-V" else "help"
                return arguments
            for letter in word[1:]:
                used.append(_set(arguments, f"-{letter}", None, rest))
        elif word in ("help", "version") and not arguments.command:
            arguments.command = word
            return arguments
        else:
            _operand(arguments, word)
    _check(arguments, used)
    return arguments


def _set(arguments: Arguments, name: str, value: str | None, rest: object) -> str:
    option = _OPTIONS.get(name)
    if option is None:
        from swiprctl.hints import unknown_option

        raise UsageError(unknown_option(name, _OPTIONS))
    attribute, constant, _ = option
    if constant is not None:
        if value is not None:
            more = ": it prints those of the model; 'swiprd pack' takes a list of them"
            raise UsageError(f"{name} takes no value{more if name == '--labels' else ''}")
        setattr(arguments, attribute, constant)
        return name
    if value is None:
        value = next(rest, None)  # type: ignore[call-overload]
        if value is not None and _is_option(value):
            what = "a LABEL" if name == "--sort" else "a value"
            raise UsageError(
                f"{name} needs {what}, and {value} is an option; if it is meant: {name}={value}"
            )
    if value is None:
        raise UsageError(f"{name} needs a value")
    convert = _CONVERT.get(attribute)
    setattr(arguments, attribute, convert(name, value) if convert else value)
    return name


def _is_option(word: str) -> bool:
    if word.startswith("--"):
        return word.partition("=")[0] in _OPTIONS
    return word[:1] == "-" != word and all(f"-{letter}" in _OPTIONS for letter in word[1:])


def _operand(arguments: Arguments, word: str) -> None:
    if arguments.command:
        arguments.paths.append(word)
    elif word in COMMANDS:
        arguments.command = word
    else:
        from swiprctl.hints import unknown_command

        raise UsageError(unknown_command(word, COMMANDS))


def _check(arguments: Arguments, used: list[str]) -> None:
    command = arguments.command
    if not command:
        raise UsageError(f"no command given; there are {', '.join(COMMANDS)}")
    for name in used:
        if command not in _OPTIONS[name][2]:
            raise UsageError(f"{name} does not go with {command}")
    if command == "select":
        _check_select(arguments, used)  # first: -v is another option there
    if arguments.quiet and arguments.verbose:
        raise UsageError("-q and -v: give one of them")
    if arguments.json and arguments.prometheus:
        raise UsageError("--json and --prometheus: give one of them")
    if arguments.all and (arguments.socket is not None or arguments.model is not None):
        raise UsageError(
            "--all stops every daemon of your own: give it without --socket and --model"
        )
    if command == "sheet":
        return
    if command not in ("predict", "select"):
        if arguments.paths:
            raise UsageError(f"{command} takes no operand: {arguments.paths[0]!r}")
        return
    if arguments.listed and arguments.paths:
        raise UsageError("paths on the command line and in a list: give one of them")
    if arguments.files_from is not None and arguments.files0_from is not None:
        raise UsageError("--files-from and --files0-from: give one of them")
    for attribute in ("hidden", "follow", "one_file_system"):
        if getattr(arguments, attribute) and not arguments.recursive:
            option = "--" + attribute.replace("_", "-")
            raise UsageError(f"{option} is about folders: add -r to have them walked")
    if arguments.recursive and not arguments.listed and not arguments.paths:
        arguments.paths.append(".")  # as grep, ripgrep and fd have it
    if not arguments.listed and not arguments.paths:
        raise UsageError(
            f"nothing to {command}: give a PATH, - for an image on standard input, or"
            " --files-from=- for a list of paths there"
        )
    _check_format(arguments)


def _check_format(arguments: Arguments) -> None:
    if arguments.json and arguments.format not in (None, "jsonl"):
        raise UsageError(f"--json and --format={arguments.format}: give one of them")
    if arguments.header and arguments.labels and arguments.top is None:
        raise UsageError("--labels needs no --header: the labels are in every row; or add --top N")
    for attribute in ("reverse", "limit"):
        if getattr(arguments, attribute) and arguments.sort is None:
            raise UsageError(f"--{attribute} goes with --sort=LABEL")
    _check_output(arguments)


def _check_output(arguments: Arguments) -> None:
    if arguments.output is None:
        for attribute in ("resume", "force"):
            if getattr(arguments, attribute):
                raise UsageError(f"--{attribute} goes with --output=FILE")
        return
    if arguments.output == "-":
        raise UsageError("--output=-: leave it out, and the rows go to standard output")
    if not arguments.format_name:
        raise UsageError(f"--output={arguments.output}: say --format=csv, tsv or jsonl")
    if arguments.resume and arguments.force:
        raise UsageError("--resume and --force: give one of them")
    if arguments.with_path is False:
        raise UsageError("--output needs the path in each row: leave -h out")
    if arguments.sort is not None:
        raise UsageError("--sort writes in the end: use it with '> FILE' in place of --output")


def _check_select(arguments: Arguments, used: list[str]) -> None:
    """Take the condition from the operands, and -v as grep has it."""
    if not arguments.paths:
        raise UsageError("no condition given: swiprctl select 'blurred > 0.8' PATH...")
    arguments.where = arguments.paths.pop(0)
    arguments.verbose = "--verbose" in used
    arguments.invert = arguments.invert or "-v" in used


def _count(name: str, text: str) -> int:
    # int() takes more than digits (" 3", "1_000"), and not many of those.
    digits = text.lstrip("0")
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError(f"{name}: a whole number from 1, not {text!r}")
    return int(digits[:9])  # more than there are labels, in any case


def _seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise UsageError(f"{name}: seconds above 0, at most {MAX_TIMEOUT:.0f}, not {text!r}")
    return seconds


def _format(name: str, text: str) -> str:
    if text not in FORMATS:
        raise UsageError(f"{name}: one of {', '.join(FORMATS)}, not {text!r}")
    return text


_CONVERT: dict[str, Callable[[str, str], object]] = {
    "timeout": _seconds,
    "top": _count,
    "limit": _count,
    "format": _format,
}
