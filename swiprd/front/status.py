"""The fields of `status`, gathered from queue, counters and processes. Times are in seconds.

`swiprctl.client.Client.status` documents each.
"""

from __future__ import annotations

import os
from dataclasses import asdict

from swiprd.front.poison import Poison
from swiprd.front.request_queue import RequestQueue
from swiprd.front.stats import Stats
from swiprd.pool.supervisor import Supervisor

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


def describe_process(begun: float, now: float) -> dict[str, object]:
    """The daemon itself."""
    return {"pid": os.getpid(), "uptime": now - begun}
