"""Who could have put code into a model's folder: only root and ourselves may have. Standard
library only; asked before a file that carries code is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from swiprd.bundle import Bundle
from swiprd.tables import BundleError


def require_trusted(bundle: Bundle) -> None:
    """Refuse a model that carries code, unless root or this process's own user put it there.

    The program, model.toml, the folder and every folder above them, links resolved, must be
    owned by one of the two and not be writable by group or others. A folder above with the sticky
    bit, such as /tmp, may be: there nobody can replace what is another's. (An ACL that lets
    someone write shows as the group's permission.)

    Raises:
        BundleError: naming the first file or folder that is not so, with the command that mends it.
    """
    own = os.geteuid()
    for path in _chain((bundle.folder, bundle.file, bundle.weights)):
        try:
            info = path.stat()
        except OSError as error:
            raise BundleError(path, "", "a file", error.strerror or str(error)) from None
        mends = []
        if info.st_uid not in (0, own):
            mends.append(f"chown {'root' if own == 0 else own} {path}")
        shared = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (shared and path != bundle.folder):
            mends.append(f"chmod go-w {path}")
        if mends:
            raise BundleError(
                path,
                "",
                f"root or uid {own} as its owner, and nobody else to be able to write it, since "
                f"{bundle.architecture} models carry code",
                f"uid {info.st_uid} and mode {stat.S_IMODE(info.st_mode):04o} "
                f"(to trust it: {' && '.join(mends)})",
            )


def _chain(paths: Iterable[Path]) -> Iterable[Path]:
    """Yield the paths without links, and what is above them, each once and from the root down."""
    seen: dict[Path, None] = {}
    for path in paths:
        real = path.resolve()
        seen |= dict.fromkeys((*reversed(real.parents), real))
    return seen
