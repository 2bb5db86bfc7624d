"""Closes what clients passed, where that may take for ever: not in the front.

close(2) waits until the file's filesystem has been told to flush. With FUSE any user can be that
filesystem, and not answer: whoever closes then hangs, and not even SIGKILL ends it. So it is a
child that closes, one that shares the front's table of descriptors; systemd's asynchronous_close()
does the same. Where a descriptor cannot block, the front closes it itself, at once.
"""

from __future__ import annotations

import array
import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from swiprd.kernel import die_with_parent, fork_sharing_descriptors, statx
from swiprd.log import log
from swiprd.memfd import sealed_memfd

_PATIENCE = 1.0  # seconds that a close may take, before whoever passed the descriptor is to blame
_MOST = 64  # descriptors of one uid that may wait to be closed, before it is
_IDLE = 5.0  # seconds that the child stays without work
_BATCH = 256  # descriptors in a message to it: a write of less than PIPE_BUF is whole


class Closer:
    """Closes descriptors without waiting.

    Args:
        on_stuck: called with a uid of whose descriptors one does not close, or too many wait.
    """

    def __init__(self, on_stuck: Callable[[int], None]) -> None:
        self._on_stuck = on_stuck
        self._loop = asyncio.get_running_loop()
        self._harmless = _harmless_devices()
        self._waiting: dict[int, list[int]] = {}  # by uid, whose turn it is first
        self._child: _Child | None = None
        self._stuck: dict[int, _Child] = {}  # by uid

    def harmless(self, descriptor: int) -> bool:
        """Whether no user is this file's filesystem: it lies on a disk, in memory or on the root.

        What is a network's, or an unknown one's, is not.
        """
        try:
            major, minor = statx(descriptor).device
        except OSError:
            return False
        # Only root mounts a device. Numbers without one are handed out anew, the root's excepted.
        return major != 0 or (major, minor) in self._harmless

    def close(self, descriptor: int, uid: int) -> None:
        """Close a descriptor that this uid passed; it belongs to the closer from here on."""
        if self.harmless(descriptor):
            os.close(descriptor)
            return
        waiting = self._waiting.setdefault(uid, [])
        waiting.append(descriptor)
        if len(waiting) == _MOST:
            self._on_stuck(uid)
        self._go_on()

    def _go_on(self) -> None:
        if self._child is not None and self._child.uid is not None:
            return
        uid = next((uid for uid in self._waiting if uid not in self._stuck), None)
        if uid is None:
            return
        if self._child is None:
            try:
                self._child = _Child(self)
            except OSError as error:
                log.error("cannot close what clients passed: %s; trying again", error)
                self._loop.call_later(_PATIENCE, self._go_on)
                return
        batch = self._waiting[uid][:_BATCH]
        del self._waiting[uid][:_BATCH]
        if not self._waiting[uid]:
            del self._waiting[uid]
        self._child.close(batch, uid)

    # --- what the child tells

    def closed(self, child: _Child, uid: int) -> None:
        """It has closed what it was given."""
        if child is not self._child:
            del self._stuck[uid]
            child.dismiss()
        self._go_on()

    def gave_up(self, child: _Child, uid: int) -> None:
        """It hangs. Others go on with another child, this uid waits for that one."""
        log.warning("a descriptor that uid %d passed cannot be closed: its filesystem hangs", uid)
        self._stuck[uid] = child
        self._child = None
        self._on_stuck(uid)
        self._go_on()

    def idle(self, child: _Child) -> None:
        """It has had nothing to do for a while."""
        self._child = None
        child.dismiss()

    def died(self, child: _Child) -> None:
        """Somebody killed it. Whether it had closed what it was told to is not to be known, and the
        numbers may be others' by now: at worst they stay open."""
        if child is self._child:
            self._child = None
        self._stuck = {uid: one for uid, one in self._stuck.items() if one is not child}
        self._go_on()

    def end(self) -> None:
        """Let the child leave. What still hangs dies with its filesystem."""
        for child in (self._child, *self._stuck.values()):
            if child is not None:
                child.dismiss()
        self._child = None
        self._stuck.clear()


class _Child:
    """The process that closes, one batch at a time, and says when it has.

    Attributes:
        uid: whose descriptors it is closing; None while it waits.
    """

    def __init__(self, closer: Closer) -> None:
        self.uid: int | None = None
        self._closer = closer
        self._dismissed = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        ordered, self._orders = os.pipe2(os.O_CLOEXEC)
        self._answers, answered = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # One table, so the ends are never "the child's copies": both are closed in `dismiss()`.
        self._theirs = (ordered, answered)
        parent = os.getpid()
        try:
            self._pid = fork_sharing_descriptors()
            if self._pid == 0:
                _serve(ordered, answered, parent)
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:
            for end in (*self._theirs, self._orders, self._answers):
                os.close(end)
            raise
        self._loop.add_reader(self._answers, self._answered)
        self._loop.add_reader(self._pidfd, self._died)
        self._wait_for_work()

    def close(self, descriptors: list[int], uid: int) -> None:
        """Close these of this uid; only while `uid` is None."""
        self.uid = uid
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_PATIENCE, self._closer.gave_up, self, uid)
        os.write(self._orders, array.array("i", descriptors).tobytes())

    def dismiss(self) -> None:
        """Let it leave, at once or when it no longer hangs."""
        self._dismissed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._answers)
        os.close(self._answers)
        os.close(self._orders)  # the last writer of the pipe: it reads the end

    def _wait_for_work(self) -> None:
        self._timer = self._loop.call_later(_IDLE, self._closer.idle, self)

    def _answered(self) -> None:
        os.read(self._answers, 1)
        uid, self.uid = self.uid, None
        assert uid is not None
        assert self._timer is not None
        self._timer.cancel()
        self._wait_for_work()
        self._closer.closed(self, uid)

    def _died(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        for end in self._theirs:
            os.close(end)
        if not self._dismissed:
            self.dismiss()
            self._closer.died(self)


def _serve(ordered: int, answered: int, parent: int) -> NoReturn:
    """Be the child: nothing but system calls."""
    try:
        # Signals are the front's business. A handler of its event loop would wake the front.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        die_with_parent(parent)
        while orders := os.read(ordered, 4 * _BATCH):
            for descriptor in array.array("i", orders):
                with suppress(OSError):  # closed it is, whatever the filesystem thinks of it
                    os.close(descriptor)
            os.write(answered, b".")
    finally:
        os._exit(0)


def _harmless_devices() -> set[tuple[int, int]]:
    memfd = sealed_memfd(b"")
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        return {statx(memfd).device, statx(root).device}
    finally:
        os.close(memfd)
        os.close(root)
