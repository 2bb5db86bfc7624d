"""An output file and its journal written anew, without the records that are void.

Into FILE.resume.new, the journal, and FILE.resume.rows, which then take the others' places, the
journal first. Whenever that is interrupted, what is there says how far it was: the journal's new
form is there before any of the file's, and gone when it has taken its place.
"""

from __future__ import annotations

import errno
import os
import stat
from fcntl import LOCK_EX, LOCK_NB, flock

from swiprctl.errors import CannotWrite
from swiprctl.journal import MAX_LINE, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def rewrite(path: str, is_void: Callable[[int], bool]) -> tuple[int, int]:
    """Write a file and its journal anew.

    Args:
        path: the file's, which is no link; the caller has it locked.
        is_void: tells of an entry's number whether its record is to go.

    Returns:
        descriptors of the file, locked, and of its journal, which are the caller's to close.

    Raises:
        OSError: it cannot be done; both can be gone on with.
    """
    journal_path = f"{path}.resume"
    new, rows = _names(path)
    journal = file = -1
    try:
        journal = os.open(new, _FLAGS, 0o666)
        file = os.open(rows, _FLAGS, 0o666)
        os.fchmod(file, os.stat(path).st_mode & 0o7777)
        os.fchmod(journal, os.stat(journal_path).st_mode & 0o7777)
        flock(file, LOCK_EX | LOCK_NB)
        with (
            open(path, "rb") as old_file,
            open(journal_path, "rb") as old_journal,
            open(file, "wb", closefd=False) as new_file,
            open(journal, "wb", closefd=False) as new_journal,
        ):
            new_journal.write(old_journal.readline(MAX_LINE))
            number = 0
            while line := old_journal.readline(MAX_LINE):
                entry = decode(line)
                record = old_file.read(entry.length)
                if not is_void(number):
                    new_file.write(record)
                    new_journal.write(entry.renumbered().encode())
                number += 1
        os.fsync(file)
        os.fsync(journal)
        os.rename(new, journal_path)
        os.rename(rows, path)
    except BaseException:
        for descriptor in (file, journal):
            if descriptor >= 0:
                os.close(descriptor)
        # What is there decides: Ctrl-C may come when a call is done and nobody knows yet.
        if os.path.lexists(new):
            discard(path)
        raise
    return file, journal


def complete(path: str) -> bool:
    """Do what an interruption has left to do; gives whether another file has the name now.

    Raises:
        CannotWrite: what is there is not the user's own: in a shared folder, somebody else's.
        OSError: it cannot be done.
    """
    new, rows = _names(path)
    if os.path.lexists(rows) and not os.path.lexists(new):
        found = os.lstat(rows)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise CannotWrite(f"{rows}: it is not a file of your own; remove it to go on")
        os.rename(rows, path)
        return True
    discard(path)
    return False


def check_names(path: str) -> None:
    """See that a file of this name can be written anew later.

    Raises:
        OSError: the names beside it would be too long.
    """
    for name in _names(path):
        try:
            os.lstat(name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise


def discard(path: str) -> None:
    """Remove what has not taken its place.

    Raises:
        OSError: it cannot be removed.
    """
    new, rows = _names(path)
    for name in (rows, new):  # in this order: without the journal, the file would pass for whole
        if os.path.lexists(name):
            os.unlink(name)


def _names(path: str) -> tuple[str, str]:
    return f"{path}.resume.new", f"{path}.resume.rows"
