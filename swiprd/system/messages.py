"""What front, forkserver and worker say to each other, as types. Pure.

Each message is a frame of the wire (swiprctl.protocol). It is parsed where it arrives, and nowhere
else; a malformed message is a defect of the process that sent it. Descriptors travel beside.

From the front to the forkserver: `Load` (answered by `Loaded` or `Failed`), and `Fork` with the
worker's end of a socketpair (answered by `Forked` with a pidfd, or by `NotForked`). `Exited` comes
unasked. From the front to a worker: `Order` with an image, answered by the wire's `Reply`, whose
fields are a `Row` or an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from swiprctl.errors import BadRequest, SwiprError
from swiprd.system.image_formats import FORMATS

Fields = Mapping[str, object]

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Load:
    """The front has the forkserver import torch and load the model.

    Attributes:
        folder: the model's.
        device: "auto", "cpu" or "cuda".
        memory: bytes that each worker may allocate on top of what it begins with; None: no bound.
        engine: "auto", "torch" or "onnx"; "auto" leaves it to model.toml.
        compiled: the directory in which the daemon keeps a compiled form of this model, if it has
            made any; empty where it keeps none.
    """

    folder: str
    device: str
    memory: int | None
    engine: str = "auto"
    compiled: str = ""

    def fields(self) -> dict[str, object]:
        """The frame's map."""
        return {"op": "load", **vars(self)}

    @classmethod
    def parse(cls, fields: Fields) -> Load:
        """Read a frame's map."""
        return cls(
            folder=_get(fields, "folder", str),
            device=_get(fields, "device", str),
            memory=None if fields.get("memory") is None else _get(fields, "memory", int),
            engine=_get(fields, "engine", str),
            compiled=_get(fields, "compiled", str),
        )


@dataclass(frozen=True, kw_only=True)
class Fork:
    """The front has the forkserver fork a worker, which gets the socket that comes along.

    Attributes:
        worker: its number.
    """

    worker: int

    def fields(self) -> dict[str, object]:
        """The frame's map."""
        return {"op": "fork", **vars(self)}

    @classmethod
    def parse(cls, fields: Fields) -> Fork:
        """Read a frame's map."""
        return cls(worker=_get(fields, "worker", int))


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The forkserver has loaded the model, and says what it is.

    Attributes:
        labels: one for each output, in their order.
        model: its id: the name, and a digest of what decides the answers; see `model_id.identify`.
        versions: of everything that has a say in the last digits of an answer: of torch,
            torchvision and, where the model is of timm, timm; or of onnxruntime; of Pillow, numpy
            and Python.
        device: where the workers run it: "cpu" or "cuda".
        engine: what runs it: "torch" or "onnx".
        difference: the largest by which a probability of the compiled form was seen to differ from
            torch's when it was proven; None where torch runs it.
        engine_note: why it is not the compiled form, where that was possible; else empty.
        formats: names of those of images for which decoders are installed.
    """

    labels: tuple[str, ...]
    model: str
    versions: dict[str, str]
    device: str
    engine: str = "torch"
    difference: float | None = None
    engine_note: str = ""
    formats: tuple[str, ...] = FORMATS

    def fields(self) -> dict[str, object]:
        """The frame's map."""
        return {"event": "loaded", **vars(self)}

    @classmethod
    def parse(cls, fields: Fields) -> Loaded:
        """Read a frame's map."""
        versions: dict[str, object] = _get(fields, "versions", dict)
        return cls(
            labels=_texts(fields, "labels"),
            model=_get(fields, "model", str),
            versions={name: _is(one, "versions", str) for name, one in versions.items()},
            device=_get(fields, "device", str),
            engine=_get(fields, "engine", str),
            difference=None
            if fields.get("difference") is None
            else _get(fields, "difference", float),
            engine_note=_get(fields, "engine_note", str),
            formats=_texts(fields, "formats"),
        )


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The forkserver cannot load the model.

    Attributes:
        reason: for the model's owner to read.
    """

    reason: str

    def fields(self) -> dict[str, object]:
        """The frame's map."""
        return {"event": "failed", **vars(self)}

    @classmethod
    def parse(cls, fields: Fields) -> Failed:
        """Read a frame's map."""
        return cls(reason=_get(fields, "reason", str))


@dataclass(frozen=True, kw_only=True)
class Forked:
    """The forkserver has forked a worker, whose pidfd comes along.

    Attributes:
        worker: its number.
    """

    worker: int
    pid: int

    def fields(self) -> dict[str, object]:
        """The frame's map."""
        return {"event": "forked", **vars(self)}

    @classmethod
    def parse(cls, fields: Fields) -> Forked:
        """Read a frame's map."""
        return cls(worker=_get(fields, "worker", int), pid=_get(fields, "pid", int))


