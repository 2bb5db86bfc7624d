"""What is whole of an output file and its journal, after whatever has ended the work on them.

A record's entry is written before the record. So a kill leaves a file that is a beginning of what
the journal says, and a journal whose last line may be a part; a crash of the host may leave zeros
at the end of either. That is cut off. Anything else is somebody's change, and refused. Reads only.
"""

from __future__ import annotations

from swiprctl.errors import CannotWrite
from swiprctl.journal import HEADER, MAX_LINE, Damaged, decode, options_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from swiprctl.answered import Answered

_CHUNK = 1 << 16


class Whole:
    """A file held against its journal.

    Args:
        name: the file's, for messages; its journal's is that and ".resume".
        file, journal: both at their beginning.
        options: those of this command; the file must have been begun with the same.
        answered: takes the entries.

    Attributes:
        size, journal_size: bytes of each that are whole.
        rows: how many.
        header: the record of the columns' names; empty if there is none.

    Raises:
        CannotWrite: one of the two is not as it was written, or the options are others.
        OSError: one cannot be read.
    """

    def __init__(
        self, name: str, file: BinaryIO, journal: BinaryIO, options: str, answered: Answered
    ) -> None:
        self._name = name
        self.size = self.journal_size = self.rows = 0
        self.header = b""
        self._check_options(journal, options)
        line_number = 1
        while line := journal.readline(MAX_LINE):
            line_number += 1
            try:
                entry = decode(line)
                record = file.read(entry.length)
                if not entry.fits(record):
                    if len(record) == entry.length and not _only_zeros(record, file):
                        raise CannotWrite(
                            f"{name}: row {self.rows + 1}, at byte {self.size}, is not as swiprctl"
                            " wrote it; --force begins anew"
                        )
                    return
                answered.add(entry, self.journal_size)
            except (Damaged, ValueError) as error:
                cut_short = not line.endswith(b"\n") and len(line) < MAX_LINE
                if not cut_short and not _only_zeros(line, journal):
                    raise self._damaged(line_number) from error
                break
            if entry.kind == HEADER:
                self.header = record
            self.rows += entry.has_row
            self.size += len(record)
            self.journal_size += len(line)
        rest = file.read(1)
        if rest and not _only_zeros(rest, file):
            raise CannotWrite(
                f"{name}: behind byte {self.size} it has what swiprctl did not write;"
                f" 'truncate -s {self.size} {_quoted(name)}' cuts that off, --force begins anew"
            )

    def _check_options(self, journal: BinaryIO, options: str) -> None:
        line = journal.readline(MAX_LINE)
        try:
            begun = options_of(line)
        except Damaged as error:
            raise self._damaged(1) from error
        if begun != options:
            raise CannotWrite(
                f"{self._name}: it was begun with {begun}, and this is {options}; take the same"
                " options, or --force to begin anew"
            )
        self.journal_size = len(line)

    def _damaged(self, line: int) -> CannotWrite:
        return CannotWrite(
            f"{self._name}.resume: line {line} is not as swiprctl wrote it; --force begins"
            f" {self._name} anew"
        )


def _quoted(name: str) -> str:
    from shlex import quote

    return quote(name)


def _only_zeros(part: bytes, file: BinaryIO) -> bool:
    """Whether a part of a file ends in zeros, and nothing else follows."""
    if not part.endswith(b"\0"):
        return False
    return not any(rest.strip(b"\0") for rest in iter(lambda: file.read(_CHUNK), b""))
