"""Get a connection: to whoever listens, or to a daemon started for the purpose.

Knows when to try again and when to say that there is nobody. It sends nothing.
"""

from __future__ import annotations

from swiprctl.address import NotListening
from swiprctl.connection import Connection
from swiprctl.errors import NoDaemon

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from swiprctl.address import Address
    from swiprctl.autostart import Child

RETURN_PATIENCE = 5.0
"""Seconds that a daemon which did answer may be away before that is an error."""

_PAUSE = 0.05


class Dialer:
    """Makes connections to one address.

    Attributes:
        answered: whether any daemon ever did.
        not_before: when the next attempt makes sense, on the monotonic clock.
    """

    def __init__(self, address: Address, *, autostart: bool) -> None:
        self.address = address
        self.answered = False
        self.not_before = 0.0
        self._autostart = autostart and address.kind == "private"
        self._away_since: float | None = None
        self._child: Child | None = None  # started here, and no answer has proven it yet

    @property
    def starting(self) -> bool:
        """Whether a daemon was started here and has not answered yet."""
        return self._child is not None

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

    def prove(self) -> None:
        """Take note that a daemon has answered."""
        self.answered = True
        if self._child is not None:
            self._child.forget()  # it works: how it ends is its own business
            self._child = None

    def close(self) -> None:
        """Leave nothing open of a daemon that was started here and has not answered yet."""
        if self._child is not None:
            self._child.forget()
            self._child = None

    def _connect(self) -> _socket.socket | None:
        try:
            return self.address.connect()
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
