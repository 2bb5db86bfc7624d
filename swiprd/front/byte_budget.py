"""A bound on the bytes of images that the front holds in memory, for all clients together. Pure."""

from __future__ import annotations

from collections import Counter

from swiprctl.errors import Overloaded


class ByteBudget:
    """Bytes of large frames being read, and of images that wait, `limit` at most of each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reading: Counter[int] = Counter()  # by uid
        self._waiting = 0

    def reserve(self, uid: int, size: int) -> bool:
        """Account for a large frame being read; below 0: for one that no longer is.

        One uid gets half of the budget at most, or a single frame: a client that sends a byte now
        and then holds its reservation for long, and must not keep other uids from theirs.
        """
        if size > 0 and (
            (self._reading[uid] and self._reading[uid] + size > self._limit // 2)
            or (self._reading.total() and self._reading.total() + size > self._limit)
        ):
            return False
        self._reading[uid] += size
        if not self._reading[uid]:
            del self._reading[uid]
        return True

    def admit(self, size: int) -> None:
        """Account for an image that is held in memory. `leave()` when it is not any more.

        Raises:
            Overloaded: there is no room for it.
        """
        if self._waiting and self._waiting + size > self._limit:
            raise Overloaded(f"images of {self._waiting} bytes are held in memory already", 1.0)
        self._waiting += size

    def leave(self, size: int) -> None:
        """Account for an image of this size no longer."""
        self._waiting -= size
