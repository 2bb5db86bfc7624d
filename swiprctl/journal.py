"""The journal beside an output file, line by line: what each record in the file was made from.

A line is TSV, escaped as everywhere (formats.py), and says of one record how long it is, what it
sums up to, and of which input and state of that input it is. The first line says with which options
the file was begun. Records follow one another in the order of the lines, without gaps, so a line
needs no offset. Pure: bytes in, entries out. Nothing here is evaluated, and all is bounded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from zlib import crc32

from swiprctl.formats import escape, unescape

_VERSION = b"swiprctl journal 1"
MAX_LINE = 1 << 20
MAX_RECORD = 1 << 26
_MAX_DIGITS = 20

HEADER = b"header"
ROW = b"row"
NO_ROW = b"none"
FAILURE = b"failure"
AGAIN = b"again"
KINDS = frozenset({HEADER, ROW, NO_ROW, FAILURE, AGAIN})
"""What a record is: the columns' names; an answer; an answer that a condition left out; a failure
that would be the same again; one that would perhaps not be."""


class Damaged(Exception):
    """This is no line of a journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """An input as it was when it was asked for: bytes, and nanoseconds of its last change."""

    size: int
    mtime: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one record was made from.

    Attributes:
        kind: one of `KINDS`.
        path: the input, as it was named.
        state: None where it is no plain file, and so never known to be unchanged.
        model: the id of the model that answered; empty where none did.
        replaces: the number of the earlier entry, from 0, whose record is void; or None.
        length, crc: of the record, in bytes.
    """

    kind: bytes
    path: str = ""
    state: State | None = None
    model: str = ""
    replaces: int | None = None
    length: int = 0
    crc: int = 0

    def encode(self) -> bytes:
        """Make its line."""
        size, mtime = (self.state.size, self.state.mtime) if self.state else (None, None)
        numbers = (self.length, self.crc, size, mtime, self.replaces)
        fields = [self.kind, *(b"-" if one is None else b"%d" % one for one in numbers)]
        fields += escape(self.model.encode(errors="replace")), escape(os.fsencode(self.path))
        return b"\t".join(fields) + b"\n"

    def answered(self, kind: bytes, model: str = "") -> Entry:
        """Make the entry of an answer to what this one is of."""
        return replace(self, kind=kind, model=model)

    def renumbered(self) -> Entry:
        """Make the entry for a journal in which what it replaces is no more."""
        return replace(self, replaces=None)

    def of(self, record: bytes) -> Entry:
        """Make the entry of a record that was made from the same."""
        return replace(self, length=len(record), crc=crc32(record))

    def fits(self, record: bytes) -> bool:
        """Whether a record is the one that was written."""
        return len(record) == self.length and crc32(record) == self.crc

    @property
    def has_row(self) -> bool:
        """Whether its record stands for an input."""
        return self.kind != HEADER and self.length > 0


def decode(line: bytes) -> Entry:
    """Read an entry's line, with the line feed at its end.

    Raises:
        Damaged: it is none.
    """
    fields = line.removesuffix(b"\n").split(b"\t")
    if not line.endswith(b"\n") or len(fields) != 8 or fields[0] not in KINDS:
        raise Damaged
    length, crc, size, mtime, replaces = map(_number, fields[1:6])
    if length is None or crc is None or not 0 <= length <= MAX_RECORD or (replaces or 0) < 0:
        raise Damaged
    return Entry(
        kind=fields[0],
        path=os.fsdecode(unescape(fields[7])),
        state=None if size is None or mtime is None else State(size=size, mtime=mtime),
        model=unescape(fields[6]).decode(errors="replace"),
        replaces=replaces,
        length=length,
        crc=crc,
    )


def first_line(options: str) -> bytes:
    """Make the first line, of the options that decide what the records look like."""
    return _VERSION + b"\t" + escape(os.fsencode(options)) + b"\n"


def options_of(line: bytes) -> str:
    """Read the first line.

    Raises:
        Damaged: it is no such line, or a later version's.
    """
    version, _, options = line.removesuffix(b"\n").partition(b"\t")
    if version != _VERSION or not line.endswith(b"\n"):
        raise Damaged
    return os.fsdecode(unescape(options))


def begins_journal(beginning: bytes) -> bool:
    """Whether a file begins as a journal does, or as what a kill or a crash leaves of one."""
    version = _VERSION + b"\t"
    return beginning.startswith(version) or version.startswith(beginning.rstrip(b"\0"))


def _number(text: bytes) -> int | None:
    if text == b"-":
        return None
    if len(text) > _MAX_DIGITS or not text.removeprefix(b"-").isdigit():
        raise Damaged
    return int(text)
