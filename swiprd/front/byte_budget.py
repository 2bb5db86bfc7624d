"""How many bytes of images the daemon holds in memory at once, for all clients together. Pure."""

from __future__ import annotations

from collections import Counter

from swiprctl.errors import Overloaded


class ByteBudget:
    """Bytes of large frames being read, and of images that wait, `limit` at most of each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reading: Counter[int] = Counter()  # by uid
        self._held: Counter[int] = Counter()  # by uid

    def reserve(self, uid: int, size: int) -> bool:
        """Account for a large frame being read; below 0: for one that no longer is.

        A uid that sends a byte now and then keeps its place for long, and must not keep
        everybody's.
        """
        if size > 0 and not self._fits(self._reading, uid, size):
            return False
        _count(self._reading, uid, size)
        return True

    def admit(self, uid: int, size: int) -> None:
        """Account for an image that is held in memory. `leave()` when it is not any more.

        Raises:
            Overloaded: there is no room for it.
        """
        if not self._fits(self._held, uid, size):
            raise Overloaded(
                f"images of {self._held.total()} bytes are held in memory already", 1.0
            )
        _count(self._held, uid, size)

    def leave(self, uid: int, size: int) -> None:
        """Account for an image of this size no longer."""
        _count(self._held, uid, -size)

    def _fits(self, taken: Counter[int], uid: int, size: int) -> bool:
        """Whether there is room: for a uid half of it at most, but for a single frame or image."""
        return not (
            (taken[uid] and taken[uid] + size > self._limit // 2)
            or (taken.total() and taken.total() + size > self._limit)
        )


def _count(taken: Counter[int], uid: int, size: int) -> None:
    taken[uid] += size
    if not taken[uid]:
        del taken[uid]
