"""The output of `swiprd check` and `swiprd pack`, its errors, and how Ctrl-C ends them.

They print names from untrusted files, which must not control the terminal. Standard library only.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_EX_IOERR = 74
_PIPE_BROKEN = 128 + signal.SIGPIPE


class OutputFailed(Exception):
    """Standard output takes nothing more; `status` is what to exit with.

    Attributes:
        unread: the reader has closed its end of the pipe, as `| head` does: not an error.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror or error}")
        self.unread = isinstance(error, BrokenPipeError)
        self.status = int(_PIPE_BROKEN if self.unread else _EX_IOERR)


def set_up() -> None:
    """Print characters that the locale lacks as escapes; open /dev/null for closed streams.

    Otherwise the next file that is opened would get the number of a standard stream, and a warning
    would be written into a model.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        if isinstance(sys.stdout.buffer, io.RawIOBase):
            # PYTHONUNBUFFERED: what a write(2) does not take would be dropped without a word.
            encoding = sys.stdout.encoding
            buffer = io.BufferedWriter(sys.stdout.detach())
            sys.stdout = io.TextIOWrapper(buffer, encoding, line_buffering=True)
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Have Ctrl-C end this process at once, as it ends `cat`: nothing is there to be cleaned up.

    Python's own way is a traceback, out of torch's initialisation even one with nonsense around
    it; and it never ends a program of a model's that loops without coming back to Python.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # ignored, as in a shell's background, or somebody else's affair
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def clean(text: str) -> str:
    """Replace what is not printable."""
    return "".join(one if one.isprintable() else "?" for one in text)


def put(data: str | bytes) -> None:
    """Print lines, whose text is cleaned, or bytes as they are.

    Raises:
        OutputFailed: they did not get through. What is printed from then on goes nowhere.
    """
    if sys.stdout is None:
        raise OutputFailed(OSError("it is closed"))
    try:
        if isinstance(data, bytes):
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
        else:
            sys.stdout.write("".join(f"{clean(line)}\n" for line in data.split("\n")))
        sys.stdout.flush()
    except OSError as error:
        # Python would try to write its buffer, and complain, once more at the exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise OutputFailed(error) from None


def complain(who: str, message: str) -> None:
    """Put a message on standard error, cleaned, each of its lines behind a name."""
    if sys.stderr is None:
        return
    try:
        for line in message.split("\n"):
            print(f"{who}: {clean(line)}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody is there to be told
