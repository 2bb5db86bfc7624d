"""The front's life: from the listening sockets to the last reply; what systemd sees of it."""

from __future__ import annotations

import asyncio
import signal
import socket

from swiprctl.errors import SwiprError
from swiprd import ownsocket
from swiprd.config import Settings
from swiprd.log import log
from swiprd.server import Server
from swiprd.service import Phase, Service
from swiprd.systemd import Manager

_DRAIN = 25.0  # seconds; systemd's TimeoutStopSec= is 30
_FLUSH = 2.0  # seconds for clients to take their last replies
_EXTEND = 30.0  # seconds asked for at a time while the model loads, or cannot be loaded
_BEATS = 4  # signs of life in the time that the watchdog allows


class Daemon:
    """Runs the service and the server until it is told to stop, or is idle for long.

    Args:
        own: the listeners are nobody else's: remove their paths when leaving.
    """

    def __init__(
        self, settings: Settings, listeners: list[socket.socket], manager: Manager, *, own: bool
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._manager = manager
        self._own = own
        self._stop = asyncio.Event()
        self._was_ready = False

    async def run(self) -> None:
        """Serve; return when everything is answered and every process is gone."""
        loop = asyncio.get_running_loop()
        service = Service(self._settings, self._phase)
        server = Server(self._listeners, service, self._settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload, service)
        self._manager.status("loading the model")
        service.start()
        chores = [
            asyncio.create_task(self._extend()),
            asyncio.create_task(self._beat(service)),
            asyncio.create_task(self._leave_when_idle(service)),
        ]
        await self._stop.wait()
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        server.stop_accepting()
        if self._own:
            for listener in self._listeners:
                ownsocket.release(listener, even_if_wanted=True)
        await service.drain(_DRAIN)
        await server.flush(_FLUSH)
        server.close()
        await service.close()
        log.info("left")

    def _phase(self, phase: Phase, line: str) -> None:
        match phase:
            case Phase.READY:
                log.info("ready: %s", line)
                self._manager.ready(line)
                self._manager.alive()
                self._was_ready = True
            case Phase.FAILED:
                log.error("the model cannot be loaded: %s", line)
                self._manager.status(f"the model cannot be loaded: {line}")
            case Phase.DRAINING:
                log.info("leaving: %s", line)
                self._manager.stopping(line)
            case Phase.LOADING:
                self._manager.status(line)

    def _reload(self, service: Service) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self._reload_now(service))

    async def _reload_now(self, service: Service) -> None:
        self._manager.reloading()
        try:
            await service.reload()
        except SwiprError as error:
            log.error("the old model goes on: the new one cannot be loaded: %s", error)
            self._manager.ready(f"serving the old model; the new one cannot be loaded: {error}")

    async def _extend(self) -> None:
        """Keep systemd from ending a start that takes long, or one that waits for a repair."""
        while not self._was_ready:
            self._manager.extend(_EXTEND)
            await asyncio.sleep(_EXTEND / 3)

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
        while True:
            rest = service.last_active + timeout - loop.time()
            if rest > 0 or service.busy:
                await asyncio.sleep(max(rest, 0.1))
            elif not self._own or all(
                ownsocket.release(listener, even_if_wanted=False) for listener in self._listeners
            ):
                log.info("idle for %g s", timeout)
                self._stop.set()
                return
            else:
                await asyncio.sleep(0.1)
