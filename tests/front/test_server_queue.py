"""The queue at its edge, and what a well-behaved client may count on, of a live front."""

from __future__ import annotations

import contextlib
import random
import select
import signal
from pathlib import Path

import pytest
from conftest import StartDaemon
from daemonprocess import PATIENCE, DaemonProcess, Peer, open_to_all
from fronts import (
    NOBODY,
    QUEUE,
    as_root,
    in_background,
    png,
    reference,
)
from vitals import (
    held,
    until_closed,
)

from swiprctl.errors import DeadlineExceeded, Overloaded, ShuttingDown
from swiprctl.protocol import Request

pytestmark = pytest.mark.timeout(120)


class TestQueue:
    def test_its_limit_counts_what_runs(self, narrow: DaemonProcess, photos: list[bytes]) -> None:
        with narrow.connect() as peer:
            with held(narrow):
                for identity in range(QUEUE + 1):
                    peer.send(identity, image=photos[0])
                refused = peer.receive()
                assert refused.id == QUEUE
                assert isinstance(refused.error, Overloaded)
                assert refused.error.retry_after is not None
                assert refused.error.retry_after > 0
                queue = narrow.status()["queue"]
                assert queue["total"] == QUEUE
                assert queue["waiting"] == QUEUE - 1
            replies = [peer.receive() for _ in range(QUEUE)]
            assert sorted(reply.id or 0 for reply in replies) == list(range(QUEUE))
            assert all(reply.error is None for reply in replies)

    def test_a_client_that_leaves_takes_its_work_along(
        self, narrow: DaemonProcess, photos: list[bytes], photo_file: int
    ) -> None:
        with narrow.connect() as stays:
            with held(narrow):
                stays.send(0, image=photos[0])
                narrow.wait_status(lambda s: s["queue"]["total"] == 1)
                with narrow.connect() as leaves:
                    for identity in range(QUEUE - 1):
                        leaves.send(identity, descriptor=photo_file)
                    narrow.wait_status(lambda s: s["queue"]["total"] == QUEUE)
                narrow.wait_status(lambda s: s["queue"]["total"] == 1)
                for identity in range(1, QUEUE):
                    stays.send(identity, image=photos[0])
                narrow.wait_status(lambda s: s["queue"]["total"] == QUEUE)
            assert all(stays.receive().error is None for _ in range(QUEUE))

    def test_what_runs_for_one_who_left_ends_unheard(
        self, narrow: DaemonProcess, photo_file: int
    ) -> None:
        with held(narrow):
            with narrow.connect() as leaves:
                leaves.send(0, descriptor=photo_file)
                narrow.wait_status(lambda s: s["queue"]["total"] == 1)
            narrow.wait_status(lambda s: s["connections"] == 1)
            assert narrow.status()["queue"]["total"] == 1
        narrow.wait_status(lambda s: s["queue"]["total"] == 0)

    @as_root
    def test_a_uid_below_its_share_takes_a_place_of_the_greediest(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        narrow.path.chmod(0o666)

        def ask() -> str:
            with Peer(path) as peer:
                return str(peer.ask(image=photos[1]).error)

        with open_to_all(narrow.path) as path, narrow.connect() as peer:
            with contextlib.ExitStack() as stack:
                with held(narrow):
                    for identity in range(QUEUE):
                        peer.send(identity, image=photos[0])
                    narrow.wait_status(lambda s: s["queue"]["total"] == QUEUE)
                    answer = stack.enter_context(in_background(NOBODY, ask))
                    evicted = peer.receive()
                    assert evicted.id == QUEUE - 1, "the newest goes"
                    assert isinstance(evicted.error, Overloaded)
                    assert narrow.status()["queue"]["by_uid"] == {
                        "0": QUEUE - 1,
                        str(NOBODY): 1,
                    }
                assert all(peer.receive().error is None for _ in range(QUEUE - 1))
            assert answer == ["None"]

    def test_a_named_deadline_ends_the_wait_and_frees_the_place(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        with narrow.connect() as peer:
            with held(narrow):
                peer.send(0, image=photos[0])
                for identity in range(1, QUEUE):
                    peer.send(identity, image=photos[0], timeout=1.0)
                late = [peer.receive() for _ in range(QUEUE - 1)]
                assert {reply.error.code for reply in late if reply.error} == {"deadline"}
                assert narrow.status()["queue"]["total"] == 1
            assert peer.receive().error is None

    def test_one_that_only_waited_for_the_longest_there_is_may_come_again(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon("--max-timeout=1").wait_ready()
        with daemon.connect() as peer, held(daemon):
            peer.send(0, image=photos[0])
            peer.send(1, image=photos[0], timeout=60.0)
            peer.send(2, image=photos[0], timeout=1.0)
            errors = {reply.id: reply.error for reply in (peer.receive() for _ in range(3))}
        assert isinstance(errors[0], DeadlineExceeded)
        assert isinstance(errors[1], Overloaded)
        assert errors[1].retry_after is not None
        assert "max_timeout" in str(errors[1])
        assert isinstance(errors[2], DeadlineExceeded)


class TestManners:
    """What a well-behaved peer may count on."""

    def test_a_request_that_comes_byte_by_byte_is_answered(self, roomy: DaemonProcess) -> None:
        small = png(8, 8)
        with roomy.connect() as peer:
            for byte in Request(1, "predict", 5.0, small).encode():
                peer.socket.send(bytes([byte]))
            assert peer.receive().error is None

    def test_six_requests_in_one_send_are_answered(
        self, roomy: DaemonProcess, photos: list[bytes]
    ) -> None:
        with roomy.connect() as peer:
            peer.socket.sendall(
                b"".join(
                    Request(n, op, None, photos[n] if op == "predict" else None).encode()
                    for n, op in enumerate(
                        ["predict", "status", "predict", "model", "predict", "ping"]
                    )
                )
            )
            replies = [peer.receive() for _ in range(6)]
        assert {reply.id for reply in replies} == set(range(6))
        assert all(reply.error is None for reply in replies)

    def test_replies_come_as_they_are_ready(
        self, narrow: DaemonProcess, photos: list[bytes]
    ) -> None:
        with narrow.connect() as peer:
            with held(narrow):
                peer.send(1, image=photos[0])
                peer.send(2, "status")
                peer.send(3, "model")
                assert [peer.receive().id, peer.receive().id] == [2, 3]
            assert peer.receive().id == 1

    def test_descriptors_stay_with_their_requests(
        self, narrow: DaemonProcess, tmp_path: Path, photos: list[bytes]
    ) -> None:
        """Mixed on one connection, however the kernel glues what is sent."""
        rows = reference(narrow, photos)
        with contextlib.ExitStack() as stack:
            files = []
            for number, photo in enumerate(photos):
                (tmp_path / f"{number}").write_bytes(photo)
                files.append(stack.enter_context(open(tmp_path / f"{number}", "rb")).fileno())
            with narrow.connect() as peer:
                for start in range(5):
                    order = [(start * 3 + n) % len(photos) for n in range(QUEUE)]
                    for identity, number in enumerate(order):
                        if (identity + start) % 3:
                            peer.send(identity, descriptor=files[number])
                        else:
                            peer.send(identity, image=photos[number])
                        peer.send(100 + identity, "status")
                    for _ in range(2 * QUEUE):
                        reply = peer.receive()
                        assert reply.error is None
                        assert reply.id is not None
                        if reply.id < 100:
                            row = reply.fields["probabilities"]
                            assert row == pytest.approx(rows[order[reply.id]], abs=1e-5)

    def test_fifty_pipelining_clients_get_their_own_answers(
        self, roomy: DaemonProcess, photos: list[bytes], photo_file: int
    ) -> None:
        rows = reference(roomy, photos)
        rng = random.Random(7)
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(roomy.connect()) for _ in range(50)]
            asked: list[dict[int, int]] = [{} for _ in peers]
            for _ in range(2):
                for peer, mine in zip(peers, asked, strict=True):
                    identity, number = rng.randrange(2**63), rng.randrange(len(photos))
                    mine[identity] = number
                    if number == 0:
                        peer.send(identity, descriptor=photo_file, timeout=PATIENCE)
                    else:
                        peer.send(identity, image=photos[number], timeout=PATIENCE)
            for peer, mine in zip(peers, asked, strict=True):
                for _ in range(len(mine)):
                    reply = peer.receive()
                    assert reply.error is None, reply.error
                    assert reply.id is not None
                    row = reply.fields["probabilities"]
                    assert row == pytest.approx(rows[mine.pop(reply.id)], abs=1e-5)
                assert not select.select([peer.socket], [], [], 0)[0], "one answer each"

    def test_a_new_request_while_it_leaves_is_told_so(
        self, start_daemon: StartDaemon, photos: list[bytes]
    ) -> None:
        daemon = start_daemon().wait_ready()
        with daemon.connect() as peer:
            with held(daemon):
                peer.send(1, image=photos[0])
                daemon.wait_status(lambda s: s["queue"]["total"] == 1)
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_told("STOPPING=1")
                peer.send(2, image=photos[0])
                reply = peer.receive()
                assert reply.id == 2
                assert isinstance(reply.error, ShuttingDown)
            assert peer.receive().error is None
            assert until_closed(peer) == []
        assert daemon.process.wait(PATIENCE) == 0
