"""states.py: what is in the table happens, all else raises; and the backoff's sequence."""

from __future__ import annotations

import itertools

import pytest

from swiprd.pool.states import Backoff, Event, IllegalTransition, State, after

pytestmark = pytest.mark.timeout(30)

LEGAL = {
    (State.SPAWNING, Event.FORKED): State.WARMING,
    (State.WARMING, Event.ANSWERED): State.IDLE,
    (State.IDLE, Event.GIVEN): State.BUSY,
    (State.BUSY, Event.ANSWERED): State.IDLE,
    (State.SPAWNING, Event.LOST): State.GONE,
    (State.WARMING, Event.LOST): State.GONE,
    (State.IDLE, Event.LOST): State.GONE,
    (State.BUSY, Event.LOST): State.GONE,
}

EVERY = list(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), EVERY, ids=[f"{s.value}-{e.value}" for s, e in EVERY])
def test_every_pair_is_legal_or_refused_by_name(state: State, event: Event) -> None:
    if (state, event) in LEGAL:
        assert after(state, event) is LEGAL[state, event]
        return
    with pytest.raises(IllegalTransition) as caught:
        after(state, event)
    assert state.value in str(caught.value)
    assert event.value in str(caught.value)


def test_the_dead_stay_dead() -> None:
    for event in Event:
        with pytest.raises(IllegalTransition):
            after(State.GONE, event)


def test_every_state_is_reached_and_can_be_lost() -> None:
    reached, fresh = {State.SPAWNING}, {State.SPAWNING}
    while fresh:
        fresh = {to for (state, _), to in LEGAL.items() if state in fresh} - reached
        reached |= fresh
    assert reached == set(State)
    assert all(after(state, Event.LOST) is State.GONE for state in State if state != State.GONE)


class TestBackoff:
    def test_none_at_first_then_doubling_up_to_the_ceiling(self) -> None:
        backoff = Backoff(first=0.1, ceiling=1.0)
        waits = [backoff.failed() for _ in range(8)]
        assert waits == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])
        assert backoff.failures == 8

    def test_a_success_forgets(self) -> None:
        backoff = Backoff()
        for _ in range(5):
            backoff.failed()
        backoff.succeeded()
        assert backoff.failures == 0
        assert [backoff.failed(), backoff.failed()] == [0.0, 0.1]

    def test_failing_for_ever_stays_at_the_ceiling(self) -> None:
        backoff = Backoff()
        for _ in range(5000):
            wait = backoff.failed()
        assert wait == 10.0
