"""memfd.py: nobody changes what a worker was given."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swiprd.system.memfd import sealed_copy, sealed_memfd

pytestmark = pytest.mark.timeout(30)

DATA = bytes(range(256)) * 40


@pytest.fixture
def sealed() -> Iterator[int]:
    descriptor = sealed_memfd(DATA)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("data", [b"", b"x", DATA, os.urandom(3 << 20)], ids=len)
def test_it_holds_the_bytes(data: bytes) -> None:
    descriptor = sealed_memfd(data)
    try:
        assert os.fstat(descriptor).st_size == len(data)
        assert os.pread(descriptor, len(data) + 1, 0) == data
    finally:
        os.close(descriptor)


def test_a_copy_holds_what_the_file_did_and_no_more_than_it_may(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with (tmp_path / "file").open("rb") as file:
        copy = sealed_copy(file.fileno(), len(DATA))
        (tmp_path / "file").write_bytes(b"something else")
        try:
            assert os.pread(copy, len(DATA) + 1, 0) == DATA
            with pytest.raises(PermissionError):
                os.ftruncate(copy, 1)
        finally:
            os.close(copy)
        with pytest.raises(OSError, match="more than 13 bytes") as caught:
            sealed_copy(file.fileno(), 13)
        assert caught.value.errno == errno.EFBIG


def map_writable(descriptor: int) -> None:
    mmap.mmap(descriptor, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE).close()


def write_through_proc(descriptor: int) -> None:
    fresh = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    try:
        os.write(fresh, b"x")
    finally:
        os.close(fresh)


@pytest.mark.parametrize(
    "change",
    [
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.pwrite(fd, b"x", len(DATA)),
        lambda fd: os.ftruncate(fd, 10),
        lambda fd: os.ftruncate(fd, 2 * len(DATA)),
        lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        map_writable,
        write_through_proc,
    ],
    ids=["write", "append", "shrink", "grow", "seal", "map", "reopen"],
)
def test_nothing_changes_it(sealed: int, change: Callable[[int], object]) -> None:
    with pytest.raises(OSError, match=r"Operation not permitted|Permission denied") as caught:
        change(sealed)
    assert caught.value.errno in (errno.EPERM, errno.EACCES)
    assert os.pread(sealed, len(DATA) + 1, 0) == DATA


def test_a_map_to_read_it_is_what_it_is_for(sealed: int) -> None:
    with mmap.mmap(sealed, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view:
        assert view[:] == DATA


def test_no_program_that_is_executed_inherits_it(sealed: int) -> None:
    assert not os.get_inheritable(sealed)
