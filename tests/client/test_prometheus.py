"""The status as metrics: the text format's rules, and the names that dashboards rely on."""

from __future__ import annotations

import re

import pytest
from daemonprocess import DaemonProcess

from swiprctl.prometheus import STATES, WORKER_STATES, samples
from swiprd.pool.model_manager import Phase
from swiprd.pool.states import State

pytestmark = pytest.mark.timeout(60)

SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)\{(?P<labels>(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)+)\} (?P<value>[-+.e\d]+)'
)

STATUS: dict[str, object] = {
    "state": "ready",
    "model": "m@1",
    "uptime": 12.5,
    "memory": 300_000_000,
    "queue": {"waiting": 1, "total": 3, "limit": 128, "oldest": 0.25, "by_uid": {"1000": 3}},
    "requests": {"outcomes": {"ok": 5, "deadline": 1}, "by_uid": {"1000": 6}, "refused": 2},
    "workers": [
        {"state": "busy", "stuck": True, "age": 9.0},
        {"state": "idle", "stuck": False, "age": 3.0},
    ],
    "kills": {"total": 4},
    "latency": {"bounds": [0.1, 1.0], "counts": [3, 0, 2], "sum": 4.2},
}


def parsed(fields: dict[str, object], socket: str = "/s") -> dict[tuple[str, str], float]:
    """Samples by name and labels, with the format's rules checked on the way."""
    found = {}
    described: list[str] = []
    for line in samples(fields, socket):
        assert "\n" not in line
        if line.startswith("# HELP "):
            described.append(line.split()[2])
        elif line.startswith("# TYPE "):
            assert line.split()[2] == described[-1]
            assert line.split()[3] in ("gauge", "counter", "histogram")
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match["name"].startswith(described[-1]), "samples stand together, described"
            assert (match["name"], match["labels"]) not in found
            found[match["name"], match["labels"]] = float(match["value"])
    assert len(described) == len(set(described))
    return found


def test_values_and_units() -> None:
    found = parsed(STATUS)
    assert found["swipr_state", 'socket="/s",state="ready"'] == 1
    assert found["swipr_state", 'socket="/s",state="draining"'] == 0
    assert found["swipr_requests_total", 'socket="/s",outcome="deadline"'] == 1
    assert found["swipr_uid_requests_total", 'socket="/s",uid="1000"'] == 6
    assert found["swipr_queue_oldest_seconds", 'socket="/s"'] == 0.25
    assert found["swipr_workers", 'socket="/s",state="busy"'] == 1
    assert found["swipr_workers_stuck", 'socket="/s"'] == 1
    assert found["swipr_worker_oldest_age_seconds", 'socket="/s"'] == 9.0
    assert found["swipr_worker_kills_total", 'socket="/s"'] == 4
    assert found["swipr_model_info", 'socket="/s",model="m@1"'] == 1


def test_the_histogram_is_cumulated() -> None:
    found = parsed(STATUS)
    name = "swipr_request_duration_seconds"
    counts = [found[f"{name}_bucket", f'socket="/s",le="{le}"'] for le in ("0.1", "1.0", "+Inf")]
    assert counts == [3, 3, 5]
    assert found[f"{name}_count", 'socket="/s"'] == 5
    assert found[f"{name}_sum", 'socket="/s"'] == 4.2


def test_labels_are_escaped() -> None:
    found = parsed({"state": "ready"}, socket='/a"b\\c\nd\udcff')
    assert all('socket="/a\\"b\\\\c\\nd?"' in labels for _, labels in found)


def test_what_is_not_told_is_left_out() -> None:
    assert {name for name, _ in parsed({})} == {"swipr_state"}


def test_every_state_has_its_sample() -> None:
    assert set(STATES) == {phase.value for phase in Phase}
    assert set(WORKER_STATES) == {state.value for state in State}


def test_a_real_status_gives_every_family(daemon: DaemonProcess, photos: list[bytes]) -> None:
    with daemon.connect() as peer:
        assert peer.ask(image=photos[0]).error is None
    names = {name for name, _ in parsed(daemon.status())}
    rare = {"swipr_uid_queue_requests"}  # told while somebody waits
    assert {name for name, _ in parsed(STATUS)} - rare <= names
    assert {
        *("swipr_connections", "swipr_refused_total", "swipr_workers_recycled_total"),
        *("swipr_forkserver_restarts_total", "swipr_poison_images", "swipr_poison_refused_total"),
    } <= names
