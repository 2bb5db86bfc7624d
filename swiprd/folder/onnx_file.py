"""What is in an ONNX file, read before anything that runs it may open it. Standard library only.

An ONNX file is one protobuf message. ONNX Runtime believes what it says: other files to read
tensors from, operators of other libraries. Here its fields are walked, and what a classifier needs
is looked at; tensors are skipped over. What is not fit to be served is refused with what to do.
The numbers of the fields are those of onnx.proto3, which never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import mmap

MOST = 2 << 30
"""Bytes of a file: protobuf's own limit."""

STANDARD = ("", "ai.onnx", "ai.onnx.ml")
"""Domains whose operators are defined by the standard. Those of ONNX Runtime itself, com.microsoft,
are not among them: it may change them from one release to the next."""

_DEEPEST = 24  # levels of messages; a subgraph takes three
_MOST_FIELDS = 4_000_000  # some 5 seconds; a network of 3,000 operators has 50,000
_MOST_TEXT = 4 << 20  # bytes of a name, or of a value of the metadata
_MOST_SHOWN = 4  # operators in an error
_LARGEST = 1 << 40  # values of a tensor
_EXTERNAL = 1  # TensorProto.DataLocation
_DAMAGED = "truncated or damaged, or no ONNX file: fetch or export it again"

_VARINT, _BYTES = 0, 2  # how fields are written
_FIXED = {1: 8, 5: 4}  # and those of a fixed length, in bytes


class BadOnnx(Exception):
    """Not an ONNX file that may be opened; the text says why, and what to do."""


