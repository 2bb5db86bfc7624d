"""Runs scenarios one after the other, each within its time; prints a table, writes JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn, get_args

from campaign import SCENARIOS, engine
from campaign.outcome import Outcome, table

_LEAST = 60.0  # seconds that any scenario may take, however small the scale
_PATIENCE = 3.0  # times what it takes on two quiet cores: then it is stopped, and has not held


class _TooLong(BaseException):
    """The scenario's time is over. Nothing in it may take this for an error of its own."""


def main() -> int:
    """Run what the command line asks for; 1 if a promise did not hold."""
    options = _options()
    engine.chosen = options.engine
    outcomes = []
    for number, name in enumerate(options.only, start=1):
        print(f"[{number}/{len(options.only)}] {name} …", file=sys.stderr, flush=True)
        outcome = _run(name, options.scale, options.seed)
        outcomes.append(outcome)
        print(
            f"  {'held' if outcome.held else 'DID NOT HOLD'}, {outcome.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        if options.json is not None:  # after each: a campaign that is stopped leaves what it has
            _write(options.json, outcomes, options)
    print("\n".join(table(outcomes)))
    return 0 if all(outcome.held for outcome in outcomes) else 1


def _run(name: str, scale: float, seed: int) -> Outcome:
    scenario = import_module(f"campaign.{name}")
    begun = time.monotonic()
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, _LEAST + _PATIENCE * scenario.SECONDS * scale)
    try:
        outcome: Outcome = scenario.run(scale, seed)
    except _TooLong:
        notes = "stopped: it took too long"
    except Exception as error:
        traceback.print_exc()
        notes = f"it could not be finished: {error!r}"
    else:
        return outcome
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome(scenario=name, seconds=time.monotonic() - begun, held=False, notes=notes)


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _TooLong


def _write(file: Path, outcomes: list[Outcome], options: argparse.Namespace) -> None:
    document = {
        "scale": options.scale,
        "seed": options.seed,
        "engine": options.engine,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    file.write_text(json.dumps(document, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1 is the long form (default)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (default: 1)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SCENARIOS,
        default=SCENARIOS,
        metavar="NAME",
        help=f"of {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--engine",
        choices=get_args(engine.Engine),
        default=engine.chosen,
        help="what the daemons serve with (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes here, too")
    return parser.parse_args()
