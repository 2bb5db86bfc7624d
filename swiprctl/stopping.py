"""`swiprctl stop`: have daemons of one's own leave, and wait until they are gone.

They are asked over their sockets, and answer all that they have accepted first. Those that systemd
keeps are not asked, which would start one that does not run: systemd would start the next, too.
"""

from __future__ import annotations

import os
import select
from time import monotonic

from swiprctl.address import Address, choose
from swiprctl.errors import DeadlineExceeded, Forbidden, NoDaemon, SwiprError
from swiprctl.places import every_socket
from swiprctl.questions import Question, ask, progress
from swiprctl.units import Units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWER = 10.0  # seconds for a daemon to say that it goes
_DRAIN = 40.0  # seconds to be gone; a daemon needs 27 at most, and its processes a moment
_END = 10.0  # seconds from its last word to the end of its process


def stop(
    asked: str | None, model: str | None, timeout: float | None, tell: Callable[[str], None]
) -> None:
    """Stop the daemon that a request would go to.

    Args:
        asked, model: see `choose()`.
        timeout: seconds to wait until it is gone.
        tell: called with a line when that has happened.

    Raises:
        NoDaemon: there is none, or it does not answer.
        Forbidden: it is not the user's, or systemd keeps it.
        DeadlineExceeded: it is not gone yet.
    """
    address = choose(asked, model)
    units = Units()
    unit = units.of(address.path)
    if unit is not None or (address.kind == "system" and not units.known):
        name = address.unit or "swiprd"
        line = unit.stop if unit else f"sudo systemctl stop {name}.socket {name}.service"
        raise Forbidden(f"systemd keeps the daemon on {address.path}: '{line}' stops it")
    (outcome,) = _end([address], timeout, tell)
    if outcome is not None:
        raise outcome


def stop_all(timeout: float | None, tell: Callable[[str], None]) -> list[SwiprError]:
    """Stop all daemons of the user's own that systemd does not keep; return what went wrong."""
    units = Units()
    found = [
        one
        for one in every_socket()
        if units.of(one.path) is None and (one.kind != "system" or units.known)
    ]
    ours = [one for one in found if _is_ours(one)]
    if not ours:
        tell("no daemon of your own runs")
    return [error for error in _end(ours, timeout, tell) if error is not None]


def _is_ours(address: Address) -> bool:
    """Whether somebody listens, and that is this user."""
    question = Question(address, "status")
    question.close()
    return question.owner == os.geteuid()


def _end(
    addresses: list[Address], timeout: float | None, tell: Callable[[str], None]
) -> list[SwiprError | None]:
    """Ask them to leave, and wait for each; return the error of each that has not."""
    until = monotonic() + (_DRAIN if timeout is None else timeout)
    questions = ask(addresses, "stop", _ANSWER if timeout is None else min(timeout, _ANSWER))
    leaving = [_Leaving(one) for one in questions]
    try:
        while waiting := [one for one in questions if one.fields is not None and not one.closed]:
            if not progress(waiting, until):
                break
        return [one.outcome(until, tell) for one in leaving]
    finally:
        for one in leaving:
            one.close()


class _Leaving:
    """A daemon that has been asked to leave. Its process is watched, if it can be seen here."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self.pid = (question.fields or {}).get("pid")
        self._process = -1
        if isinstance(self.pid, int) and self.pid > 0:
            try:
                if os.stat(f"/proc/{self.pid}").st_uid == question.owner:
                    self._process = os.pidfd_open(self.pid)
            except OSError:
                pass  # it is gone, or in a container: the end of the connection has to do

    def outcome(self, until: float, tell: Callable[[str], None]) -> SwiprError | None:
        """Wait for the end of its process; tell of it, or return why there is none."""
        question, path = self._question, self._question.address.path
        if question.state == "stale":
            return NoDaemon(f"nothing to stop: no daemon listens on {path}")
        if question.state in ("forbidden", "refused"):
            return Forbidden(question.reason)
        if question.state:
            return NoDaemon(f"{path}: {question.reason}")
        if not question.closed or not self._ended(until):
            return DeadlineExceeded(
                f"the daemon on {path} (pid {self.pid}) still finishes what it has accepted;"
                f" 'kill -KILL {self.pid}' ends it"
            )
        tell(f"stopped the daemon on {path} (pid {self.pid})")
        return None

    def _ended(self, until: float) -> bool:
        if self._process < 0:
            return True
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        rest = max(until - monotonic(), _END)
        return bool(poll.poll(1000 * rest))

    def close(self) -> None:
        """Close the connection and what watches the process."""
        self._question.close()
        if self._process >= 0:
            os.close(self._process)
            self._process = -1
