"""How far the work is: a line on the terminal while it lasts, and a summary on SIGUSR1 and behind.

The line is there only where standard error is a terminal that can erase it, and this process is in
its foreground; it comes after a second, makes way for every row and message, and is gone in the
end. It is drawn by a timer's signal, so that it goes on where no answer comes.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from collections import deque

from swiprctl.output import keep_clear, on_terminal, say
from swiprctl.tally import rate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from swiprctl.tally import Tally

FIRST = 1.0
"""Seconds after which work is long enough for a line, and for a summary behind it."""

_WIDTH = 80  # columns of a terminal that says 0, as a pty does that nobody gave a size
_EACH = 0.2  # seconds between two drawings
_RECENT = 50  # drawings: what the rate is of
_STDOUT, _STDERR = 1, 2
_SIGUSR1, _SIGALRM, _SIGTSTP, _SIGWINCH = 10, 14, 20, 28
_ERASE = b"\r\x1b[K"


def outlive_signals() -> None:
    """See that SIGUSR1 ends nothing, before there is a tally to sum up."""
    if _signal.getsignal(_SIGUSR1) is _signal.SIG_DFL:
        _signal.signal(_SIGUSR1, lambda *_: None)


class Progress:
    """Shows a tally while it is entered.

    Args:
        tally: what is counted. That is the caller's to do.
        line: whether there is to be a line, where there is a terminal for it.
        summary: whether there is to be a summary behind long work, where there is a terminal.
    """

    def __init__(self, tally: Tally, *, line: bool = True, summary: bool = True) -> None:
        terminal = on_terminal() and os.environ.get("TERM") != "dumb"
        self._tally = tally
        self._line = line and terminal
        self._summary = summary and on_terminal()
        self._rows_too = os.isatty(_STDOUT)
        self._drawn = b""
        self._lifted = 0  # how many writes are under way
        self._asked = False  # whether a signal has asked for a summary meanwhile
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._handle(_SIGUSR1, self._summarise)
        if self._line:
            self._handle(_SIGALRM, self._tick)
            self._handle(_SIGWINCH, self._redraw)
            self._handle(_SIGTSTP, self._stop)
            keep_clear(self)
            _signal.setitimer(_signal.ITIMER_REAL, FIRST, _EACH)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._line:
            _signal.setitimer(_signal.ITIMER_REAL, 0.0)
            self._line = False
            self._erase()
            keep_clear(None)
        for number, handler in self._handlers.items():
            _signal.signal(number, _signal.SIG_DFL if handler is None else handler)
        ended = error is None or isinstance(error, KeyboardInterrupt)
        if ended and self._summary and self._tally.seconds >= FIRST:
            say(self._tally.summary())

    def lift(self, descriptor: int) -> None:
        """Make way for what is written to standard error, or to a terminal."""
        self._lifted += 1
        if descriptor == _STDERR or self._rows_too:
            self._erase()

    def lower(self) -> None:
        """Come back behind it."""
        self._lifted -= 1
        if self._lifted:
            return
        if self._asked:
            self._asked = False
            say(self._tally.summary())
        elif self._recent and not self._drawn:
            self._draw()

    def _handle(self, number: int, handler: object) -> None:
        before = _signal.getsignal(number)
        if before is not _signal.SIG_IGN:  # as nohup has it, or a shell without jobs
            self._handlers[number] = before
            _signal.signal(number, handler)

    def _summarise(self, *_: object) -> None:
        if self._lifted:
            self._asked = True  # not into the middle of another line
        else:
            say(self._tally.summary())

    def _tick(self, *_: object) -> None:
        """Take in how far it is by now, and show that."""
        self._recent.append((self._tally.seconds, self._tally.done))
        self._redraw()

    def _redraw(self, *_: object) -> None:
        if self._recent and not self._lifted:
            self._draw()

    def _stop(self, *_: object) -> None:
        """Take the line away and stop, as Ctrl-Z wants it; return when this process goes on."""
        self._erase()
        _signal.signal(_SIGTSTP, _signal.SIG_DFL)
        os.kill(os.getpid(), _SIGTSTP)
        _signal.signal(_SIGTSTP, self._stop)

    def _draw(self) -> None:
        if not self._line:
            return
        self._lifted += 1  # a signal that comes meanwhile leaves it alone
        try:
            if os.tcgetpgrp(_STDERR) == os.getpgrp():
                columns = os.get_terminal_size(_STDERR).columns or _WIDTH
                text = fitted(self._parts(), columns - 1).encode("ascii", "replace")
                if text != self._drawn:
                    self._drawn = text  # first: Ctrl-C may come between the two
                    self._put(b"\r" + text + b"\x1b[K")
        except OSError:
            pass  # it is no terminal of ours any more
        finally:
            self._lifted -= 1

    def _erase(self) -> None:
        if self._drawn:
            self._put(_ERASE)
            self._drawn = b""

    def _put(self, data: bytes) -> None:
        try:
            os.write(_STDERR, data)
        except OSError:
            pass  # nobody is there to look

    def _parts(self) -> list[str]:
        """What to show, the most important first."""
        from swiprctl.report import duration

        tally = self._tally
        done, total = tally.done, tally.total
        parts = [f"{done:,} done" if total is None else f"{done:,} of {total:,} done"]
        if tally.failures:
            parts.append(f"{tally.failures:,} failed")
        first, before = self._recent[0]
        speed = (done - before) / max(tally.seconds - first, FIRST)
        if first < 2 * FIRST:  # what began a moment ago has all of its time to go by
            speed = done / tally.seconds
        if speed > 0:
            if total is not None and total > done:
                parts.append(f"{duration(max(1, round((total - done) / speed)))} left")
            parts.append(rate(speed))
        if tally.skipped:
            parts.append(f"{tally.skipped:,} skipped")
        return parts


def fitted(parts: list[str], columns: int) -> str:
    """Join as many of the parts as there is room for, from the first one on."""
    while len(parts) > 1 and len(", ".join(parts)) > columns:
        parts = parts[:-1]
    return parts[0][: max(columns, 0)] if len(parts) == 1 else ", ".join(parts)
