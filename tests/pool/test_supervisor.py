"""supervisor.py, with a real forkserver and real workers: who gets back what they were given."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from swiprctl.errors import SwiprError
from swiprd.folder.canary_image import canary_of
from swiprd.folder.spec import load_spec
from swiprd.pool.job import Job
from swiprd.pool.pool import Pool
from swiprd.pool.recycling import RecyclingLimits
from swiprd.pool.states import State
from swiprd.pool.supervisor import Shape
from swiprd.pool.trials import Interrupted, Tally, count_answers
from swiprd.system.messages import Limits, Load

pytestmark = pytest.mark.timeout(120)

ONE = Shape(workers=1, threads=1, batch=1, alone=1)
LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20, max_decode=8.0)


class Queue:
    """The owner of a pool that has nothing to run, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def peek(self) -> Job | None:
        return None

    def peek_suspect(self) -> Job | None:
        return None

    def take(self, job: Job) -> None:
        self.told.append(("take", job))

    def answered(self, job: Job, *_: Any) -> None:
        self.told.append(("answered", job))

    def failed(self, job: Job, _error: SwiprError) -> None:
        self.told.append(("failed", job))

    def ran_in_vain(self, job: Job, error: SwiprError, _ran: float) -> None:
        self.condemned(job, error)

    def condemned(self, job: Job, _error: SwiprError) -> None:
        self.told.append(("condemned", job))

    def overdue(self, job: Job) -> None:
        self.told.append(("overdue", job))

    def again(self, job: Job) -> None:
        self.told.append(("again", job))


def run(model: Path, queue: Queue, work: Callable[[Pool], Awaitable[None]]) -> None:
    """Do some work with a pool that serves, and see every process of it leave."""

    async def serve() -> None:
        spec = load_spec(model)
        pool = Pool(
            queue,
            load=Load(folder=str(spec.folder), device="cpu", memory=None),
            shape=ONE,
            limits=LIMITS,
            canary=canary_of(spec),
            ids=count(1),
            wear=RecyclingLimits(requests=0, growth=0),
            on_given_up=lambda _, error: queue.told.append(("given up", error)),
        )
        try:
            await pool.staff.start()
            await work(pool)
        finally:
            pool.staff.close()
            await pool.staff.forkserver.wait_closed()

    asyncio.run(serve())


def test_what_is_measured_is_not_the_queues(tiny_model: Path) -> None:
    """A pool closes, as after a reload, while its workers are tried: those run no client's job."""
    queue = Queue()

    async def work(pool: Pool) -> None:
        tally = Tally()
        trial = asyncio.create_task(count_answers(pool.staff, ONE, tally, lambda: True))
        while not tally.answers:
            await asyncio.sleep(0.01)
        pool.staff.close()
        with pytest.raises(Interrupted):
            await trial

    run(tiny_model, queue, work)
    assert queue.told == []


def test_who_asks_for_a_check_meanwhile_shares_the_answer(tiny_model: Path) -> None:
    queue = Queue()

    async def work(pool: Pool) -> None:
        workers = pool.staff.workers
        while len(workers) < 2 or any(w.state is not State.IDLE for w in workers.values()):
            await asyncio.sleep(0.01)
        before = sum(worker.answered for worker in workers.values())
        await asyncio.gather(*(pool.staff.check() for _ in range(5)))
        assert sum(worker.answered for worker in workers.values()) == before + 1

    run(tiny_model, queue, work)
    assert queue.told == []
