"""One image on its way to a row: what the front and the pool know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from swiprctl.errors import SwiprError
from swiprd.system.attachment import Attachment


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One image on its way to a row.

    Attributes:
        id: unique in this daemon's life; what the workers call it.
        uid: whose it is, as the kernel says.
        owner: whatever submitted it; `cancel()` finds its jobs by it.
        image: closed when the job ends.
        arrived: seconds, monotonic.
        deadline: seconds, monotonic. Infinite while the model loads, if the client named none.
        timeout: seconds that the client named, None where it left that to the daemon.
        done: called once, with the row's fields or the error.
        started: when a worker got it, monotonic; 0 before.
        threads: that it runs on by itself; 0 in a batch of several.
        crashes: workers that died by themselves with it.
        kills: workers that somebody else killed with it.
        alone: it was in a batch that did not end well: the next try is its own.
        overdue: when it had been in a worker, and it alone, for far longer than is usual,
            monotonic; 0: that is not so.
        suspect: it, or another with the same image, has been: it waits until nobody else does.
        ran: seconds of its longest time in a worker in vain; of processor time, if it computed.
        unheard: its client has left.
        computed: seconds of processor time that its worker had had before.
    """

    id: int
    uid: int
    owner: object
    image: Attachment
    arrived: float
    deadline: float
    timeout: float | None
    done: Callable[[Job, dict[str, object] | SwiprError], None]
    started: float = 0.0
    threads: int = 0
    crashes: int = 0
    kills: int = 0
    alone: bool = False
    overdue: float = 0.0
    suspect: bool = False
    ran: float = 0.0
    unheard: bool = False
    computed: float = 0.0
    ended: bool = field(default=False)
