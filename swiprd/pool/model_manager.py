"""Which model serves: how it comes up, what is tried after a failure, and who follows it.

One pool is in office at a time. A new one takes over when it has answered its canary, and the old
one ends what it runs. A model that cannot be loaded is a state with a reason, not an exit: systemd
would count exits, and give up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from enum import Enum
from typing import Protocol

from swiprctl.errors import LoadingFailed, ShuttingDown, SwiprError
from swiprd.config import Settings
from swiprd.folder.edits import Edits
from swiprd.folder.spec import ModelSpec
from swiprd.pool.calibrate import calibrate
from swiprd.pool.compiler import Compiler
from swiprd.pool.description import describe_model
from swiprd.pool.pool import Owner, Pool
from swiprd.pool.startup import close, load, signature
from swiprd.system.log import log

RETRY = 60.0
"""Seconds between tries to load a model that failed though its files did not change."""

_LOOK = 2.0  # seconds between looks whether a failed model's files have changed
_READS = 3  # at most, where the folder is edited during each


class Phase(Enum):
    """What the service as a whole is doing."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "loading-failed"
    DRAINING = "draining"


class Court(Owner, Protocol):
    """Whom a change of model concerns; and the owner of the jobs that its pool runs."""

    def installed(self, pool: Pool) -> None:
        """A pool is in office."""

    def refuse_waiting(self, error: SwiprError) -> None:
        """No pool is, for a while at least: nobody is to wait for one."""

    def is_quiet(self) -> bool:
        """Whether nobody asks for anything: a time to calibrate."""


