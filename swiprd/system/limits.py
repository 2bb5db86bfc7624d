"""The limits of setrlimit(2) that this process was started under, in words. Standard library only.

A daemon that a client starts has the limits of the client's shell.
"""

from __future__ import annotations

import resource

_NAMES = (
    (resource.RLIMIT_FSIZE, "bytes of a file (ulimit -f, RLIMIT_FSIZE)"),
    (resource.RLIMIT_CPU, "seconds of processor time (ulimit -t, RLIMIT_CPU)"),
    (resource.RLIMIT_AS, "bytes of address space (ulimit -v, RLIMIT_AS)"),
    (resource.RLIMIT_DATA, "bytes of data (ulimit -d, RLIMIT_DATA)"),
)


def describe() -> str:
    """Name those that are set and that the loading of a model may meet; empty where none is."""
    found = ((resource.getrlimit(which)[0], name) for which, name in _NAMES)
    return ", ".join(f"{most} {name}" for most, name in found if most != resource.RLIM_INFINITY)
