"""Images that hung or crashed their worker, remembered for a while and refused meanwhile. Pure.

Without this, whoever tries such an image again and again keeps workers occupied until deadlines
and has them killed, over and over. An image is known by its identity (see recognition.py), of
which only the size is looked at here. What is remembered is bounded in number and in time.

That an image took too long counts for the uid that asked: a busy host, or a deadline too short,
makes any picture look so, and others may be able to read the same file. When a few uids have
found the same, it counts for all. A crash always does.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from swiprctl.errors import DeadlineExceeded, SwiprError
from swiprd.pool.stragglers import LONGER
from swiprd.system.attachment import Identity

MOST = 1024
"""Images remembered at a time; a newer one takes the place of the least recently seen."""


_ENOUGH = 2  # uids that have found the same of an image, for it to count for all
_UIDS = 64  # remembered of an image at a time

_Against = dict[int | None, "_Entry"]  # by uid; None: for all


@dataclass(frozen=True, slots=True)
class _Entry:
    error: SwiprError
    until: float
    ran: float
    proves: bool


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
        # The image least recently seen first, and of each what was found out longest ago.
        self._entries: OrderedDict[Identity, _Against] = OrderedDict()
        self.refused = 0

    def __len__(self) -> int:
        return len(self._entries)

    def remember(
        self,
        image: Identity,
        error: SwiprError,
        now: float,
        *,
        uid: int | None = None,
        ran: float = float("inf"),
        proves: bool = True,
    ) -> None:
        """Take note of what an image has done.

        Args:
            error: what its sender was told.
            uid: whose request it was; None: it counts for all.
            ran: seconds that it had in a worker, in vain: who gives it much longer may try.
            proves: whether it counts for others too, once another uid finds the same.
        """
        if not self.seconds:
            return
        against = self._entries.pop(image, {})
        self.expire(now)
        if len(self._entries) >= self._most:
            self._entries.popitem(last=False)
        self._entries[image] = against
        against.pop(uid, None)
        if len(against) >= _UIDS:
            # What counts for one uid alone goes first, what counts for all last.
            del against[min(against, key=lambda one: (one is None, against[one].proves))]
        against[uid] = _Entry(error, now + self.seconds, ran, proves)

    def suspect(self, image: Identity, now: float, *, uid: int, proves: bool = True) -> None:
        """Take note that an image keeps a worker busy for long, and may hang. It is not refused,
        but others go first, until it is remembered, or absolved."""
        entry = self._expire(image, now).get(uid)
        if entry is None or (not entry.ran and proves):
            error = DeadlineExceeded("it may hang")  # never told
            self.remember(image, error, now, uid=uid, ran=0.0, proves=proves)

    def suspects(self, image: Identity, now: float, *, uid: int) -> bool:
        """Whether an image is known for something, to this uid or to all."""
        return self._known(image, now, uid) is not None

    def absolve(self, image: Identity) -> None:
        """Forget an image: it has been answered."""
        self._entries.pop(image, None)

    def recall(
        self, image: Identity, now: float, *, uid: int, patience: float
    ) -> SwiprError | None:
        """Give what a request for this image is told at once; None where it may be tried.

        Args:
            uid: whose request it is.
            patience: seconds that the request has left.
        """
        entry = self._known(image, now, uid)
        if entry is None or not entry.ran or patience > LONGER * entry.ran:
            return None
        self._entries.move_to_end(image)
        self.refused += 1
        return type(entry.error)(
            f"{entry.error}; it is remembered, and not tried again for another"
            f" {entry.until - now:.0f} s, unless it changes"
        )

    def expire(self, now: float) -> None:
        """Forget what has been remembered for long enough."""
        for image in list(self._entries):
            self._expire(image, now)

    def _expire(self, image: Identity, now: float) -> _Against:
        """What is still known against an image."""
        against = self._entries.get(image, {})
        for uid in [uid for uid, entry in against.items() if now >= entry.until]:
            del against[uid]
        if not against:
            self._entries.pop(image, None)
        return against

    def _known(self, image: Identity, now: float, uid: int) -> _Entry | None:
        """The most that is known against an image for this uid."""
        against = self._expire(image, now)
        entries = [against[one] for one in (None, uid) if one in against]
        proofs = sorted(
            (entry for one, entry in against.items() if one is not None and entry.proves),
            key=lambda entry: entry.ran,
            reverse=True,
        )
        # Not the one that had the longest: so few uids have found that.
        entries += proofs[_ENOUGH - 1 : _ENOUGH]
        return max(entries, key=lambda entry: entry.ran, default=None)
