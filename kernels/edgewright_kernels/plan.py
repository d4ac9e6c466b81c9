"""`plan.bin`: the reader and the writer of integer programs.

The byte layout is specified in docs/artifact-format.md, and read a second time, independently, by
kernels/src/plan.cpp. What a program means is in program.py and operators.py, whose names this
module hands on.
"""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_kernels.check import MAX_RANK, check
from edgewright_kernels.check_windows import MAX_WINDOW_AXES
from edgewright_kernels.errors import PlanError, UnsupportedError
from edgewright_kernels.operators import (
    OP_KINDS,
    Add,
    AveragePool,
    Concat,
    Constant,
    Convolution,
    Dequantize,
    Embedding,
    FullyConnected,
    LayerNorm,
    Lookup,
    MatMul,
    MaxPool,
    Multiply,
    Op,
    Quantize,
    Requantize,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Transpose,
    TransposedConvolution,
    tensor_inputs,
)
from edgewright_kernels.parameters import Int32Array, Interpolation, Rescale, Window
from edgewright_kernels.program import ARENA_ALIGNMENT, LIMITS, ByteRange, DType, Plan, Tensor

__all__ = [
    "ARENA_ALIGNMENT",
    "HEADER",
    "LIMITS",
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
    "Concat",
    "Constant",
    "Convolution",
    "DType",
    "Dequantize",
    "Embedding",
    "FullyConnected",
    "Int32Array",
    "Interpolation",
    "LayerNorm",
    "Lookup",
    "MatMul",
    "MaxPool",
    "Multiply",
    "Op",
    "Plan",
    "Quantize",
    "Requantize",
    "Rescale",
    "Reshape",
    "Resize",
    "Slice",
    "Softmax",
    "Tensor",
    "Transpose",
    "TransposedConvolution",
    "Window",
    "check",
    "decode",
    "encode",
    "tensor_inputs",
]

MAGIC = b"EWPLAN\r\n"
VERSION = 3
OLDEST_VERSION = 2
HEADER = struct.Struct("<8sIIIIIIIIQQ8x")  # 64 bytes
TENSOR = struct.Struct("<BB2x6IfiQII")  # 52 bytes
RANGE = struct.Struct("<QQ")  # 16 bytes
OP = struct.Struct("<II")  # kind, number of int32 words that follow

MAX_FILE_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_OPS = 65_536
MAX_RANGES = 65_536
MAX_PORTS = 64

_DTYPES: tuple[DType, ...] = ("float32", "uint8", "int64", "int16")


