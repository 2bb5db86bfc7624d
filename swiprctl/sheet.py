"""One page to look at pictures with what the model says of them: HTML, from records of `predict`.

The page refers to nothing but the pictures, by relative paths, and its policy forbids all else.
Names and labels go into it as JSON, which the page's script shows as text, never as HTML.
"""

from __future__ import annotations

import json
import math
import os
import sys
from base64 import b64encode
from hashlib import sha256
from itertools import chain, islice
from urllib.parse import quote

from swiprctl.errors import BadRecords, CannotOpen, UsageError
from swiprctl.output import say, write
from swiprctl.records import ENCODING, Record, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swiprctl.arguments import Arguments

MAX_PICTURES = 100_000
"""Of more, a browser makes no page."""

_PIECE = 1 << 16


def run(arguments: Arguments) -> int:
    """Write the page of the records in a file, or on standard input; gives the exit status.

    Raises:
        SwiprError: the records cannot be read.
        OutputFailed: standard output takes nothing more.
    """
    if sys.stdout is not None and os.isatty(1):
        raise UsageError("the page goes to standard output: swiprctl sheet rows.csv > sheet.html")
    if len(arguments.paths) > 1:
        raise UsageError(f"sheet takes one file of rows, and {arguments.paths[1]!r} is another")
    path = arguments.paths[0] if arguments.paths else "-"
    if path == "-" and os.isatty(0):
        raise UsageError("no rows: swiprctl predict -H --header PATH... | swiprctl sheet")
    folder = os.path.abspath(arguments.relative_to or ".")
    if not os.path.isdir(folder):
        raise CannotOpen(f"{arguments.relative_to}: there is no such directory for the page")
    name = "standard input" if path == "-" else path
    try:
        with open(
            0 if path == "-" else path,
            encoding=ENCODING[0],
            errors=ENCODING[1],
            newline="",
            closefd=path != "-",
        ) as stream:
            records = read(stream, name)
            first = list(islice(records, 10))
            _look(first)
            _put(page(chain(first, records), folder))
    except OSError as error:
        raise CannotOpen(f"{name}: {error.strerror or error}") from error
    return 0


def page(records: Iterable[Record], folder: str) -> Iterator[bytes]:
    """Make the page.

    Args:
        folder: where it will be, an absolute path. The records' paths begin in this directory.

    Raises:
        BadRecords: there are too many.
    """
    html, style, script = (_part(f"sheet.{kind}") for kind in ("html", "css", "js"))
    html = html.replace("{style-hash}", _hash(style)).replace("{script-hash}", _hash(script))
    before, between, behind = html.replace("{style}", style).split("{data}")
    yield before.encode()
    places: dict[str, int] = {}
    separator = "["
    for count, record in enumerate(records):
        if count == MAX_PICTURES:
            raise BadRecords(
                f"more than {MAX_PICTURES:,} pictures are too many for a page; 'swiprctl predict"
                " --sort LABEL --limit N' gives the N most extreme"
            )
        yield (separator + _json(_entry(record, folder, places))).encode()
        separator = ",\n"
    yield ("[" if separator == "[" else "").encode() + b"]"
    yield between.encode()
    yield _json(list(places)).encode()
    yield behind.replace("{script}", script).encode()


def _entry(record: Record, folder: str, places: dict[str, int]) -> list[object]:
    """Make what the page's script reads of one picture: its path, its address, its values by the
    labels' places, and the error, if there was one."""
    values = {
        places.setdefault(label, len(places)): value if math.isfinite(value) else None
        for label, value in record.values.items()
    }
    dense = list(values) == list(range(len(values)))
    entry: list[object] = [
        record.path,
        address(record.path, folder),
        list(values.values()) if dense else values,
    ]
    return [*entry, record.error] if record.error else entry


def address(path: str, folder: str) -> str:
    """Make a picture's URL, relative to a page in a folder; empty for standard input."""
    if path in ("", "-"):
        return ""
    return quote(os.path.relpath(path.encode(*ENCODING), os.fsencode(folder)))


def _json(value: object) -> str:
    """Write JSON that ends no script, whatever is in it: ASCII, and no `<`."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _part(name: str) -> str:
    with open(os.path.join(os.path.dirname(__file__), name), encoding="utf-8") as file:
        return file.read()


def _hash(text: str) -> str:
    """Name an inline script or style in a Content-Security-Policy."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _put(pieces: Iterable[bytes]) -> None:
    waiting, size = [], 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _PIECE:
            write(b"".join(waiting))
            waiting, size = [], 0
    write(b"".join(waiting))


def _look(records: list[Record]) -> None:
    """Say so if the rows' paths lead nowhere from here."""
    paths = [record.path for record in records if record.path not in ("", "-")]
    if paths and not any(os.path.lexists(path.encode(*ENCODING)) for path in paths):
        say(
            f"{paths[0]}: not found from here, nor are the next; run this in the directory where"
            " predict ran, and see --relative-to"
        )
