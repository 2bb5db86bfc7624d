"""The state of an input's file now, as the journal has it.

On a file system whose server may never answer, not even stat(2) returns for certain: there, another
process asks for it, and tells that it hangs.
"""

from __future__ import annotations

import os
import stat
import struct

from swiprctl.detached import Detached
from swiprctl.journal import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from swiprctl.detached import Send

_STATE = struct.Struct("=qq")
_NONE, _HANGS = b"-", b"?"


class Hangs(Exception):
    """The server of the file system has not answered in time."""


def state_of(source: str | int) -> State | None:
    """Give the state of the file behind a path or descriptor; None if it is no plain file."""
    try:
        found = os.stat(source)
    except (OSError, ValueError):
        return None  # the client says why
    if not stat.S_ISREG(found.st_mode):
        return None
    return State(size=found.st_size, mtime=found.st_mtime_ns)


class Inquiry:
    """The state of one file on its way here, from a process that is left behind if it hangs.

    Args:
        path: the file's.
        patience: seconds for which the server may keep silent.

    Raises:
        OSError: there is no process or descriptor to be had.
    """

    def __init__(self, path: str, patience: float) -> None:
        self._process = Detached(lambda send: _ask(path, patience, send), set())

    def fileno(self) -> int:
        """Give what to poll: it can be read when `result` will not wait."""
        return self._process.fileno()

    def result(self) -> State | None:
        """Give the state; None as for `state_of`.

        Raises:
            BlockingIOError: it has not come yet.
            Hangs: it does not come.
        """
        data, _ = self._process.receive(wait=False)
        if data == _HANGS:
            raise Hangs
        if len(data) != _STATE.size:
            return None
        size, mtime = _STATE.unpack(data)
        return State(size=size, mtime=mtime)

    def close(self) -> None:
        """End the other process, whatever it does. Can be called again."""
        self._process.close()


def _ask(path: str, patience: float, send: Send) -> None:
    """Be the other process."""
    import _thread
    from time import sleep

    def watch() -> None:
        sleep(patience)
        send(_HANGS, -1)

    _thread.start_new_thread(watch, ())
    state = state_of(path)
    send(_NONE if state is None else _STATE.pack(state.size, state.mtime), -1)
