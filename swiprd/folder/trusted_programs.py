"""Which programs may run as this user: a file of their digests, which is the user's own.

A model that is a program carries code. That the user owns its folder does not make it trusted:
archives are unpacked and repositories cloned. So `swiprd pack` and `swiprd trust` record here the
programs that the user has said to trust, and no other program is run (consent.py). Standard library
only; opens no model.

A line is the SHA-256, the kind, the size and, for people, the path of a program. A program whose
line is removed is not trusted any more.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_HEAD = "# Programs that may run as this user, by their digest: swiprd(8), TRUST\n"
_LINE = re.compile(r"([0-9a-f]{64}) (\w+) ([0-9]{1,18})(?: .*)?")
_MOST = 4 << 20
"""Bytes that are read of it: some 20,000 programs."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """What identifies a program: how it is run, and its bytes.

    Attributes:
        kind: `torchscript` or `export`.
        size: in bytes, by which most others are told apart unread.
    """

    kind: str
    size: int
    sha256: str


class NoRecord(Exception):
    """The record cannot be used; the text says which file or folder, and why."""


def place() -> Path | None:
    """Name the user's record, which need not be there; None for a user who can keep none.

    `$XDG_DATA_HOME`, `$HOME` and the passwd entry are asked in this order. sudo(8) may hand root
    another user's: what lies in somebody else's folder is not used.
    """
    for home in _data_homes():
        folder = Path(home) / "swipr"
        if folder.is_absolute() and _is_ours(folder):
            return folder / "trusted"
    return None


def read() -> frozenset[Code]:
    """Return the programs that the user trusts.

    Raises:
        NoRecord: the record is there and cannot be read, or somebody else could have written it.
    """
    try:
        with _opened(os.O_RDONLY) as descriptor:
            return _parse(descriptor)
    except FileNotFoundError:
        return frozenset()


def record(code: Code, path: Path) -> Path:
    """Add a program to those that the user trusts; return the record's path.

    Args:
        path: of the program, for those who read the record.

    Raises:
        NoRecord: it cannot be written, or somebody else could write it, too.
    """
    file = _file()
    try:
        file.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise NoRecord(f"{file.parent}: cannot be made: {error.strerror}") from None
    with _opened(os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
        if code in _parse(descriptor):
            return file
        size = os.fstat(descriptor).st_size
        begin = _HEAD if not size else ""
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            begin = "\n"  # an editor has left the last line without its end
        line = f"{begin}{code.sha256} {code.kind} {code.size} {json.dumps(str(path))}\n"
        try:
            # In one piece: another process may be adding a line of its own.
            os.write(descriptor, line.encode("ascii"))
            os.fsync(descriptor)
        except OSError as error:
            raise NoRecord(f"{file}: cannot be written: {error.strerror}") from None
    return file


def _data_homes() -> Iterator[str]:
    yield os.environ.get("XDG_DATA_HOME", "")
    if home := os.environ.get("HOME"):
        yield f"{home}/.local/share"
    try:
        yield f"{pwd.getpwuid(os.geteuid()).pw_dir}/.local/share"
    except KeyError:
        return  # a uid that has no name here


def _is_ours(folder: Path) -> bool:
    """Whether the folder, or the nearest folder above it that is there, is this user's."""
    for path in (folder, *folder.parents):
        try:
            return path.stat().st_uid == os.geteuid()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return False
    return False


def _file() -> Path:
    file = place()
    if file is None:
        raise NoRecord(f"uid {os.geteuid()} has no home folder of its own to keep a record in")
    return file


@contextmanager
def _opened(flags: int) -> Iterator[int]:
    """Open the record, having seen that nobody else can write it or put another in its place.

    Raises:
        FileNotFoundError: there is none, and none was to be made.
        NoRecord: it cannot be opened, or is not safe.
    """
    file = place()
    if file is None:
        raise FileNotFoundError
    path = file.parent
    folder = descriptor = -1
    try:
        # Not through links, by which a record would be wherever they lead.
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        _check(path, folder)
        path = file
        # Non-blocking: opening a named pipe would wait for a process that writes to it.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(file.name, flags, 0o600, dir_fd=folder)
        _check(path, descriptor)
        yield descriptor
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NoRecord(f"{path}: cannot be used: {error.strerror}") from None
    finally:
        for one in (descriptor, folder):
            if one >= 0:
                os.close(one)


def _check(path: Path, descriptor: int) -> None:
    info = os.fstat(descriptor)
    wrong = ""
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        wrong = "it is no file"
    elif info.st_uid != os.geteuid():
        wrong = f"it belongs to uid {info.st_uid}"
    elif info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        wrong = f"its mode is {stat.S_IMODE(info.st_mode):04o}, so that others can write it"
    if wrong:
        raise NoRecord(f"{path}: not used: {wrong}")


def _parse(descriptor: int) -> frozenset[Code]:
    text = os.pread(descriptor, _MOST, 0).decode(errors="replace")
    found = filter(None, map(_LINE.fullmatch, text.splitlines()))
    return frozenset(Code(sha256=one[1], kind=one[2], size=int(one[3])) for one in found)
