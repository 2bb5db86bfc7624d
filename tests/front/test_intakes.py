"""Who receives and closes what clients pass: their uid's intake, and never the front."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import PATIENCE, DaemonProcess, forkservers, freeze, own_children, wait_until
from vitals import Vitals, frame, held, open_descriptors, send_rights

from swiprctl.errors import BadRequest, DeadlineExceeded, Overloaded, TooLarge
from swiprctl.protocol import Request
from swiprd.front import intake_handle
from swiprd.front.byte_budget import ByteBudget
from swiprd.front.intakes import Intakes

pytestmark = pytest.mark.timeout(90)


def intakes(daemon: DaemonProcess) -> list[int]:
    return [pid for pid in own_children(daemon.pid) if pid not in forkservers(daemon.pid)]


def unsealed(data: bytes) -> int:
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, data)
    return descriptor


def holders(daemon: DaemonProcess, name: str) -> dict[str, int]:
    """How many descriptors of that name the front has, and its intakes have."""
    return {
        "front": sum(name in found for found in open_descriptors(daemon.pid)),
        "intakes": sum(name in f for pid in intakes(daemon) for f in open_descriptors(pid)),
    }


def test_a_file_that_grows_without_end_is_not_read_to_its_end(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    """The front read it in its loop, to remember which image had hung a worker."""
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    descriptor = unsealed(photos[0])
    with daemon.connect() as peer, held(daemon):
        peer.send(1, descriptor=descriptor, timeout=2.0)
        daemon.wait_status(lambda s: s["queue"]["total"] == 1)
        os.ftruncate(descriptor, 1 << 50)
        for seal in (fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_WRITE):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seal)
        assert isinstance(peer.receive().error, DeadlineExceeded)
        assert isinstance(peer.ask(descriptor=descriptor).error, TooLarge)
    os.close(descriptor)
    vitals.check()


def test_the_last_close_of_a_client_s_file_is_its_intake_s(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    descriptor = unsealed(photos[0])
    with daemon.connect() as peer:
        with held(daemon):
            peer.send(1, descriptor=descriptor, timeout=60.0)
            os.close(descriptor)
            daemon.wait_status(lambda s: s["queue"]["total"] == 1)
            assert holders(daemon, "memfd:client") == {"front": 1, "intakes": 1}
            stopped = intakes(daemon)
            for pid in stopped:
                freeze(pid)
        assert peer.receive().error is None
        assert holders(daemon, "memfd:client") == {"front": 0, "intakes": 1}
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: holders(daemon, "memfd:client")["intakes"] == 0, "it is closed")
    vitals.check()


def test_hundreds_of_descriptors_in_one_message(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    """With too little room for them the kernel closes the rest, in whoever receives."""
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    ours, theirs = os.pipe()
    with daemon.connect() as peer:
        send_rights(peer.socket, Request(1, "predict").encode(), [theirs] * 253)
        os.close(theirs)
        assert select.select([ours], [], [], PATIENCE)[0]
    os.close(ours)
    vitals.check()


def test_out_of_band_bytes_carry_none_past_the_intake(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    ours, theirs = os.pipe()
    with daemon.connect() as peer:
        peer.ask("status")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, theirs.to_bytes(4, "little"))]
        peer.socket.sendmsg([b"\0"], rights, socket.MSG_OOB)
        os.close(theirs)
        daemon.wait_status(lambda s: s["intakes"]["processes"] >= 1)
    assert select.select([ours], [], [], PATIENCE)[0]
    os.close(ours)
    vitals.check()


def test_an_intake_that_is_killed_is_replaced(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    descriptor = unsealed(photos[0])
    with daemon.connect() as peer, daemon.connect() as waiting:
        assert peer.ask(descriptor=descriptor).error is None
        stopped = intakes(daemon)
        for pid in stopped:
            freeze(pid)
        waiting.send(1, descriptor=descriptor, timeout=60.0)
        daemon.wait_status(lambda s: s["intakes"]["waiting"] == 1)
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
        # What it had been told to receive may be received or not: the client sends it anew.
        assert isinstance(waiting.receive().error, Overloaded)
        assert peer.ask(descriptor=descriptor).error is None
    os.close(descriptor)
    vitals.check()


def test_a_slow_answer_is_no_reason_to_refuse_the_next(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    """A uid was barred, until a restart, for a deadline that was too short for its file."""
    daemon = start_daemon().wait_ready()
    (Path("/dev/shm") / f"swipr-{os.getpid()}.jpg").write_bytes(photos[0])
    file = Path("/dev/shm") / f"swipr-{os.getpid()}.jpg"
    descriptor = os.open(file, os.O_RDONLY)
    file.unlink()
    with daemon.connect() as peer:
        with held(daemon):
            assert isinstance(peer.ask(descriptor=descriptor, timeout=0.2).error, DeadlineExceeded)
        assert peer.ask(descriptor=descriptor, timeout=20.0).error is None
    os.close(descriptor)


def test_a_client_that_leaves_with_a_hundred_files_under_way(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    for _ in range(20):
        descriptor = unsealed(photos[0])
        with daemon.connect() as peer:
            for identity in range(100):
                peer.send(identity, descriptor=descriptor)
        os.close(descriptor)
    wait_until(lambda: sum(holders(daemon, "memfd:client").values()) == 0, "all are closed")
    vitals.check()


def test_many_sockets_with_descriptors_in_them_are_all_closed(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    """They wait for their intakes, which get several at a time."""
    daemon = start_daemon().wait_ready()
    vitals = Vitals(daemon, photos[0])
    ours, theirs = os.pipe()
    for _ in range(40):
        with daemon.connect() as peer:
            # The first waits for its intake, the second stays unread behind it.
            send_rights(peer.socket, b"\0\0\0\x7f" * 8, [theirs])
            send_rights(peer.socket, Request(2, "predict").encode(), [theirs])
    os.close(theirs)
    assert select.select([ours], [], [], PATIENCE)[0], "all are closed"
    os.close(ours)
    daemon.wait_status(lambda s: s["intakes"]["waiting"] == 0)
    vitals.check()


def test_a_thousand_sockets_that_wait_for_a_stuck_intake_are_all_closed() -> None:
    """By others, which get a batch each: none is given more than the kernel passes at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(1100, hard - 200)

    async def scene() -> None:
        intakes = Intakes(1 << 20, ByteBudget(1 << 20))
        before = set(own_children())
        end, passed = os.pipe()
        stuck: set[int] = set()
        for closing in range(number):
            ours, theirs = socket.socketpair()
            send_rights(theirs, b"unread", [passed])
            theirs.close()
            intakes.close_socket(1000, ours)
            if closing == 0:  # it has started the intake
                stuck = set(own_children()) - before
                for pid in stuck:
                    freeze(pid)
        os.close(passed)
        assert len(stuck) == 1
        async with asyncio.timeout(PATIENCE):
            while intakes.waiting > 1:
                await asyncio.sleep(0.01)
        assert not select.select([end], [], [], 0)[0], "it has the first socket"
        for pid in stuck:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(PATIENCE):
            while not select.select([end], [], [], 0)[0] or intakes.waiting:
                await asyncio.sleep(0.01)
        os.close(end)
        intakes.close()
        async with asyncio.timeout(PATIENCE):
            while set(own_children()) - before:
                await asyncio.sleep(0.01)

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    try:
        asyncio.run(scene())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_long_ids_of_models_are_refused(start_daemon: StartDaemon, photos: list[bytes]) -> None:
    """They would be kept for as long as the request waits."""
    daemon = start_daemon().wait_ready()
    with daemon.connect() as peer:
        peer.socket.sendall(frame(id=1, op="predict", image=photos[0], labels="x" * 257))
        assert isinstance(peer.receive().error, BadRequest)
        peer.socket.sendall(frame(id=2, op="predict", image=photos[0], labels="x" * 256))
        assert peer.receive().fields["labels"]


