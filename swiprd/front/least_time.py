"""The least time that an image takes: a request that gives less need not be tried. Pure.

A request that is tried in vain costs a worker's life. Yet an estimate that is too high refuses
everybody, and then no answer ever puts it right. So it only falls while a model serves, and however
it was learned it stays a small part of what a request usually gives.
"""

from __future__ import annotations

_MOST = 1 / 20  # of what a request usually gives


class LeastTime:
    """The estimate for one model.

    Args:
        usual: seconds that a request has which names no timeout.
    """

    def __init__(self, usual: float) -> None:
        self._most = usual * _MOST
        self._least = 0.0  # seconds; 0: nothing is known yet

    @property
    def seconds(self) -> float:
        """Seconds that any image takes, as far as is known; 0 before anything is."""
        return self._least

    def learn(self, seconds: float) -> None:
        """An image, or the health check's, took so long in a worker of its own."""
        self._least = min(seconds, self._least or self._most, self._most)

    def forget(self) -> None:
        """Another model answers from now on."""
        self._least = 0.0
