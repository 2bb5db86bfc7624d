"""One line an event on stderr, with journald's priority in front where journald reads it."""

from __future__ import annotations

import logging
import os
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


def set_up() -> None:
    """Log to stderr from INFO up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(prefixed=_is_journal(sys.stderr.fileno())))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _is_journal(descriptor: int) -> bool:
    """Whether journald reads a descriptor: JOURNAL_STREAM names its device and inode.

    The variable alone does not say so: a terminal of a desktop session has it, too (systemd.exec(5)
    gives this check).
    """
    stat = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
