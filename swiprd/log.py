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
        text = super().format(record).replace("\n", " | ")
        return _PRIORITIES.get(record.levelno, "<5>") + text if self._prefixed else text


def set_up() -> None:
    """Log to stderr from INFO up. JOURNAL_STREAM is systemd's word that journald reads it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(prefixed="JOURNAL_STREAM" in os.environ))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
