"""Who could have put code into one of the system's folders: only root and ourselves may have.
Standard library only; asked before a file that carries code is opened (consent.py)."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from dataclasses import replace
from pathlib import Path

from swiprd.folder.spec import ModelSpec, load_spec
from swiprd.folder.toml_table import SpecError

_MAX_LINKS = 40  # as the kernel: path_resolution(7)


def require_closed(spec: ModelSpec) -> ModelSpec:
    """Refuse a model that carries code, unless root or this process's own user put it there.

    The program, model.toml, the folder, every folder above them and every link on the way must be
    owned by one of the two and not be writable by group or others. A folder above with the sticky
    bit, such as /tmp, may be: there nobody can replace what is another's. (An ACL that lets
    someone write shows as the group's permission.)

    Returns:
        What the folder says, read again, with paths that have no links left in them. Those alone
        are to be opened: whoever could turn a link could have done so since `spec` was read.

    Raises:
        SpecError: naming the first file, folder or link that is not so, with the command that
            mends it; or the model has changed since, and is none any more.
    """
    kind = spec.architecture
    folder = _follow(spec.folder, kind)
    for path in (folder, _follow(folder / spec.file.name, kind).parent):
        _check(path, path.lstat(), kind, closed=True)
    spec = load_spec(folder)
    weights = _follow(spec.weights, kind)
    _check(weights.parent, weights.parent.lstat(), kind, closed=True)
    return replace(spec, weights=weights)


def _follow(path: Path, kind: str) -> Path:
    """Return what a path leads to, having checked each step before the next one is taken.

    Raises:
        SpecError: at the first step that others can change, or that is not there.
    """
    here = Path("/")
    links = 0
    try:
        todo = list(reversed(path.absolute().parts))
        while todo:
            name = todo.pop()
            if name == "..":
                here = here.parent  # checked, on the way here
                continue
            step = here / name  # an absolute link begins with "/", and so begins anew
            info = step.lstat()
            _check(step, info, kind)
            if not stat.S_ISLNK(info.st_mode):
                here = step
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            todo += reversed(Path(os.readlink(step)).parts)
    except OSError as error:
        raise SpecError(path, "", "a file", error.strerror or str(error)) from None
    return here


def _check(path: Path, info: os.stat_result, kind: str, *, closed: bool = False) -> None:
    """See that nobody but root and we can put something else under this name.

    Args:
        kind: of program, for the message.
        closed: whether the sticky bit is not enough: nobody else may make files in the folder.

    Raises:
        SpecError: somebody else can.
    """
    own = os.geteuid()
    link = stat.S_ISLNK(info.st_mode)  # its permissions mean nothing: it is its owner's
    quoted = shlex.quote(str(path))
    mends = []
    if info.st_uid not in (0, own):
        mends.append(f"chown {'-h ' if link else ''}{'root' if own == 0 else own} {quoted}")
    sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX and not closed
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not link and not sticky:
        mends.append(f"chmod go-w {quoted}")
    if mends:
        raise SpecError(
            path,
            "",
            f"root or uid {own} as its owner, and nobody else to be able to write it, since "
            f"{kind} models carry code",
            f"uid {info.st_uid} and mode {stat.S_IMODE(info.st_mode):04o} "
            f"(to trust it: {' && '.join(mends)})",
        )
