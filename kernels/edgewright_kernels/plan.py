"""The integer program: what `plan.bin` says, as frozen data, with its reader and writer.

A plan is a straight list of operators over tensors that lie in one arena. It describes ONE sample: the batch
is a loop around it. Weights are not in it; it points at byte ranges of `weights.safetensors`. The byte layout
is specified in docs/artifact-format.md, and read a second time, independently, by kernels/src/plan.cpp.

Conventions
    * Activations are uint8 with a scale and a zero point; weights int8, symmetric, in [-127, 127]; biases and
      accumulators int32.
    * 3-D activations lie as (H, W, C). Float32 tensors at the borders lie as the model has them, (C, H, W).
      `Quantize`, `Dequantize` and `Flatten` change the order; nothing else does.
    * One requantization rule: `requantize` in reference.py.
"""

from __future__ import annotations

import bisect
import math
import struct
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewright_kernels.errors import PlanError, UnsupportedError

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
MAX_RANK = 6
MAX_DIM = 1 << 20
MAX_TENSOR_ELEMENTS = 1 << 28
MAX_ARENA_BYTES = 1 << 31
MAX_AVERAGED = ((1 << 31) - 1) // 255  # values under one average pool: their sum fits 32 bits
MAX_NAME_BYTES = 255
ARENA_ALIGNMENT = 64

DType: TypeAlias = Literal["float32", "uint8"]
_DTYPES: tuple[DType, ...] = ("float32", "uint8")

