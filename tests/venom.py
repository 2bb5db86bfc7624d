"""Images that hurt the process that decodes them, for tests of what the daemon does then.

Production code has no hook for this. A `sitecustomize` on the daemon's PYTHONPATH wraps the
decoder in every worker; a file that ends in a venom's name does what a fault in a decoder's C
would: the GIL is held, no signal handler runs, nothing but SIGKILL helps.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path


class Venom(Enum):
    """What an image does."""

    HANG = b"venom:hang"  # blocks in C for good
    SPIN = b"venom:spin"  # computes in C for good
    CRASH = b"venom:crash"  # a null pointer
    EAT = b"venom:eat"  # allocates until there is no more
    LEAK = b"venom:leak"  # is decoded, and leaves a mebibyte behind
    SLOW = b"venom:slow"  # is decoded, after some seconds in which nothing is computed


_SITE = """
import ctypes, importlib.abc, importlib.machinery, re, sys, time

def hurt(data):
    if data.endswith(b"venom:hang"):
        ctypes.PyDLL(None).pause()
    elif data.endswith(b"venom:spin"):
        re.match("(a+)+$", "a" * 60 + "b")
    elif data.endswith(b"venom:crash"):
        ctypes.string_at(0)
    elif data.endswith(b"venom:eat"):
        eaten = []
        while True:
            eaten.append(bytearray(32 << 20))
    elif data.endswith(b"venom:leak"):
        leaked.append(bytearray(1 << 20))
    elif data.endswith(b"venom:slow"):
        time.sleep(3.0)

leaked = []

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "swiprd.inference.decode":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            decode = module.decode

            def poisoned(data, *arguments, **options):
                hurt(data)
                return decode(data, *arguments, **options)

            module.decode = poisoned

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def environment(folder: Path) -> dict[str, str]:
    """What a daemon's environment has to have for venom to work; `folder` is made."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITE)
    others = [path for path in [os.environ.get("PYTHONPATH")] if path]
    return {"PYTHONPATH": os.pathsep.join([str(folder), *others])}
