"""The identity of the image behind a descriptor, without decoding it.

A file is identified by its device, inode, size and time of change; a sealed memfd by a digest of
its bytes, as each sending of the same picture makes a new memfd. Runs in an intake, since it reads
and may ask a file system that never answers.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat

from swiprd.system.attachment import Identity
from swiprd.system.kernel import statx

_FIXED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_CHUNK = 1 << 20


def recognise(descriptor: int, limit: int) -> Identity | None:
    """Tell which image this is; None where that cannot be told.

    Args:
        limit: bytes of the largest image. A larger file is refused anyway, and gets no identity.
    """
    try:
        info = statx(descriptor)
        if not stat.S_ISREG(info.mode) or info.size > limit:
            return None
        if _is_fixed(descriptor):
            return Identity(info.size, _digest(descriptor))
    except OSError:
        return None
    return Identity(info.size, repr((info.device, info.inode, info.modified)).encode())


def _is_fixed(descriptor: int) -> bool:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _FIXED == _FIXED
    except OSError:
        return False  # no file in memory: it has no seals


def _digest(descriptor: int) -> bytes:
    digest = hashlib.sha256()
    offset = 0
    while data := os.pread(descriptor, _CHUNK, offset):
        digest.update(data)
        offset += len(data)
    return digest.digest()
