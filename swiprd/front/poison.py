"""Images that hung or crashed their worker, remembered for a while and refused meanwhile. Pure.

Without this, a client that sends such an image again and again would keep workers busy until their
deadline and have them killed, over and over. An image is known by its identity (see
intake/recognition.py). The number of images and the time for which each is remembered are bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from swiprctl.errors import DeadlineExceeded, SwiprError
from swiprd.pool.stragglers import LONGER
from swiprd.system.attachment import Identity

MOST = 1024
"""Images remembered at a time; a newer one takes the place of the least recently seen."""


@dataclass(frozen=True, slots=True)
class _Entry:
    error: SwiprError
    until: float
    ran: float


class Poison:
    """The memory of one daemon.

    Args:
        seconds: how long an image is remembered; 0: none is.

    Attributes:
        refused: requests refused so far.
    """

    def __init__(self, seconds: float, most: int = MOST) -> None:
        self.seconds = seconds
        self._most = most
        self._entries: OrderedDict[Identity, _Entry] = OrderedDict()  # least recently seen first
        self.refused = 0

    def __len__(self) -> int:
        return len(self._entries)

    def remember(
        self, image: Identity, error: SwiprError, now: float, *, ran: float = float("inf")
    ) -> None:
        """Take note of what an image has done.

        Args:
            error: what its sender was told.
            ran: seconds that it ran in a worker without an answer: a request that gives it much
                longer is let through.
        """
        if not self.seconds:
            return
        self._forget(image)
        self.expire(now)
        if len(self._entries) >= self._most:
            self._forget(next(iter(self._entries)))
        self._entries[image] = _Entry(error, now + self.seconds, ran)

    def suspect(self, image: Identity, now: float) -> None:
        """Take note that an image keeps a worker busy for long, and may hang. It is not refused,
        but others go first, until it is remembered, or absolved."""
        if image not in self._entries:
            self.remember(image, DeadlineExceeded("it may hang"), now, ran=0.0)  # never told

    def suspects(self, image: Identity, now: float) -> bool:
        """Whether an image is remembered, as a suspect or for worse."""
        entry = self._entries.get(image)
        return entry is not None and now < entry.until

    def absolve(self, image: Identity) -> None:
        """Forget an image: it has been answered."""
        self._forget(image)

    def recall(self, image: Identity, now: float, *, patience: float) -> SwiprError | None:
        """Return the error for a request with this image; None where the image may be tried.

        Args:
            patience: seconds that the request has left.
        """
        entry = self._entries.get(image)
        if entry is None:
            return None
        if now >= entry.until:
            self._forget(image)
            return None
        if not entry.ran or patience > LONGER * entry.ran:
            return None
        self._entries.move_to_end(image)
        self.refused += 1
        return type(entry.error)(
            f"{entry.error}; it is remembered, and not tried again for another"
            f" {entry.until - now:.0f} s, unless it changes"
        )

    def expire(self, now: float) -> None:
        """Forget what has been remembered for long enough."""
        for image in [i for i, entry in self._entries.items() if now >= entry.until]:
            self._forget(image)

    def _forget(self, image: Identity) -> None:
        self._entries.pop(image, None)
