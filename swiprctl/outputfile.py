"""A file that records are appended to, with a journal beside it that says what each was made from:
FILE and FILE.resume.

An entry is written to the journal first, then its record to the file; recovery.py says what that is
good for. One process at a time writes: it holds a lock on the file, which goes with the process.
Records become void when a later one replaces them, and are left out at the end (rewriting.py).
"""

from __future__ import annotations

import os
import stat
from fcntl import LOCK_EX, LOCK_NB, flock

from swiprctl.answered import Answered
from swiprctl.errors import CannotWrite, WriteFailed
from swiprctl.journal import MAX_LINE, Entry, begins_journal, decode, first_line
from swiprctl.recovery import Whole
from swiprctl.rewriting import check_names, complete, discard, rewrite

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_USUAL_LINE = 512
_SHARED = stat.S_ISVTX | stat.S_IWOTH
_MOST_LINKS = 40  # as the kernel has it: path_resolution(7)


class OutputFile:
    """A file of records, locked, and held against its journal if it is to be gone on with.

    Args:
        name: the file; messages name it so, unless it is a link.
        options: those of the command that decide what the records look like, for people to read.
        resume: whether to go on with what is in it.
        force: whether to begin anew whatever is in it.

    Attributes:
        answered: which inputs have a record.
        header: the record of the columns' names; empty if there is none.
        rows: how many there are, void ones included.

    Raises:
        CannotWrite: it cannot be opened or gone on with, or is being written; or it exists, and
            neither `resume` nor `force` is given.
    """

    def __init__(self, name: str, options: str, *, resume: bool, force: bool) -> None:
        self.answered = Answered(self._entry_at)
        self.header = b""
        self._path = _followed(name)  # what takes the file's place must not take a link's
        self.name = self._path if os.path.islink(name) else name
        self._file = self._journal = -1
        self.rows = 0
        self._size = self._journal_size = 0  # of what is whole: the next goes behind
        try:
            self._open(options, resume=resume, force=force)
        except OSError as error:
            self.close()
            beside = str(error.filename or "").partition(f"{self._path}.")[2]
            name = f"{self.name}.{beside}" if beside else self.name
            raise CannotWrite(f"{name}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    @property
    def empty(self) -> bool:
        """Whether there is no record in it, and no answer known that has none."""
        return self._size == 0 and not self.answered.any

    def append(self, entry: Entry, record: bytes) -> None:
        """Write a record, which may be empty, and what it was made from.

        Raises:
            WriteFailed: it is not written; both files end with what was.
        """
        line = entry.of(record).encode()
        name = f"{self.name}.resume"
        try:
            _put(self._journal, line, self._journal_size)
            name = self.name
            _put(self._file, record, self._size)
        except OSError as error:
            self._cut()
            raise WriteFailed(f"{name}: {error.strerror}") from error
        self._journal_size += len(line)
        self._size += len(record)
        self.rows += entry.of(record).has_row
        if entry.replaces is not None:
            self.answered.void(entry.replaces)

    def finish(self) -> None:
        """Leave out the records that are void, and see that all others are on the disk.

        Raises:
            WriteFailed: it cannot be done; what is there can be gone on with.
        """
        try:
            if self.answered.any_void:
                replaced = self._file, self._journal
                self._file, self._journal = rewrite(self._path, self.answered.is_void)
                for descriptor in replaced:
                    os.close(descriptor)
            for descriptor in (self._file, self._journal):
                os.fsync(descriptor)
        except OSError as error:
            raise WriteFailed(f"{self.name}: {error.strerror}") from error

    def close(self) -> None:
        """Close both and let go of the lock. Can be called again."""
        for descriptor in (self._file, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._journal = -1

    def _open(self, options: str, *, resume: bool, force: bool) -> None:
        check_names(self._path)
        self._file = self._locked()
        if force:
            discard(self._path)
        elif complete(self._path):
            self.close()
            self._file = self._locked()
        exists = not force and os.fstat(self._file).st_size > 0
        if exists and not resume:
            raise CannotWrite(
                f"{self.name}: it exists; --resume goes on with it, --force begins it anew"
            )
        if exists and not os.path.lexists(f"{self._path}.resume"):
            raise CannotWrite(
                f"{self.name}: {self.name}.resume, which says what its rows were made from, is"
                " missing; --force begins it anew"
            )
        self._journal = os.open(f"{self._path}.resume", _FLAGS | os.O_NOFOLLOW, 0o666)
        found = os.fstat(self._journal)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise CannotWrite(f"{self.name}.resume: it is not a file of your own")
        if exists or (resume and not force and self._has_answers()):
            with (
                open(self._path, "rb") as file,
                open(f"{self._path}.resume", "rb") as journal,
            ):
                whole = Whole(self.name, file, journal, options, self.answered)
            self._size, self._journal_size = whole.size, whole.journal_size
            self.rows, self.header = whole.rows, whole.header
            self._cut()
        else:
            if not force and not begins_journal(os.pread(self._journal, _USUAL_LINE, 0)):
                raise CannotWrite(
                    f"{self.name}.resume: it exists and is of something else, and what the rows are"
                    " made from goes there; --force overwrites it, or take another name"
                )
            self._cut()
            line = first_line(options)
            _put(self._journal, line, 0)
            self._journal_size = len(line)

    def _has_answers(self) -> bool:
        """Whether a journal is there, and more than its first line."""
        beginning = os.pread(self._journal, MAX_LINE, 0)
        return begins_journal(beginning) and beginning.partition(b"\n")[2].strip(b"\0") != b""

    def _locked(self) -> int:
        """Open the file that has the name, and lock it."""
        while True:
            descriptor = os.open(self._path, _FLAGS | os.O_NOFOLLOW, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise CannotWrite(
                        f"{self.name}: it is no plain file; without --output, the rows go to"
                        " standard output"
                    )
                flock(descriptor, LOCK_EX | LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            except BlockingIOError as error:
                os.close(descriptor)
                raise CannotWrite(f"{self.name}: another swiprctl is writing it") from error
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # another has been put in its place meanwhile

    def _cut(self) -> None:
        """Cut off what is behind the last record."""
        try:
            os.ftruncate(self._file, self._size)
            os.ftruncate(self._journal, self._journal_size)
        except OSError:
            pass  # whoever goes on with it does that

    def _entry_at(self, offset: int) -> Entry:
        line = os.pread(self._journal, _USUAL_LINE, offset)
        if b"\n" not in line:
            line = os.pread(self._journal, MAX_LINE, offset)
        return decode(line.partition(b"\n")[0] + b"\n")


def _followed(name: str) -> str:
    """Give the path that a name leads to by links, none of which may be a trap.

    In a folder such as /tmp, others can make a link of the name that a user is about to write to.
    As under the kernel's fs.protected_symlinks, only the user's own are followed there, and those
    of the folder's owner.

    Raises:
        CannotWrite: there is somebody else's.
    """
    path = name
    for _ in range(_MOST_LINKS):
        folder, last = os.path.split(path)
        try:
            target = os.readlink(path)
            link, around = os.lstat(path), os.stat(folder or ".")
        except OSError:  # no link, or nothing at all
            return os.path.join(os.path.realpath(folder), last)
        shared = around.st_mode & _SHARED == _SHARED
        if shared and link.st_uid not in (os.geteuid(), around.st_uid):
            raise CannotWrite(
                f"{path}: it is a link that another user has made, in a folder that all may write"
                " to; take another name"
            )
        path = os.path.join(folder, target)
    raise CannotWrite(f"{name}: a loop of links")


def _put(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of it, however little is taken at a time."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
