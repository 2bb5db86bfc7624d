"""May a model's program run? It may where root has put it, or where this user trusts its digest.

What a folder below /etc/swipr or /var/lib/swipr holds, with nobody else able to write it, is the
administrator's doing (ownership.py). Every other program is copied to where nobody can change it,
digested there, and loaded from there if the user's record (trusted_programs.py) has the digest.
Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from swiprd.folder import trusted_programs
from swiprd.folder.ownership import require_closed
from swiprd.folder.spec import ModelSpec
from swiprd.folder.toml_table import SpecError
from swiprd.folder.trusted_programs import Code, NoRecord

ROOTS = (Path("/etc/swipr"), Path("/var/lib/swipr"))
"""Where models are put that root has for everybody."""

_CHUNK = 1 << 20


class UnknownSize(Exception):
    """The size of the file is none of those of trusted programs: it was not read."""


@contextmanager
def opened(spec: ModelSpec, given: Code | None = None) -> Iterator[tuple[ModelSpec, BinaryIO]]:
    """Open a spec's program, if its code may run; yield the spec, resolved, and the program.

    Args:
        given: the one program that is trusted, in place of the user's record: for `pack`, whose
            user has said so on the command line.

    Raises:
        SpecError: the program may not run; with the command that lets it.
    """
    refused = None
    if _is_roots(spec.folder):
        try:
            spec = require_closed(spec)
        except SpecError as error:
            refused = error
        else:
            opened = _open(spec.weights)
            with opened:
                yield spec, opened
            return
    why = ""
    known: frozenset[Code] = frozenset()
    try:
        known = trusted_programs.read() if given is None else frozenset({given})
    except NoRecord as error:
        why = f"; {error}"
    try:
        copied, code = copy(
            spec.weights,
            spec.architecture,
            {one.size for one in known if one.kind == spec.architecture},
        )
    except UnknownSize:
        raise refused or _refusal(spec, why) from None
    except SpecError as error:
        raise refused or error from None
    with copied:
        if not is_known(code, known):
            raise refused or _refusal(spec, why)
        yield spec, copied


def copy(file: Path, kind: str, sizes: Container[int] | None = None) -> tuple[BinaryIO, Code]:
    """Copy a program to memory, where nobody else can change it; digest what is there.

    Args:
        sizes: of trusted programs, in bytes; a file of another size is not read. None: any size.

    Returns:
        The copy, at its beginning, which the caller closes; and the digest that identifies it.

    Raises:
        SpecError: the file cannot be read.
        UnknownSize: its size is none of those.
    """
    source = _open(file)
    with source:
        size = os.fstat(source.fileno()).st_size
        if sizes is not None and size not in sizes:
            raise UnknownSize
        digest = hashlib.sha256()
        target = os.fdopen(os.memfd_create("swipr"), "w+b")
        try:
            left = size
            # No further, though the file may grow meanwhile.
            while left and (chunk := source.read(min(left, _CHUNK))):
                digest.update(chunk)
                target.write(chunk)
                left -= len(chunk)
            target.seek(0)
        except OSError as error:
            target.close()
            raise SpecError(file, "", "a readable file", error.strerror or str(error)) from None
        except BaseException:
            target.close()
            raise
    return target, Code(kind=kind, size=size - left, sha256=digest.hexdigest())


def roots() -> str:
    """Name the folders of root's, for messages."""
    return " or ".join(map(str, ROOTS))


def is_known(code: Code, known: frozenset[Code]) -> bool:
    """Whether a program is one of those."""
    return code in known


def _open(file: Path) -> BinaryIO:
    try:
        # Non-blocking: opening a named pipe would wait for a process that writes to it.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise SpecError(file, "", "a readable file", "no regular file")
        return open(descriptor, "rb")
    except OSError as error:
        raise SpecError(file, "", "a readable file", error.strerror or str(error)) from None


def _is_roots(folder: Path) -> bool:
    """Whether a folder lies, or is named by a link that lies, where root has its models."""
    named = folder.absolute()
    if ".." not in named.parts and any(named.is_relative_to(root) for root in ROOTS):
        return True
    resolved = folder.resolve()
    return any(resolved.is_relative_to(root) for root in ROOTS)


def _refusal(spec: ModelSpec, why: str) -> SpecError:
    uid, kind = os.geteuid(), spec.architecture
    if trusted_programs.place() is None:
        expected = f"a program below {roots()}, where only root can write"
        found = f"one elsewhere, and uid {uid} has no home folder to record its trust in"
    else:
        expected = f"a program that uid {uid} trusts"
        folder = shlex.quote(str(spec.folder.absolute()))
        found = (
            f"one that it has neither packed nor trusted{why}"
            f" (if you trust where it came from: swiprd trust {folder})"
        )
    return SpecError(
        spec.weights, "", f"{expected}, since {kind} models carry code that runs here", found
    )
