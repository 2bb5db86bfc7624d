"""Reading an image's file: real descriptors of every kind."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swiprctl.errors import BadImage, TooLarge
from swiprd.system.imagefile import read_image_bytes, read_whole

pytestmark = pytest.mark.timeout(30)

MIB = 1 << 20


@pytest.fixture
def opened() -> Iterator[Callable[..., int]]:
    """Open descriptors that are closed when the test ends."""
    descriptors: list[int] = []

    def keep(descriptor: int) -> int:
        descriptors.append(descriptor)
        return descriptor

    yield keep
    for descriptor in descriptors:
        os.close(descriptor)


def memfd(data: bytes) -> int:
    descriptor = os.memfd_create("image")
    os.write(descriptor, data)
    return descriptor


def test_reads_a_regular_file_whole(tmp_path: Path, opened: Callable[..., int]) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    (tmp_path / "file").write_bytes(data)
    assert read_image_bytes(opened(os.open(tmp_path / "file", os.O_RDONLY)), 64 * MIB) == data


def test_reads_from_the_beginning_and_leaves_the_offset_alone(opened: Callable[..., int]) -> None:
    descriptor = opened(memfd(b"0123456789"))
    os.lseek(descriptor, 4, os.SEEK_SET)
    assert read_image_bytes(descriptor, 100) == b"0123456789"
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 4


def test_takes_exactly_the_limit_and_not_one_byte_more(opened: Callable[..., int]) -> None:
    assert read_image_bytes(opened(memfd(b"x" * 1000)), 1000) == b"x" * 1000
    with pytest.raises(TooLarge, match="1001 bytes, where 1000 is the limit"):
        read_image_bytes(opened(memfd(b"x" * 1001)), 1000)


def test_a_file_that_grew_after_its_size_was_taken(opened: Callable[..., int]) -> None:
    descriptor = opened(memfd(b"x" * 200_000))
    assert len(read_whole(descriptor, 10, 200_000)) == 200_000
    with pytest.raises(TooLarge, match="more than 199999 bytes"):
        read_whole(descriptor, 10, 199_999)


def test_a_file_that_shrank_after_its_size_was_taken(opened: Callable[..., int]) -> None:
    assert read_whole(opened(memfd(b"x" * 10)), 200_000, 300_000) == b"x" * 10
    with pytest.raises(BadImage, match="empty file"):
        read_whole(opened(memfd(b"")), 200_000, 300_000)


def test_refuses_what_may_block_or_cannot_be_read(
    tmp_path: Path, opened: Callable[..., int]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    ends = os.pipe()
    pair = socket.socketpair()
    with pair[0], pair[1]:
        for descriptor, message in [
            (os.open(tmp_path / "fifo", os.O_RDWR), "not a regular file but a pipe"),
            (ends[0], "not a regular file but a pipe"),
            (ends[1], "open for writing only"),
            (os.dup(pair[0].fileno()), "not a regular file but a socket"),
            (os.open(tmp_path, os.O_RDONLY), "not a regular file but a directory"),
            (os.open("/dev/zero", os.O_RDONLY), "not a regular file but a device"),
            (os.open(file, os.O_PATH), "O_PATH"),
            (os.open(file, os.O_WRONLY), "open for writing only"),
            (os.open("/proc/self/maps", os.O_RDONLY), "empty file"),
            (os.eventfd(0), "not a regular file but something else"),
            (memfd(b""), "empty file"),
        ]:
            with pytest.raises(BadImage, match=message):
                read_image_bytes(opened(descriptor), MIB)
        assert file.read_bytes() == b"x"


def test_a_descriptor_that_is_none() -> None:
    with pytest.raises(BadImage, match="cannot be read: Bad file descriptor"):
        read_image_bytes(10_000, MIB)
