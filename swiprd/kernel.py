"""What the standard library does not offer of the Linux kernel: prctl(2), statx(2), clone(2)."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CLONE_FILES = 0x400  # linux/sched.h
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}  # their asm/unistd.h
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000  # linux/fcntl.h
_STATX_BASIC = 0x7FF  # linux/stat.h: STATX_BASIC_STATS
# Of struct statx: stx_mode, stx_ino, stx_size, stx_mtime, stx_dev_major and stx_dev_minor
_STATX = struct.Struct("28xH2xQQ64xqI12xII112x")

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
    """What is known of an open file.

    Unlike fstat(2) it asks no filesystem's server, which may never answer.

    Raises:
        OSError: the kernel refused.
    """
    info = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc.statx(descriptor, b"", flags, _STATX_BASIC, info) != 0:
        raise _error()
    mode, inode, size, seconds, nanoseconds, major, minor = _STATX.unpack(info)
    return Stat(mode, size, (major, minor), inode, seconds * 10**9 + nanoseconds)


def fork_sharing_descriptors() -> int:
    """Like os.fork(), but what one of the two processes opens and closes, the other does.

    For a process of one thread. The child must keep to system calls, and end with os._exit().

    Raises:
        OSError: no process is to be had, or the machine is of an unknown kind.
    """
    number = _SYS_CLONE.get(os.uname().machine)
    if number is None:
        raise OSError(f"clone(2) has no number for {os.uname().machine} here")
    pid: int = _libc.syscall(number, _CLONE_FILES | int(signal.SIGCHLD), 0, 0, 0, 0)
    if pid < 0:
        raise _error()
    return pid


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
