"""The wire: frames of msgpack on a stream, bytes in and messages out.

A frame is a 4-byte big-endian length and that many bytes holding one msgpack map. A request is
`{id, op, …}`; its reply `{id, ok: true, …}` or `{id, ok: false, error: {code, message,
retry_after?}}`. Replies may come in any order.

A descriptor travels as SCM_RIGHTS on the first byte of its frame, at most one a frame, and each
frame that carries one is sent by a sendmsg(2) of its own. Linux ends a recvmsg(2) behind the
segment that carried descriptors, so on the receiving side a descriptor belongs to the last frame
that begins in the bytes it arrived with. That is all the bookkeeping there is.

This module touches no socket, clock or log, and imports neither dataclasses (9 ms) nor typing.
"""

from __future__ import annotations

import struct
from collections import deque

import msgpack

from swiprctl.errors import BadRequest, SwiprError, TryLater, from_wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_FRAME = 64 << 20  # bytes of a frame's payload; what goes as a descriptor has no such limit
MAX_REPLY = 1 << 20  # bytes of a reply's payload: 1,000 classes take 9 kB, a status less than that
DEFAULT_TIMEOUT = 10.0  # seconds a request has, unless it says otherwise
MAX_TIMEOUT = 3600.0  # seconds a request may ask for. More than an hour is a client's mistake

MAX_ITEMS = 1 << 17
"""Things in the lists and maps of a frame; a row and its labels need one a class. No limit on
bytes is one on memory or time: 64 MiB of empty maps take 11 s to decode and become 4.7 GB."""

OPS = frozenset({"predict", "model", "status", "ping", "reload", "stop"})

_HEADER = struct.Struct(">I")
_MAX_ID = 2**63 - 1
_MAX_MODEL_ID = 256  # characters; name and digest, where names have 64 at most


class Frame:
    """One decoded frame: its map, and the attachment that was fed with it, if any: a descriptor,
    or an object that stands for it."""

    __slots__ = ("attachment", "fields")

    def __init__(self, fields: dict[str, object], attachment: Any) -> None:
        self.fields = fields
        self.attachment = attachment


class Request:
    """What a client asks. `timeout` is seconds, None where the client leaves it to the daemon.

    Attributes:
        labels: those of the model that answers are wanted, unless it has this id; None: no.
        alive: signs of life are wanted: replies without an id, but with a map `alive` that holds
            `state` and `reason`, now and then while an answer takes its time.
    """

    __slots__ = ("alive", "id", "image", "labels", "op", "timeout")

    def __init__(
        self, id: int, op: str, timeout: float | None = None, image: bytes | None = None
    ) -> None:
        self.id = id
        self.op = op
        self.timeout = timeout
        self.image = image
        self.labels: str | None = None
        self.alive: bool | None = None

    def encode(self) -> bytes:
        """Make the frame."""
        fields: dict[str, object] = {"id": self.id, "op": self.op}
        for name in ("timeout", "image", "labels", "alive"):
            if (value := getattr(self, name)) is not None:
                fields[name] = value
        return encode(fields)

    @classmethod
    def parse(cls, fields: dict[str, object]) -> Request:
        """Validate a frame's map. Unknown keys are ignored, so that old daemons serve new clients.

        Raises:
            BadRequest: a key is missing or has the wrong type; the message names it.
        """
        op = fields.get("op")
        if not isinstance(op, str) or op not in OPS:
            raise _wrong("op", f"one of {', '.join(sorted(OPS))}", op)
        timeout = fields.get("timeout")
        if timeout is not None and (
            isinstance(timeout, bool)
            or not isinstance(timeout, int | float)
            or not 0 < timeout <= MAX_TIMEOUT
        ):
            raise _wrong("timeout", f"seconds above 0, at most {MAX_TIMEOUT:.0f}", timeout)
        image = fields.get("image")
        if image is not None and not isinstance(image, bytes):
            raise _wrong("image", "bytes", image)
        labels = fields.get("labels")
        if labels is not None and not (isinstance(labels, str) and len(labels) <= _MAX_MODEL_ID):
            raise _wrong("labels", "a model's id", labels)
        request = cls(request_id(fields), op, timeout, image)
        request.labels = labels
        request.alive = fields.get("alive") is True
        return request


class Reply:
    """What the daemon answers: either `fields`, or an `error`."""

    __slots__ = ("error", "fields", "id")

    def __init__(
        self, id: int | None, fields: dict[str, object] | None, error: SwiprError | None = None
    ) -> None:
        self.id = id
        self.fields = {} if fields is None else fields
        self.error = error

    def encode(self) -> bytes:
        """Make the frame."""
        if self.error is None:
            return encode({**self.fields, "id": self.id, "ok": True})
        return encode({"id": self.id, "ok": False, "error": error_fields(self.error)})

    @classmethod
    def parse(cls, fields: dict[str, object]) -> Reply:
        """Validate a frame's map. An id of None answers something that could not be read.

        Raises:
            BadRequest: this is not a reply.
        """
        id = None if fields.get("id") is None else request_id(fields)
        ok = fields.get("ok")
        if ok is True:
            return cls(id, fields)
        if ok is not False:
            raise BadRequest("the daemon's reply has neither a result nor an error")
        return cls(id, None, parse_error(fields.get("error")))


