"""See on a booted Debian 13 that what is promised of an installed swipr holds.

Runs as root inside the tree, started by systemd; tests/e2e/run puts it there. Each step says what
it checked and how long it took; one that fails does not keep the others from running.
"""

from __future__ import annotations

import sys
import time
import traceback

import engines
import limits
import memory
import models
import serving
from check import Failed
from host import HERE, forget_starts

STEPS = [
    serving.install,
    serving.photos,
    serving.sandbox,
    serving.kills,
    serving.upgrade,
    models.reload,
    models.instance,
    limits.permissions,
    limits.restarts,
    memory.out_of_memory,
    engines.engines,
    limits.hygiene,
]


def main() -> int:
    """Run the steps, or those whose numbers are given; return how many failed."""
    steps = {str(number): step for number, step in enumerate(STEPS, start=1)}
    if (HERE / "steps").exists():
        steps = {number: steps[number] for number in (HERE / "steps").read_text().split()}
    failed = []
    for number, step in steps.items():
        print(f"{number}. {step.__doc__}", flush=True)
        forget_starts()
        begun = time.monotonic()
        try:
            step()
            outcome = "passed"
        except Failed as error:
            print(f"   NOT {error}", flush=True)
            outcome = "FAILED"
        except Exception:
            traceback.print_exc(file=sys.stdout)
            outcome = "FAILED"
        if outcome == "FAILED":
            failed.append(number)
        print(f"   {outcome} in {time.monotonic() - begun:.1f} s", flush=True)
    print(f"{len(steps) - len(failed)} of {len(steps)} steps passed", flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