class ModelManager:
    """Make it and `start()`; `pool` is whoever serves.

    Args:
        on_phase: called when `phase` has changed, with `reason`.
        on_reload: called with True when a model that serves begins to be replaced, and with False
            when that is over; with `reason`.
        fault: why no model can be loaded at all; empty where one can be tried.

    Attributes:
        pool, spec: None where no model serves.
        pools: those that have processes, with those that drain after a reload.
        reason: a line for people on `phase`.
        reload_error: why the last reload failed; empty where it did not.
        limits: those that the daemon was started under, which a failure may be due to; empty where
            there are none, or nobody is to be told.
        edits: whether requests notice that the folder has been edited; else only a reload does.
    """

    def __init__(
        self,
        settings: Settings,
        court: Court,
        ids: Iterator[int],
        *,
        on_phase: Callable[[Phase, str], None],
        on_reload: Callable[[bool, str], None],
        fault: str,
    ) -> None:
        self._settings = settings
        self._court = court
        self._ids = ids
        self._on_phase = on_phase
        self._on_reload = on_reload
        self._fault = fault
        self._compiler = Compiler(settings, court.is_quiet)
        self._loop = asyncio.get_running_loop()
        self._settled = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.pool: Pool | None = None
        self.spec: ModelSpec | None = None
        self.pools: set[Pool] = set()
        self._specs: dict[Pool, ModelSpec] = {}  # of those that have served and may still answer
        self.phase = Phase.LOADING
        self.reason = ""
        self.reload_error = ""
        self.limits = ""
        self.edits = Edits(settings.model)

    def start(self) -> None:
        """Begin to load the model."""
        self._spawn(self._bring_up())

    def leave(self) -> None:
        """No model is announced any more, whatever happens."""
        self._enter(Phase.DRAINING, "finishing what was accepted")

    async def stop(self) -> None:
        """End every attempt that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Let every process leave; wait until they are gone."""
        for pool in list(self.pools):
            await close(pool, self.pools)

    # --- who serves

    @property
    def settled(self) -> bool:
        """Whether the first model serves, or it is known why not."""
        return self._settled.is_set()

    async def wait_settled(self) -> None:
        """Wait until `settled`."""
        await self._settled.wait()

    def require_unedited(self) -> None:
        """See that who serves has read the folder as it is now, where that is looked at.

        Raises:
            ShuttingDown: it has been edited; a successor will answer.
        """
        failed = self.phase is Phase.FAILED
        # Not while it is being read: `_read` looks when that is done.
        if (failed or self.phase is Phase.READY) and self.edits.noticed(failed=failed):
            raise ShuttingDown("the model has been edited: the next daemon reads it anew", 0.1)

    def current(self) -> tuple[Pool, ModelSpec]:
        """Return who serves, and from which folder.

        Raises:
            LoadingFailed: there is no model.
            ShuttingDown: it has been edited.
        """
        self.require_unedited()
        if self.pool is None or self.spec is None:
            raise LoadingFailed(self.reason or "the model is being loaded", 1.0)
        return self.pool, self.spec

    def describe(self) -> dict[str, object]:
        """What `model` answers.

        Raises:
            LoadingFailed: there is no model.
        """
        pool, spec = self.current()
        return {
            **describe_model(spec, pool.staff.loaded, self._settings.formats),
            "max_timeout": self._settings.ceiling,
        }

    def with_labels(self, row: dict[str, object], known: str | None) -> dict[str, object]:
        """A row with the labels of the model that made it, unless the client knows those.

        Args:
            known: the id of a model whose labels the client has; None if it wants none.
        """
        if known is None or known == row["model"]:
            return row
        for pool, spec in self._specs.items():
            if pool.staff.loaded.model == row["model"]:
                labels = pool.staff.loaded.labels
                return {**row, "labels": labels, "thresholds": spec.thresholds}
        return row

    def status(self) -> dict[str, object]:
        """What `status` says of the model as a whole."""
        return {
            "state": self.phase.value,
            "reason": self.reason,
            "reload_error": self.reload_error,
        }

    async def reload(self) -> dict[str, object]:
        """Load the folder anew beside the model that serves; swap when it has proved itself.

        Raises:
            LoadingFailed: with the reason; the old model goes on.
        """
        async with self._reloading:
            replaces = self.phase is Phase.READY
            if replaces:
                self._on_reload(True, self.reason)
            try:
                pool, spec = await self._load()
                self._install(pool, spec)
                return {"model": pool.staff.loaded.model}
            except LoadingFailed as error:
                self._reload_failed(error)
                raise
            finally:
                if replaces:
                    self._on_reload(False, self.reason)

    # --- inside

    def _given_up(self, pool: Pool, error: LoadingFailed) -> None:
        """A pool that has served cannot be brought back; try again from the folder, unless another
        has replaced it."""
        self._spawn(close(pool, self.pools))
        if pool is self.pool:
            self.pool = None
            self._spawn(self._keep_trying(error))

    async def _bring_up(self) -> None:
        try:
            async with self._reloading:
                self._install(*await self._load())
        except LoadingFailed as error:
            await self._keep_trying(error)

    async def _keep_trying(self, error: LoadingFailed) -> None:
        """Say why there is no model, and try again when its files change, or after a while."""
        while True:
            self.edits.settle()
            limited = f" (the daemon was started with at most {self.limits})" if self.limits else ""
            self._enter(Phase.FAILED, f"the model cannot be loaded: {error}{limited}")
            self._court.refuse_waiting(LoadingFailed(self.reason, RETRY))
            seen = signature(self._settings.model)
            until = self._loop.time() + RETRY
            while self._loop.time() < until and signature(self._settings.model) == seen:
                await asyncio.sleep(_LOOK)  # inotify has no binding among our dependencies
            async with self._reloading:
                if self.pool is not None:
                    return  # a reload was quicker
                try:
                    self._install(*await self._load())
                except LoadingFailed as again:
                    error = again
                else:
                    return

    async def _load(self) -> tuple[Pool, ModelSpec]:
        if self._fault:
            raise LoadingFailed(self._fault)
        try:
            return await self._read()
        except LoadingFailed:
            raise
        except Exception as error:
            # No process to be had, or a defect: without this, "loading" would be the last word.
            log.error("the model cannot be loaded: %r", error, exc_info=error)
            raise LoadingFailed(f"{self._settings.model}: {error!r}") from error

    async def _read(self) -> tuple[Pool, ModelSpec]:
        """Load the folder; again where it was edited meanwhile: who waits may have asked since."""
        for left in reversed(range(_READS)):
            self.edits.reading()
            try:
                pool, spec = await load(
                    self._settings, self._court, self._ids, self.pools, self._given_up
                )
            except LoadingFailed:
                if not left or not self.edits.stale():
                    raise
            else:
                if not left or not self.edits.stale():
                    break
                await close(pool, self.pools)
        return pool, spec

    def _install(self, pool: Pool, spec: ModelSpec) -> None:
        old, self.pool, self.spec = self.pool, pool, spec
        self._specs = {p: b for p, b in self._specs.items() if p in self.pools} | {pool: spec}
        self.edits.settle()
        if old is not None:
            self._spawn(self._retire(old))
        self.reload_error = ""
        if self.phase is not Phase.DRAINING:
            self._enter(Phase.READY, f"serving {pool.staff.loaded.model}")
        self._court.installed(pool)
        self._spawn(self._improve(pool, spec))

    async def _improve(self, pool: Pool, spec: ModelSpec) -> None:
        """Use the quiet: have the model compiled, and let the compiled form take over; or find out
        how to spread the work."""
        if pool.staff.loaded.engine == "torch" and await self._compiler.make(spec):
            with suppress(LoadingFailed):  # which `reload` has logged; torch goes on serving
                await self.reload()
                return
        engine = pool.staff.loaded.engine
        await calibrate(pool.staff, spec, self._settings, engine, self._court.is_quiet)

    async def _retire(self, pool: Pool) -> None:
        """Let a replaced pool end what it runs; deadlines bound that."""
        await pool.drain()
        await close(pool, self.pools)

    def _reload_failed(self, error: LoadingFailed) -> None:
        self.reload_error = str(error)
        log.error("reload failed: %s", error)
        if self.pool is not None and self.phase is Phase.READY:
            old = self.pool.staff.loaded.model
            self.reason = f"serving {old}, as before: reload failed: {error}"

    def _enter(self, phase: Phase, reason: str) -> None:
        if self.phase is Phase.DRAINING:
            return
        self.phase, self.reason = phase, reason
        self._settled.set()
        self._on_phase(phase, reason)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the service failed: %r", error, exc_info=error)
