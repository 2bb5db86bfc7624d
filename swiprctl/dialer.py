"""Connects to the daemon, or to one that is started for the purpose; watches that it is alive.

Decides when to try again and when to give up: where nothing listens, and where a daemon accepts
connections and sends nothing, since even one that is loading sends heartbeats. It sends nothing.
"""

from __future__ import annotations

from swiprctl.address import NotListening
from swiprctl.connection import Connection
from swiprctl.errors import NoDaemon, SwiprError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from swiprctl.address import Address
    from swiprctl.autostart import Child

RETURN_PATIENCE = 5.0
"""Seconds that a daemon which did answer may be away before that is an error."""

SLOW_START = 0.5
"""Seconds without any answer after which the user is told why."""

SILENT = 2.0
"""Seconds without a heartbeat after which the user is told of that."""

QUESTION_PATIENCE = 10.0
"""Seconds without a heartbeat after which a question without a timeout is given up."""

IMAGE_PATIENCE = 40.0
"""The same for an image, and for a daemon that was started here. One that leaves takes up to 27 s
for the requests it accepted, and its successor a few to start; a client that connects meanwhile
hears nothing."""

_PAUSE = 0.05


class Dialer:
    """Makes connections to one address.

    Attributes:
        answered: whether any daemon ever did.
        not_before: when the next attempt makes sense, on the monotonic clock.
    """

    def __init__(
        self, address: Address, *, autostart: bool, notify: Callable[[str], None] | None
    ) -> None:
        self.address = address
        self._notify = notify
        self._waits_since: float | None = None  # first of all
        self._silent_since: float | None = None  # None: nothing is waited for
        self._state: object = None  # as of the last heartbeat
        self._slow_told = self._silence_told = notify is None
        self.answered = False
        self.not_before = 0.0
        self._autostart = autostart and address.kind == "private"
        self._away_since: float | None = None
        self._child: Child | None = None  # started here, and no answer has proven it yet

    def dial(self, now: float, *, start: bool) -> Connection | None:
        """Connect, starting a daemon if `start` and need be; None if it has to be tried again.

        Raises:
            NoDaemon: nobody listens, and no daemon could be started, or it died at once.
            Forbidden: the user may not open the socket.
        """
        if now < self.not_before:
            return None
        try:
            sock = self._connect()
        except NotListening as error:
            if self._child is not None:
                raise self._last_words() from error
            if self._autostart and start:
                sock = self._start()
            elif self.answered and self._patient(now):
                sock = None
            else:
                raise self.address.no_daemon(str(error)) from error
        else:
            self._away_since = None
        if sock is None:
            self.not_before = now + _PAUSE
            return None
        return Connection(sock)

    def note_answered(self) -> None:
        """A daemon has answered: a daemon that was started here has proved that it works."""
        self.answered = True
        if self._child is not None:
            self._child.forget()  # it works: how it ends does not matter here
            self._child = None

    def note_idle(self) -> None:
        """No request is in flight: silence means nothing."""
        self._silent_since = None
        self._silence_told = self._notify is None

    def note_waiting(self, now: float) -> None:
        """A request is in flight: tell the user, once each, that the start is slow, or the silence
        long."""
        if self._silent_since is None:
            self._silent_since = now
        if self._waits_since is None:
            self._waits_since = now
        if self._notify is None:
            return
        where = f"the daemon on {self.address.path}"
        if not self._slow_told and not self.answered and now >= self._waits_since + SLOW_START:
            self._slow_told = True
            text = f"waiting for {where}, which may be loading"
            if self._child is not None:
                text = "starting the daemon and loading its model"
            elif self._state == "loading":
                text = f"{where} is loading its model"
            if self._state in (None, "loading"):
                self._notify(f"{text}; the first answer takes a few seconds")
        if not self._silence_told and self._child is None and now >= self._silent_since + SILENT:
            self._silence_told = True
            self._notify(self.silence(now))

    def note_heard(self, now: float, sign: object = None) -> None:
        """An answer has come, or a heartbeat with the daemon's state."""
        self._silent_since = now
        self._silence_told = self._notify is None
        if isinstance(sign, dict):
            self._state = sign.get("state")

    def silence(self, now: float) -> str:
        """Say for how long nothing has been heard; empty where that is not worth a word."""
        seconds = 0.0 if self._silent_since is None else now - self._silent_since
        if seconds < SILENT:
            return ""
        return (
            f"nothing has been heard of the daemon on {self.address.path} for {seconds:.1g} s:"
            " it is being started, or it is stopped or stuck"
        )

    def due(self) -> list[float]:
        """Give the moments at which `note_waiting` may have to tell the user something."""
        due: list[float] = []
        if self._silent_since is None or self._waits_since is None:
            return due
        if not self._slow_told and not self.answered:
            due.append(self._waits_since + SLOW_START)
        if not self._silence_told and self._child is None:
            due.append(self._silent_since + SILENT)
        return due

    def patience(self, *, image: bool) -> float:
        """Give the moment at which a silent daemon is given up."""
        if self._silent_since is None:
            return float("inf")
        slow = image or self._child is not None
        return self._silent_since + (IMAGE_PATIENCE if slow else QUESTION_PATIENCE)

    def stuck(self, now: float) -> NoDaemon:
        """Make the error for a daemon that listens and sends nothing, with a remedy."""
        from swiprctl.stuck import advice

        return NoDaemon(f"{self.silence(now)}; {advice(self.address)}")

    def close(self) -> None:
        """Close the pipe to a daemon that was started here and has not answered yet."""
        if self._child is not None:
            self._child.forget()
            self._child = None

    def _connect(self) -> _socket.socket | None:
        try:
            return self.address.connect()
        except SwiprError:
            raise
        except OSError as error:  # no descriptor is left, and no answer will give one back
            raise NoDaemon(f"cannot make a socket: {error.strerror}") from error

    def _start(self) -> _socket.socket | None:
        from swiprctl import autostart

        self._child = autostart.start(self.address)
        try:
            return self._connect()
        except NotListening as error:
            if self._child is not None:
                raise self._last_words() from error
            raise self.address.no_daemon(str(error)) from error

    def _last_words(self) -> NoDaemon:
        """Say why the daemon that was started here has gone without one answer."""
        child, self._child = self._child, None
        return child.last_words() if child is not None else self.address.no_daemon("it left")

    def _patient(self, now: float) -> bool:
        """Whether a daemon that was there may still come back."""
        if self._away_since is None:
            self._away_since = now
        return now < self._away_since + RETURN_PATIENCE
