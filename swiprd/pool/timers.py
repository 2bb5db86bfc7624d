"""Calls that are made later, unless all of that is over by then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Calls yet to be made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers: set[asyncio.TimerHandle] = set()
        self._over = False

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call in so many seconds."""
        if self._over:
            return

        def run() -> None:
            self._timers.discard(timer)
            call()

        timer = self._loop.call_later(seconds, run)
        self._timers.add(timer)

    def cancel(self) -> None:
        """Call nobody any more."""
        self._over = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
