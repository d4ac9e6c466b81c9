"""`plan.bin`: the reader and the writer of integer programs.

The byte layout is specified in docs/artifact-format.md, and read a second time, independently, by
kernels/src/plan.cpp. What a program means is in program.py, whose names this module hands on.
"""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Any

import numpy as np

from edgewright_kernels.check import MAX_RANK, check
from edgewright_kernels.errors import PlanError, UnsupportedError
from edgewright_kernels.program import (
    ARENA_ALIGNMENT,
    OP_KINDS,
    Add,
    AveragePool,
    ByteRange,
    Conv2d,
    Dequantize,
    DType,
    Flatten,
    FullyConnected,
    Int32Array,
    MaxPool,
    Op,
    Plan,
    Quantize,
    Requantize,
    Rescale,
    Tensor,
    Window,
    tensor_inputs,
)

__all__ = [
    "ARENA_ALIGNMENT",
    "HEADER",
    "MAGIC",
    "MAX_FILE_BYTES",
    "MAX_OPS",
    "MAX_PORTS",
    "MAX_RANGES",
    "MAX_TENSORS",
    "OP",
    "OP_KINDS",
    "RANGE",
    "TENSOR",
    "VERSION",
    "Add",
    "AveragePool",
    "ByteRange",
    "Conv2d",
    "DType",
    "Dequantize",
    "Flatten",
    "FullyConnected",
    "Int32Array",
    "MaxPool",
    "Op",
    "Plan",
    "Quantize",
    "Requantize",
    "Rescale",
    "Tensor",
    "Window",
    "check",
    "decode",
    "encode",
    "tensor_inputs",
]

MAGIC = b"EWPLAN\r\n"
VERSION = 1
HEADER = struct.Struct("<8sIIIIIIIIQQ8x")  # 64 bytes
TENSOR = struct.Struct("<BB2x6IfiQII")  # 52 bytes
RANGE = struct.Struct("<QQ")  # 16 bytes
OP = struct.Struct("<II")  # kind, number of int32 words that follow

MAX_FILE_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_OPS = 65_536
MAX_RANGES = 65_536
MAX_PORTS = 64

_DTYPES: tuple[DType, ...] = ("float32", "uint8")


def encode(plan: Plan) -> bytes:
    """Writes a plan as `plan.bin`.

    Raises:
        ValueError: The plan breaks a rule of the format.
    """
    try:
        check(plan)
    except PlanError as error:
        raise ValueError(str(error)) from None
    names = b""
    tensors = b""
    for tensor in plan.tensors:
        name = tensor.name.encode()
        dims = [*tensor.shape, *[0] * (MAX_RANK - len(tensor.shape))]
        tensors += TENSOR.pack(
            _DTYPES.index(tensor.dtype),
            len(tensor.shape),
            *dims,
            tensor.scale,
            tensor.zero_point,
            tensor.offset,
            len(names),
            len(name),
        )
        names += name
    ranges = b"".join(RANGE.pack(r.offset, r.size) for r in plan.ranges)
    ports = np.array([*plan.inputs, *plan.outputs], "<u4").tobytes()
    ops = b""
    for op in plan.ops:
        words = _op_words(op)
        ops += OP.pack(OP_KINDS.index(type(op)) + 1, len(words)) + words.astype("<i4").tobytes()
    body = tensors + ranges + ports + ops + names
    header = HEADER.pack(
        MAGIC,
        VERSION,
        HEADER.size + len(body),
        len(plan.tensors),
        len(plan.ranges),
        len(plan.ops),
        len(plan.inputs),
        len(plan.outputs),
        len(names),
        plan.arena_bytes,
        plan.weights_bytes,
    )
    return header + body


