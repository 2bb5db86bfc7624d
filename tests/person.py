"""Somebody with a uid of their own, in a process of their own, who says as it goes what happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from daemonprocess import PATIENCE

Say = Callable[[object], None]

_RAISED = "raised"


class Person:
    """A forked child that becomes `uid` and does something. Takes root.

    Args:
        act: called in the child with `say`, which takes anything that JSON can hold.

    Attributes:
        said: what it has said so far.
        raised: what ended it, if anything did.
        over: whether it has ended.
    """

    def __init__(self, uid: int, act: Callable[[Say], None]) -> None:
        self.said: list[Any] = []
        self.raised = ""
        self.over = False
        self._changed = threading.Condition()
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            _be(uid, act, write)
        os.close(write)
        self._thread = threading.Thread(target=self._listen, args=(read,))
        self._thread.start()

    def wait_said(self, count: int) -> bool:
        """Wait until it has said so much; False if it ends before, or takes too long."""
        until = time.monotonic() + PATIENCE
        with self._changed:
            while len(self.said) < count and not self.over:
                if not self._changed.wait(until - time.monotonic()):
                    return False
            return len(self.said) >= count

    def wait_over(self) -> bool:
        """Wait until it has done all it had to; False if it could not, or says nothing for long."""
        while self.wait_said(len(self.said) + 1):
            pass
        return self.over and not self.raised

    def end(self) -> None:
        """Leave nothing of it behind. Whoever hangs in a filesystem must have been freed before."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._thread.join()

    def _listen(self, read: int) -> None:
        with open(read, "rb") as stream:
            for line in stream:
                with self._changed:
                    what = json.loads(line)
                    if isinstance(what, dict) and _RAISED in what:
                        self.raised = what[_RAISED]
                    else:
                        self.said.append(what)
                    self._changed.notify_all()
        with self._changed:
            self.over = True
            self._changed.notify_all()


@contextlib.contextmanager
def people(*persons: Person) -> Iterator[None]:
    """End them all, whatever happens."""
    try:
        yield
    finally:
        for person in persons:
            person.end()


def _be(uid: int, act: Callable[[Say], None], write: int) -> None:
    def say(what: object) -> None:
        os.write(write, json.dumps(what).encode() + b"\n")

    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        act(say)
    except BaseException as error:
        say({_RAISED: repr(error)})
    finally:
        os._exit(0)
