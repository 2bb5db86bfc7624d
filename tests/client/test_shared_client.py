"""One `Client` in several processes, and in several threads: the right answer, or a clear error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from peer import Connection, Gone, Peer

from swiprctl import Client, Prediction, SwiprError
from swiprctl.errors import UsageError

pytestmark = pytest.mark.timeout(60)


def size(connection: Connection) -> None:
    """Answer each image with its size in bytes."""
    while True:
        asked = connection.asked()
        assert asked.image is not None
        connection.answer(asked, float(len(asked.image)))


def program(script: str, path: Path) -> list[str]:
    """The command line of a program that has the client `client`."""
    begin = "import os, sys\nfrom swiprctl import Client, Prediction\n"
    return [sys.executable, "-c", f"{begin}client = Client({str(path)!r})\n{script}"]


def run(script: str, path: Path) -> None:
    """Run such a program; it is to end well, and its children with it."""
    process = subprocess.Popen(
        program(script, path), stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        _, err = process.communicate(timeout=40)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert (err, process.returncode) == ("", 0)


FORKS = """
def ask(n):
    found = client.predict(bytes(n)).probabilities
    assert found == (n,), f"asked about {n} bytes, and got {found}"

ask(5)
results = client.predict_many([bytes(n) for n in range(20)])
next(results)  # and others are under way
children = []
for child in range(3):
    if (pid := os.fork()) == 0:
        status = 1
        try:
            for n in range(14):
                ask(1000 * child + n)
            for source, answer in results:
                if isinstance(answer, Prediction):
                    assert answer.probabilities == (len(source),)
                else:
                    assert "its parent" in str(answer), answer
            client.close()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    children.append(pid)
for n in range(14):
    ask(5000 + n)
for n, (_, answer) in enumerate(results, start=1):
    assert answer.probabilities == (n,), answer
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
ask(7)
"""


def test_children_ask_for_themselves(tmp_path: Path) -> None:
    with Peer(tmp_path / "s", size) as peer:
        run(FORKS, tmp_path / "s")
        assert peer.connections == 4


POOL = """
import multiprocessing

def ask(n):
    return client.predict(bytes(n)).probabilities[0]

assert ask(3) == 3
with multiprocessing.get_context("fork").Pool(4) as pool:
    assert pool.map(ask, range(80), chunksize=5) == list(range(80))
assert ask(4) == 4
"""


def test_a_pool_of_processes_shares_a_global_client(tmp_path: Path) -> None:
    with Peer(tmp_path / "s", size) as peer:
        run(POOL, tmp_path / "s")
        assert 2 <= peer.connections <= 5


IDLE = """
client.predict(b"x")
if os.fork() == 0:
    print(os.read(0, 1).decode(), end="", flush=True)  # it never touches the client
    os._exit(0)
client.close()
print("closed", flush=True)
os.wait()
"""


def test_a_child_does_not_keep_its_parents_connection_open(tmp_path: Path) -> None:
    gone = threading.Event()

    def script(connection: Connection) -> None:
        connection.answer(connection.asked(), 1.0)
        try:
            connection.asked()
        except Gone:
            gone.set()

    with Peer(tmp_path / "s", script):
        process = subprocess.Popen(
            program(IDLE, tmp_path / "s"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"closed\n"
        heard = gone.wait(20)
        process.communicate(b"!", timeout=20)
        assert heard


# -- threads


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run it in so many threads at once; give what they raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(count)

    def one(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
        assert not thread.is_alive()
    return raised


def test_a_second_thread_is_refused_and_the_first_is_answered(tmp_path: Path) -> None:
    asked, refused = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        one = connection.asked()
        asked.set()
        assert refused.wait(20)
        connection.answer(one, 1.0)
        connection.answer(connection.asked(), 2.0)

    answers: list[Prediction] = []
    with Peer(tmp_path / "s", script) as peer, Client(f"{tmp_path}/s") as client:
        waiting = client.predict_many([b"x"])
        first = threading.Thread(target=lambda: answers.append(client.predict(b"x")))
        first.start()
        assert asked.wait(20)
        calls: list[Callable[[], object]] = [
            lambda: client.predict(b"y"),
            client.status,
            client.close,
            lambda: next(waiting),
        ]
        for call in calls:
            with pytest.raises(UsageError, match="another thread"):
                call()
        refused.set()
        first.join(20)
        assert answers[0].probabilities == (1.0,)
        # One after the other is no mistake.
        assert client.predict(b"y").probabilities == (2.0,)
        assert peer.connections == 1


def test_threads_that_share_one_get_the_right_answer_or_that_error(tmp_path: Path) -> None:
    right = refused = 0

    def work(number: int) -> None:
        nonlocal right, refused
        for n in range(60):
            wanted = 1000 * number + n
            try:
                if n % 2:
                    found = [client.predict(bytes(wanted))]
                else:
                    found = [one for _, one in client.predict_many([bytes(wanted)] * 3)]
            except UsageError:
                refused += 1
                continue
            assert [one.probabilities for one in found] == [(wanted,)] * len(found)
            right += 1

    before = len(os.listdir("/proc/self/fd"))
    with Peer(tmp_path / "s", size), Client(f"{tmp_path}/s") as client:
        assert in_threads(6, work) == []
        assert right + refused == 360
        assert right
        assert client.predict(b"123").probabilities == (3,)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_stream_that_another_thread_drops_is_forgotten(tmp_path: Path) -> None:
    asked, dropped = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        requests = [connection.asked() for _ in range(3)]
        connection.answer(requests.pop(0), 0.0)
        requests.append(connection.asked())
        asked.set()
        assert dropped.wait(20)
        connection.answer(requests.pop(), 4.0)
        while True:
            one = connection.asked()
            assert one.image is not None
            connection.answer(one, float(len(one.image)))

    before = len(os.listdir("/proc/self/fd"))
    answers: list[Prediction | SwiprError] = []
    with Peer(tmp_path / "s", script), Client(f"{tmp_path}/s") as client:
        stream = client.predict_many([b"", b"x", b"xx"])
        next(stream)
        first = threading.Thread(target=lambda: answers.append(client.predict(b"1234")))
        first.start()
        assert asked.wait(20)
        stream.close()  # type: ignore[attr-defined]
        dropped.set()
        first.join(20)
        assert isinstance(answers[0], Prediction)
        assert answers[0].probabilities == (4.0,)
        assert client.predict(b"12345").probabilities == (5.0,)
    assert len(os.listdir("/proc/self/fd")) == before


def test_each_thread_with_one_of_its_own(tmp_path: Path) -> None:
    def work(number: int) -> None:
        with Client(f"{tmp_path}/s") as client:
            for n in range(20):
                assert client.predict(bytes(100 * number + n)).probabilities == (100 * number + n,)

    with Peer(tmp_path / "s", size) as peer:
        assert in_threads(4, work) == []
        assert peer.connections == 4
