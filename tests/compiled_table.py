"""Every classifier of torchvision, compiled: which engine serves it, how exact it is, how fast.

`make compiled-table` prints a line for each, as a table in Markdown. The weights are random, as the
published ones are not at hand: their outputs are spread as little as an untrained network's are
(`SPREAD`), and rounding shows less than it does with larger ones. Seconds are of one thread's
processor time for one picture, both engines in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from modelfolders import compile_into, make_folder

from swiprd.folder.compiled_record import load_record
from swiprd.inference.torchvision_import import import_torchvision

SPREAD = 0.1
LONGEST = 1800.0  # seconds for one architecture


def main() -> None:
    """Print the table, or one architecture's line where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", nargs="*", help="default: every classifier of torchvision")
    parser.add_argument("--line", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.line:
        print(line(options.architecture[0]))
        return
    models = import_torchvision().models
    names = options.architecture or models.list_models(module=models)
    print("| architecture | engine | difference | torch | onnx | times faster |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in names:
        print(in_a_process(name), flush=True)  # which gives its memory back


def in_a_process(name: str) -> str:
    """The line of one architecture, whatever becomes of it."""
    command = [sys.executable, __file__, "--line", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        return f"| {name} | torch: not done in {LONGEST:.0f} s | | | | |"
    if done.returncode:
        return f"| {name} | torch: {reason(done.stderr)} | | | | |"
    return done.stdout.strip()


def reason(said: str) -> str:
    """What a process said last that is no traceback of the process that ran it."""
    lines = [line for line in said.splitlines() if line and not line.startswith((" ", "Traceback"))]
    told = [line for line in lines if "CalledProcessError" not in line]
    return told[-1].strip() if told else "it was killed"


def line(name: str) -> str:
    """Compile one architecture and prove it; give its line of the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(Path(place), name, spread=SPREAD)
        compile_into(folder)
        record = load_record(folder)
        assert record is not None
    slow, fast = record.torch_seconds * 1e3, record.seconds * 1e3
    engine = "torch: faster" if record.outpaced() else "onnx"
    return (
        f"| {name} | {engine} | {record.difference:.1e} | {slow:.1f} ms | {fast:.1f} ms"
        f" | {slow / fast:.2f} |"
    )


if __name__ == "__main__":
    main()
