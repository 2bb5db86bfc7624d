"""A channel on a real event loop, with a real socketpair and a peer that speaks by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator

import msgpack
import pytest
from vitals import frame, framed, send_rights

from swiprctl.errors import BadRequest, Overloaded, SwiprError
from swiprctl.protocol import Decoder, Frame, Reply, encode
from swiprd.system.channel import Channel

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
PATIENCE = 20.0


class End:
    """A channel, what it has reported, and the socket of its peer.

    Attributes:
        act: called with each frame in place of keeping it, if set.
        balance: bytes reserved and not given back.
        asked: reservations, in order.
    """

    def __init__(self, *, room: int = 1 << 40, limit: int = 64 * MIB) -> None:
        ours, self.peer = socket.socketpair()
        self.frames: list[Frame] = []
        self.closed: list[Exception | None] = []
        self.act: Callable[[Frame], None] | None = None
        self.balance = 0
        self.asked: list[int] = []
        self._room = room
        self._news = asyncio.Event()
        self.channel = Channel(
            ours,
            on_frame=self._framed,
            on_closed=self._gone,
            farewell=lambda error: Reply(None, None, error).encode(),
            reserve=self._reserve,
            limit=limit,
        )

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for frames or the end until the condition holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def ids(self) -> list[object]:
        return [found.fields["id"] for found in self.frames]

    async def said(self) -> SwiprError:
        """The error that the peer is told before the channel closes."""
        await self.until(lambda: self.closed)
        self.peer.setblocking(True)
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while more := self.peer.recv(1 << 16):
                data += more
        decoder = Decoder()
        decoder.feed(data)
        (last,) = decoder.frames()
        error = Reply.parse(last.fields).error
        assert error is not None
        return error

    def finish(self) -> None:
        """Let go of everything that a test may have left."""
        self.channel.close()
        self.peer.close()
        for found in self.frames:
            if found.attachment is not None:
                os.close(found.attachment)
        assert len(self.closed) == 1, "on_closed is called once"
        assert self.balance == 0, "what was reserved is given back"

    def _framed(self, found: Frame) -> None:
        if self.act is None:
            self.frames.append(found)
        else:
            self.act(found)
        self._news.set()

    def _gone(self, error: Exception | None) -> None:
        self.closed.append(error)
        self._news.set()

    def _reserve(self, size: int) -> bool:
        self.asked.append(size)
        if self.balance + size > self._room:
            return False
        self.balance += size
        return True


def run(test: Callable[[End], Awaitable[None]], **arguments: int) -> None:
    """Run a coroutine with a fresh channel; it must leave neither a task nor an exception."""
    complaints: list[dict[str, object]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        end = End(**arguments)
        try:
            await test(end)
        finally:
            end.finish()
            await asyncio.sleep(0)  # what was left to do soon is done by then
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert not complaints, complaints


def same_file(a: int, b: int) -> bool:
    return os.path.sameopenfile(a, b)


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Descriptors of four different files."""
    found = [os.memfd_create(f"file{n}") for n in range(4)]
    yield found
    for descriptor in found:
        os.close(descriptor)


class TestReading:
    def test_frames_arrive_whole_and_in_order(self) -> None:
        async def test(end: End) -> None:
            end.peer.sendall(b"".join(frame(id=n) for n in range(500)))
            await end.until(lambda: len(end.frames) == 500)
            assert end.ids() == list(range(500))

        run(test)

    def test_byte_by_byte_too(self) -> None:
        async def test(end: End) -> None:
            for byte in frame(id=1, image=b"x" * 50) + frame(id=2):
                end.peer.sendall(bytes([byte]))
                await asyncio.sleep(0)
            await end.until(lambda: len(end.frames) == 2)
            assert end.frames[0].fields["image"] == b"x" * 50

        run(test)

    def test_a_frame_of_many_reads(self) -> None:
        async def test(end: End) -> None:
            image = os.urandom(3 * MIB)
            data = frame(id=1, image=image)
            await send_all(end.peer, data + frame(id=2))
            await end.until(lambda: len(end.frames) == 2)
            assert end.frames[0].fields["image"] == image
            assert end.asked == [len(data), -len(data)], "reserved once, before it was buffered"

        run(test)

    def test_descriptors_come_with_their_frames(self, files: list[int]) -> None:
        async def test(end: End) -> None:
            for number in range(40):
                if number % 3 == 2:
                    end.peer.sendall(frame(id=number))
                else:
                    send_rights(end.peer, frame(id=number, pad=b"x" * number), [files[number % 4]])
            await end.until(lambda: len(end.frames) == 40)
            assert end.ids() == list(range(40))
            for number, found in enumerate(end.frames):
                if number % 3 == 2:
                    assert found.attachment is None
                else:
                    assert found.attachment is not None
                    assert same_file(found.attachment, files[number % 4])
                    assert not os.get_inheritable(found.attachment)

        run(test)

    def test_a_descriptor_comes_with_a_frame_of_many_reads(self, files: list[int]) -> None:
        async def test(end: End) -> None:
            data = frame(id=1, image=bytes(MIB))
            send_rights(end.peer, data[:1], files[:1])
            await send_all(end.peer, data[1:])
            send_rights(end.peer, frame(id=2), files[1:2])
            await end.until(lambda: len(end.frames) == 2)
            for found, file in zip(end.frames, files, strict=False):
                assert found.attachment is not None
                assert same_file(found.attachment, file)

        run(test)

    def test_a_thousand_frames_in_a_read_leave_the_loop_its_turns(self) -> None:
        async def test(end: End) -> None:
            end.peer.sendall(frame(id=0) * 2000)
            await end.until(lambda: end.frames)
            assert len(end.frames) < 200, "the rest is for later turns"
            await end.until(lambda: len(end.frames) == 2000)

        run(test)


