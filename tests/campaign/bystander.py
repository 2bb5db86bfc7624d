"""Somebody else on the host, who asks all the time for rows, and beside that for `status`.

Whatever others do meanwhile, each row must come and be right. In the long form it may take three
times what it takes on the idle host, in the median, and each `status` a tenth of a second.
"""

from __future__ import annotations

import contextlib
import select
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from daemonprocess import PATIENCE, DaemonProcess, Peer
from person import Person, Say
from unprivileged import Unprivileged

from campaign import engine
from campaign.host import folder
from campaign.pictures import Pictures, quick_model
from swiprctl.errors import SwiprError

UID = 65533

ATTACKER = 65534
"""Somebody else. With a name, nobody: fusermount3 asks for it."""

MOST = 3.0
"""Times the idle host's median that a row may take."""

LATEST = 0.1
"""Seconds within which each `status` must come."""

_IDLE = 40  # rows that tell what an idle host takes
_PAUSE = 0.02  # seconds between two questions
_PICTURES = 8
_SILENCE = PATIENCE / 2  # seconds without an answer after which another connection is tried
_SHORT_OF_NOTES = 5


@dataclass
class Verdict:
    """What the bystander saw of an attack."""

    rows: int
    failed: list[str]
    figures: dict[str, float]
    notes: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether nobody could stop, slow or mislead them."""
        return self.rows > 0 and not self.failed and not self.notes


class Bystander:
    """Asks on a daemon that is ready, from now to `end()`."""

    def __init__(self, daemon: DaemonProcess, pictures: Pictures) -> None:
        self._person = Person(UID, lambda say: _ask_on(daemon.path, pictures, say))
        self._attacked = 0

    def begin(self) -> None:
        """Wait until it is known what is usual; what comes from now on counts as under attack."""
        self.more(_IDLE)
        self._attacked = len(self._person.said)

    def more(self, rows: int) -> bool:
        """Wait for so many more rows, right or not; False if they do not come."""
        goal = self._answered() + rows
        until = time.monotonic() + PATIENCE
        while self._answered() < goal:
            if time.monotonic() > until or not self._person.wait_said(len(self._person.said) + 1):
                return False
        return True

    def end(self) -> None:
        """Leave nothing behind."""
        self._person.end()

    def verdict(self, *, long: bool, may: Sequence[str] = ()) -> Verdict:
        """Judge what has come since `begin()`.

        Args:
            long: times are judged, too.
            may: errors, by wire code, that are no failure.
        """
        idle, said = self._person.said[: self._attacked], self._person.said[self._attacked :]
        failed = [one["failed"] for one in said if "failed" in one]
        failed += [one["failed"] for one in idle if "failed" in one]
        failed = [one for one in failed if one.partition(":")[0] not in may]
        rows = [one["row"] for one in said if "row" in one]
        usual = statistics.median([one["row"] for one in idle if "row" in one] or [PATIENCE])
        median = statistics.median(rows or [PATIENCE])
        latest = max((one["status"] for one in said if "status" in one), default=PATIENCE)
        verdict = Verdict(
            len(rows),
            failed,
            {
                "idle_median_seconds": usual,
                "bystander_median_seconds": median,
                "bystander_latest_seconds": max(rows, default=PATIENCE),
                "bystander_ratio": median / usual,
                "status_latest_seconds": latest,
                "bystander_failed": float(len(failed)),
            },
        )
        if long and median > MOST * usual:
            verdict.notes.append(f"the bystander's rows took {median / usual:.1f} x an idle host's")
        if long and latest > LATEST:
            verdict.notes.append(f"a status took {latest * 1000:.0f} ms")
        if failed:
            verdict.notes.append(f"the bystander failed {len(failed)} times: " + _short(failed))
        return verdict

    def _answered(self) -> int:
        return sum("status" not in one for one in self._person.said)


@dataclass
class Scene:
    """A daemon, what it serves, and somebody who asks it all the time."""

    place: Path
    daemon: DaemonProcess
    pictures: Pictures
    bystander: Bystander


@contextlib.contextmanager
def scene(
    *arguments: str,
    seed: int,
    environment: dict[str, str] | None = None,
    subuids: Path | None = None,
) -> Iterator[Scene]:
    """Begin it; when the block begins the bystander has had their rows for a while."""
    with folder() as place:
        place.chmod(0o755)
        model = quick_model(place / "model")
        pictures = Pictures(place / "in", model, count=_PICTURES, seed=seed)
        daemon = Unprivileged(
            place / "d",
            engine.argument(),
            *arguments,
            model=model,
            environment=environment,
            subuids=subuids,
        )
        try:
            daemon.wait_ready()
            bystander = Bystander(daemon, pictures)
            try:
                bystander.begin()
                yield Scene(place, daemon, pictures, bystander)
            finally:
                bystander.end()
        finally:
            daemon.end()


def leaves(daemon: DaemonProcess) -> tuple[float, str]:
    """SIGTERM: the seconds until it has left, and what is wrong with that, if anything."""
    begun = time.monotonic()
    try:
        status = daemon.stop()
    except Exception:
        return time.monotonic() - begun, "SIGTERM has no effect"
    wrong = f"it left with status {status}" if status else ""
    return time.monotonic() - begun, wrong


def _ask_on(path: Path, pictures: Pictures, say: Say) -> None:
    lock = threading.Lock()

    def tell(what: object) -> None:
        with lock:
            say(what)

    threading.Thread(target=_ask_status, args=(path, tell), daemon=True).start()
    peer = None
    for number in count():
        begun = time.monotonic()
        try:
            if peer is None:
                peer = _connected(path)
            which = number % len(pictures.files)
            row = _row(peer, number, pictures.files[which], inline=number % 3 == 0)
        except SwiprError as error:
            tell({"failed": f"{error.code}: {error}"})
        except (EOFError, OSError) as error:
            tell({"failed": repr(error)})
            peer = None
        else:
            if pictures.right(which, row):
                tell({"row": time.monotonic() - begun})
            else:
                tell({"failed": f"a wrong row for {pictures.files[which].name}"})
        select.select([], [], [], _PAUSE)


def _ask_status(path: Path, tell: Say) -> None:
    peer = None
    while True:
        begun = time.monotonic()
        try:
            if peer is None:
                peer = _connected(path)
            peer.ask("status")
            tell({"status": time.monotonic() - begun})
        except (EOFError, OSError) as error:
            tell({"failed": f"status: {error!r}"})
            peer = None
        select.select([], [], [], _PAUSE)


def _connected(path: Path) -> Peer:
    peer = Peer(path)
    peer.socket.settimeout(_SILENCE)
    return peer


def _row(peer: Peer, identity: int, file: Path, *, inline: bool) -> object:
    """A picture's row, by the ways that clients have: the file's descriptor, or its bytes.

    Raises:
        SwiprError: what the daemon answered.
    """
    if inline:
        peer.send(identity, image=file.read_bytes())
    else:
        with open(file, "rb") as image:
            peer.send(identity, descriptor=image.fileno())
    reply = peer.receive()
    if reply.error is not None:
        raise reply.error
    return reply.fields["probabilities"] if reply.id == identity else reply.id


def _short(failed: list[str]) -> str:
    kinds = list(dict.fromkeys(failed))
    return "; ".join(kinds[:_SHORT_OF_NOTES])
