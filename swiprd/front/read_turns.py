"""Which client the front reads next, so that a flood from one uid does not delay other uids.

The front has one thread, and while it works for one client all others wait. Each uid has an
account of the time that the front has spent on it. A uid that is over its allowance waits until
the event loop has been through all sockets; and while other uids ask for something, too, until its
debt has been paid off, at a fifth of a second for each second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

_ALLOWANCE = 0.005  # seconds in one go: for so long one uid may delay all others
_SHARE = 0.2  # of the front's time that one uid gets while others ask: workers need the cores
_LATELY = 1.0  # seconds for which a uid counts as asking after it has asked


class ReadTurns:
    """The front's time, by uid. A uid is known while it has a connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._uids: dict[int, _Account] = {}

    def join(self, uid: int) -> None:
        """Count a connection of this uid."""
        self._uids.setdefault(uid, _Account(self._loop.time())).connections += 1

    def leave(self, uid: int) -> None:
        """Count a connection less; forget a uid that has none."""
        account = self._uids[uid]
        account.connections -= 1
        if not account.connections:
            if account.next is not None:
                account.next.cancel()
            del self._uids[uid]

    def ask(self, uid: int, work: Callable[[], None]) -> bool:
        """Do a piece of work for a connection, now or when it is its uid's turn.

        Returns:
            Whether it has been done. If not, it will be, once; the connection must not ask again
            before that. Work for a connection that is closed meanwhile has to do nothing.
        """
        account = self._uids[uid]
        account.asked = self._loop.time()
        if account.waiting or self._debt(account) > _ALLOWANCE:
            account.waiting.append(work)
            if account.next is None:
                self._call_next(account)
            return False
        self._do(account, work)
        return True

    def _debt(self, account: _Account) -> float:
        now = self._loop.time()
        account.debt = max(0.0, account.debt - _SHARE * (now - account.at))
        account.at = now
        return account.debt

    def _do(self, account: _Account, work: Callable[[], None]) -> None:
        begun = self._loop.time()
        try:
            work()
        finally:
            account.debt += self._loop.time() - begun

    def _call_next(self, account: _Account) -> None:
        over = self._debt(account) - _ALLOWANCE
        if over > 0 and self._others_ask(account):
            account.next = self._loop.call_later(over / _SHARE, self._serve, account)
        else:
            account.debt = 0.0  # no other uid asks: one turn of the loop is all it has to wait
            account.next = self._loop.call_soon(self._serve, account)

    def _others_ask(self, account: _Account) -> bool:
        since = self._loop.time() - _LATELY
        return any(other.asked > since for other in self._uids.values() if other is not account)

    def _serve(self, account: _Account) -> None:
        account.next = None
        try:
            while account.waiting and self._debt(account) <= _ALLOWANCE:
                self._do(account, account.waiting.popleft())
        finally:
            if account.waiting and account.next is None and account.connections:
                self._call_next(account)


class _Account:
    """The account of one uid.

    Attributes:
        connections: how many the uid has.
        asked: loop time when one of them last asked for work.
        debt: seconds that the front has worked for the uid and that are not paid off yet.
        at: loop time as of which `debt` is right.
        waiting: the work that its connections have asked for, in that order.
        next: the loop's call that will do the first of it; None while none is scheduled.
    """

    def __init__(self, now: float) -> None:
        self.connections = 0
        self.asked = now
        self.debt = 0.0
        self.at = now
        self.waiting: deque[Callable[[], None]] = deque()
        self.next: asyncio.Handle | None = None
