"""How the uids share the front's time. Nothing is asserted to be quick, only who comes first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from swiprd.front.read_turns import ReadTurns

pytestmark = pytest.mark.timeout(30)

LONG = 0.02  # seconds of work: above what a uid is allowed in one go


def busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


async def together(*uids: int) -> ReadTurns:
    turns = ReadTurns()
    for uid in uids:
        turns.join(uid)
    return turns


def noting(order: list[str], name: str, seconds: float = 0.0) -> Callable[[], None]:
    def work() -> None:
        busy(seconds)
        order.append(name)

    return work


def test_what_is_little_is_done_at_once() -> None:
    async def main() -> None:
        turns = await together(1, 2)
        order: list[str] = []
        assert turns.ask(1, noting(order, "a"))
        assert turns.ask(2, noting(order, "b"))
        assert order == ["a", "b"]

    asyncio.run(main())


def test_a_flood_waits_for_whoever_asks_meanwhile() -> None:
    async def main() -> None:
        turns = await together(1, 2)
        order: list[str] = []
        done = asyncio.Event()
        assert turns.ask(1, noting(order, "first", LONG))
        for number in range(3):
            assert not turns.ask(1, noting(order, f"flood {number}", LONG))
        assert not turns.ask(1, done.set)
        assert turns.ask(2, noting(order, "other"))
        await done.wait()
        assert order == ["first", "other", "flood 0", "flood 1", "flood 2"]

    asyncio.run(main())


def test_one_that_is_alone_is_not_held_up_but_the_loop_is_heard_between() -> None:
    async def main() -> None:
        turns = await together(1)
        order: list[str] = []
        done = asyncio.Event()
        for number in range(3):
            turns.ask(1, noting(order, f"flood {number}", LONG))
        turns.ask(1, done.set)
        asyncio.get_running_loop().call_soon(order.append, "newcomer")
        begun = time.monotonic()
        await done.wait()
        assert order.index("newcomer") < order.index("flood 2")
        assert time.monotonic() - begun < 10 * LONG  # it would be 5 × for each, if it were held up

    asyncio.run(main())


def test_one_that_has_left_is_owed_nothing() -> None:
    async def main() -> None:
        turns = await together(1, 2)
        order: list[str] = []
        turns.ask(1, noting(order, "first", LONG))
        turns.ask(1, noting(order, "late"))
        turns.leave(1)
        turns.join(1)
        assert turns.ask(1, noting(order, "anew"))
        await asyncio.sleep(8 * LONG)
        assert order == ["first", "anew"]

    asyncio.run(main())


def test_work_that_raises_does_not_stop_the_rest() -> None:
    async def main() -> None:
        turns = await together(1)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        done = asyncio.Event()

        def fail() -> None:
            raise ValueError

        turns.ask(1, lambda: busy(LONG))
        turns.ask(1, fail)
        turns.ask(1, done.set)
        await done.wait()

    asyncio.run(main())