def decode(data: bytes) -> Plan:
    """Reads `plan.bin`. The bytes are untrusted.

    Raises:
        PlanError: The bytes are damaged; the message names the place.
        UnsupportedError: A version or an operator this reader does not know.
    """
    if len(data) < HEADER.size or data[:8] != MAGIC:
        raise PlanError("plan.bin: not a plan (its first eight bytes are not EWPLAN)")
    (_, version, file_bytes, n_tensors, n_ranges, n_ops, n_inputs, n_outputs, names_bytes, arena, weights) = (
        HEADER.unpack_from(data)
    )
    if version != VERSION:
        raise UnsupportedError(f"plan.bin: format version {version}; this engine reads version {VERSION}")
    if file_bytes != len(data) or len(data) > MAX_FILE_BYTES:
        raise PlanError(
            f"plan.bin: {len(data)} bytes, its header says {file_bytes} (at most {MAX_FILE_BYTES})"
        )
    for what, count, limit in (
        ("tensors", n_tensors, MAX_TENSORS),
        ("ranges", n_ranges, MAX_RANGES),
        ("operators", n_ops, MAX_OPS),
        ("inputs", n_inputs, MAX_PORTS),
        ("outputs", n_outputs, MAX_PORTS),
        ("name bytes", names_bytes, MAX_FILE_BYTES),
    ):
        if count > limit:
            raise PlanError(f"plan.bin: {count} {what}, at most {limit} are allowed")
    ranges_at = HEADER.size + n_tensors * TENSOR.size
    ports_at = ranges_at + n_ranges * RANGE.size
    ops_at = ports_at + 4 * (n_inputs + n_outputs)
    names_at = len(data) - names_bytes
    if ops_at > names_at:
        raise PlanError("plan.bin: its tables are larger than the file")
    names = data[names_at:]
    tensors = tuple(
        _tensor(i, TENSOR.unpack_from(data, HEADER.size + i * TENSOR.size), names) for i in range(n_tensors)
    )
    ranges = tuple(
        ByteRange(offset=offset, size=size)
        for offset, size in (RANGE.unpack_from(data, ranges_at + i * RANGE.size) for i in range(n_ranges))
    )
    ports = [int(v) for v in np.frombuffer(data, "<u4", n_inputs + n_outputs, ports_at)]
    ops: list[Op] = []
    at = ops_at
    for i in range(n_ops):
        if at + OP.size > names_at:
            raise PlanError(f"plan.bin: operator {i} lies beyond the end")
        kind, count = OP.unpack_from(data, at)
        at += OP.size
        if at + 4 * count > names_at:
            raise PlanError(f"plan.bin: operator {i} is cut short")
        if not 1 <= kind <= len(OP_KINDS):
            raise UnsupportedError(
                f"plan.bin: operator {i} is of kind {kind}, which this engine does not know"
            )
        ops.append(_read_op(i, OP_KINDS[kind - 1], np.frombuffer(data, "<i4", count, at)))
        at += 4 * count
    if at != names_at:
        raise PlanError(f"plan.bin: {names_at - at} bytes after the last operator")
    plan = Plan(
        tensors=tensors,
        ranges=ranges,
        ops=tuple(ops),
        inputs=tuple(ports[:n_inputs]),
        outputs=tuple(ports[n_inputs:]),
        arena_bytes=arena,
        weights_bytes=weights,
    )
    check(plan)
    return plan


def _tensor(index: int, record: tuple[Any, ...], names: bytes) -> Tensor:
    dtype, rank, *dims, scale, zero_point, offset, name_at, name_size = record
    if dtype >= len(_DTYPES) or rank > MAX_RANK or name_at + name_size > len(names):
        raise PlanError(f"tensor {index}: unknown dtype, rank over {MAX_RANK}, or a name outside the names")
    try:
        name = names[name_at : name_at + name_size].decode()
    except UnicodeDecodeError:
        raise PlanError(f"tensor {index}: its name is not UTF-8") from None
    return Tensor(
        name=name,
        dtype=_DTYPES[dtype],
        shape=tuple(dims[:rank]),
        scale=scale,
        zero_point=zero_point,
        offset=offset,
    )


# An operator's record is its fields in order: a number is one word (-1 for None), a Window ten
# (kernel, stride, padding, dilation), a Rescale low, high, n, n multipliers, n shifts.


def _op_words(op: Op) -> Int32Array:
    words: list[Int32Array] = []
    for field in fields(op):
        value = getattr(op, field.name)
        if isinstance(value, Window):
            words.append(np.array([*value.kernel, *value.stride, *value.padding, *value.dilation], np.int32))
        elif isinstance(value, Rescale):
            words.append(np.array([value.low, value.high, value.multiplier.size], np.int32))
            words.extend((value.multiplier, value.shift))
        else:
            words.append(np.array([-1 if value is None else value], np.int32))
    return np.concatenate(words)


def _read_op(index: int, kind: type[Op], words: Int32Array) -> Op:
    values: dict[str, Any] = {}
    at = 0

    def take(count: int) -> list[int]:
        nonlocal at
        if count < 0 or at + count > words.size:
            raise PlanError(f"plan.bin: operator {index} ({kind.__name__}) has too few words")
        at += count
        return [int(v) for v in words[at - count : at]]

    for field in fields(kind):
        if field.name == "window":
            w = take(10)
            values["window"] = Window(
                kernel=(w[0], w[1]),
                stride=(w[2], w[3]),
                padding=(w[4], w[5], w[6], w[7]),
                dilation=(w[8], w[9]),
            )
        elif field.name == "rescale":
            low, high, count = take(3)
            values["rescale"] = Rescale(
                multiplier=np.array(take(count), np.int32),
                shift=np.array(take(count), np.int32),
                low=low,
                high=high,
            )
        else:
            (number,) = take(1)
            values[field.name] = None if field.name == "bias" and number == -1 else number
    if at != words.size:
        raise PlanError(f"plan.bin: operator {index} ({kind.__name__}) has {words.size - at} words too many")
    return kind(**values)
