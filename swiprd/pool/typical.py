"""What something usually takes, from the last times that it did, outliers left out. Pure."""

from __future__ import annotations

from collections import deque

_KEPT = 32  # newest times: an hour ago the host was another
_FAR = 4.0  # times the median: what is beyond that may be an outlier,
_MOST = 4  # but one in so many at most; what is more frequent is usual


class Typical:
    """A mean that one time of 29 s among many of 0.1 s does not move.

    Args:
        least: times without which nothing is known: the first of all may be an outlier itself.
    """

    def __init__(self, least: int = 1) -> None:
        self._least = least
        self._times: deque[float] = deque(maxlen=_KEPT)
        self.seconds = 0.0

    def learn(self, seconds: float) -> None:
        """It took so long. `seconds`, the attribute, is what it usually takes; 0: not known."""
        self._times.append(seconds)
        if len(self._times) < self._least:
            return
        times = sorted(self._times)
        bound = _FAR * times[(len(times) - 1) // 2]  # the lower median
        for _ in range(len(times) // _MOST):
            if times[-1] <= bound:
                break
            times.pop()
        self.seconds = sum(times) / len(times)
