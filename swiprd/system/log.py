"""One line for each event on stderr, with a priority in front where journald reads it.

Logging never blocks: a journal that is stuck must not stop the daemon. Lines that stderr does not
take at once are dropped, and their number is in the first line that it takes again.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys

log = logging.getLogger("swiprd")

_PRIORITIES = {  # sd-daemon(3)
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}


class _Lines(logging.Formatter):
    """Keeps an event on one line: a journal entry is a line."""

    def __init__(self, prefixed: bool) -> None:
        super().__init__("%(message)s" if prefixed else "%(asctime)s swiprd: %(message)s")
        self._prefixed = prefixed

    def format(self, record: logging.LogRecord) -> str:
        text = " | ".join(super().format(record).splitlines())
        return _PRIORITIES.get(record.levelno, "<5>") + text if self._prefixed else text


class _NonBlocking(logging.Handler):
    """Writes lines to a descriptor, and drops those that it does not take at once."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or count it as dropped."""
        if self._dropped and self._write(self._told_dropped()):
            self._dropped = 0
        if self._dropped or not self._write(self.format(record)):
            self._dropped += 1

    def _told_dropped(self) -> str:
        words = f"{self._dropped} lines were dropped, as nobody read them"
        return self.format(logging.makeLogRecord({"msg": words, "levelno": logging.WARNING}))

    def _write(self, line: str) -> bool:
        data = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        try:
            while data:
                if not poll.poll(0):
                    return False
                # A pipe or socket with any room takes so much without waiting: pipe(7).
                data = data[os.write(self._descriptor, data[: select.PIPE_BUF]) :]
        except OSError:
            return False
        return True


def set_up() -> None:
    """Log to stderr: our events from INFO up, and what libraries warn of."""
    handler = _NonBlocking(sys.stderr.fileno())
    handler.setFormatter(_Lines(prefixed=_is_journal(sys.stderr.fileno())))
    logging.getLogger().addHandler(handler)
    log.setLevel(logging.INFO)


def log_file() -> str:
    """Path of the file that the log goes to; empty where it is none: the journal, a terminal."""
    try:
        descriptor = sys.stderr.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        pass  # it is closed, or /proc is not there
    return ""


def _is_journal(descriptor: int) -> bool:
    """Whether journald reads a descriptor: JOURNAL_STREAM names its device and inode.

    The variable alone does not say so: a terminal of a desktop session has it, too (systemd.exec(5)
    gives this check).
    """
    found = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
