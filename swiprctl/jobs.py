"""One request with its deadline, its attempts and its outcome; and the window: how many requests
may be in flight.

Keeps time and state; sends nothing.
"""

from __future__ import annotations

from time import monotonic

from swiprctl.errors import DeadlineExceeded, SwiprError
from swiprctl.protocol import DEFAULT_TIMEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swiprctl.inputs import Image

START_ALLOWANCE = 120.0
"""Seconds more for a daemon that has not answered yet: it may be loading (TimeoutStartSec=120)."""

GRACE = 1.0
"""Seconds beyond the daemon's own deadline, so that its answer is the one that counts."""

EXPLICIT_GRACE = 0.25
"""The same where the user said how long; they are waiting for that moment."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


class Deadline:
    """A moment on the monotonic clock: a timeout becomes one once, and is passed down."""

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        self.at = monotonic() + seconds

    def remaining(self, now: float) -> float:
        """Give the seconds left; not above 0 when it has passed."""
        return self.at - now


class Job:
    """One request and its fate. `outcome` is None until it is known.

    `timeout` is what the user asked for, or None for the daemon's default; `extra` is how much
    longer than that default the answer may take; `start` is whether it is worth starting a daemon;
    `labels` is what it says of them, see `protocol.Request`.
    """

    __slots__ = (
        "began",
        "deadline",
        "extra",
        "id",
        "image",
        "in_flight",
        "labels",
        "not_before",
        "op",
        "outcome",
        "passed",
        "resent",
        "sent",
        "start",
        "timeout",
    )

    def __init__(
        self,
        op: str,
        image: Image | None = None,
        timeout: float | None = None,
        *,
        extra: float = 0.0,
        start: bool = True,
        labels: str | None = None,
    ) -> None:
        self.op = op
        self.image = image
        self.timeout = timeout
        self.deadline = None if timeout is None else Deadline(timeout)
        self.extra = extra
        self.start = start
        self.labels = labels
        self.id = 0
        self.began = monotonic()
        self.not_before = 0.0
        self.sent = 0.0
        self.in_flight = False
        self.passed = False  # whether the image last went as a descriptor
        self.resent = 0
        self.outcome: dict[str, object] | SwiprError | None = None

    def close(self) -> None:
        """Close the image."""
        if self.image is not None:
            self.image.close()

    def finish(self, outcome: dict[str, object] | SwiprError) -> None:
        """Record the fate and close the image."""
        self.outcome = outcome
        self.in_flight = False
        self.close()

    def again(self, not_before: float) -> None:
        """Have it sent once more."""
        self.in_flight = False
        self.resent += 1
        self.not_before = not_before

    def limit(self, first_reply: float | None) -> float:
        """Give the moment at which the client gives the job up.

        The daemon's answer, also that the deadline has passed, is to come first: hence the grace.
        Without a timeout of the user's, the daemon's own counts from when it is ready; that it is
        shows in the first reply on the connection (None before).
        """
        if self.deadline is not None:
            return self.deadline.at + (EXPLICIT_GRACE if self.in_flight else 0.0)
        if self.streaming:
            return self.began + DEFAULT_TIMEOUT
        usual = DEFAULT_TIMEOUT + self.extra + GRACE
        limit = self.began + START_ALLOWANCE + usual
        if self.in_flight and first_reply is not None:
            limit = min(limit, max(first_reply, self.sent) + usual)
        return limit

    def retry_at(
        self, now: float, retry_after: float | None, first_reply: float | None
    ) -> float | None:
        """Give the moment to ask an overloaded daemon again; None if there is no time for it.

        At half of the time that is left at the latest, and again at half of the rest: the daemon
        gives an estimate, which one slow image may have made.
        """
        if self.deadline is not None:
            until = self.deadline.at
        else:
            until = max(first_reply or now, self.began) + DEFAULT_TIMEOUT
        half = (until - now) / 2
        if half < _FIRST_PAUSE:
            return None
        wait = self.pause() if retry_after is None else max(retry_after, _FIRST_PAUSE)
        return now + min(wait, half)

    @property
    def streaming(self) -> bool:
        """Whether the image is still being read from a stream."""
        return self.image is not None and self.image.stream is not None

    @property
    def limited_by_silence(self) -> bool:
        """Whether it is given up if the daemon is silent; a timeout is its only limit otherwise."""
        return self.deadline is None and not self.streaming

    def due(self, now: float) -> bool:
        """Whether it waits to be sent, and may be."""
        return not self.in_flight and not self.streaming and now >= self.not_before

    def remaining(self, now: float) -> float | None:
        """Give the seconds left of the user's timeout, if there is one."""
        return None if self.deadline is None else self.deadline.remaining(now)

    def overdue(self, now: float, silence: str) -> DeadlineExceeded:
        """Make the error for a job whose limit has passed; `silence`: that nothing was heard."""
        if self.image is not None and self.streaming:
            text = self.image.late
        else:
            text = "no answer" if self.resent == 0 else f"no answer, asked {self.resent + 1} times,"
        seconds = now - self.began if self.timeout is None else self.timeout
        more = f"; {silence}" if silence and not self.streaming else ""
        return DeadlineExceeded(f"{text} within {seconds:.3g} s{more}")

    def pause(self) -> float:
        """How long to wait before the next attempt: 0.05 s, doubling to 1 s."""
        return min(_FIRST_PAUSE * 2.0 ** min(self.resent, 10), _LONGEST_PAUSE)


class Window:
    """How many inputs may be in flight: enough to keep the workers busy, and the queue short."""

    SMALLEST = 2
    FIRST = 4
    LARGEST = 32

    def __init__(self, timeout: float) -> None:
        self.size = self.FIRST
        self._timeout = timeout

    def learn(self, queued: float, resent: int) -> None:
        """Take in how long a request waited in the daemon, and whether it had to be sent again."""
        if resent or queued > self._timeout / 4:
            self.size = max(self.SMALLEST, self.size // 2)
        elif queued < self._timeout / 10:
            self.size = min(self.LARGEST, self.size + 1)