class TestRefusing:
    @pytest.mark.parametrize("length", [1001, 2**31, 2**32 - 1])
    def test_a_frame_over_the_limit_before_it_comes(self, length: int) -> None:
        async def test(end: End) -> None:
            end.peer.sendall(length.to_bytes(4))
            error = await end.said()
            assert isinstance(error, BadRequest)
            assert end.asked == []

        run(test, limit=1000)

    def test_but_not_one_at_the_limit(self) -> None:
        async def test(end: End) -> None:
            payload = msgpack.packb({"id": 1, "pad": b"x" * 988})
            assert len(payload) == 1000
            end.peer.sendall(framed(payload))
            await end.until(lambda: end.frames)
            assert not end.closed

        run(test, limit=1000)

    def test_a_large_frame_that_there_is_no_room_for(self) -> None:
        async def test(end: End) -> None:
            end.peer.sendall((200_001).to_bytes(4))
            error = await end.said()
            assert isinstance(error, Overloaded)
            assert end.balance == 0

        run(test, room=200_004)

    def test_but_not_one_that_just_fits(self) -> None:
        async def test(end: End) -> None:
            await send_all(end.peer, framed(msgpack.packb({"id": 1, "x": b"x" * 199_988})))
            await end.until(lambda: end.frames or end.closed)
            assert end.ids() == [1]
            assert max(end.asked) == 200_004

        run(test, room=200_004)

    @pytest.mark.parametrize("count", [2, 5, 100])
    def test_more_than_one_descriptor(self, files: list[int], count: int) -> None:
        async def test(end: End) -> None:
            before = len(os.listdir("/proc/self/fd"))
            send_rights(end.peer, frame(id=1), (files * 25)[:count])
            assert isinstance(await end.said(), BadRequest)
            assert len(os.listdir("/proc/self/fd")) == before - 1, "only the channel's own is gone"
            assert end.frames == []

        run(test)

    @pytest.mark.parametrize("first_has_one", [False, True])
    @pytest.mark.parametrize("cut", [1, 4, 9])
    @pytest.mark.parametrize("whole", [False, True])
    def test_a_descriptor_where_no_frame_begins(
        self, files: list[int], first_has_one: bool, cut: int, whole: bool
    ) -> None:
        async def test(end: End) -> None:
            before = len(os.listdir("/proc/self/fd"))
            data = frame(id=1, pad=bytes(20))
            send_rights(end.peer, data[:cut], files[:1] if first_has_one else [])
            await read_by(end)
            send_rights(end.peer, data[cut:] if whole else data[cut:12], files[1:2])
            await end.until(lambda: end.closed)
            assert isinstance(end.closed[0], BadRequest)
            taken = sum(found.attachment is not None for found in end.frames)
            assert len(os.listdir("/proc/self/fd")) == before - 1 + taken

        run(test)

    def test_what_is_not_msgpack(self) -> None:
        async def test(end: End) -> None:
            end.peer.sendall(frame(id=1) + framed(b"\xc1") + frame(id=2))
            assert isinstance(await end.said(), BadRequest)
            assert end.ids() == [1]

        run(test)


