"""What a scenario gives: counts, figures and a verdict; and how they are written down. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One scenario's result.

    Attributes:
        scenario: its name.
        requests: what was asked for, each once, however often it had to be sent.
        rows: right rows among the answers.
        errors: the other answers, by wire code ("left" where the asker did not wait).
        faults: things done to the daemon: kills, poisoned images, connections torn, frames mangled.
        wrong: requests lost, doubled, swapped, or ended in an error that is not documented for
            what happened to them.
        seconds: how long it took.
        figures: what else was measured; the unit is the end of the name (`median_seconds`).
        held: whether the promise held. Never true where `wrong` is above 0.
        notes: what a reader should know, most of all why it did not hold.
    """

    scenario: str
    requests: int = 0
    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    faults: int = 0
    wrong: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    held: bool
    notes: str = ""

    def __post_init__(self) -> None:
        if self.held and self.wrong:
            raise ValueError(f"{self.scenario}: held, with {self.wrong} wrong")


_HEAD = ("scenario", "requests", "rows", "errors", "faults", "wrong", "seconds", "held")


def table(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Lines of a table, and below it each scenario's figures and notes."""
    outcomes = list(outcomes)
    cells = [
        _HEAD,
        *(
            (
                o.scenario,
                f"{o.requests:,}",
                f"{o.rows:,}",
                f"{sum(o.errors.values()):,}",
                f"{o.faults:,}",
                f"{o.wrong:,}",
                f"{o.seconds:.1f}",
                "yes" if o.held else "NO",
            )
            for o in outcomes
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *rest = zip(row, widths, strict=True)
        yield "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{w}}" for cell, w in rest)])
    for o in outcomes:
        details = [f"{code} {count:,}" for code, count in sorted(o.errors.items())]
        details += [f"{name} {value:.6g}" for name, value in o.figures.items()]
        if details or o.notes:
            yield ""
            yield f"{o.scenario}: {', '.join(details)}".rstrip(": ")
        if o.notes:
            yield f"  {o.notes}"
