"""An image file's bytes behind a descriptor, under a limit. Standard library only."""

from __future__ import annotations

import fcntl
import os
import stat

from swiprctl.errors import BadImage, TooLarge

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(fd: int, limit: int) -> int:
    """Look whether a descriptor is of a file that can hold an image; return its size in bytes, or 0
    where that is told to nobody but the user who has mounted its file system.

    Only regular files and memfds: reading anything else may block for good.

    Raises:
        BadImage: not such a file, not open for reading, or empty.
        TooLarge: more than `limit` bytes.
        OSError: its file system says so.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH:
        raise BadImage("the descriptor is only a path (O_PATH) and cannot be read")
    if flags & os.O_ACCMODE == os.O_WRONLY:
        raise BadImage("the descriptor is open for writing only")
    try:
        info = os.fstat(fd)
    except (
        PermissionError
    ):  # FUSE without allow_other; reading an open file is allowed all the same
        return 0
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "something else")
        raise BadImage(f"not a regular file but {kind}")
    # The kernel's own files (/proc) claim no size either, and some of them block.
    if info.st_size == 0:
        raise BadImage("empty file")
    if info.st_size > limit:
        raise TooLarge(f"{info.st_size} bytes, where {limit} is the limit")
    return info.st_size


def read_image_bytes(fd: int, limit: int) -> bytes:
    """Read the whole file behind `fd` from its beginning; its offset is neither used nor moved.

    A file that shrinks or grows meanwhile gives what was there.

    Raises:
        BadImage: as `check_file`, or the file cannot be read.
        TooLarge: more than `limit` bytes.
    """
    try:
        return read_whole(fd, check_file(fd, limit), limit)
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error


def read_whole(fd: int, size: int, limit: int) -> bytes:
    """Read a file of about `size` bytes from its beginning to its end.

    Raises:
        BadImage: there is nothing in it.
        TooLarge: more than `limit` bytes.
        OSError: its file system says so.
    """
    parts = []
    total = 0
    # One read takes it all and the next finds the end; more only if it is growing.
    while part := os.pread(fd, min(limit + 1 - total, max(size + 1 - total, 65536)), total):
        parts.append(part)
        total += len(part)
        if total > limit:
            raise TooLarge(f"more than {limit} bytes, which is the limit")
    if not total:
        raise BadImage("empty file")
    return b"".join(parts)
