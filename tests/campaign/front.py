"""A daemon for peers without manners, on a model that answers within milliseconds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemonprocess import DaemonProcess
from modelfolders import make_folder

from campaign import engine

ALONE = ("--workers=1", "--threads=1", "--batch=1")

_QUICK = """
[preprocess]
resize = 32
crop = 32
"""


@contextmanager
def serving(
    *arguments: str, architecture: str = "squeezenet1_1", quick: bool = True
) -> Iterator[DaemonProcess]:
    """A daemon that is ready, in a folder that every uid can reach and that goes with it."""
    with tempfile.TemporaryDirectory(prefix="swipr") as name:
        folder = Path(name)
        folder.chmod(0o755)
        extra = _QUICK if quick else ""
        model = engine.prepare(make_folder(folder / "model", architecture, extra=extra))
        daemon = DaemonProcess(folder / "d", *ALONE, engine.argument(), *arguments, model=model)
        try:
            daemon.wait_ready()
            daemon.path.chmod(0o666)
            yield daemon
        finally:
            daemon.end()


def photo_files(folder: Path, photos: list[bytes]) -> list[int]:
    """Descriptors of files with these bytes; the caller closes them."""
    opened = []
    for number, photo in enumerate(photos):
        file = folder / f"{number}.jpg"
        file.write_bytes(photo)
        opened.append(os.open(file, os.O_RDONLY))
    return opened
