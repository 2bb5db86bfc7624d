"""How many connections there may be, and which makes room for a new one when there are so many.

The uids share them: a uid that keeps all of its connections busy must not keep the others
out. A uid below its share takes one from the uid that has the most; some are kept for root and
the daemon's own uid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from swiprd.front.connection import Connection

_KEPT = 16  # one connection in so many


class ConnectionLimit:
    """The limit, and how the uids share it.

    Args:
        limit: connections at once.
        privileged: uids that some of them are kept for.
    """

    def __init__(self, limit: int, privileged: Collection[int]) -> None:
        self._limit = limit
        self._privileged = frozenset(privileged)

    def has_room(self, uid: int, connections: Collection[Connection]) -> bool:
        """Whether another connection of this uid needs nobody to make room."""
        free = self._limit - len(connections)
        if uid not in self._privileged:
            held = sum(c.uid in self._privileged for c in connections)
            free -= max(0, self._limit // _KEPT - held)
        return free > 0

    def choose(self, uid: int, connections: Collection[Connection]) -> Connection | None:
        """Choose the connection that is to make room for a newcomer of this uid; None: refuse it.

        For a uid below its share: the uid that has the most gives the connection that has been idle
        longest, or else the busy one that has been served least recently. For any other uid, only
        an idle connection goes, and none of a uid that has fewer: that of a client whose request
        has not been read yet looks idle, too.

        One that has sent a part of a request goes only where none is idle: it must not be able to
        stay for good by sending a byte now and then.
        """
        held = Counter(c.uid for c in connections)
        share = self._limit // len(held.keys() | {uid})
        kept: frozenset[int] = frozenset()
        if uid not in self._privileged:
            kept = frozenset(u for u in self._privileged if held[u] <= self._limit // _KEPT)
        candidates = [c for c in connections if c.uid not in kept]
        greedy = max((held[c.uid] for c in candidates), default=0)
        if held[uid] < share and greedy > held[uid] + 1:
            candidates = [c for c in candidates if held[c.uid] == greedy]
        else:
            candidates = [c for c in candidates if c.idle and held[c.uid] >= held[uid]]
        return min(candidates, key=lambda c: (-held[c.uid], *_worth(c)), default=None)


def _worth(connection: Connection) -> tuple[bool, bool, float]:
    """What orders the connections of a uid, the first to go first."""
    channel = connection.channel
    if connection.idle:
        return False, channel.decoder.mid_frame, channel.last_read
    return True, False, channel.last_write
