"""The fault campaign: what swipr promises, tried under load with real faults, and counted.

A scenario is a module of this package with `SECONDS`, about what it takes at scale 1 on two cores,
and `run(scale, seed)`, which injects its faults, counts, cleans up and gives an `Outcome`. Scale 1
is the long form, `make campaign`; the tests run the same code at a small scale.
"""

from __future__ import annotations

SCENARIOS = (
    "kills",
    "poison",
    "admission",
    "fairness",
    "leavers",
    "hostile",
    "memfds",
    "closes",
    "scans",
    "forkservers",
    "hangers",
    "crowd",
    "fuzz",
    "decoders",
    "degraded",
    "orphans",
    "soak",
    "watchdog",
)
"""In the order in which they run: as the promises are numbered."""
