"""The front's life: from the listening sockets to the last reply; what systemd sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from swiprctl.errors import SwiprError
from swiprd.config import Settings
from swiprd.front.server import Server
from swiprd.front.service import Service
from swiprd.pool.model_manager import Phase
from swiprd.system import limits, private_listener
from swiprd.system.log import log
from swiprd.system.systemd import Manager

_DRAIN = 25.0  # seconds; systemd's TimeoutStopSec= is 30
_TELL = 2.0  # seconds for clients to ask, and hear why there is no model
_TELL_PAUSE = 0.05
_FLUSH = 2.0  # seconds for clients to take their last replies
_EXTEND = 30.0  # seconds asked for at a time while the model loads, or cannot be loaded
_LOOK = 2.0  # seconds between looks whether settings that cannot be used have changed
_LOCK_PATIENCE = 1.0  # seconds to wait for the socket's lock; after that the path is left there
_BEATS = 4  # WATCHDOG=1 messages in the time that the watchdog allows


class Daemon:
    """Runs the service and the server until it is told to stop, or is idle for long.

    Args:
        own: no service manager holds the listeners: remove their paths when leaving.
        private: a client has started it for its user, and starts the next: leave when the model's
            folder is edited, and take the log along. Leave, too, when the model cannot be loaded,
            as the next may not have the limits of this one; then the log stays.
        fault: the error in the settings, if any: then no model is loaded, and this error is the
            answer to every request.
        find_fault: reads the settings again and gives the error in them now; empty: none.
    """

    def __init__(
        self,
        settings: Settings,
        listeners: list[socket.socket],
        manager: Manager,
        *,
        own: bool,
        private: bool = False,
        fault: str = "",
        find_fault: Callable[[], str] = str,
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._manager = manager
        # By listener: what its path was when it was bound. Empty where systemd keeps the sockets.
        self._own = {one: private_listener.mark(one) for one in listeners} if own else {}
        self._private = private
        self._fault = fault
        self._find_fault = find_fault
        self._stop = asyncio.Event()
        self._was_ready = False
        self._failed = False  # for good: see `private`
        self._in_reload = False
        self._again = False

    async def run(self) -> bool:
        """Serve; return when everything is answered and every process is gone.

        Returns:
            Whether to begin again, as the settings that could not be used have changed.
        """
        loop = asyncio.get_running_loop()
        service = Service(self._settings, self._phase, self._reloads, fault=self._fault)
        if self._private:
            service.model.edits.on_edit = self._stop.set
            service.model.limits = limits.describe()
        on_stop = self._stop.set if self._own else None
        server = Server(self._listeners, service, self._settings, on_stop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload, service)
        self._manager.status("loading the model")
        service.start()
        chores = [
            asyncio.create_task(self._extend()),
            asyncio.create_task(self._beat(service)),
            asyncio.create_task(self._leave_when_idle(service)),
            asyncio.create_task(self._await_repair()),
        ]
        await self._stop.wait()
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        if self._failed:
            await self._unlink()
            await self._tell_why(server)
        server.stop_accepting()
        paths = [Path(listener.getsockname()) for listener in self._own]
        await self._release()
        await service.drain(_DRAIN)
        await server.flush(_FLUSH)
        server.close()
        await service.close()
        if self._private and not self._failed:
            for path in paths:
                private_listener.remove_log(path)
        if not self._again:
            log.info("left")
        return self._again

    async def _tell_why(self, server: Server) -> None:
        """Answer those who found the path before it was given up with the reason: sent on to a
        successor, which fails as fast, they might never hear of it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _TELL
        await asyncio.sleep(_TELL_PAUSE)  # those in the listeners' queues are accepted meanwhile
        while server.connections and loop.time() < until:
            await asyncio.sleep(_TELL_PAUSE)

    async def _release(self) -> None:
        """Give up the listeners' paths, and the listeners, whose clients then go to a successor."""
        await self._unlink()
        for listener in self._own:
            listener.close()

    async def _unlink(self) -> None:
        """Give up the listeners' paths, so that the next client starts a daemon of its own."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _LOCK_PATIENCE
        for listener, mark in self._own.items():
            while not private_listener.release(listener, mark, even_if_wanted=True):
                if loop.time() >= until:
                    break  # nobody answers there any more, so that the next daemon takes its place
                await asyncio.sleep(0.02)

    def _phase(self, phase: Phase, line: str) -> None:
        match phase:
            case Phase.READY:
                log.info("ready: %s", line)
                self._manager.ready(line)
                self._manager.alive()
                self._was_ready = True
            case Phase.FAILED:
                log.error("%s", line)
                self._manager.status(line)
                if self._private and not self._was_ready:
                    self._failed = True
                    self._stop.set()  # those who wait are told why before it is heard
            case Phase.DRAINING if not self._again:
                log.info("leaving: %s", line)
                self._manager.stopping(line)
            case Phase.LOADING:
                self._manager.status(line)

    def _reload(self, service: Service) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self._reload_now(service))

    async def _reload_now(self, service: Service) -> None:
        with contextlib.suppress(SwiprError):  # logged and in the status by now
            await service.model.reload()

    def _reloads(self, begun: bool, line: str) -> None:
        """A model that serves is being replaced, or that is over, one way or the other."""
        self._in_reload = begun
        if begun:
            self._manager.reloading()
            self._manager.extend(_EXTEND)
        else:
            self._manager.reloaded(line)

    async def _extend(self) -> None:
        """Keep systemd from ending a start that takes long, or one that waits for a repair, or a
        reload."""
        while True:
            if not self._was_ready or self._in_reload:
                self._manager.extend(_EXTEND)
            await asyncio.sleep(_EXTEND / 3)

    async def _await_repair(self) -> None:
        """Where the settings cannot be used: leave, to begin again, when that has changed."""
        while self._fault:
            await asyncio.sleep(_LOOK)
            if self._find_fault() != self._fault:
                self._again = True
                self._stop.set()
                return

    async def _beat(self, service: Service) -> None:
        """Tell systemd's watchdog that workers answer; when they do not, let it act."""
        if self._manager.watchdog is None:
            return
        loop = asyncio.get_running_loop()
        interval = self._manager.watchdog / _BEATS
        while True:
            await asyncio.sleep(interval)
            if not self._was_ready:
                continue
            try:
                if loop.time() - service.last_answer > interval:
                    await service.ping(interval)
            except SwiprError as error:
                log.warning("no sign of life for the watchdog: %s", error)
            else:
                self._manager.alive()

    async def _leave_when_idle(self, service: Service) -> None:
        timeout = self._settings.idle_timeout
        if not timeout:
            return
        loop = asyncio.get_running_loop()
        while not self._own and not self._was_ready:
            await asyncio.sleep(1.0)  # to systemd that would be a failed start: to be tried again
        while True:
            rest = service.last_active + timeout - loop.time()
            if rest > 0 or service.busy:
                await asyncio.sleep(max(rest, 0.1))
            elif not self._own or all(
                private_listener.release(listener, mark, even_if_wanted=False)
                for listener, mark in self._own.items()
            ):
                log.info("idle for %g s", timeout)
                self._stop.set()
                return
            else:
                await asyncio.sleep(0.1)
