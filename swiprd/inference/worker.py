"""One process that may be killed at any moment: descriptors in, probabilities out.

It has the front's end of a socketpair and nothing else: it opens no path, keeps no state between
jobs and leaves on EOF. Everything that parses pixels from outside runs here. Its own faults end
it, with a traceback for the log: the front gives its jobs to another worker.

A batch comes as so many orders in a row (swiprd.system.messages), each of which is answered by its
id. An image whose decoder takes more than `max_decode` seconds of processor time ends the process:
by SIGPROF, which nobody handles, as no handler would run while a decoder does.

Knows no library that runs models: what it inherits is an engine.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import numpy as np

from swiprctl.errors import BadRequest, SwiprError, TooLarge
from swiprctl.protocol import Decoder, Reply
from swiprd.inference import decode
from swiprd.inference.decode_limits import processor_time
from swiprd.inference.engine import Engine
from swiprd.system.imagefile import read_image_bytes
from swiprd.system.messages import Limits, Order, Row


def serve(front: socket.socket, engine: Engine, device: str) -> None:
    """Answer jobs until the front closes its end."""
    engine = engine.to_device(device)
    received = _receive(front)
    for first in received:
        order, _ = first
        engine.set_threads(order.threads)
        batch = [first, *(next(received) for _ in range(order.size - 1))]
        for reply in _answer(batch, engine):
            front.sendall(reply.encode())


def _receive(front: socket.socket) -> Iterator[tuple[Order, int]]:
    """Yield each order, and the image's descriptor."""
    decoder = Decoder()
    while True:
        data, descriptors, _, _ = socket.recv_fds(front, 1 << 16, 1)
        if not data:
            return
        decoder.feed(data, descriptors[0] if descriptors else None)
        for frame in decoder.frames():
            if frame.attachment is None:
                raise BadRequest("the front sent an order without an image")
            yield Order.parse(frame.fields), frame.attachment


def _answer(batch: list[tuple[Order, int]], engine: Engine) -> Iterator[Reply]:
    """Decode each, answer those that fail, run the rest through the model as one."""
    decoded, waiting = [], []
    for order, descriptor in batch:
        begun = time.monotonic()
        try:
            crops = _decode(descriptor, order.limits, engine)
        except SwiprError as error:
            yield Reply(order.id, None, error)
            continue
        decoded.append(crops)
        waiting.append((order.id, time.monotonic() - begun))
    if not decoded:
        return
    begun = time.monotonic()
    rows = engine.probabilities(np.stack(decoded)).tolist()
    infer = (time.monotonic() - begun) / len(rows)
    for (order_id, spent), row in zip(waiting, rows, strict=True):
        yield Reply(order_id, Row(probabilities=row, decode=spent, infer=infer).fields())


def _decode(descriptor: int, limits: Limits, engine: Engine) -> np.ndarray:
    """Read and decode an image, and close its descriptor.

    Raises:
        BadImage, TooLarge: as decode.py says.
    """
    try:
        data = read_image_bytes(descriptor, limits.max_bytes)
    finally:
        os.close(descriptor)
    try:
        with processor_time(limits.max_decode):
            recipe = engine.spec.preprocess
            return decode.decode(data, recipe, limits.max_pixels, limits.formats)
    except MemoryError:
        raise TooLarge("the image needs more memory than there is") from None
