"""What the standard library does not offer of the Linux kernel: prctl(2), statx(2), statfs(2)."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import NamedTuple

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000  # linux/fcntl.h
_STATX_BASIC = 0x7FF  # linux/stat.h: STATX_BASIC_STATS
# Of struct statx: stx_mode, stx_ino, stx_size, stx_mtime, stx_dev_major and stx_dev_minor
_STATX = struct.Struct("28xH2xQQ64xqI12xII112x")

_STATFS_TYPE, _STATFS_ROOM = struct.Struct("l"), 256  # f_type is the first of its fields

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies, even while it is stuck in C.

    Reading EOF from a parent's pipe needs a process that reads; this is for one that does not.

    Args:
        parent: the parent's pid, known from before the fork.

    Raises:
        OSError: the kernel refused.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise _error()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)  # it died before the kernel was told


def name_process(name: str) -> None:
    """Have ps(1) and top(1) show this name, of 15 bytes at most."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


class Stat(NamedTuple):
    """Some of what statx(2) tells.

    Attributes:
        device: major and minor number of the filesystem.
        modified: nanoseconds since the epoch.
    """

    mode: int
    size: int
    device: tuple[int, int]
    inode: int
    modified: int


def statx(descriptor: int) -> Stat:
    """Return the attributes of an open file, as the kernel has them.

    Unlike fstat(2) it asks no file system's server, which may never answer.

    Raises:
        OSError: the kernel refused.
    """
    info = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc.statx(descriptor, b"", flags, _STATX_BASIC, info) != 0:
        raise _error()
    mode, inode, size, seconds, nanoseconds, major, minor = _STATX.unpack(info)
    return Stat(mode, size, (major, minor), inode, seconds * 10**9 + nanoseconds)


def filesystem_type(descriptor: int) -> int:
    """The number of the type of file system that an open file lies on: f_type of statfs(2).

    Asks the file system's server where it has one, which may never answer.

    Raises:
        OSError: the kernel refused.
    """
    info = ctypes.create_string_buffer(_STATFS_ROOM)
    if _libc.fstatfs(descriptor, info) != 0:
        raise _error()
    (number,) = _STATFS_TYPE.unpack_from(info)
    return int(number) & 0xFFFFFFFF


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