class TestClosing:
    def test_the_peers_end_is_reported_once_without_an_error(self) -> None:
        async def test(end: End) -> None:
            end.peer.sendall(frame(id=1) + frame(id=2)[:5])
            end.peer.shutdown(socket.SHUT_WR)
            await end.until(lambda: end.closed)
            assert end.ids() == [1]
            assert end.closed == [None]

        run(test)

    def test_nothing_comes_after_the_receiver_has_closed_it(self, files: list[int]) -> None:
        async def test(end: End) -> None:
            def act(found: Frame) -> None:
                end.frames.append(found)
                end.channel.close()

            end.act = act
            before = len(os.listdir("/proc/self/fd"))
            end.peer.sendall(frame(id=1) + frame(id=2))
            send_rights(end.peer, frame(id=3) + frame(id=4)[:8], files[:1])
            await end.until(lambda: end.closed)
            assert end.ids() == [1]
            assert len(os.listdir("/proc/self/fd")) == before - 1

        run(test)

    def test_no_room_is_kept_for_a_frame_behind_the_one_that_closed_it(self) -> None:
        async def test(end: End) -> None:
            end.act = lambda _: end.channel.refuse(BadRequest("no"))
            end.peer.sendall(frame(id=1) + (10 * MIB).to_bytes(4))
            await end.until(lambda: end.closed)
            assert sum(end.asked) == 0

        run(test)

    def test_half_a_frame_is_let_go(self, files: list[int]) -> None:
        async def test(end: End) -> None:
            before = len(os.listdir("/proc/self/fd"))
            send_rights(end.peer, (10 * MIB).to_bytes(4), files[:1])
            await send_all(end.peer, bytes(5 * MIB))
            await end.until(lambda: end.balance)
            end.peer.shutdown(socket.SHUT_WR)
            await end.until(lambda: end.closed)
            assert end.balance == 0
            assert not end.channel.decoder.mid_frame, "its bytes are not kept"
            assert len(os.listdir("/proc/self/fd")) == before - 1

        run(test)

    def test_a_peer_that_is_gone_is_reported_but_not_from_within_send(self) -> None:
        async def test(end: End) -> None:
            end.peer.close()
            end.channel.send(frame(id=1))
            end.channel.send(frame(id=2))
            assert end.closed == [], "the sender may be in the middle of something"
            await end.until(lambda: end.closed)

        run(test)

    def test_closing_twice_and_sending_afterwards_do_nothing(self) -> None:
        async def test(end: End) -> None:
            end.channel.close()
            end.channel.close(BadRequest("late"))
            end.channel.refuse(BadRequest("later"))
            end.channel.send(frame(id=1))
            end.channel.pause(True)
            end.channel.pause(False)
            assert end.closed == [None]
            assert end.channel.unsent == 0
            assert end.peer.recv(100) == b""

        run(test)


class TestSending:
    def test_more_than_the_socket_holds(self) -> None:
        async def test(end: End) -> None:
            data = [encode({"id": n, "image": os.urandom(MIB)}) for n in range(6)]
            for one in data:
                end.channel.send(one)
            assert end.channel.unsent > 4 * MIB
            assert await receive_all(end.peer, sum(map(len, data))) == b"".join(data)
            assert end.channel.unsent == 0

        run(test)

    def test_descriptors_wait_with_their_frames_and_the_caller_may_close_them(
        self, files: list[int]
    ) -> None:
        async def test(end: End) -> None:
            before = len(os.listdir("/proc/self/fd"))
            sent = 0
            while end.channel.unsent < MIB:
                duplicate = os.dup(files[sent % 4])
                end.channel.send(encode({"id": sent, "pad": bytes(60_000)}), duplicate)
                os.close(duplicate)
                sent += 1
            assert sent > 10
            decoder = Decoder()
            got = 0
            end.peer.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                while got < sent:
                    try:
                        data, rights, _, _ = socket.recv_fds(end.peer, 1 << 16, 4)
                    except BlockingIOError:
                        await asyncio.sleep(0)
                        continue
                    decoder.feed(data, *rights)
                    for found in decoder.frames():
                        assert found.fields["id"] == got
                        assert found.attachment is not None
                        assert same_file(found.attachment, files[got % 4])
                        os.close(found.attachment)
                        got += 1
            assert len(os.listdir("/proc/self/fd")) == before

        run(test)

    def test_what_is_unsent_is_closed_with_it(self, files: list[int]) -> None:
        async def test(end: End) -> None:
            before = len(os.listdir("/proc/self/fd"))
            while end.channel.unsent < MIB:
                end.channel.send(encode({"pad": bytes(60_000)}), files[0])
            assert len(os.listdir("/proc/self/fd")) > before
            end.channel.close()
            assert len(os.listdir("/proc/self/fd")) == before - 1
            assert end.channel.unsent == 0

        run(test)

    def test_a_peer_that_leaves_while_much_is_unsent_is_reported_once(self) -> None:
        async def test(end: End) -> None:
            end.channel.send(bytes(8 * MIB))
            end.peer.close()
            await end.until(lambda: end.closed)
            assert end.channel.unsent == 0

        run(test)

    def test_the_time_of_the_last_write_tells_a_slow_reader(self) -> None:
        async def test(end: End) -> None:
            loop = asyncio.get_running_loop()
            end.channel.send(bytes(4 * MIB))
            begun = end.channel.last_write
            end.channel.send(frame(id=1))
            assert end.channel.last_write == begun, "more to send is no progress"
            await asyncio.sleep(0.05)
            assert end.channel.last_write == begun, "nor is time"
            await receive_all(end.peer, MIB)
            assert begun < end.channel.last_write <= loop.time()

        run(test)


