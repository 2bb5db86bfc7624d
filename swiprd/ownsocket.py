"""A listening socket that no service manager keeps: bound here or by a client that starts us.

Whoever makes or removes such a socket holds the lock beside it, so that two starters, or a starter
and a daemon that leaves, cannot take each other's socket away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

BACKLOG = 128

Mark = tuple[int, int]  # device and inode

_LONGEST = 107  # bytes of a path: sun_path of unix(7), less its final NUL


class InUse(Exception):
    """Another daemon answers on the path."""


def bind(path: Path) -> socket.socket:
    """Listen on a path, in the place of a socket that a dead daemon left there.

    Raises:
        InUse: a live daemon has it.
        OSError: it cannot be bound; `strerror` says why.
    """
    size = len(os.fsencode(path))
    if size > _LONGEST:
        raise OSError(
            errno.ENAMETOOLONG,
            f"a socket's path has at most {_LONGEST} bytes, and this one has {size}",
        )
    if not path.parent.is_dir():
        raise OSError(errno.ENOENT, f"there is no folder {path.parent}: make it first")
    with _lock(path):
        if path.is_socket():
            if _answers(path):
                raise InUse(
                    f"{path}: another daemon answers there: stop it first, or name another path"
                )
            path.unlink()
        elif os.path.lexists(path):
            raise OSError(
                errno.EEXIST, "what lies there is not a socket: remove it, or name another path"
            )
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener


def mark(listener: socket.socket) -> Mark | None:
    """What tells the path of a listener from one that somebody puts in its place; None: no path."""
    try:
        info = os.lstat(listener.getsockname())
    except OSError:
        return None
    return info.st_dev, info.st_ino


def release(listener: socket.socket, marked: Mark | None, *, even_if_wanted: bool) -> bool:
    """Remove the socket's path, so that the next client starts a daemon of its own.

    Args:
        marked: what `mark()` gave when it was bound. Another daemon's socket that lies there now
            (whoever put it there removed ours) is left alone.
        even_if_wanted: remove it though a client waits on it; it will reconnect and start another.

    Returns:
        False, with the path left alone, where a client waits or is starting just now.
    """
    path = Path(listener.getsockname())
    try:
        with _lock(path, wait=even_if_wanted):
            wanted = bool(select.select([listener], [], [], 0)[0])
            if wanted and not even_if_wanted:
                return False
            if mark(listener) == marked is not None:
                path.unlink()
    except BlockingIOError:
        return False
    except OSError:
        return True  # the folder is gone or not ours: nobody can find the socket there any more
    return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        # A full backlog is an answer, too. Waiting for room in it, with the lock held, could last
        # for ever: the daemon that would make room may be waiting for the lock.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except ConnectionRefusedError:
            return False
        return True


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(f"{path}.lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
