"""ETOOMANYREFS: the kernel lets a uid have only so many descriptors sent and not yet received."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import pytest
from daemonprocess import as_uid

from swiprctl.connection import Connection
from swiprctl.protocol import Decoder, Frame, Request
from swiprd.system.channel import Channel

pytestmark = [
    pytest.mark.timeout(30),
    pytest.mark.skipif(os.geteuid() != 0, reason="takes a uid that nobody else uses, hence root"),
]

UID = 65531
COUNT = 120  # frames with a descriptor
LIMIT = 64  # descriptors under way, and open


def take(sock: socket.socket, decoder: Decoder) -> list[Frame]:
    """One read, and the frames that it completes; each with its descriptor, which is closed."""
    data, descriptors, _, _ = socket.recv_fds(sock, 1 << 16, 4)
    for descriptor in descriptors:
        os.close(descriptor)
    decoder.feed(data)
    return [frame for frame in decoder.frames() if descriptors]


def limited() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))
    return os.open(os.devnull, os.O_RDONLY)


def test_the_client_waits_until_some_are_received() -> None:
    def send() -> str:
        image = limited()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = Connection(ours)
        for identity in range(COUNT):
            connection.send(identity, Request(identity, "predict").encode(), image)
        held_up = not connection.flush()
        decoder = Decoder()
        came: list[Frame] = []
        while len(came) < COUNT:
            came += take(theirs, decoder)
            connection.flush()
        in_order = [frame.fields["id"] for frame in came] == list(range(COUNT))
        return f"{held_up} {connection.broken} {in_order}"

    assert as_uid(UID, send) == "True False True"


def test_a_channel_does_so_too() -> None:
    async def main() -> str:
        image = limited()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        closed: list[Exception | None] = []
        channel = Channel(ours, on_frame=lambda _: None, on_closed=closed.append)
        for identity in range(COUNT):
            channel.send(
                Request(identity, "predict").encode(), image if identity < LIMIT + 8 else None
            )
        held_up = channel.unsent > 0
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(theirs, readable.set)
        decoder = Decoder()
        came: list[int] = []
        while len(came) < COUNT:
            await asyncio.wait_for(readable.wait(), 10)
            readable.clear()
            try:
                data, descriptors, _, _ = socket.recv_fds(theirs, 1 << 16, 4)
            except BlockingIOError:
                continue
            for descriptor in descriptors:
                os.close(descriptor)
            decoder.feed(data)
            came += [frame.fields["id"] for frame in decoder.frames()]
        loop.remove_reader(theirs)
        return f"{held_up} {closed} {came == list(range(COUNT))} {channel.unsent}"

    assert as_uid(UID, lambda: asyncio.run(main())) == "True [] True 0"
