"""The locks of the private folder, and what daemons that were killed have left in it.

A daemon that leaves takes its socket, lock and log along. What one leaves that is killed stays for
a day, as its log may tell why, and goes when some daemon is started after that.
"""

from __future__ import annotations

import fcntl
import os

from swiprctl.address import Address, NotListening
from swiprctl.errors import SwiprError

_AGE = 86400.0  # seconds


def try_lock(name: str) -> int | None:
    """Take a lock, and return its descriptor, for `unlock()`; None where another process has it.

    The holder removes the file before it lets go: a lock on a removed file is tried again. The same
    is in swiprd/system/private_listener.py: the two packages share only errors and protocol.

    Raises:
        OSError: it cannot be opened.
    """
    lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before removes the file: then this lock is on a file that nobody else finds.
        if os.path.samestat(os.fstat(lock), os.lstat(name)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def unlock(name: str, lock: int) -> None:
    """Give a lock back, and its file with it."""
    try:
        os.unlink(name)
    except OSError:
        pass  # the folder is gone
    fcntl.flock(lock, fcntl.LOCK_UN)  # not by closing alone: a child may still hold a copy
    os.close(lock)


def sweep(folder: str) -> None:
    """Remove what belongs to no daemon, and has for a day. A daemon has just been started there."""
    try:
        names = os.listdir(folder)
        now = os.stat(folder).st_mtime
    except OSError:
        return
    for base in {name.partition(".")[0] for name in names}:
        files = [f"{folder}/{name}" for name in names if name.partition(".")[0] == base]
        try:
            if now - max(os.lstat(file).st_mtime for file in files) >= _AGE:
                _remove(f"{folder}/{base}.sock", files)
        except (OSError, SwiprError):
            continue  # somebody else was quicker, or it is nothing of ours


def _remove(path: str, files: list[str]) -> None:
    lock = try_lock(f"{path}.lock")
    if lock is None:
        return
    try:
        try:
            connection = Address(path, "private").connect()
        except NotListening:
            for file in files:
                if file.endswith((".sock", ".log", ".lock")):
                    os.unlink(file)
        else:
            if connection is not None:
                connection.close()
    finally:
        unlock(f"{path}.lock", lock)