class TestPausing:
    def test_it_stops_before_the_next_frame_and_goes_on_with_it(self) -> None:
        async def test(end: End) -> None:
            def act(found: Frame) -> None:
                end.frames.append(found)
                if len(end.frames) % 7 == 0:
                    end.channel.pause(True)

            end.act = act
            end.peer.sendall(b"".join(frame(id=n) for n in range(100)))
            for rounds in range(1, 15):
                await end.until(lambda rounds=rounds: len(end.frames) == 7 * rounds)
                for _ in range(5):
                    await asyncio.sleep(0)
                assert len(end.frames) == 7 * rounds
                end.channel.pause(False)
            await end.until(lambda: len(end.frames) == 100)
            assert end.ids() == list(range(100))

        run(test)

    def test_nothing_is_read_meanwhile(self) -> None:
        async def test(end: End) -> None:
            end.channel.pause(True)
            end.peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(1000):
                    end.peer.send(frame(id=1) * 1000)
                    await asyncio.sleep(0)
                pytest.fail("somebody reads")
            assert end.frames == []
            end.channel.pause(False)
            await end.until(lambda: len(end.frames) > 1000)

        run(test)

    def test_to_and_fro_within_a_frame_loses_and_doubles_nothing(self) -> None:
        async def test(end: End) -> None:
            def act(found: Frame) -> None:
                end.frames.append(found)
                end.channel.pause(True)
                end.channel.pause(False)

            end.act = act
            end.peer.sendall(b"".join(frame(id=n) for n in range(300)))
            await end.until(lambda: len(end.frames) == 300)
            assert end.ids() == list(range(300))

        run(test)

    def test_a_peer_that_could_not_be_heard_was_not_silent(self) -> None:
        async def test(end: End) -> None:
            end.channel.pause(True)
            before = end.channel.last_read
            await asyncio.sleep(0.01)
            end.channel.pause(False)
            assert end.channel.last_read > before

        run(test)

    def test_its_end_is_still_seen_when_something_is_unsent(self) -> None:
        async def test(end: End) -> None:
            end.channel.pause(True)
            end.channel.send(bytes(8 * MIB))
            end.peer.close()
            await end.until(lambda: end.closed)

        run(test)

    def test_it_can_be_closed_with_frames_that_wait(self, files: list[int]) -> None:
        async def test(end: End) -> None:
            def act(found: Frame) -> None:
                end.frames.append(found)
                end.channel.pause(True)

            end.act = act
            before = len(os.listdir("/proc/self/fd"))
            end.peer.sendall(frame(id=1) + frame(id=2))
            send_rights(end.peer, frame(id=3), files[:1])
            await end.until(lambda: end.frames)
            end.channel.pause(False)
            end.channel.close()
            await asyncio.sleep(0)
            assert end.ids() == [1]
            assert len(os.listdir("/proc/self/fd")) == before - 1

        run(test)


class TestReceiverWithDefects:
    def test_what_it_raises_costs_one_frame(self) -> None:
        """The loop logs it; the frames behind are handed on."""

        async def test(end: End) -> None:
            complaints: list[object] = []
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: complaints.append(context["exception"])
            )

            def act(found: Frame) -> None:
                if found.fields["id"] == 40:
                    raise RuntimeError("a defect")
                end.frames.append(found)

            end.act = act
            end.peer.sendall(b"".join(frame(id=n) for n in range(100)))
            await end.until(lambda: len(end.frames) == 99)
            assert 40 not in end.ids()
            assert [str(error) for error in complaints] == ["a defect"]

        run(test)


async def send_all(sock: socket.socket, data: bytes) -> None:
    sock.setblocking(False)
    async with asyncio.timeout(PATIENCE):
        await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive_all(sock: socket.socket, size: int) -> bytes:
    sock.setblocking(False)
    data = b""
    async with asyncio.timeout(PATIENCE):
        while len(data) < size:
            data += await asyncio.get_running_loop().sock_recv(sock, size - len(data))
    await asyncio.sleep(0)  # the channel learns of it
    return data


async def read_by(end: End) -> None:
    """Wait until the channel has taken in what was sent."""
    async with asyncio.timeout(PATIENCE):
        before = end.channel.last_read
        while end.channel.last_read == before:
            await asyncio.sleep(0)
