"""What a stranger's ONNX file takes and answers, found by trying it: in a process of its own.

    python -P -m swiprd.inference.onnx_probe FILE EDGE OUTPUT PARENT

A file may end the process that opens it, fill the memory, or hold a processor for ever. So the
process dies with its parent, may have no more memory than there is, and is ended when it takes too
long. It answers on standard output with a line of JSON. Imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from swiprd.inference.onnx_network import Network, UnfitNetwork
from swiprd.inference.onnx_session import NoSession, OnnxSource
from swiprd.system.kernel import die_with_parent
from swiprd.system.proc import bound_own_memory, offer_to_the_oom_killer
from swiprd.system.reason import first_line

_PATIENCE = 300.0  # seconds for all of it
_PICTURES = 3  # at once, and each by itself
_ALIKE = 1e-4  # how far answers may differ by the company that pictures are in
_MOST_EDGE = 4096  # pixels: model.toml takes no more
_MOST_BATCH = 256  # pictures that a file may demand at once: each is answered with that many
_UNFIT = "unfit "  # begins a line about model.toml's key


class ProbeFailed(Exception):
    """The file cannot be served; the text says why.

    Attributes:
        key: of model.toml, where that could be otherwise; else empty.
    """

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.key = key


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found.

    Attributes:
        edge, batch, channels_last, output: as in `Network`.
        labels: how many numbers a picture gets.
        sum_to_one: whether they are probabilities already, by what came out.
        within_one: whether each that came out is from 0 to 1, as probabilities are.
        version: onnxruntime's.
    """

    edge: int | None
    batch: int | None
    channels_last: bool
    output: str
    labels: int
    sum_to_one: bool
    within_one: bool
    version: str


def probe(file: Path, edge: int, output: str | None) -> Probe:
    """Try a file.

    Args:
        edge: of the pictures, where the file takes any.
        output: the name of the output that counts; None where there is one only.

    Raises:
        ProbeFailed: it cannot be served, or not here.
    """
    program = [sys.executable, "-P", "-m", "swiprd.inference.onnx_probe"]
    try:
        done = subprocess.run(
            [*program, str(file), str(edge), output or "", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"onnxruntime takes more than {_PATIENCE:g} s to answer") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ProbeFailed(f"onnxruntime's process was ended by {name}")
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode:
        reason = lines[-1] if lines else f"onnxruntime's process ended with {done.returncode}"
        key, _, text = reason.removeprefix(_UNFIT).partition(": ")
        if reason.startswith(_UNFIT):
            raise ProbeFailed(text, key)
        raise ProbeFailed(reason.removeprefix(f"{file}: "))
    return Probe(**json.loads(done.stdout))


def _try(file: Path, edge: int, output: str | None) -> Probe:
    """Do it here.

    Raises:
        NoSession, UnfitNetwork, ProbeFailed: it cannot be served.
    """
    source = OnnxSource(file)
    session = source.session(1)
    source.close()
    network = Network(session, output, may_split=True)
    _check_sizes(network)
    edge = network.edge or edge
    rng = np.random.default_rng(0)
    pictures = rng.normal(0, 1, (_PICTURES, 3, edge, edge)).astype(np.float32)
    try:
        several = network.answer(session, pictures)
        alone = np.concatenate([network.answer(session, one[None]) for one in pictures])
    except UnfitNetwork:
        raise
    except Exception as error:
        # Each of onnxruntime's errors is a class of its own, without one above them but this.
        raise ProbeFailed(f"it fails on pictures of {edge} pixels: {first_line(error)}") from None
    if not np.isfinite(alone).all():
        raise ProbeFailed("it answers with what is not a number: are there NaNs in the weights?")
    if not np.allclose(several, alone, rtol=_ALIKE, atol=_ALIKE):
        raise ProbeFailed(
            "a picture is answered otherwise beside others than by itself: export it for a batch of"
            " one"
        )
    sums = bool((alone >= 0).all() and np.allclose(alone.sum(axis=1), 1, rtol=0, atol=1e-4))
    return Probe(
        edge=network.edge,
        batch=network.batch,
        channels_last=network.channels_last,
        output=network.output,
        labels=alone.shape[1],
        sum_to_one=sums and alone.shape[1] > 1,
        within_one=bool((alone >= 0).all() and (alone <= 1 + _ALIKE).all()),
        version=source.version,
    )


def _check_sizes(network: Network) -> None:
    """See that pictures of the network's own sizes can be served, before one is made.

    Raises:
        ProbeFailed: they cannot.
    """
    if (network.edge or 0) > _MOST_EDGE:
        raise ProbeFailed(
            f"it takes pictures of {network.edge} pixels only, and {_MOST_EDGE} are the most"
        )
    if (network.batch or 0) > _MOST_BATCH:
        raise ProbeFailed(
            f"it takes {network.batch} pictures at once only, and {_MOST_BATCH} are the most:"
            " export it for a batch of any size, or of one"
        )


def main(arguments: list[str]) -> int:
    """Run for the command line; return the exit status."""
    file, edge, output, parent = arguments
    die_with_parent(int(parent))
    offer_to_the_oom_killer()
    bound_own_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        found = _try(Path(file), int(edge), output or None)
    except UnfitNetwork as error:
        print(f"{_UNFIT}{error.key}: {first_line(error, 1000)}", file=sys.stderr)
        return 1
    except (NoSession, ProbeFailed, MemoryError) as error:
        print(first_line(error, 1000), file=sys.stderr)
        return 1
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