class Decoder:
    """Turn bytes, as they arrive, into frames. `feed()` them, then drain `frames()`.

    Holds at most one frame's announced length and what came behind it in the same read; a frame
    over the limit is refused when its header is read, before it is buffered.

    Args:
        limit: bytes of a frame's payload.
        items: things in its lists and maps, all together.
    """

    def __init__(self, limit: int = MAX_FRAME, items: int = MAX_ITEMS) -> None:
        self._limit = limit
        self._items = items
        self._buffer = bytearray()
        self._begin = 0  # offset in the stream of the buffer's first byte: always a frame's start
        self._attachments: deque[tuple[int, int, Any]] = deque()  # each arrived in [a, b)

    @property
    def mid_frame(self) -> bool:
        """Whether a part of a frame is waiting for the rest."""
        return bool(self._buffer)

    @property
    def announced(self) -> int:
        """Bytes that the frame being read says it has, its header included; 0 between frames."""
        if len(self._buffer) < _HEADER.size:
            return len(self._buffer)
        return _HEADER.size + int(_HEADER.unpack_from(self._buffer)[0])

    def feed(self, data: bytes, attachment: Any = None) -> None:
        """Take what one recvmsg(2) gave. The decoder holds the attachment until it hands it out."""
        if attachment is not None:
            a = self._begin + len(self._buffer)
            self._attachments.append((a, a + len(data), attachment))
        self._buffer += data

    def frames(self) -> Iterator[Frame]:
        """Yield the frames that are complete; the buffer keeps the rest.

        Raises:
            BadRequest: a frame is over the limit or not a msgpack map with text keys, or a
                descriptor came where no frame begins. The stream cannot be read any further.
        """
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > self._limit:
                raise BadRequest(f"a frame of {length} bytes: the limit is {self._limit}")
            size = _HEADER.size + length
            if len(self._buffer) < size:
                break
            with memoryview(self._buffer) as view, view[_HEADER.size : size] as payload:
                fields = _unpack(payload, self._items)
            attachment = self._claim(self._begin + size)
            del self._buffer[:size]
            self._begin += size
            yield Frame(fields, attachment)
        for a, _, _ in self._attachments:
            if self._begin < a:
                raise BadRequest("a descriptor came in the middle of a frame")

    def abandon(self) -> list[Any]:
        """End: drop what is buffered, give back the attachments that came with it, to be closed."""
        left = [attachment for _, _, attachment in self._attachments]
        self._attachments.clear()
        self._buffer = bytearray()  # a reference to this object must not keep 64 MiB alive
        return left

    def _claim(self, end: int) -> Any:
        """The attachment of the frame that begins the buffer and ends at `end` in the stream."""
        if not self._attachments:
            return None
        a, b, _ = self._attachments[0]
        if end < b:
            return None  # another frame begins in the same bytes, behind this one
        if self._begin < a:
            raise BadRequest("a descriptor came in the middle of a frame")
        if len(self._attachments) > 1 and self._attachments[1][1] <= end:
            raise BadRequest("a second descriptor came in the middle of a frame")
        return self._attachments.popleft()[2]


def encode(fields: dict[str, object]) -> bytes:
    """Make a frame of a map.

    Raises:
        BadRequest: it is over the limit of a frame.
    """
    payload = msgpack.packb(fields, use_bin_type=True)
    if len(payload) > MAX_FRAME:
        raise BadRequest(f"a frame of {len(payload)} bytes: the limit is {MAX_FRAME}")
    return _HEADER.pack(len(payload)) + bytes(payload)


def error_fields(error: SwiprError) -> dict[str, object]:
    """Make the map that stands for an error on the wire."""
    fields: dict[str, object] = {"code": error.code, "message": str(error)}
    if isinstance(error, TryLater) and error.retry_after is not None:
        fields["retry_after"] = error.retry_after
    return fields


def parse_error(fields: object) -> SwiprError:
    """Make the exception that such a map stands for.

    Raises:
        BadRequest: it is no such map.
    """
    if not isinstance(fields, dict):
        raise BadRequest("the daemon's reply has neither a result nor an error")
    code, message, retry_after = (fields.get(k) for k in ("code", "message", "retry_after"))
    if not isinstance(code, str) or not isinstance(message, str):
        raise BadRequest("the daemon's error has no code or no message")
    if isinstance(retry_after, bool) or not isinstance(retry_after, int | float):
        retry_after = None
    return from_wire(code, message, retry_after)


def request_id(fields: dict[str, object]) -> int:
    """Read the id of a request or a reply.

    Raises:
        BadRequest: it is not a whole number from 0 to 2^63 - 1.
    """
    id = fields.get("id")
    if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id <= _MAX_ID:
        raise _wrong("id", "a whole number from 0 to 2^63 - 1", id)
    return id


def _unpack(payload: memoryview, items: int) -> dict[str, object]:
    def count(container: list[object] | dict[str, object]) -> object:
        nonlocal items
        items -= 1 + len(container)
        if items < 0:
            raise ValueError("too many items")
        return container

    try:
        fields = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_ext,
            # The counts are checked before the room is made, the hooks see what is complete.
            max_array_len=items,
            max_map_len=items,
            object_hook=count,
            list_hook=count,
        )
    except Exception as error:  # msgpack documents no bound on what bad input makes it raise
        raise BadRequest(f"a frame that is not msgpack: {type(error).__name__}") from error
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise BadRequest("a frame that is not a msgpack map with text keys")
    return fields


def _refuse_ext(code: int, _data: bytes) -> object:
    raise ValueError(f"msgpack extension type {code}")


def _wrong(key: str, expected: str, found: object) -> BadRequest:
    """Say what is wrong. The value comes from a peer: only scalars are shown, and cut short."""
    shown = type(found).__name__
    if found is None:
        shown = "nothing"
    elif isinstance(found, str):
        shown = ascii(found[:40])
    elif isinstance(found, int | float):
        shown = repr(found)[:40]
    return BadRequest(f"{key}: expected {expected}, found {shown}")
