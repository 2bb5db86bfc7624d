"""What the standard library does not offer of the Linux kernel: prctl(2), statx(2), clone(2)."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CLONE_FILES = 0x400  # linux/sched.h
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}  # their asm/unistd.h
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000  # linux/fcntl.h
_STATX_DEV = struct.Struct("136xII112x")  # of struct statx: stx_dev_major, stx_dev_minor

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


def device(descriptor: int) -> tuple[int, int]:
    """The major and minor number of the filesystem that a descriptor is of.

    Unlike fstat(2) it asks no filesystem's server, which may never answer.

    Raises:
        OSError: the kernel refused.
    """
    info = ctypes.create_string_buffer(_STATX_DEV.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc.statx(descriptor, b"", flags, 0, info) != 0:
        raise _error()
    major, minor = _STATX_DEV.unpack(info)
    return major, minor


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
