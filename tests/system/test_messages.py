"""messages.py: each message comes back as it was said; a malformed message is a BadRequest."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from swiprctl.errors import BadRequest
from swiprctl.protocol import Decoder, encode
from swiprd.system.messages import (
    Exited,
    Failed,
    Fork,
    Forked,
    Limits,
    Load,
    Loaded,
    NotForked,
    Order,
    Row,
    parse_command,
    parse_report,
)

pytestmark = pytest.mark.timeout(60)

LIMITS = Limits(max_bytes=10, max_pixels=20, max_decode=8.0)
VERSIONS = {"torch": "2.6"}
_OPTIONAL = {"memory", "difference"}

MESSAGES: list[tuple[Any, Callable[[Any], Any]]] = [
    (Load(folder="/m", device="auto", memory=None), parse_command),
    (Load(folder="/m", device="cpu", memory=1 << 30), parse_command),
    (Fork(worker=7), parse_command),
    (Loaded(labels=("a", "b"), model="m", versions=VERSIONS, device="cpu"), parse_report),
    (
        Loaded(
            labels=("a",),
            model="m",
            versions=VERSIONS,
            device="cpu",
            engine="onnx",
            difference=3e-8,
            engine_note="as proven",
        ),
        parse_report,
    ),
    (Failed(reason="no weights"), parse_report),
    (Forked(worker=7, pid=4711), parse_report),
    (NotForked(worker=7, reason="no process"), parse_report),
    (Exited(worker=7, status=9), parse_report),
    (Order(id=1, size=2, threads=3, limits=LIMITS), Order.parse),
    (Row(probabilities=[0.5, 0.5], decode=0.01, infer=0.02), Row.parse),
]

SENT = [pytest.param(*one, id=type(one[0]).__name__) for one in MESSAGES]


def received(message: Any) -> dict[str, Any]:
    """The map of a frame that has gone through a socket."""
    decoder = Decoder()
    decoder.feed(encode(message.fields()))
    (frame,) = decoder.frames()
    return frame.fields


@pytest.mark.parametrize(("message", "parse"), SENT)
def test_it_comes_back_as_it_was_said(message: Any, parse: Callable[[Any], Any]) -> None:
    assert parse(received(message)) == message


@pytest.mark.parametrize(("message", "parse"), SENT)
@pytest.mark.parametrize("wrong", [None, True, b"bytes", {"a": 1}, [None], [[]]])
def test_a_field_of_another_type(message: Any, parse: Callable[[Any], Any], wrong: object) -> None:
    fields = received(message)
    for key in fields:
        if (key in _OPTIONAL and wrong is None) or (key == "probabilities" and type(wrong) is list):
            continue  # there is none; and the canary is what judges rows, not their type
        with pytest.raises(BadRequest):
            parse({**fields, key: wrong})


@pytest.mark.parametrize(("message", "parse"), SENT)
def test_a_field_that_is_missing(message: Any, parse: Callable[[Any], Any]) -> None:
    fields = received(message)
    for key in fields.keys() - _OPTIONAL:
        with pytest.raises(BadRequest):
            parse({name: value for name, value in fields.items() if name != key})


def test_a_whole_number_of_seconds() -> None:
    fields = Order(id=1, size=2, threads=3, limits=LIMITS).fields()
    assert Order.parse({**fields, "max_decode": 8}).limits == LIMITS


@pytest.mark.parametrize(
    "fields", [{"op": "load"}, {"op": "fork", "worker": 1}, {"op": "sing"}, {}], ids=repr
)
def test_a_forkserver_ends_on_what_no_front_says(fields: dict[str, object]) -> None:
    """As on any defect: with a traceback for the log. (A fork needs a socket to go with it.)"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-c"),
                "import os, sys; sys.argv[1:1] = [str(os.getppid())];"
                "from swiprd.inference.forkserver import main; main()",
                str(theirs.fileno()),
            ],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        try:
            ours.sendall(encode(fields))
            _, told = process.communicate(timeout=30)
            assert b"BadRequest" in told
            assert process.returncode not in (0, -signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
