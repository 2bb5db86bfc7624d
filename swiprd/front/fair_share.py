"""Who of the clients is read next, so that one uid's flood does not keep another's waiting.

The front is one thread: what it does for one client it does for nobody else meanwhile. Each uid
has an allowance of its time. Who has used it up waits until the others have been heard; and while
others ask, too, for several times as long as it had the front to itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

_ALLOWANCE = 0.005  # seconds in one go: what everybody else may have to wait for one uid
_SHARE = 0.2  # of the front's time that one uid gets while others ask: workers need the cores
_LATELY = 1.0  # seconds for which somebody who has asked counts as asking


class FairShare:
    """The front's time, by uid. A uid is known while it has a connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._uids: dict[int, _Uid] = {}

    def join(self, uid: int) -> None:
        """Count a connection of this uid."""
        self._uids.setdefault(uid, _Uid(self._loop.time())).connections += 1

    def leave(self, uid: int) -> None:
        """Count it no longer."""
        one = self._uids[uid]
        one.connections -= 1
        if not one.connections:
            if one.next is not None:
                one.next.cancel()
            del self._uids[uid]

    def ask(self, uid: int, work: Callable[[], None]) -> bool:
        """Do a piece of work for a connection, now or when it is its uid's turn.

        Returns:
            Whether it has been done. If not, it will be, once; the connection must not ask again
            before that. Work for a connection that is closed meanwhile has to do nothing.
        """
        one = self._uids[uid]
        one.asked = self._loop.time()
        if one.waiting or self._debt(one) > _ALLOWANCE:
            one.waiting.append(work)
            if one.next is None:
                self._call_next(one)
            return False
        self._do(one, work)
        return True

    def _debt(self, one: _Uid) -> float:
        now = self._loop.time()
        one.debt = max(0.0, one.debt - _SHARE * (now - one.at))
        one.at = now
        return one.debt

    def _do(self, one: _Uid, work: Callable[[], None]) -> None:
        begun = self._loop.time()
        try:
            work()
        finally:
            one.debt += self._loop.time() - begun

    def _call_next(self, one: _Uid) -> None:
        over = self._debt(one) - _ALLOWANCE
        if over > 0 and self._others_ask(one):
            one.next = self._loop.call_later(over / _SHARE, self._serve, one)
        else:
            one.debt = 0.0  # alone: what comes next in the loop is all that has to be heard first
            one.next = self._loop.call_soon(self._serve, one)

    def _others_ask(self, one: _Uid) -> bool:
        since = self._loop.time() - _LATELY
        return any(other.asked > since for other in self._uids.values() if other is not one)

    def _serve(self, one: _Uid) -> None:
        one.next = None
        try:
            while one.waiting and self._debt(one) <= _ALLOWANCE:
                self._do(one, one.waiting.popleft())
        finally:
            if one.waiting and one.next is None and one.connections:
                self._call_next(one)


class _Uid:
    """One uid.

    Attributes:
        connections: how many it has.
        asked: loop time when one of them last did.
        debt: seconds of the front's time that it has had, less what has been forgiven since.
        at: loop time when that was reckoned.
        waiting: what its connections wait to have done, in the order in which they asked.
        next: when the first of that will be done.
    """

    def __init__(self, now: float) -> None:
        self.connections = 0
        self.asked = now
        self.debt = 0.0
        self.at = now
        self.waiting: deque[Callable[[], None]] = deque()
        self.next: asyncio.Handle | None = None
