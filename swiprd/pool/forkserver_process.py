"""Starts the forkserver's process: by order, or ahead of it.

A process that starts takes a tenth of a second to import numpy and Pillow, and so does the front
for its own modules. The first forkserver is started before those, so that both go on at once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

ENVIRONMENT = {
    # No library may start a thread when it is imported: numpy's OpenBLAS would start its pool.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # How often an idle thread of GNU OpenMP looks for work before it sleeps. By default it spins
    # for about 10 ms, which ruins a busy host: beside one busy process, two threads on two cores
    # took up to 2.2 s for densenet121, and 0.35 s with this. Not to spin at all
    # (OMP_WAIT_POLICY=passive) costs resnext50 a third on idle cores; with this it costs nothing.
    "GOMP_SPINCOUNT": "10000",
    # ONNX Runtime as PyPI has it tells its maker of its use, from a thread that it starts when it
    # is imported. Nothing leaves a host on which swipr looks at people's pictures.
    "ORT_DISABLE_TELEMETRY": "1",
}
"""What libraries read when they are imported in our processes."""

Started = tuple[subprocess.Popen[bytes], socket.socket]
"""A forkserver's process, and the front's end of the socket between them."""

_ahead: Started | None = None


def start_ahead() -> None:
    """Start the process that the next `start()` gives. It leaves with this process if none does.

    Raises:
        OSError: no process or descriptor is to be had.
    """
    global _ahead
    if _ahead is None:
        _ahead = _start()


def start() -> Started:
    """Give a forkserver's process, which waits to be told what to load.

    Raises:
        OSError: no process or descriptor is to be had.
    """
    global _ahead
    started, _ahead = _ahead, None
    return started or _start()


def _start() -> Started:
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "swiprd.inference.forkserver"),
                    *(str(os.getpid()), str(theirs.fileno())),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ENVIRONMENT},
            )
    except BaseException:
        ours.close()
        raise
    return process, ours