def encode(plan: Plan) -> bytes:
    """Writes a plan as `plan.bin`, in the oldest version that can say it, so that old devices read it.

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
        needed_version(plan),
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
    if not OLDEST_VERSION <= version <= VERSION:
        raise UnsupportedError(
            f"plan.bin: format version {version}; this engine reads versions {OLDEST_VERSION} to {VERSION}"
        )
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
    if version < needed_version(plan):
        raise PlanError(f"plan.bin: version {version} has neither int16 nor a multiplier per channel")
    check(plan)
    return plan


def needed_version(plan: Plan) -> int:
    """The oldest version of the format that can say what a plan says.

    Version 3 added int16, and multipliers per channel to Requantize and Embedding.
    """
    wide = any(t.dtype == "int16" for t in plan.tensors)
    by_channel = any(
        isinstance(op, Requantize | Embedding) and op.rescale.multiplier.size > 1 for op in plan.ops
    )
    return 3 if wide or by_channel else OLDEST_VERSION


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


# An operator's record is its fields in order. Most are one number: one word, -1 for None. Some have a form of
# their own, which _write and _read tell by the field's name.


class _Words:
    """The int32 words of one operator, taken in order."""

    def __init__(self, words: Int32Array, where: str) -> None:
        self._words, self._where, self._at = words, where, 0

    @property
    def left(self) -> int:
        return self._words.size - self._at

    def one(self) -> int:
        return self.take(1)[0]

    def take(self, count: int) -> tuple[int, ...]:
        if count < 0 or self._at + count > self._words.size:
            raise PlanError(f"plan.bin: {self._where} has too few words")
        self._at += count
        return tuple(self._words[self._at - count : self._at].tolist())

    def wide(self, count: int) -> tuple[int, ...]:
        """64-bit numbers, the low word first."""
        self.take(2 * count)
        return tuple(self._words[self._at - 2 * count : self._at].astype("<i4").view("<i8").tolist())

    def end(self) -> None:
        if self._at != self._words.size:
            raise PlanError(f"plan.bin: {self._where} has {self._words.size - self._at} words too many")


def _op_words(op: Op) -> Int32Array:
    parts = [_write(op, field.name) for field in fields(op)]
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def _write(op: Op, name: str) -> npt.ArrayLike:
    value: Any = getattr(op, name)
    match name, value:
        case "window", Window():
            return [len(value.kernel), *value.kernel, *value.stride, *value.padding, *value.dilation]
        case "rescale", Rescale():
            return np.concatenate(
                [[value.low, value.high, value.multiplier.size], value.multiplier, value.shift]
            )
        case "order" | "inputs" | "starts" | "gain", _:
            return [len(value), *value]
        case "rows" | "columns", Interpolation():
            return [len(value.first), *value.first, *value.second, *value.fraction]
        case "table", bytes():
            return np.frombuffer(value, "<i4")
        case "offset", _:
            return np.array(value, "<i8").view("<i4")
        case "epsilon", _:
            return np.array([value], "<i8").view("<i4")
        case "extra" | "steps" | "table", _:
            return tuple(value)
    return [-1 if value is None else int(value)]


def _read_op(index: int, kind: type[Op], record: Int32Array) -> Op:
    where = f"operator {index} ({kind.__name__})"
    words = _Words(record, where)
    values: dict[str, Any] = {}
    for field in fields(kind):
        values[field.name] = _read(kind, field.name, words, values, where)
    words.end()
    return kind(**values)


def _read(kind: type[Op], name: str, words: _Words, before: dict[str, Any], where: str) -> object:
    match name:
        case "window":
            return _read_window(words, where)
        case "rescale":
            low, high, count = words.take(3)
            multiplier, shift = (np.array(words.take(count), np.int32) for _ in range(2))
            return Rescale(multiplier=multiplier, shift=shift, low=low, high=high)
        case "order" | "inputs" | "starts" | "gain":
            return words.take(words.one())
        case "rows" | "columns":
            count = words.one()
            return Interpolation(
                first=words.take(count), second=words.take(count), fraction=words.take(count)
            )
        case "table" if kind is Lookup:  # how long it must be, the dtypes say: rules.py
            return np.array(words.take(words.left), "<i4").tobytes()
        case "table":
            return words.take(512 if words.left > 512 else 256)
        case "offset":
            return words.wide(len(before["gain"]))
        case "epsilon":
            return words.wide(1)[0]
        case "extra":
            return words.take(len(before["window"].kernel))
        case "steps":
            return words.take(len(before["starts"]))
        case "transpose_b":
            number = words.one()
            if number not in (0, 1):
                raise PlanError(f"plan.bin: {where}: transpose_b is {number}, 0 or 1 is needed")
            return bool(number)
    number = words.one()
    return None if name in ("bias", "mask") and number == -1 else number


def _read_window(words: _Words, where: str) -> Window:
    axes = words.one()
    if not 1 <= axes <= MAX_WINDOW_AXES:
        raise PlanError(f"plan.bin: {where}: a window over {axes} axes, 1 to {MAX_WINDOW_AXES} are defined")
    return Window(
        kernel=words.take(axes),
        stride=words.take(axes),
        padding=words.take(2 * axes),
        dilation=words.take(axes),
    )
