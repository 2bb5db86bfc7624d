"""The fields of `status`, gathered from queue, counters and processes. Times are in seconds.

`swiprctl.client.Client.status` documents each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from swiprd.front.poison import Poison
from swiprd.front.request_queue import RequestQueue
from swiprd.front.stats import Stats
from swiprd.pool.supervisor import Supervisor
from swiprd.system.log import log_file
from swiprd.system.proc import family_memory, own_memory

_KILLS_SHOWN = 5


def describe_work(
    queue: RequestQueue, stats: Stats, poison: Poison, now: float
) -> dict[str, object]:
    """The queue, and what became of requests."""
    return {
        "queue": {
            "waiting": queue.waiting,
            "total": queue.total,
            "limit": queue.limit,
            "oldest": queue.oldest(now),
            "by_uid": {str(uid): n for uid, n in queue.by_uid().items()},
        },
        "requests": {
            "outcomes": dict(stats.outcomes),
            "by_uid": {str(uid): n for uid, n in stats.by_uid.items()},
            "refused": queue.refused,
        },
        "poison": {"remembered": len(poison), "refused": poison.refused},
        "latency": stats.latency(),
    }


def describe_staff(staff: Supervisor | None, now: float) -> dict[str, object]:
    """The processes, and those that had to be killed or died; None: no model serves."""
    if staff is None:
        return {"model": "", "workers": []}
    return {
        "model": staff.loaded.model,
        "shape": asdict(staff.shape),
        "forkserver": {"pid": staff.forkserver.pid, "restarts": staff.forkserver.restarts},
        "workers": [
            {
                "number": worker.number,
                "pid": worker.pid,
                "state": worker.state.value,
                "age": now - worker.born,
                "answered": worker.answered,
                "stuck": worker.stuck,
            }
            for worker in staff.workers.values()
        ],
        "recycled": staff.recycled,
        "kills": {
            "total": staff.killed,
            "last": [
                {"ago": now - at, "worker": number, "why": why}
                for at, number, why in list(staff.kills)[-_KILLS_SHOWN:]
            ],
        },
    }


def describe_process(
    begun: float, now: float, folder: Path, staffs: Iterable[Supervisor]
) -> dict[str, object]:
    """The daemon itself: where its model and its log are, what all its processes hold.

    Args:
        staffs: of all pools that have processes.
    """
    memory = own_memory(os.getpid()) + sum(
        family_memory(staff.forkserver.pid, [worker.pid for worker in staff.workers.values()])
        for staff in staffs
    )
    return {
        "pid": os.getpid(),
        "uptime": now - begun,
        "memory": memory,
        "folder": _text(str(folder.absolute())),
        "log": _text(log_file()),
    }


def _text(path: str) -> str:
    """A path as the wire can carry it: what is not UTF-8 in it is replaced."""
    return os.fsencode(path).decode(errors="replace")
