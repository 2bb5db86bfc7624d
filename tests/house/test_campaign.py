"""Each scenario of the fault campaign in its short form, and what the campaign prints."""

from __future__ import annotations

import json
from importlib import import_module
from typing import get_args

import pytest
from campaign import SCENARIOS, engine
from campaign.outcome import Outcome, table

SHORT = 0.01


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("served_by", get_args(engine.Engine))
def test_it_holds_in_short(
    name: str, served_by: engine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "chosen", served_by)
    outcome = import_module(f"campaign.{name}").run(SHORT, 1)
    assert outcome.held, outcome
    assert outcome.scenario == name
    json.dumps(outcome.figures)


def test_nothing_wrong_is_held() -> None:
    with pytest.raises(ValueError, match="1 wrong"):
        Outcome(scenario="kills", wrong=1, held=True)


def test_the_table_names_what_did_not_hold() -> None:
    good = Outcome(scenario="kills", requests=10_000, rows=10_000, faults=7, held=True)
    bad = Outcome(
        scenario="soak", errors={"deadline": 2}, figures={"growth_percent": 7.5}, held=False
    )
    head, first, second, *rest = table([good, bad])
    assert first.split() == ["kills", "10,000", "10,000", "0", "7", "0", "0.0", "yes"]
    assert second.split()[-1] == "NO"
    assert "soak: deadline 2, growth_percent 7.5" in rest
    assert head.split()[0] == "scenario"