@dataclass(kw_only=True)
class OnnxFile:
    """What was found.

    Attributes:
        metadata: what its maker has put beside the network, as texts.
        producer: the name and version of the program that wrote it.
        parameters: values of all tensors in the file together.
        makers: for each value of the main graph, the operator that makes it, and what that takes.
            An operator that is not the standard's has its domain before it: "own.Softmax".
        external: names of the files that tensors are in; none where all are in this one.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    producer: str = ""
    parameters: int = 0
    makers: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    external: set[str] = field(default_factory=set)


def inspect(data: bytes | mmap) -> OnnxFile:
    """Walk a file's fields.

    Raises:
        BadOnnx: it is damaged, too large, or nested too deeply; or it has operators of other
            domains than the standard's and its own functions.
    """
    if len(data) > MOST:
        raise BadOnnx(f"{len(data)} bytes, where ONNX files have {MOST} at most")
    walk = _Walk(data)
    walk.model()
    strange = sorted(
        f"{domain}.{name}"
        for domain, name in walk.operators
        if domain not in STANDARD and (domain, name) not in walk.functions
    )
    if strange:
        more = ", …" if len(strange) > _MOST_SHOWN else ""
        raise BadOnnx(
            f"has operators that the ONNX standard has not: {', '.join(strange[:_MOST_SHOWN])}"
            f"{more}. Export the network again with standard operators alone, not optimised or"
            " quantised for one runtime"
        )
    walk.name_makers()
    if not walk.graphs:
        raise BadOnnx("not an ONNX file: there is no graph in it")
    return walk.found


class _Walk:
    """One way through a file: what was found is kept here."""

    def __init__(self, data: bytes | mmap) -> None:
        self._data = data
        self._left = _MOST_FIELDS
        self.found = OnnxFile()
        self.graphs = 0
        self.operators: set[tuple[str, str]] = set()
        self.functions: set[tuple[str, str]] = set()
        self._makers: dict[str, tuple[str, str, list[str]]] = {}

    def name_makers(self) -> None:
        """Name what makes each value, once all functions are known: they may come last."""
        for value, (domain, name, takes) in self._makers.items():
            own = {(domain, name), ("", name), ("ai.onnx", name)} & self.functions
            standard = domain in ("", "ai.onnx") and not own
            self.found.makers[value] = (name if standard else f"{domain}.{name}", takes)

    def model(self) -> None:
        names = ["", ""]
        for number, value in self._fields((0, len(self._data)), 0):
            match number, value:
                case ((2 | 3), (_, _)):  # producer_name, producer_version
                    names[number - 2] = self._text(value)
                case 7, (_, _):  # graph
                    self.graphs += 1
                    self._graph(value, 1, main=True)
                case 14, (_, _):  # metadata_props
                    key, text = self._pair(value, 1)
                    self.found.metadata[key] = text
                case 20, (_, _):  # training_info: an initialization and an algorithm
                    for part, graph in self._fields(value, 1):
                        if part in (1, 2) and isinstance(graph, tuple):
                            self._graph(graph, 2)
                case 25, (_, _):  # functions
                    self._function(value, 1)
        self.found.producer = " ".join(filter(None, names))

    def _graph(self, span: tuple[int, int], depth: int, *, main: bool = False) -> None:
        for number, value in self._fields(span, depth):
            match number, value:
                case 1, (_, _):  # node
                    self._node(value, depth + 1, main=main)
                case 5, (_, _):  # initializer
                    self._tensor(value, depth + 1)
                case 15, (_, _):  # sparse_initializer
                    self._sparse(value, depth + 1)

    def _function(self, span: tuple[int, int], depth: int) -> None:
        name = domain = ""
        for number, value in self._fields(span, depth):
            match number, value:
                case 1, (_, _):
                    name = self._text(value)
                case 10, (_, _):
                    domain = self._text(value)
                case 7, (_, _):  # node
                    self._node(value, depth + 1)
                case 11, (_, _):  # attribute_proto
                    self._attribute(value, depth + 1)
        self.functions.add((domain, name))

    def _node(self, span: tuple[int, int], depth: int, *, main: bool = False) -> None:
        name = domain = ""
        takes, gives = [], []
        for number, value in self._fields(span, depth):
            match number, value:
                case 1, (_, _):
                    takes.append(self._text(value))
                case 2, (_, _):
                    gives.append(self._text(value))
                case 4, (_, _):
                    name = self._text(value)
                case 7, (_, _):
                    domain = self._text(value)
                case 5, (_, _):
                    self._attribute(value, depth + 1)
        self.operators.add((domain, name))
        if main:
            self._makers.update(dict.fromkeys(gives, (domain, name, takes)))

    def _attribute(self, span: tuple[int, int], depth: int) -> None:
        for number, value in self._fields(span, depth):
            match number, value:
                case ((5 | 10), (_, _)):  # a tensor, or several
                    self._tensor(value, depth + 1)
                case ((6 | 11), (_, _)):  # a subgraph, or several
                    self._graph(value, depth + 1)
                case ((22 | 23), (_, _)):
                    self._sparse(value, depth + 1)

    def _sparse(self, span: tuple[int, int], depth: int) -> None:
        for number, value in self._fields(span, depth):
            if number in (1, 2) and isinstance(value, tuple):  # values and indices
                self._tensor(value, depth + 1)

    def _tensor(self, span: tuple[int, int], depth: int) -> None:
        size = 1
        external = False
        name = ""
        for number, value in self._fields(span, depth):
            match number, value:
                case 1, int():  # dims, one by one
                    size *= self._dimension(value)
                case 1, (position, end):  # and all in one
                    while position < end:
                        dimension, position = self._varint(position, end)
                        size *= self._dimension(dimension)
                        self._count()
                case 13, (_, _):  # external_data
                    external = True
                    key, text = self._pair(value, depth + 1)
                    if key == "location":
                        name = text
                case 14, int():  # data_location
                    # An enumeration: protobuf reads 32 bits of it, whatever is written.
                    external = external or value & 0xFFFFFFFF == _EXTERNAL
            if size > _LARGEST:
                raise BadOnnx("damaged: it claims a tensor that no memory can hold")
        self.found.parameters += size
        if external:
            self.found.external.add(name)

    @staticmethod
    def _dimension(value: int) -> int:
        if value >> 63:
            raise BadOnnx("damaged: it has a tensor with a negative size")
        return value

    def _pair(self, span: tuple[int, int], depth: int) -> tuple[str, str]:
        """Read a StringStringEntryProto."""
        texts = ["", ""]
        for number, value in self._fields(span, depth):
            if number in (1, 2) and isinstance(value, tuple):
                texts[number - 1] = self._text(value)
        return texts[0], texts[1]

    def _text(self, span: tuple[int, int]) -> str:
        start, end = span
        if end - start > _MOST_TEXT:
            raise BadOnnx(f"damaged: a name of {end - start} bytes")
        return self._data[start:end].decode(errors="replace")

    # --- protobuf's wire format

    def _fields(
        self, span: tuple[int, int], depth: int
    ) -> Iterator[tuple[int, int | tuple[int, int] | None]]:
        """Yield a message's fields: the number, and a whole number or where the bytes lie.

        None stands for what has a fixed length, of which nothing here is made: what is read
        elsewhere as bytes, and not here, must not take the place of the bytes.
        """
        if depth > _DEEPEST:
            raise BadOnnx(f"its graphs are nested more than {_DEEPEST} levels deep")
        position, end = span
        while position < end:
            self._count()
            tag, position = self._varint(position, end)
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, position = self._varint(position, end)
                yield number, value
                continue
            if kind == _BYTES:
                size, position = self._varint(position, end)
            elif kind in _FIXED:
                size = _FIXED[kind]
            else:
                raise BadOnnx(_DAMAGED)
            if size > end - position:
                raise BadOnnx(_DAMAGED)
            yield number, (position, position + size) if kind == _BYTES else None
            position += size

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 70:
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1, position
            shift += 7
        raise BadOnnx(_DAMAGED)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise BadOnnx(f"more than {_MOST_FIELDS} fields: no network of any sense has so many")
