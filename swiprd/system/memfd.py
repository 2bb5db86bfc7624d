"""Bytes → a sealed memfd: workers get every image as a descriptor, and nobody can change it."""

from __future__ import annotations

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
        with suppress(OSError):  # EBUSY: the kernel has pinned a page. Nobody else can write to it
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
