"""`python3 -m swiprctl` is `swiprctl`."""

from swiprctl.cli import run

run()
