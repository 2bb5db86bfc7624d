"""Bytes → a sealed memfd: workers get every image as a descriptor, and nobody can change it.

The bytes of a file likewise, where its owner may write to it while it is in use.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def sealed_memfd(data: bytes) -> int:
    """Copy bytes into a sealed memfd; return its descriptor, which the caller owns.

    Raises:
        OSError: no descriptor or no memory is left.
    """
    descriptor = os.memfd_create("swipr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        _seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sealed_copy(file: int, most: int) -> int:
    """Copy a file into a sealed memfd; return its descriptor, which the caller owns.

    Args:
        file: a descriptor; where it stands does not matter, and does not change.
        most: bytes that the file may have.

    Raises:
        OSError: the file cannot be read, no memory is left; EFBIG: it has more than `most` bytes.
    """
    descriptor = os.memfd_create("swipr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        done = 0
        while sent := os.sendfile(descriptor, file, done, 1 << 24):
            done += sent
            if done > most:
                raise OSError(errno.EFBIG, f"more than {most} bytes")
        _seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _seal(descriptor: int) -> None:
    with suppress(OSError):  # EBUSY: the kernel has pinned a page. Nobody else can write to it
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
