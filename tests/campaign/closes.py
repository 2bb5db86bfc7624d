"""Files whose last close takes long, and that close is the daemon's: their sender has left them.

First a filesystem on a block device, whose server answers no close until it is told to: as long as
that lasts, the other uid's rows must come. Then files on this host's own disk, unlinked, of very
many blocks with holes between them, which the filesystem frees one by one at the last close. Each
comes in three ways: as an image, with a question that takes none, and with half a frame.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fuseserver
from daemonprocess import Peer
from person import Person, Say, people
from unprivileged import possible
from vitals import send_rights, until_closed

from campaign import bystander
from campaign.bystander import Scene
from campaign.outcome import Outcome
from swiprctl.protocol import Reply

SECONDS = 90.0

_WAYS = ("image", "question", "half")
_EXTENTS = 60_000  # at scale 1: 240 MB of disk for a moment
_FEWEST = 4_000
_BLOCK = 4096
_TIMEOUT = 1.0  # of an image: at its deadline the daemon is rid of it
_ROWS = 5  # of the bystander, while a close lasts
_SLOW = 1.0  # seconds that a close of so many extents must take, for the long form to prove much
_DISK = Path("/var/tmp")  # not /tmp, which may be memory


def run(scale: float, seed: int) -> Outcome:
    """Have each closed in each way."""
    if not possible():
        return Outcome(scenario="closes", held=True, notes="skipped: takes uids, hence root")
    begun = time.monotonic()
    extents = max(_FEWEST, round(_EXTENTS * scale))
    long = scale >= 1
    errors: Counter[str] = Counter()
    notes: list[str] = []
    alone = 0.0
    with bystander.scene("--workers=2", "--threads=1", "--batch=1", seed=seed) as scene:
        if fuseserver.possible_on_disks():
            _on_a_hanging_disk(scene, errors, notes)
        if not notes:
            alone = _in_pieces(scene, extents, errors, notes)
        verdict = scene.bystander.verdict(long=long)
        seconds, wrong = bystander.leaves(scene.daemon)
    held = verdict.held and not notes and not wrong
    if long and alone < _SLOW:
        notes.append(f"a close of {extents} extents takes only {alone:.2f} s here")
    return Outcome(
        scenario="closes",
        requests=verdict.rows + len(verdict.failed),
        rows=verdict.rows,
        errors=dict(errors),
        faults=2 * len(_WAYS),
        wrong=len(verdict.failed),
        seconds=time.monotonic() - begun,
        figures={**verdict.figures, "slow_close_seconds": alone, "leave_seconds": seconds},
        held=held,
        notes="; ".join([*verdict.notes, *notes, *filter(None, [wrong])]),
    )


def _on_a_hanging_disk(scene: Scene, errors: Counter[str], notes: list[str]) -> None:
    source = scene.pictures.files[0]
    for way in _WAYS:
        with fuseserver.mounted(scene.place / way, source, disk=True) as folder:
            file = folder / "flush"
            with _sent(scene, way, file) as sender:
                if not (sender.wait_said(1) and scene.bystander.more(_ROWS)):
                    notes.append(f"while a close hangs ({way}) the bystander has no answer")
                fuseserver.answer(folder, "flush")
                sender.wait_over()
                errors.update(sender.said)


def _in_pieces(scene: Scene, extents: int, errors: Counter[str], notes: list[str]) -> float:
    """Give the seconds that one such close takes, where nobody waits for it."""
    begun = 0.0
    with tempfile.TemporaryDirectory(dir=_DISK, prefix="swipr") as name:
        os.chown(name, bystander.ATTACKER, bystander.ATTACKER)
        for way in _WAYS:
            file = Path(name) / way
            _make_pieces(file, scene.pictures.files[0].read_bytes(), extents)
            with _sent(scene, way, file) as sender:
                if not (sender.wait_over() and scene.bystander.more(_ROWS)):
                    notes.append(f"after a slow close ({way}) the bystander has no answer")
                errors.update(sender.said)
        _make_pieces(file, b"", extents)
        with open(file, "rb"):
            file.unlink()
            begun = time.monotonic()
        return time.monotonic() - begun


@contextlib.contextmanager
def _sent(scene: Scene, way: str, file: Path) -> Iterator[Person]:
    sender = Person(bystander.ATTACKER, lambda say: _send(scene.daemon.path, way, file, say))
    with people(sender):
        yield sender


def _send(path: Path, way: str, file: Path, say: Say) -> None:
    """Send a descriptor and have none any more, neither of the file nor of its name."""
    descriptor = os.open(file, os.O_RDONLY)
    with contextlib.suppress(OSError):
        file.unlink()
    with Peer(path) as peer:
        if way == "half":
            send_rights(peer.socket, b"\0\0", [descriptor])
        elif way == "question":
            peer.send(1, "status", descriptor=descriptor)
        else:
            peer.send(1, descriptor=descriptor, timeout=_TIMEOUT)
        # Beside: this hangs, too, where every close does.
        threading.Thread(target=os.close, args=(descriptor,), daemon=True).start()
        match way:
            case "half":
                say("left")
            case "question":
                said = until_closed(peer)
                say(_code(said[-1] if said else None))
            case _:
                say(_code(peer.receive()))


def _code(reply: Reply | None) -> str:
    return "ok" if reply is None or reply.error is None else reply.error.code


def _make_pieces(file: Path, content: bytes, extents: int) -> None:
    """A file of so many blocks with a hole behind each; its first bytes are these.

    Raises:
        OSError: this filesystem cannot have such files.
    """
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    with open(file, "wb") as stream:
        os.fchmod(stream.fileno(), 0o644)
        stream.write(content)
        stream.flush()
        for number in range(extents):
            if fallocate(stream.fileno(), 0, (2 * number + 4) * _BLOCK, _BLOCK):
                raise OSError(ctypes.get_errno(), "fallocate")
