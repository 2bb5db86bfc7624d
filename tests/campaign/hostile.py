"""Slow and hostile peers, each kind many times over, while a bystander goes on asking.

Afterwards the daemon's memory, descriptors and children must be what they were. The bystander's
rows must all be right and in time: whoever misbehaves keeps nobody else waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import fuseserver
from daemonprocess import DaemonProcess, Peer, as_uid
from modelfolders import photo
from vitals import Vitals, frame, framed, resident, send_rights, until_closed

from campaign.front import serving
from campaign.outcome import Outcome
from swiprctl.protocol import MAX_FRAME, Request

SECONDS = 150.0

MOST_GROWTH = 24 << 20
"""Bytes by which the front may be larger in the end; Python keeps some of what it has had."""

HIGHEST = 200 << 20
"""Bytes by which it may be larger meanwhile: three frames of 64 MiB are less."""

_TIMES = 200  # at scale 1, of each quick kind
_BYSTANDER = 65534
_NEAR = 1e-5
_PATIENCE = 5.0  # seconds that the bystander gives each request


@dataclass
class _Arena:
    """What the peers have at hand."""

    daemon: DaemonProcess
    folder: Path
    photo: bytes
    times: int
    faults: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def connect(self) -> Peer:
        self.faults += 1
        return self.daemon.connect()

    def refused(self, peer: Peer) -> None:
        """Read until it closes the connection; note what it said last."""
        said = until_closed(peer)
        error = said[-1].error if said else None
        self.errors["closed" if error is None else error.code] += 1

    def answered(self, peer: Peer) -> None:
        reply = peer.receive()
        self.errors["ok" if reply.error is None else reply.error.code] += 1


def run(scale: float, seed: int) -> Outcome:
    """Let one kind after the other loose."""
    begun = time.monotonic()
    image = photo(seed)
    notes = []
    with (
        serving("--first-byte=1", "--stall=1", "--slow-reader=1") as daemon,
        TemporaryDirectory() as name,
    ):
        arena = _Arena(daemon, Path(name), image, max(3, round(_TIMES * scale)))
        vitals = Vitals(daemon, image)
        _claims(arena)  # once, so that what grows afterwards is a leak
        before = resident(daemon.pid)
        with _bystander(daemon, image) as seen:
            for kind in _KINDS:
                kind(arena)
            if fuseserver.possible():
                _hanging(arena)
            else:
                notes.append("no filesystem that hangs: takes root and /dev/fuse")
        vitals.check()
        growth = resident(daemon.pid) - before
    late = max(seen.latencies, default=_PATIENCE)
    held = not seen.failed and bool(seen.latencies) and growth < MOST_GROWTH
    return Outcome(
        scenario="hostile",
        requests=len(seen.latencies) + len(seen.failed),
        rows=len(seen.latencies),
        errors=dict(arena.errors),
        faults=arena.faults,
        wrong=len(seen.failed),
        seconds=time.monotonic() - begun,
        figures={
            "growth_bytes": growth,
            "highest_growth_bytes": seen.highest - before,
            "bystander_median_seconds": statistics.median(seen.latencies or [_PATIENCE]),
            "bystander_latest_seconds": late,
        },
        held=held and seen.highest - before < HIGHEST,
        notes="; ".join([*notes, *seen.failed[:5]]),
    )


# --- who looks on


@dataclass
class _Seen:
    latencies: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    highest: int = 0


@contextlib.contextmanager
def _bystander(daemon: DaemonProcess, image: bytes) -> Iterator[_Seen]:
    """Another uid asks on and on, by a connection that stays and one that is new each time.

    Without root it is the same uid, whose connections make room for each other.
    """
    seen = _Seen()
    until_told, tell = os.pipe()
    over = threading.Event()

    def ask() -> str:
        os.close(tell)  # the fork's copy: its end is what we wait for
        return json.dumps(_look_on(daemon.path, image, until_told))

    def child() -> None:
        if os.geteuid():
            seen.latencies, seen.failed = _look_on(daemon.path, image, until_told)
        else:
            seen.latencies, seen.failed = json.loads(as_uid(_BYSTANDER, ask))

    def measure() -> None:
        while not over.wait(0.01):
            seen.highest = max(seen.highest, resident(daemon.pid))

    threads = [threading.Thread(target=child), threading.Thread(target=measure)]
    for thread in threads:
        thread.start()
    try:
        daemon.wait_status(lambda s: s["connections"] > 1)
        yield seen
    finally:
        os.close(tell)
        over.set()
        for thread in threads:
            thread.join()
        os.close(until_told)


def _look_on(path: Path, image: bytes, until: int) -> tuple[list[float], list[str]]:
    latencies: list[float] = []
    failed: list[str] = []
    right: list[float] = []
    stays = Peer(path)
    while not select.select([until], [], [], 0.02)[0]:
        begun = time.monotonic()
        try:
            reply = stays.ask(image=image, timeout=_PATIENCE)
            with Peer(path) as fresh:
                fresh.ask("status")
        except (EOFError, OSError) as error:
            if os.geteuid() == _BYSTANDER:
                failed.append(repr(error))
            stays.close()
            stays = Peer(path)
            continue
        right = right or reply.fields.get("probabilities", [])
        if reply.error is not None:
            failed.append(f"{reply.error.code}: {reply.error}")
        elif (
            max(abs(a - b) for a, b in zip(reply.fields["probabilities"], right, strict=True))
            > _NEAR
        ):
            failed.append("a wrong row")
        else:
            latencies.append(time.monotonic() - begun)
    stays.close()
    return latencies, failed


# --- who misbehaves


def _drip(arena: _Arena) -> None:
    """A byte a second; half a frame and no more; nothing at all."""
    data = Request(1, "status").encode()
    with contextlib.ExitStack() as stack:
        drips = [stack.enter_context(arena.connect()) for _ in range(20)]
        halves = [stack.enter_context(arena.connect()) for _ in range(20)]
        silent = [stack.enter_context(arena.connect()) for _ in range(20)]
        for peer in halves:
            peer.socket.sendall(data[:7])
        for byte in data[: 4 if arena.times < _TIMES else len(data)]:
            for peer in drips:
                with contextlib.suppress(OSError):  # on a busy host it may be late, and refused
                    peer.socket.sendall(bytes([byte]))
            time.sleep(0.8)  # slowness is what is being tried
        for peer in (*halves, *silent):
            arena.refused(peer)
        for peer in drips:
            with contextlib.suppress(OSError):
                peer.socket.sendall(data[4:] if arena.times < _TIMES else b"")
            with contextlib.suppress(OSError, EOFError):
                arena.answered(peer)


def _never_reads(arena: _Arena) -> None:
    requests = b"".join(frame(id=identity, op="status") for identity in range(2000))
    for _ in range(max(2, arena.times // 40)):
        with arena.connect() as peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:  # until it is thrown out; a TimeoutError would mean that it is not
                peer.socket.sendall(requests)
        arena.errors["closed"] += 1


def _a_thousand(arena: _Arena) -> None:
    """More connections at once than there are places, each with half a request."""
    part = Request(1, "status").encode()[:9]
    sockets = []
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(arena.daemon.path))  # waits where the listener's queue is full
            with contextlib.suppress(OSError):
                sock.send(part)
            sockets.append(sock)
        arena.faults += len(sockets)


def _claims(arena: _Arena) -> None:
    for length in (MAX_FRAME + 1, 2**31, 2**32 - 1):
        for _ in range(arena.times):
            with arena.connect() as peer:
                peer.socket.sendall(length.to_bytes(4))
                arena.refused(peer)


def _bombs(arena: _Arena) -> None:
    """What is small on the wire and large in memory, or deep, or no msgpack of ours."""
    million = 8 << 20
    row = b"\x81\xa1a\xdd" + million.to_bytes(4) + b"\x80" * million
    small = [
        b"\x81\xa1a" + b"\x91" * 60_000 + b"\xc0",
        b"\x81\xa1a" + b"\x81\xa1a" * 20_000 + b"\xc0",
        b"\x81\xa1a" + (b"\xdd" + (50_000).to_bytes(4)) * 1000 + bytes(45_000),
        b"\xdf\xff\xff\xff\xff\xa1a\x01",
        b"\x81\xa5image\xc6\xff\xff\xff\xffx",
        b"\x82\xa2id\xd6\xff\0\0\0\0\xa2op\xa6status",
        b"\x82\xa2id\x01\xa2op\xc7\x08\x05" + bytes(8),
        b"\xde\xff\xff" + b"\xa1a\x01" * 65_535,
    ]
    for payload in [*small * max(1, arena.times // len(small)), *[row] * max(1, arena.times // 40)]:
        with arena.connect() as peer:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.socket.sendall(framed(payload))
            arena.refused(peer)


def _descriptors(arena: _Arena) -> None:
    """Up to 253 in one message; none that a request asks for; kinds that are no readable file."""
    null = os.open(os.devnull, os.O_RDONLY)
    for number in range(arena.times):
        with arena.connect() as peer:
            count = (2, 4, 5, 100, 253)[number % 5]
            send_rights(peer.socket, Request(1, "predict").encode(), [null] * count)
            arena.refused(peer)
        with arena.connect() as peer:
            send_rights(peer.socket, Request(1, "status").encode()[: 1 + number % 20], [null])
    os.close(null)
    read, write = os.pipe()
    file = arena.folder / "file"
    file.write_bytes(arena.photo)
    kinds = [
        read,
        write,
        socket.socket(socket.AF_UNIX).detach(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(),
        os.open(arena.folder, os.O_RDONLY),
        os.open(file, os.O_PATH),
        os.open(file, os.O_WRONLY),
        os.open("/dev/zero", os.O_RDONLY),
        os.open("/dev/random", os.O_RDONLY),
        os.open("/proc/self/mem", os.O_RDONLY),
        os.open("/proc/kmsg", os.O_RDONLY) if not os.geteuid() else os.eventfd(0),
        os.eventfd(0),
        os.pidfd_open(os.getpid()),
        os.memfd_create("empty"),
    ]
    for descriptor in kinds:
        for _ in range(max(1, arena.times // 20)):
            with arena.connect() as peer:
                peer.send(1, descriptor=descriptor)
                arena.answered(peer)
        os.close(descriptor)


def _cut_while_read(arena: _Arena) -> None:
    """A file that grows and shrinks all the time."""
    path = arena.folder / "cut"
    over = threading.Event()

    def cut() -> None:
        with open(path, "r+b") as file:
            while not over.is_set():
                os.ftruncate(file.fileno(), 100)
                os.pwrite(file.fileno(), arena.photo * 20, 0)

    path.write_bytes(arena.photo * 20)
    thread = threading.Thread(target=cut)
    thread.start()
    try:
        with open(path, "rb") as file, arena.connect() as peer:
            for number in range(arena.times):
                arena.faults += 1
                peer.send(number, descriptor=file.fileno(), timeout=_PATIENCE)
                arena.answered(peer)
    finally:
        over.set()
        thread.join()


def _hanging(arena: _Arena) -> None:
    """Files on a filesystem whose server never answers: see tests/test_hanging.py."""
    source = arena.folder / "source.jpg"
    source.write_bytes(arena.photo)
    opened = []
    with fuseserver.mounted(arena.folder / "fuse", source) as folder:
        for name in ("flush", "read", "direct-read", "stat"):
            opened.append(os.open(folder / name, os.O_RDONLY))
            with arena.connect() as peer:
                for identity in range(8):
                    arena.faults += 1
                    peer.send(identity, descriptor=opened[-1], timeout=1.0)
                for _ in range(8):
                    arena.answered(peer)
            with arena.connect() as peer:
                send_rights(peer.socket, b"\0\0", [opened[-1]])
        arena.daemon.wait_status(lambda s: s["intakes"]["waiting"])
    for descriptor in opened:  # only now: closing one would have hung us
        with contextlib.suppress(OSError):
            os.close(descriptor)


_KINDS: tuple[Callable[[_Arena], None], ...] = (
    _claims,
    _bombs,
    _descriptors,
    _cut_while_read,
    _never_reads,
    _a_thousand,
    _drip,
)
