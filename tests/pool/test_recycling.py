"""Workers that are replaced in time, what the kernel tells of them, and what bounds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import StartDaemon

from swiprd.pool.recycling import RecyclingLimits
from swiprd.system.proc import is_stopped, own_memory

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("answered", "grown", "why"),
    [(99, 10 << 20, ""), (100, 0, "100 requests"), (1, 64 << 20, "64 MiB")],
)
def test_the_limits(answered: int, grown: int, why: str) -> None:
    found = RecyclingLimits(requests=100, growth=64 << 20).worn(answered, grown)
    assert why in found
    assert bool(found) == bool(why)


def test_none_where_none_is_set() -> None:
    assert not RecyclingLimits(requests=0, growth=0).worn(10**9, 10**12)


def child(code: str) -> subprocess.Popen[bytes]:
    """A process that has run this, and said so."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(flush=True)\nimport sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_own_memory_is_what_is_allocated_and_not_what_is_mapped() -> None:
    with (
        child("pass") as plain,
        child("data = b'x' * (64 << 20)") as large,
        child(
            "import mmap; m = mmap.mmap(0, 64 << 20, mmap.MAP_SHARED); m[:] = bytes(64 << 20)"
        ) as sharing,
    ):
        sizes = [own_memory(process.pid) for process in (plain, large, sharing)]
        for process in (plain, large, sharing):
            process.communicate()
    assert 0 < sizes[0] < 32 << 20
    assert sizes[1] - sizes[0] > 60 << 20
    assert sizes[2] - sizes[0] < 16 << 20
    assert own_memory(plain.pid) == 0, "it is gone"


def test_who_is_stopped() -> None:
    with child("pass") as process:
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_stopped(process.pid)
        os.kill(process.pid, signal.SIGCONT)
        process.communicate()
    assert not is_stopped(process.pid)


_BOUND = """
from swiprd.system.proc import bound_own_memory, offer_to_the_oom_killer
offer_to_the_oom_killer()
assert open("/proc/self/oom_score_adj").read().strip() == "500"
mine = bytearray(64 << 20)
bound_own_memory(64 << 20)
more = bytearray(32 << 20)
try:
    bytearray(64 << 20)
except MemoryError:
    print("bounded")
"""


def test_memory_can_be_bounded_on_top_of_what_there_is() -> None:
    done = subprocess.run([sys.executable, "-c", _BOUND], capture_output=True, text=True)
    assert done.stdout == "bounded\n", done.stderr


def test_a_worn_worker_is_replaced_and_no_request_is_lost(
    start_daemon: StartDaemon, photos: list[bytes]
) -> None:
    daemon = start_daemon("--max-requests=20").wait_ready()
    daemon.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)
    first = set(daemon.workers())
    with daemon.connect() as peer:
        row = peer.ask(image=photos[0]).fields["probabilities"]
        for number in range(100):
            peer.send(number, image=photos[0])
        replies = [peer.receive() for _ in range(100)]
    assert {reply.id for reply in replies} == set(range(100))
    assert all(reply.fields["probabilities"] == pytest.approx(row, abs=1e-4) for reply in replies)
    status = daemon.wait_status(lambda s: [w["state"] for w in s["workers"]] == ["idle"] * 2)
    assert status["recycled"] >= 2
    assert status["kills"]["total"] == 0
    assert not first & {worker["pid"] for worker in status["workers"]}