@dataclass(frozen=True, kw_only=True)
class NotForked:
    """The host lets the forkserver have no more processes just now.

    Attributes:
        worker: the number of the worker that was ordered.
        reason: for people.
    """

    worker: int
    reason: str

    def fields(self) -> dict[str, object]:
        """The frame's map: another form of the answer to `Fork`."""
        return {"event": "forked", **vars(self)}

    @classmethod
    def parse(cls, fields: Fields) -> NotForked:
        """Read a frame's map."""
        return cls(worker=_get(fields, "worker", int), reason=_get(fields, "reason", str))


@dataclass(frozen=True, kw_only=True)
class Exited:
    """The forkserver has reaped a worker.

    Attributes:
        worker: its number.
        status: as of waitpid(2).
    """

    worker: int
    status: int

    def fields(self) -> dict[str, object]:
        """The frame's map."""
        return {"event": "exited", **vars(self)}

    @classmethod
    def parse(cls, fields: Fields) -> Exited:
        """Read a frame's map."""
        return cls(worker=_get(fields, "worker", int), status=_get(fields, "status", int))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an image may cost, and be.

    Attributes:
        max_bytes, max_pixels: of the image.
        max_decode: seconds of processor time that its decoder may take.
        formats: names of those that are decoded.
    """

    max_bytes: int
    max_pixels: int
    max_decode: float
    formats: tuple[str, ...] = FORMATS


@dataclass(frozen=True, kw_only=True)
class Order:
    """The front has a worker answer an image, whose descriptor comes along.

    Attributes:
        id: of the image's job; the answer carries it.
        size: images of the batch; so many orders come in a row.
        threads: that the batch runs on.
        limits: those of this image.
    """

    id: int
    size: int
    threads: int
    limits: Limits

    def fields(self) -> dict[str, object]:
        """The frame's map."""
        head = {"id": self.id, "size": self.size, "threads": self.threads}
        return {**head, **vars(self.limits), "formats": list(self.limits.formats)}

    @classmethod
    def parse(cls, fields: Fields) -> Order:
        """Read a frame's map."""
        return cls(
            id=_get(fields, "id", int),
            size=_get(fields, "size", int),
            threads=_get(fields, "threads", int),
            limits=Limits(
                max_bytes=_get(fields, "max_bytes", int),
                max_pixels=_get(fields, "max_pixels", int),
                max_decode=_seconds(fields, "max_decode"),
                formats=_texts(fields, "formats"),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A worker has answered an image.

    Attributes:
        probabilities: one for each label, in their order.
        decode: seconds from the descriptor to the crops.
        infer: seconds of the forward pass: an equal share of its batch's.
    """

    probabilities: list[float]
    decode: float
    infer: float

    def fields(self) -> dict[str, object]:
        """The fields of the reply."""
        return dict(vars(self))

    @classmethod
    def parse(cls, fields: Fields) -> Row:
        """Read the fields of a reply."""
        return cls(
            probabilities=_get(fields, "probabilities", list),
            decode=_seconds(fields, "decode"),
            infer=_seconds(fields, "infer"),
        )


Answer = Row | SwiprError
"""What a worker makes of an image."""

Report = Loaded | Failed | Forked | NotForked | Exited
"""What the forkserver says."""


def parse_command(fields: Fields) -> Load | Fork:
    """Read what the front says to the forkserver.

    Raises:
        BadRequest: it is malformed.
    """
    match fields.get("op"):
        case "load":
            return Load.parse(fields)
        case "fork":
            return Fork.parse(fields)
    raise BadRequest(f"the front sent {fields}")


def parse_report(fields: Fields) -> Report:
    """Read what the forkserver says to the front.

    Raises:
        BadRequest: it is malformed.
    """
    match fields.get("event"):
        case "loaded":
            return Loaded.parse(fields)
        case "failed":
            return Failed.parse(fields)
        case "forked":
            return NotForked.parse(fields) if "reason" in fields else Forked.parse(fields)
        case "exited":
            return Exited.parse(fields)
    raise BadRequest(f"the forkserver sent {fields}")


def _get(fields: Fields, key: str, kind: type[_T]) -> _T:
    return _is(fields.get(key), key, kind)


def _texts(fields: Fields, key: str) -> tuple[str, ...]:
    found: list[object] = _get(fields, key, list)
    return tuple(_is(one, key, str) for one in found)


def _seconds(fields: Fields, key: str) -> float:
    value = fields.get(key)
    return value if isinstance(value, float) else _get(fields, key, int)


def _is(value: object, key: str, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRequest(f"{key}: expected {kind.__name__}, found {type(value).__name__}")
    return value
