"""model_manager.py: who serves after a reload, a pool's end, or both at once.

Pools are stood in for: which of them is in office is decided by the order of what happens to them,
which real processes would leave to chance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swiprctl.errors import LoadingFailed
from swiprd.config import Settings
from swiprd.pool import model_manager
from swiprd.pool.model_manager import ModelManager, Phase


class StandIn:
    """What the manager asks of a pool."""

    def __init__(self, name: str, given_up: Callable[[Any, LoadingFailed], None]) -> None:
        self.given_up = given_up
        self.closed = False
        self.drained = asyncio.Event()
        self.staff = SimpleNamespace(
            loaded=SimpleNamespace(model=name, labels=["cat"]),
            check_seconds=0.0,
            close=self.close,
            forkserver=SimpleNamespace(wait_closed=self.wait_closed),
        )

    def give_up(self) -> None:
        self.given_up(self, LoadingFailed("no worker answers the canary"))

    def close(self) -> None:
        self.closed = True

    async def wait_closed(self) -> None:
        await asyncio.sleep(0)

    async def drain(self) -> None:
        await self.drained.wait()


class Scene:
    """A manager whose pools come from `load()` below; what it has told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[StandIn] = []
        self.error = ""
        self.told: list[str] = []
        self.refused: list[str] = []
        self.manager = ModelManager(
            Settings(model=folder),
            self,  # type: ignore[arg-type]  # a court without jobs
            count(1),
            on_phase=lambda phase, _: self.told.append(phase.value),
            on_reload=lambda _, __: None,
            fault="",
        )

    async def load(
        self, _settings: object, _owner: object, _ids: Iterator[int], pools: set[Any], given_up: Any
    ) -> tuple[StandIn, SimpleNamespace]:
        if self.error:
            raise LoadingFailed(self.error)
        pool = StandIn(f"m-{len(self.made)}", given_up)
        self.made.append(pool)
        pools.add(pool)
        return pool, SimpleNamespace(thresholds=None)

    def installed(self, pool: Any) -> None:
        self.told.append(pool.staff.loaded.model)

    def refuse_waiting(self, error: LoadingFailed) -> None:
        self.refused.append(str(error))

    def is_quiet(self) -> bool:
        return False


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], None]:
    """Run a scene that has a first model."""

    async def calibrate(*_: object) -> None:
        pass

    def run(act: Any) -> None:
        async def whole() -> None:
            scene = Scene(tmp_path)
            monkeypatch.setattr(model_manager, "load", scene.load)
            monkeypatch.setattr(model_manager, "calibrate", calibrate)
            scene.manager.start()
            await scene.manager.wait_settled()
            await act(scene)
            await scene.manager.stop()

        asyncio.run(asyncio.wait_for(whole(), 20))

    return run


def test_a_reload_changes_who_serves_and_drains_the_old(play: Callable[[Any], None]) -> None:
    async def act(scene: Scene) -> None:
        assert await scene.manager.reload() == {"model": "m-1"}
        first, second = scene.made
        assert scene.manager.pool is second
        assert (first.closed, second.closed) == (False, False)
        first.drained.set()
        while first in scene.manager.pools:
            await asyncio.sleep(0)
        assert first.closed
        assert scene.told == ["ready", "m-0", "ready", "m-1"]

    play(act)


def test_a_reload_that_fails_leaves_the_old_in_office(play: Callable[[Any], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.error = "model.toml: no weights"
        with pytest.raises(LoadingFailed, match="no weights"):
            await scene.manager.reload()
        assert scene.manager.pool is scene.made[0]
        assert scene.manager.phase is Phase.READY
        assert scene.manager.status()["reload_error"] == "model.toml: no weights"
        assert scene.refused == []

    play(act)


def test_a_pool_in_office_that_gives_up_is_followed_by_another(play: Callable[[Any], None]) -> None:
    async def act(scene: Scene) -> None:
        scene.made[0].give_up()
        assert scene.manager.pool is None
        while not scene.refused:
            await asyncio.sleep(0)
        (scene.folder / "model.toml").touch()  # it looks whether somebody repairs it
        while scene.manager.pool is None:
            await asyncio.sleep(0.01)
        assert scene.manager.pool is scene.made[1]
        assert scene.made[0].closed
        assert scene.told == ["ready", "m-0", "loading-failed", "ready", "m-1"]
        assert "no worker answers the canary" in scene.refused[0]

    play(act)


def test_a_replaced_pool_that_gives_up_unseats_nobody(play: Callable[[Any], None]) -> None:
    async def act(scene: Scene) -> None:
        await scene.manager.reload()
        scene.made[0].give_up()
        while scene.made[0] in scene.manager.pools:
            await asyncio.sleep(0)
        assert scene.manager.pool is scene.made[1]
        assert scene.manager.phase is Phase.READY
        assert scene.refused == []
        assert len(scene.made) == 2

    play(act)
