"""handles.py and keeper.py beside processes that say what no forkserver and no worker says."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from swiprctl.errors import LoadingFailed
from swiprd.pool.deaths import Death, Fault
from swiprd.pool.handles import Worker
from swiprd.pool.keeper import ForkserverKeeper
from swiprd.pool.states import State
from swiprd.system.attachment import Attachment
from swiprd.system.memfd import sealed_memfd
from swiprd.system.messages import Answer, Limits, Load, Loaded

pytestmark = pytest.mark.timeout(60)

LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20, max_decode=8.0)

FORKSERVER = """#!{python}
import os, socket, sys
sys.path[:0] = {path!r}
from swiprctl.protocol import encode
front = socket.socket(fileno=int(sys.argv[-1]))
told = encode({fields!r})
if {descriptors!r}:
    socket.send_fds(front, [told], [0])
else:
    front.sendall(told)
while front.recv(65536):
    pass
"""

WORKER = """
import os, socket, sys
from swiprctl.protocol import Decoder, encode
front, decoder = socket.socket(fileno=int(sys.argv[1])), Decoder()
data, descriptors, _, _ = socket.recv_fds(front, 65536, 1)
decoder.feed(data)
(frame,) = decoder.frames()
front.sendall(encode({"ok": True, "decode": 0.1, "infer": 0.1} | eval(sys.argv[2])(frame.fields)))
import time; time.sleep(60)
"""


class Giver:
    """Notes what comes back."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.ids: list[int] = []

    def replied(self, _worker: Worker, _id: int, answer: Answer) -> None:
        self.answers.append(answer)

    def left(self, ids: list[int], _death: Death) -> None:
        self.ids += ids


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "reply",
    [
        "lambda order: {'id': order['id']}",
        "lambda order: {'id': order['id'], 'probabilities': 'all of them'}",
        "lambda order: {'id': order['id'] + 1, 'probabilities': [1.0]}",
        "lambda order: {'id': None, 'probabilities': [1.0]}",
    ],
)
def test_a_worker_that_answers_nonsense_is_killed_and_gives_back_what_it_had(reply: str) -> None:
    giver = Giver()

    async def work() -> None:
        gone = asyncio.Event()
        ours, theirs = socket.socketpair()
        image = Attachment.of(sealed_memfd(b"picture"))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(theirs.fileno()), reply],
                pass_fds=[theirs.fileno()],
            )
        worker = Worker(
            1,
            ours,
            on_forked=lambda worker: worker.give({7: image}, giver, LIMITS, threads=1),
            on_answered=lambda _: pytest.fail("it has not"),
            on_gone=lambda _: gone.set(),
        )
        worker.forked(process.pid, os.pidfd_open(process.pid))
        status = await asyncio.to_thread(os.waitpid, process.pid, 0)
        worker.exited(status[1])
        process.returncode = status[1]
        await gone.wait()
        assert worker.state is State.GONE
        worker.give_back(Death("nonsense", Fault.NOBODY))
        image.close()

    before = descriptors()
    asyncio.run(work())
    assert (giver.answers, giver.ids) == ([], [7])
    assert descriptors() == before


@pytest.mark.parametrize("with_descriptor", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"event": "sing"},
        {"event": "loaded", "labels": ["a"], "model": "m", "device": "cpu"},
        {"event": "exited", "worker": "1", "status": 0},
    ],
    ids=repr,
)
def test_a_forkserver_that_says_nonsense_is_let_go(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, object],
    with_descriptor: bool,
) -> None:
    script = tmp_path / "forkserver"
    text = FORKSERVER.format(
        python=sys.executable, path=sys.path, fields=fields, descriptors=with_descriptor
    )
    script.write_text(text)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    failures: list[LoadingFailed] = []

    async def work() -> None:
        failed = asyncio.Event()

        def fail(error: LoadingFailed) -> None:
            failures.append(error)
            failed.set()

        def unexpected(_: Loaded | str) -> None:
            pytest.fail("nonsense")

        keeper = ForkserverKeeper(
            load=Load(folder="/m", device="cpu", memory=None),
            on_loaded=unexpected,
            on_not_forked=unexpected,
            on_failed=fail,
        )
        keeper.start()
        await failed.wait()
        assert not keeper.can_fork
        assert keeper.pid == 0
        keeper.close()
        await keeper.wait_closed()

    before = descriptors()
    asyncio.run(work())
    assert ["died" in str(error) for error in failures] == [True]
    assert descriptors() == before
