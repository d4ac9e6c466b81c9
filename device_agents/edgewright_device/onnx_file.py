"""OnnxFile: what a provider must know of a model.onnx before it loads it, read without the onnx package.

A device has ONNX Runtime and not onnx. The file is in Protocol Buffers' wire format; of its messages the few
fields that matter are read, and all others skipped
(https://protobuf.dev/programming-guides/encoding/, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 21: "uint4"}
TYPES |= {10: "float16", 11: "float64", 22: "int4"}

Field = tuple[int, int | bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator: its name, what it reads and gives, and the attributes that are whole numbers."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A constant: its type ("other" if it is a rare one), its sizes, and whether all of it is 0.

    A constant whose bytes lie outside the file counts as not 0.
    """

    type: str
    sizes: tuple[int, ...]
    zero: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A graph.

    Attributes:
        nodes: In the file's order.
        constants: By name.
        inputs: Sizes of each input, by name; a free size has its name, an unnamed one "".
    """

    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    inputs: dict[str, tuple[int | str, ...]]


def read_onnx(data: bytes) -> OnnxFile:
    """Reads a file.

    Raises:
        ValueError: It is no ONNX file, or ends too early.
    """
    graphs = [value for key, value in _fields(data) if key == 7 and isinstance(value, bytes)]
    if len(graphs) != 1:
        raise ValueError("not an ONNX file: it has no graph")
    nodes, constants, inputs = [], {}, {}
    for key, value in _fields(graphs[0]):
        if not isinstance(value, bytes):
            continue
        if key == 1:
            nodes.append(_node(value))
        elif key == 5:
            name, constant = _constant(value)
            constants[name] = constant
        elif key == 11:
            name, sizes = _input(value)
            inputs[name] = sizes
    return OnnxFile(
        nodes=tuple(nodes),
        constants=constants,
        inputs={n: s for n, s in inputs.items() if n not in constants},
    )


def _node(data: bytes) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    numbers = {}
    for key, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if key in texts:
            texts[key].append(_text(value))
        elif key == 5:
            attribute = dict(_fields(value))
            name, number = attribute.get(1), attribute.get(3)
            if isinstance(name, bytes) and isinstance(number, int):
                numbers[_text(name)] = number
    return Node(
        name=_last(texts[3]),
        operator=_last(texts[4]),
        inputs=tuple(texts[1]),
        outputs=tuple(texts[2]),
        numbers=numbers,
    )


def _constant(data: bytes) -> tuple[str, Constant]:
    sizes: list[int] = []
    name, kind, outside, zero = "", 0, False, True
    for key, value in _fields(data):
        if key == 1:
            sizes += [value] if isinstance(value, int) else list(_varints(value))
        elif key == 2 and isinstance(value, int):
            kind = value
        elif key == 8 and isinstance(value, bytes):
            name = _text(value)
        elif key == 14:
            outside = value == 1
        elif key in {5, 7, 9}:  # int32_data, int64_data, raw_data
            zero &= not any(value) if isinstance(value, bytes) else not value
    return name, Constant(type=TYPES.get(kind, "other"), sizes=tuple(sizes), zero=zero and not outside)


def _input(data: bytes) -> tuple[str, tuple[int | str, ...]]:
    value = dict(_fields(data))
    name = value.get(1, b"")
    kind = _message(value.get(2))
    shape = _message(dict(_fields(_message(dict(_fields(kind)).get(1)))).get(2))
    sizes: list[int | str] = []
    for key, dim in _fields(shape):
        if key == 1 and isinstance(dim, bytes):
            known = dict(_fields(dim))
            size, free = known.get(1), known.get(2, b"")
            sizes.append(size if isinstance(size, int) else _text(_message(free)))
    return _text(_message(name)), tuple(sizes)


def _message(value: int | bytes | None) -> bytes:
    return value if isinstance(value, bytes) else b""


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _last(texts: list[str]) -> str:
    return texts[-1] if texts else ""


def _fields(data: bytes) -> Iterator[Field]:
    """The fields of a message: number and value, an integer or bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, place = _varint(data, place)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
            if kind == 2:
                size, place = _varint(data, place)
            if size < 0:
                raise ValueError(f"not an ONNX file: wire type {kind}")
            if size > len(data) - place:
                raise ValueError("the ONNX file ends too early")
            value, place = data[place : place + size], place + size
        yield tag >> 3, value


def _varints(data: bytes) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("the ONNX file ends too early")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