def test_an_intake_leaves_when_it_is_idle_and_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, photos: list[bytes]
) -> None:
    monkeypatch.setattr(intake_handle, "IDLE", 0.05)

    async def scene() -> None:
        intakes = Intakes(1 << 20, ByteBudget(1 << 20))
        before = set(own_children())
        ours, theirs = socket.socketpair()
        descriptor = unsealed(photos[0])
        with ours, theirs:
            for _ in range(2):  # another comes when it is needed
                send_rights(theirs, b"request", [descriptor])
                settled = asyncio.Event()
                attachment = intakes.take(1000, ours, len(b"request"), lambda _: None)
                attachment.when_settled(settled.set)
                await asyncio.wait_for(settled.wait(), PATIENCE)
                assert os.pread(attachment.fileno(), 1 << 20, 0) == photos[0]
                await asyncio.sleep(0.2)  # asked to leave several times, it stays
                assert intakes.processes == 1
                attachment.close()
                async with asyncio.timeout(PATIENCE):
                    while intakes.processes or set(own_children()) - before:
                        await asyncio.sleep(0.01)
        os.close(descriptor)
        intakes.close()

    asyncio.run(scene())


def test_a_socket_with_descriptors_in_it_is_not_closed_by_the_front() -> None:
    async def scene() -> None:
        intakes = Intakes(1 << 20, ByteBudget(1 << 20))
        before = set(own_children())
        stopped: set[int] = set()
        for _ in range(2):  # the first starts the intake, which is stopped before the second
            ours, theirs = socket.socketpair()
            end, passed = os.pipe()
            send_rights(theirs, b"unread", [passed])
            os.close(passed)
            intakes.close_socket(1000, ours)
            if stopped:
                assert not select.select([end], [], [], 0)[0], "the front's close was the last"
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
            with suppress(ConnectionResetError):  # where the intake has closed it already: unix(7)
                assert theirs.recv(1) == b"", "the client hears of it at once"
            async with asyncio.timeout(PATIENCE):
                while not select.select([end], [], [], 0)[0] or intakes.waiting:
                    await asyncio.sleep(0.01)
            stopped = set(own_children()) - before
            assert len(stopped) == 1
            for pid in stopped:
                freeze(pid)
            os.close(end)
            theirs.close()
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        intakes.close()
        async with asyncio.timeout(PATIENCE):
            while set(own_children()) - before:
                await asyncio.sleep(0.01)

    asyncio.run(scene())
