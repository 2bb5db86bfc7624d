"""A terminal for tests: a real pty, and what somebody who looks at it would see.

Knows of a terminal's sequences those that the client uses, and fails at any other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator

from daemonprocess import PATIENCE

_SEQUENCES = re.compile(r"\r|\n|\x1b\[K|[^\r\n\x1b]+|\x1b.*", re.DOTALL)


class Screen:
    """The other side of a pty, with all that has been written to it.

    Attributes:
        lines: what there is to be seen, the last one being the cursor's.
        wrote: everything, as it came.
    """

    def __init__(self, master: int) -> None:
        self._master = master
        self.lines = [""]
        self.wrote = ""
        self._column = 0
        self.widest = 0

    def resize(self, columns: int, process: subprocess.Popen[bytes]) -> None:
        """Make it another width, and tell its foreground as a terminal does."""
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        process.send_signal(signal.SIGWINCH)

    def wait_for(self, what: str | Callable[[Screen], bool]) -> None:
        """Look until something has been written, or is so."""
        until = time.monotonic() + PATIENCE
        while not (what in self.wrote if isinstance(what, str) else what(self)):
            assert time.monotonic() < until, f"never seen: {what}; but {self.wrote!r}"
            if not self._look(0.1):
                raise AssertionError(f"it ended without {what}: {self.wrote!r}")

    def rest(self) -> None:
        """Look until nobody writes there any more."""
        while self._look(PATIENCE):
            pass

    def _look(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            text = os.read(self._master, 1 << 16).decode("utf-8", "replace")
        except OSError:
            return False
        self.wrote += text
        for piece in _SEQUENCES.findall(text):
            self._show(piece)
        return bool(text)

    def _show(self, piece: str) -> None:
        line = self.lines[-1]
        if piece == "\n":
            self.lines.append("")
        elif piece == "\r":
            self._column = 0
        elif piece == "\x1b[K":
            self.lines[-1] = line[: self._column]
        else:
            assert piece.isprintable(), piece
            end = self._column + len(piece)
            self.lines[-1] = line[: self._column].ljust(self._column) + piece + line[end:]
            self._column = end
            self.widest = max(self.widest, end)


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[Screen, int]]:
    """A screen, and the descriptor of the terminal for the process that is to be seen there: it is
    that of whoever starts the process, to be closed then."""
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        yield Screen(master), slave
    finally:
        os.close(master)
