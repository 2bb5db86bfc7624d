"""How far a scenario is, for whoever waits for it: a line on standard error now and then."""

from __future__ import annotations

import sys
import time

_EVERY = 10.0  # seconds


class Progress:
    """Says from time to time how much is done."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._told = self._begun = time.monotonic()

    def tell(self, done: int, words: str = "") -> None:
        """Say it, if the last time was a while ago."""
        now = time.monotonic()
        if now < self._told + _EVERY:
            return
        self._told = now
        text = f"  {now - self._begun:4.0f} s: {done:,} of {self._total:,} {words}".rstrip()
        print(text, file=sys.stderr, flush=True)
