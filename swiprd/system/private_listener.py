"""A listening socket that no service manager keeps: bound here or by a client that starts us.

A process that makes or removes such a socket holds the lock beside it, so that two starters, or a
starter and a daemon that leaves, cannot remove each other's socket. The file of the lock is removed
with the lock. Waiting for it has a limit: another process may hold it for good.

The same lock is in swiprctl/leftovers.py: the two packages share no more than errors and protocol.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

BACKLOG = 128

LOCK_PATIENCE = 5.0  # seconds; its holder needs milliseconds
_LOCK_LOOK = 0.01

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
    with lock(path, patience=LOCK_PATIENCE):
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
    """Return what identifies the socket at a listener's path, should another take its place later;
    None: nothing is there."""
    try:
        info = os.lstat(listener.getsockname())
    except OSError:
        return None
    return info.st_dev, info.st_ino


def release(listener: socket.socket, marked: Mark | None, *, even_if_wanted: bool) -> bool:
    """Remove the socket's path, so that the next client starts a daemon of its own.

    Args:
        marked: what `mark()` returned when it was bound. If another daemon has removed our socket
            and bound its own there, that is left alone.
        even_if_wanted: remove it though a client waits on it; the client will start another daemon.

    Returns:
        False, with the path left alone, where a client waits or somebody holds the lock just now.
    """
    path = Path(listener.getsockname())
    try:
        with lock(path):
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


def remove_log(path: Path) -> None:
    """Remove the log of a daemon that a client had started and that has left in order.

    It stays where a successor has taken the path, and writes to the same file.
    """
    with contextlib.suppress(OSError), lock(path):
        if not os.path.lexists(path):
            path.with_suffix(".log").unlink()


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
def lock(path: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a path.

    Raises:
        BlockingIOError: somebody else has held it for `patience` seconds.
    """
    name = f"{path}.lock"
    until = time.monotonic() + patience
    while (descriptor := _try_lock(name)) is None:
        if time.monotonic() >= until:
            raise BlockingIOError(errno.EAGAIN, f"another process holds {name}")
        time.sleep(_LOCK_LOOK)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        os.close(descriptor)


def _try_lock(name: str) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(name, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before removes the file: then this lock is on a file that nobody else finds.
        if os.path.samestat(os.fstat(descriptor), os.lstat(name)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
