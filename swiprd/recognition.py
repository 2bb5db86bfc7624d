"""Which image is behind a descriptor, told without decoding it, and what is known against it.

A file is known by where it lies and when it changed; what lies only in memory and is sealed, by
its bytes, as each sending of them is a new memfd.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable

from swiprctl.errors import SwiprError
from swiprd.kernel import statx
from swiprd.log import log
from swiprd.poison import Identity, Poison

_FIXED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_CHUNK = 1 << 20


def recognise(descriptor: int, worth_it: Callable[[int], bool] = lambda _: True) -> Identity | None:
    """Tell which image this is; None for what cannot be told, or is not worth it for its size.

    Asks no filesystem's server, which may never answer. Reads a sealed memfd to its end: a tenth
    of a second for the largest.
    """
    try:
        info = statx(descriptor)
        if not stat.S_ISREG(info.mode) or not worth_it(info.size):
            return None
        if _is_fixed(descriptor):
            return Identity(info.size, (_digest(descriptor),))
    except OSError:
        return None
    return Identity(info.size, (info.device, info.inode, info.modified))


def recall(poison: Poison, descriptor: int, now: float, deadline: float) -> SwiprError | None:
    """What the sender of an image is told at once that is known to hang or crash workers."""
    image = recognise(descriptor, poison.has_size) if len(poison) else None
    return None if image is None else poison.recall(image, now, patience=deadline - now)


def remember(
    poison: Poison, descriptor: int, error: SwiprError, now: float, ran: float = float("inf")
) -> None:
    """Take note of what an image has done; see `Poison.remember`."""
    image = recognise(descriptor)
    if image is not None:
        log.warning("remembered, and refused for %g s: %s", poison.seconds, error)
        poison.remember(image, error, now, ran=ran)


def suspected(poison: Poison, descriptor: int, now: float) -> Identity | None:
    """Which image this is, if it is one that is known for something and may be tried."""
    image = recognise(descriptor, poison.has_size) if len(poison) else None
    return image if image is not None and poison.suspects(image, now) else None


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
