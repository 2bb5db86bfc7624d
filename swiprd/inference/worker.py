"""One process that may be killed at any moment: descriptors in, probabilities out.

It has the front's end of a socketpair and nothing else: it opens no path, keeps no state between
jobs and leaves on EOF. Everything that parses pixels from outside runs here. Its own faults end
it, with a traceback for the log: the front gives its jobs to another worker.

A batch comes as `size` frames in a row:
    {id, size, threads, max_bytes, max_pixels, max_decode} + descriptor
Each is answered by its id: {ok, probabilities, decode, infer} or an error of the wire. One whose
decoder takes more than `max_decode` seconds of processor time ends the process: by SIGPROF, which
nobody handles, as no handler would run while a decoder does.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import torch

from swiprctl.errors import SwiprError, TooLarge
from swiprctl.protocol import Decoder, Frame, Reply
from swiprd.inference import decode, model
from swiprd.inference.model import LoadedModel
from swiprd.system.imagefile import read_image_bytes


def serve(front: socket.socket, loaded: LoadedModel, device: str) -> None:
    """Answer jobs until the front closes its end."""
    loaded = model.to_device(loaded, device)
    frames = _receive(front)
    for first in frames:
        order: Any = first.fields
        torch.set_num_threads(order["threads"])
        batch = [first, *(next(frames) for _ in range(order["size"] - 1))]
        for reply in _answer(batch, loaded):
            front.sendall(reply.encode())


def _receive(front: socket.socket) -> Iterator[Frame]:
    decoder = Decoder()
    while True:
        data, descriptors, _, _ = socket.recv_fds(front, 1 << 16, 1)
        if not data:
            return
        decoder.feed(data, descriptors[0] if descriptors else None)
        yield from decoder.frames()


def _answer(batch: list[Frame], loaded: LoadedModel) -> Iterator[Reply]:
    """Decode each, answer those that fail, run the rest through the model as one."""
    tensors, waiting = [], []
    for frame in batch:
        job: Any = frame.fields
        begun = time.monotonic()
        try:
            tensor = _decode(frame, loaded)
        except SwiprError as error:
            yield Reply(job["id"], None, error)
            continue
        tensors.append(tensor)
        waiting.append((job["id"], time.monotonic() - begun))
    if not tensors:
        return
    begun = time.monotonic()
    rows = model.probabilities(loaded, torch.stack(tensors)).tolist()
    infer = (time.monotonic() - begun) / len(rows)
    for (job_id, spent), row in zip(waiting, rows, strict=True):
        yield Reply(job_id, {"probabilities": row, "decode": spent, "infer": infer})


def _decode(frame: Frame, loaded: LoadedModel) -> torch.Tensor:
    """Read and decode the descriptor of a job, and close it.

    Raises:
        BadImage, TooLarge: as decode.py says.
    """
    job: Any = frame.fields
    descriptor = frame.attachment
    assert descriptor is not None  # the front sends no job without one
    try:
        data = read_image_bytes(descriptor, job["max_bytes"])
    finally:
        os.close(descriptor)
    # Of this process alone, and of no wall clock: a host that is busy makes nobody hurry. The
    # deadline is kept from outside.
    signal.setitimer(signal.ITIMER_PROF, job["max_decode"])
    try:
        return decode.decode(data, loaded.spec.preprocess, job["max_pixels"])
    except MemoryError:
        raise TooLarge("the image needs more memory than there is") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
