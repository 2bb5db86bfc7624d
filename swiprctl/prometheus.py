"""The daemon's status as metrics in Prometheus' text format, for node_exporter to collect.

Pure: fields in, lines out. Names and units follow the conventions of that world: seconds, `_total`
for what only grows (a restart or a reload begins anew), a histogram's buckets cumulated. What an
older daemon does not tell is left out.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Samples = Iterator[tuple[dict[str, object], object]]

STATES = ("loading", "ready", "loading-failed", "draining")
WORKER_STATES = ("spawning", "warming", "idle", "busy", "gone")

# (name, kind, help, where in the status)
_PLAIN = (
    ("uptime_seconds", "gauge", "Seconds since the daemon's start.", "uptime"),
    ("memory_bytes", "gauge", "What the processes hold in memory, about.", "memory"),
    ("connections", "gauge", "Clients connected.", "connections"),
    ("queue_waiting", "gauge", "Requests that wait for a worker.", "queue.waiting"),
    ("queue_requests", "gauge", "Requests that wait or run.", "queue.total"),
    ("queue_limit", "gauge", "Requests that may wait or run.", "queue.limit"),
    ("queue_oldest_seconds", "gauge", "What the oldest has waited.", "queue.oldest"),
    ("refused_total", "counter", "Requests refused as overload.", "requests.refused"),
    ("worker_kills_total", "counter", "Workers that were killed or died.", "kills.total"),
    ("workers_recycled_total", "counter", "Workers replaced because they were worn.", "recycled"),
    ("forkserver_restarts_total", "counter", "Forkservers replaced.", "forkserver.restarts"),
    ("poison_images", "gauge", "Images remembered as poison.", "poison.remembered"),
    ("poison_refused_total", "counter", "Requests for these.", "poison.refused"),
)


def samples(fields: dict[str, object], socket: str) -> Iterator[str]:
    """Give the lines. Every sample names the socket, so that several daemons can be told apart."""
    labels: dict[str, object] = {"socket": socket}
    state = fields.get("state")
    yield from _family(
        "state",
        "gauge",
        "1 for the daemon's state, 0 for the others.",
        (({**labels, "state": name}, int(name == state)) for name in STATES),
    )
    if fields.get("model"):
        model = {**labels, "model": fields["model"]}
        yield from _family("model_info", "gauge", "The model that serves.", iter([(model, 1)]))
    for name, kind, words, path in _PLAIN:
        value = _at(fields, path)
        if _is_number(value):
            yield from _family(name, kind, words, iter([(labels, value)]))
    yield from _counts(
        fields,
        "requests_total",
        "counter",
        "Requests ended.",
        "requests.outcomes",
        "outcome",
        labels,
    )
    yield from _counts(
        fields,
        "uid_requests_total",
        "counter",
        "Requests ended, by uid.",
        "requests.by_uid",
        "uid",
        labels,
    )
    yield from _counts(
        fields, "uid_queue_requests", "gauge", "Waiting or running.", "queue.by_uid", "uid", labels
    )
    yield from _workers(fields.get("workers"), labels)
    yield from _histogram(fields.get("latency"), labels)


def _counts(
    fields: dict[str, object],
    name: str,
    kind: str,
    words: str,
    path: str,
    label: str,
    labels: dict[str, object],
) -> Iterator[str]:
    """A family with one sample for each key of a map."""
    found = _at(fields, path)
    if isinstance(found, dict) and found:
        values = (({**labels, label: key}, n) for key, n in sorted(found.items()))
        yield from _family(name, kind, words, values)


def _workers(workers: object, labels: dict[str, object]) -> Iterator[str]:
    if not isinstance(workers, list):
        return
    states = [worker.get("state") for worker in workers]
    yield from _family(
        "workers",
        "gauge",
        "Workers by state.",
        (({**labels, "state": name}, states.count(name)) for name in WORKER_STATES),
    )
    stuck = sum(bool(worker.get("stuck")) for worker in workers)
    yield from _family(
        "workers_stuck", "gauge", "Busy far longer than usual.", iter([(labels, stuck)])
    )
    ages = [worker.get("age", 0.0) for worker in workers]
    oldest = max(ages, default=0.0)
    yield from _family(
        "worker_oldest_age_seconds", "gauge", "Age of the oldest.", iter([(labels, oldest)])
    )


def _histogram(latency: object, labels: dict[str, object]) -> Iterator[str]:
    if not isinstance(latency, dict):
        return
    name = "swipr_request_duration_seconds"
    yield f"# HELP {name} From a request's arrival to its row."
    yield f"# TYPE {name} histogram"
    total = 0
    for bound, count in zip([*latency["bounds"], "+Inf"], latency["counts"], strict=True):
        total += count
        yield f"{name}_bucket{_shown({**labels, 'le': bound})} {total}"
    yield f"{name}_sum{_shown(labels)} {latency['sum']}"
    yield f"{name}_count{_shown(labels)} {total}"


def _family(name: str, kind: str, words: str, values: Samples) -> Iterator[str]:
    yield f"# HELP swipr_{name} {words}"
    yield f"# TYPE swipr_{name} {kind}"
    for labels, value in values:
        yield f"swipr_{name}{_shown(labels)} {value}"


def _shown(labels: dict[str, object]) -> str:
    return "{" + ",".join(f'{key}="{_escaped(str(value))}"' for key, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    # A path's bytes that are not UTF-8 cannot be written: the format is UTF-8.
    text = text.encode(errors="replace").decode()
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _at(fields: dict[str, object], path: str) -> object:
    found: object = fields
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