Int32Array: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A value of one sample.

    Attributes:
        name: Unique in the plan; inputs and outputs are known by it.
        dtype: float32 at the borders, uint8 inside.
        shape: Without the batch. (H, W, C) or (features,) for uint8; as the model has it for float32.
        scale: `real = scale * (q - zero_point)`; 0.0 for float32.
        zero_point: In 0..255; 0 for float32.
        offset: Where it lies in the arena, bytes, a multiple of 64.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0
    offset: int = 0

    @property
    def elements(self) -> int:
        """Number of elements in one sample."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes one sample takes."""
        return self.elements * (4 if self.dtype == "float32" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A stretch of `weights.safetensors`, counted from the start of the file."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a convolution or a pool looks: (height, width) each; padding is (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result, with the floor rule of ONNX and PyTorch."""
        top, left, bottom, right = self.padding
        span_h = self.dilation[0] * (self.kernel[0] - 1) + 1
        span_w = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (
            (height + top + bottom - span_h) // self.stride[0] + 1,
            (width + left + right - span_w) // self.stride[1] + 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale:
    """`(acc * multiplier + 2^(shift-1)) >> shift`, then the output's zero point, then a clamp to [low, high].

    One multiplier and shift per output channel, or one for all.

    Attributes:
        multiplier: int32, shape (channels,) or (1,), not negative.
        shift: int32, the same shape, each in 1..62.
        low: Lower clamp in output integers, 0..255; a fused ReLU is `low = zero point`.
        high: Upper clamp, low..255.
    """

    multiplier: Int32Array
    shift: Int32Array
    low: int = 0
    high: int = 255

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Rescale)
            and (self.low, self.high) == (other.low, other.high)
            and np.array_equal(self.multiplier, other.multiplier)
            and np.array_equal(self.shift, other.shift)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Float32 `x` to uint8 `y`: `clamp(round_half_even(x / scale) + zero_point)`.

    (C, H, W) becomes (H, W, C). NaN becomes the zero point. The division is one IEEE float32 division.
    """

    x: int
    y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantize:
    """uint8 `x` to float32 `y`: `float32(x - zero_point) * scale`; (H, W, C) becomes (C, H, W)."""

    x: int
    y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2d:
    """2-D convolution; `weight` is int8 OIHW, `bias` int32 (O,); padding has the value `zero point of x`.

    `groups` is 1, or the number of input channels with as many outputs (depthwise).
    """

    x: int
    y: int
    weight: int
    bias: int | None
    window: Window
    groups: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class FullyConnected:
    """`y = x @ weight.T + bias`; `x` is 1-D, `weight` int8 (O, I), `bias` int32 (O,)."""

    x: int
    y: int
    weight: int
    bias: int | None
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool:
    """Largest value under the window; padding never wins. `x` and `y` share scale and zero point."""

    x: int
    y: int
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePool:
    """Sum of `x - zero point` under the window, rescaled; the multiplier holds 1 / window area.

    Padding counts as zero (`count_include_pad`); without padding there is no difference.
    """

    x: int
    y: int
    window: Window
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """`y = a + b`: `((a - za) * ma + (b - zb) * mb + 2^(s-1)) >> s`, one rounding for both.

    `rescale.multiplier` is (ma, mb), `rescale.shift` (s, s).
    """

    a: int
    b: int
    y: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantize:
    """`y` is `x` on another scale, clamped: a ReLU, a clip, or a change of scale that could not be fused."""

    x: int
    y: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten:
    """(H, W, C) to (C * H * W,), in the order (C, H, W), as ONNX and PyTorch flatten."""

    x: int
    y: int


Op: TypeAlias = (
    Quantize | Dequantize | Conv2d | FullyConnected | MaxPool | AveragePool | Add | Requantize | Flatten
)
# The number of a kind is its place in this tuple plus one. Append only.
OP_KINDS: tuple[type[Op], ...] = (
    Quantize,
    Dequantize,
    Conv2d,
    FullyConnected,
    MaxPool,
    AveragePool,
    Add,
    Requantize,
    Flatten,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An integer program for one sample.

    Attributes:
        tensors: Every value, in the order of its number.
        ranges: Byte ranges of the weights file; operators refer to them by number.
        ops: In the order they run.
        inputs: Tensor numbers, float32.
        outputs: Tensor numbers, float32.
        arena_bytes: Size of the one working memory.
        weights_bytes: Exact size of the weights file this plan was made for.
    """

    tensors: tuple[Tensor, ...]
    ranges: tuple[ByteRange, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arena_bytes: int
    weights_bytes: int


def tensor_inputs(op: Op) -> tuple[int, ...]:
    """Numbers of the tensors that `op` reads."""
    return (op.a, op.b) if isinstance(op, Add) else (op.x,)


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


def check(plan: Plan) -> None:
    """Holds a plan to every rule of the format that does not need the weights.

    Raises:
        PlanError: A rule is broken; the message names the tensor or operator.
    """
    if plan.arena_bytes > MAX_ARENA_BYTES:
        raise PlanError(f"arena of {plan.arena_bytes} bytes, at most {MAX_ARENA_BYTES} are allowed")
    names = [t.name for t in plan.tensors]
    if len(set(names)) != len(names):
        raise PlanError("two tensors have the same name")
    for tensor in plan.tensors:
        _check_tensor(plan, tensor)
    for i, r in enumerate(plan.ranges):
        if r.offset + r.size > plan.weights_bytes:
            raise PlanError(f"range {i} ends at {r.offset + r.size}, the weights at {plan.weights_bytes}")
    for port in (*plan.inputs, *plan.outputs):
        if port >= len(plan.tensors) or plan.tensors[port].dtype != "float32":
            raise PlanError(f"input or output {port} is not a float32 tensor")
    if not plan.inputs or not plan.outputs:
        raise PlanError("no input or no output")
    if len({*plan.inputs}) != len(plan.inputs) or len({*plan.outputs}) != len(plan.outputs):
        raise PlanError("an input or output is listed twice")
    written = set(plan.inputs)
    arena = _Arena(plan)
    for i, op in enumerate(plan.ops):
        try:
            _check_op(plan, op)
        except PlanError as error:
            raise PlanError(f"operator {i} ({type(op).__name__}): {error}") from None
        missing = [plan.tensors[t].name for t in tensor_inputs(op) if t not in written]
        if missing:
            raise PlanError(f"operator {i} ({type(op).__name__}): reads {missing[0]!r} before it is written")
        lost = [plan.tensors[t].name for t in tensor_inputs(op) if not arena.holds(t)]
        if lost:
            raise PlanError(f"operator {i} ({type(op).__name__}): reads {lost[0]!r} after it was overwritten")
        if op.y in written:
            raise PlanError(f"operator {i} ({type(op).__name__}): writes {plan.tensors[op.y].name!r} again")
        written.add(op.y)
        arena.write(op.y)
    for port in plan.outputs:
        if port not in written or port in plan.inputs:
            raise PlanError(f"output {plan.tensors[port].name!r} is never written")


class _Arena:
    """Which uint8 tensors still lie whole in the arena while the operators run."""

    def __init__(self, plan: Plan) -> None:
        self._tensors = plan.tensors
        self._starts: list[int] = []  # sorted; the tensors there do not overlap
        self._at: dict[int, int] = {}

    def holds(self, number: int) -> bool:
        tensor = self._tensors[number]
        return tensor.dtype == "float32" or self._at.get(tensor.offset) == number

    def write(self, number: int) -> None:
        tensor = self._tensors[number]
        if tensor.dtype == "float32":
            return
        first = bisect.bisect_left(self._starts, tensor.offset)
        if first > 0:
            before = self._tensors[self._at[self._starts[first - 1]]]
            first -= before.offset + before.size_bytes > tensor.offset
        last = bisect.bisect_left(self._starts, tensor.offset + tensor.size_bytes)
        for start in self._starts[first:last]:
            del self._at[start]
        self._starts[first:last] = [tensor.offset]
        self._at[tensor.offset] = number


def _check_tensor(plan: Plan, tensor: Tensor) -> None:
    where = f"tensor {tensor.name!r}"
    if not 1 <= len(tensor.shape) <= MAX_RANK or not all(1 <= d <= MAX_DIM for d in tensor.shape):
        raise PlanError(f"{where}: shape {tensor.shape} (1 to {MAX_RANK} dimensions, each 1 to {MAX_DIM})")
    if tensor.elements > MAX_TENSOR_ELEMENTS:
        raise PlanError(f"{where}: {tensor.elements} elements, at most {MAX_TENSOR_ELEMENTS} are allowed")
    if len(tensor.name.encode()) > MAX_NAME_BYTES or not tensor.name:
        raise PlanError(f"{where}: a name has 1 to {MAX_NAME_BYTES} bytes")
    if tensor.dtype == "float32":
        if (tensor.scale, tensor.zero_point, tensor.offset) != (0.0, 0, 0):
            raise PlanError(f"{where}: float32 has no scale, zero point or place in the arena")
        return
    scale = np.float32(tensor.scale)
    if not (np.isfinite(scale) and scale > 0 and float(scale) == tensor.scale):
        raise PlanError(f"{where}: scale {tensor.scale} is not a positive float32")
    if not 0 <= tensor.zero_point <= 255:
        raise PlanError(f"{where}: zero point {tensor.zero_point} is not in 0..255")
    if tensor.offset % ARENA_ALIGNMENT or tensor.offset + tensor.size_bytes > plan.arena_bytes:
        raise PlanError(f"{where}: lies at {tensor.offset}, outside the arena or not aligned")


def _check_op(plan: Plan, op: Op) -> None:
    reads, y = tensor_inputs(op), op.y
    for number in (*reads, y):
        if not 0 <= number < len(plan.tensors):
            raise PlanError(f"there is no tensor {number}")
    x_t, y_t = plan.tensors[reads[0]], plan.tensors[y]
    want = (
        "float32" if isinstance(op, Quantize) else "uint8",
        "float32" if isinstance(op, Dequantize) else "uint8",
    )
    if any((plan.tensors[t].dtype, y_t.dtype) != want for t in reads):
        raise PlanError(f"takes {want[0]} and gives {want[1]}")
    if (
        y in plan.inputs
        or (isinstance(op, Quantize) and op.x not in plan.inputs)
        or (isinstance(op, Dequantize) and y not in plan.outputs)
    ):
        raise PlanError("a float32 tensor is an input that is read or an output that is written, no other")
    for number in reads:
        t = plan.tensors[number]
        apart = t.offset + t.size_bytes <= y_t.offset or y_t.offset + y_t.size_bytes <= t.offset
        if t.dtype == y_t.dtype == "uint8" and not apart:
            raise PlanError(f"{t.name!r} and {y_t.name!r} overlap in the arena")
    if isinstance(op, Quantize | Dequantize):
        moved = x_t.shape
        if len(moved) == 3:
            moved = (moved[1], moved[2], moved[0]) if isinstance(op, Quantize) else (moved[2], *moved[:2])
        _same_shape(y_t, moved)
    elif isinstance(op, Flatten):
        _same_shape(y_t, (x_t.elements,))
        _same_grid(x_t, y_t)
    elif isinstance(op, Add):
        _same_shape(plan.tensors[op.b], x_t.shape)
        _same_shape(y_t, x_t.shape)
        _check_rescale(op.rescale, 2)
        if op.rescale.shift[0] != op.rescale.shift[1]:
            raise PlanError("its two shifts differ")
    elif isinstance(op, Requantize):
        _same_shape(y_t, x_t.shape)
        _check_rescale(op.rescale, 1)
    elif isinstance(op, FullyConnected):
        if len(x_t.shape) != 1 or len(y_t.shape) != 1:
            raise PlanError("takes and gives one dimension")
        _check_weights(plan, op, y_t.shape[0], x_t.shape[0])
    else:
        _check_window(plan, op, x_t, y_t)


def _check_window(plan: Plan, op: Conv2d | MaxPool | AveragePool, x_t: Tensor, y_t: Tensor) -> None:
    window = op.window
    if len(x_t.shape) != 3 or len(y_t.shape) != 3:
        raise PlanError("takes and gives (H, W, C)")
    values = (*window.kernel, *window.stride, *window.dilation)
    if not all(1 <= v <= 4096 for v in values) or not all(0 <= v <= 4096 for v in window.padding):
        raise PlanError("its window is out of bounds (1 to 4096; padding 0 to 4096)")
    height, width, channels_in = x_t.shape
    # Only a convolution may look at nothing but padding; in a pool each window must hold a real value.
    span = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
    if not isinstance(op, Conv2d) and any(
        p >= s for p, s in zip(window.padding, (span[0], span[1], span[0], span[1]), strict=True)
    ):
        raise PlanError("its padding is as large as its window")
    if not isinstance(op, Conv2d) and (window.dilation[0] > height or window.dilation[1] > width):
        raise PlanError(f"its dilation is larger than {height} x {width}")
    size = window.output_size(height, width)
    if min(size) < 1:
        raise PlanError(f"its window does not fit into {height} x {width}")
    if isinstance(op, Conv2d):
        channels_out = y_t.shape[2]
        _same_shape(y_t, (*size, channels_out))
        if op.groups != 1 and not op.groups == channels_in == channels_out:
            raise PlanError(f"groups {op.groups}; only 1 and depthwise are defined")
        terms = channels_in // op.groups * window.kernel[0] * window.kernel[1]
        _check_weights(plan, op, channels_out, terms)
        return
    _same_shape(y_t, (*size, channels_in))
    if isinstance(op, AveragePool):
        if window.kernel[0] * window.kernel[1] > MAX_AVERAGED:
            raise PlanError(f"averages more than {MAX_AVERAGED} values")
        _check_rescale(op.rescale, 1)
    else:
        _same_grid(x_t, y_t)


def _check_weights(plan: Plan, op: Conv2d | FullyConnected, outputs: int, terms: int) -> None:
    for number, size in ((op.weight, outputs * terms), (op.bias, 4 * outputs)):
        if number is None:
            continue
        if not 0 <= number < len(plan.ranges):
            raise PlanError(f"there is no range {number}")
        if plan.ranges[number].size != size:
            raise PlanError(f"range {number} has {plan.ranges[number].size} bytes, {size} are needed")
    _check_rescale(op.rescale, outputs)


def _check_rescale(rescale: Rescale, channels: int) -> None:
    if rescale.multiplier.shape != (channels,) or rescale.shift.shape != (channels,):
        raise PlanError(f"needs {channels} multipliers and shifts, has {rescale.multiplier.shape}")
    if (rescale.multiplier < 0).any() or (rescale.shift < 1).any() or (rescale.shift > 62).any():
        raise PlanError("a multiplier is negative, or a shift is not in 1..62")
    if not 0 <= rescale.low <= rescale.high <= 255:
        raise PlanError(f"clamps to {rescale.low}..{rescale.high}")


def _same_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise PlanError(f"{tensor.name!r} has shape {tensor.shape}, {shape} is needed")


def _same_grid(x: Tensor, y: Tensor) -> None:
    if (x.scale, x.zero_point) != (y.scale, y.zero_point):
        raise PlanError(f"{x.name!r} and {y.name!r} differ in scale or zero point")


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
