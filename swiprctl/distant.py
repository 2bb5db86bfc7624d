"""Walk a folder of a file system whose server may never answer, in a process of its own.

That one lists the folders, and reads the beginnings of files. Where it hangs nothing ends it, not
even SIGKILL: a thread of its own says that it does, it is left behind, and another goes on behind
the path where it hung. The images are read by a process for each, like all on such a file system:
see opener.py.
"""

from __future__ import annotations

import _thread
import os
from time import monotonic, sleep

from swiprctl.detached import LONGEST, Detached
from swiprctl.errors import CannotOpen, DeadlineExceeded, SwiprError
from swiprctl.inputs import Found

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from swiprctl.detached import Send
    from swiprctl.walk import Walk

_MOST_HUNG = 3  # paths in a row: then the rest is left out
_MOST_OPEN = 256  # images that a process keeps open, as closing them may hang

# What a message is of; a path follows, and a NUL and a text behind that of a failure.
_FAILED, _GIVEN, _SKIPPED, _AT, _AGAIN, _END, _HANGS = b"!", b"+", b"-", b"@", b"&", b".", b"?"


class DistantWalk:
    """The inputs below one root, or the root itself, if that is a file.

    Iterating gives a path, or None where none has come yet; then `fileno()` is what to poll.

    Args:
        walk: makes the walk that is to be done in the other process.
        root: the path of a folder or a file.
        patience: seconds for which the server may keep silent.

    Attributes:
        skipped: files that were come upon and are no images.
    """

    def __init__(self, walk: Callable[[], Walk], root: str, patience: float) -> None:
        self._walk = walk
        self._root = root
        self._patience = patience
        self._process: Detached | None = None
        self._at = root  # what is being looked at
        self._hung = 0
        self.skipped = 0

    def fileno(self) -> int:
        """Give what to poll."""
        return -1 if self._process is None else self._process.fileno()

    def __iter__(self) -> Iterator[str | None]:
        late = f"its file system did not answer within {self._patience:.3g} s"
        last = b""
        while last != _END:
            try:
                self._process = Detached(self._work, set())
            except OSError as error:
                yield _failed(self._at, CannotOpen(f"it cannot be walked: {error.strerror}"))
                return
            try:
                last = yield from self._receive(self._process)
            finally:
                self._process.close()
            if last in (_AGAIN, _END):
                continue
            self._hung += 1
            if self._at == self._root or self._hung >= _MOST_HUNG:
                if self._at != self._root:
                    late += f"; nothing behind it in {self._root} is looked at"
                yield _failed(self._at, DeadlineExceeded(late))
                return
            yield _failed(self._at, DeadlineExceeded(late))

    def _receive(self, process: Detached) -> Generator[str | None, None, bytes]:
        """Give what a process finds; return the kind of its last message, empty if it died."""
        while True:
            try:
                data, _ = process.receive(wait=False)
            except BlockingIOError:
                yield None
                continue
            kind = data[:1]
            path, _, text = os.fsdecode(data[1:]).partition("\0")
            if kind in (b"", _AGAIN, _END, _HANGS):
                return kind
            if kind == _AT:
                self._at = path
                continue
            self._hung = 0
            if kind == _SKIPPED:
                self.skipped += 1
            else:
                yield path if kind == _GIVEN else _failed(path, CannotOpen(text))

    def _work(self, send: Send) -> None:
        """Be the other process."""
        since: list[float] = []  # when what may hang has begun, while it lasts
        _thread.start_new_thread(_watch, (since, self._patience, send))
        walk = self._walk()
        below = self._at[len(self._root) :].strip("/")
        sources = walk.resumed(self._root, below.split("/") if below else [])
        at, skipped, opened = self._at, 0, 0
        while True:
            since.append(monotonic())
            source = next(sources, _END)
            since.clear()
            while skipped < walk.skipped:
                skipped += 1
                send(_SKIPPED, -1)
            if walk.where != at:
                at = walk.where
                send(_AT + os.fsencode(at), -1)
            if source is None:
                continue
            if isinstance(source, bytes):
                send(_END, -1)
                return
            opened += isinstance(source, Found) and isinstance(source.opened, int)
            send(_message(source), -1)
            if opened == _MOST_OPEN:
                send(_AGAIN, -1)
                return


def _watch(since: list[float], patience: float, send: Send) -> None:
    """Say when the other thread hangs."""
    while not (since and monotonic() > since[0] + patience):
        sleep(patience / 10)
    send(_HANGS, -1)


def _message(source: str | int) -> bytes:
    path = os.fsencode(str(source))
    if isinstance(source, Found) and isinstance(source.opened, SwiprError):
        return (_FAILED + path + b"\0" + os.fsencode(str(source.opened)))[:LONGEST]
    return _GIVEN + path


def _failed(path: str, error: SwiprError) -> Found:
    found = Found(path)
    found.opened = error
    return found
