"""The rules every program keeps; those on its bytes are in plan.py, those on its weights in reference.py."""

from __future__ import annotations

import bisect
from itertools import pairwise

import numpy as np

from edgewright_kernels.errors import PlanError
from edgewright_kernels.program import (
    ARENA_ALIGNMENT,
    Add,
    AveragePool,
    Concat,
    Constant,
    Convolution,
    Dequantize,
    Embedding,
    FullyConnected,
    Interpolation,
    LayerNorm,
    Lookup,
    MatMul,
    MaxPool,
    Multiply,
    Op,
    Plan,
    Quantize,
    Requantize,
    Rescale,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Tensor,
    Transpose,
    TransposedConvolution,
    Window,
    tensor_inputs,
)

MAX_RANK = 6
MAX_DIM = 1 << 20
MAX_TENSOR_ELEMENTS = 1 << 28
MAX_ARENA_BYTES = 1 << 31
MAX_AVERAGED = ((1 << 31) - 1) // 255  # values under one average pool: their sum fits 32 bits
MAX_NAME_BYTES = 255
MAX_WINDOW_AXES = 3
MAX_WINDOW = 4096
MAX_MATMUL_TERMS = ((1 << 31) - 1) // (255 * 255)
MAX_SOFTMAX = 1 << 16
MAX_LAYER_NORM = 1 << 15
MAX_EPSILON = 1 << 46
MAX_OFFSET = 1 << 55
ONE = 1 << 16  # in Softmax's table
FULL = 1 << 11  # the weight of one input in Resize


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
    for what, ports, dtypes in (
        ("input", plan.inputs, ("float32", "int64")),
        ("output", plan.outputs, ("float32",)),
    ):
        for port in ports:
            if port >= len(plan.tensors) or plan.tensors[port].dtype not in dtypes:
                raise PlanError(f"{what} {port} is not a {' or '.join(dtypes)} tensor")
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


def _check_tensor(plan: Plan, tensor: Tensor) -> None:
    where = f"tensor {tensor.name!r}"
    if not 1 <= len(tensor.shape) <= MAX_RANK or not all(1 <= d <= MAX_DIM for d in tensor.shape):
        raise PlanError(f"{where}: shape {tensor.shape} (1 to {MAX_RANK} dimensions, each 1 to {MAX_DIM})")
    if tensor.elements > MAX_TENSOR_ELEMENTS:
        raise PlanError(f"{where}: {tensor.elements} elements, at most {MAX_TENSOR_ELEMENTS} are allowed")
    if len(tensor.name.encode()) > MAX_NAME_BYTES or not tensor.name:
        raise PlanError(f"{where}: a name has 1 to {MAX_NAME_BYTES} bytes")
    if tensor.dtype != "uint8":
        if (tensor.scale, tensor.zero_point, tensor.offset) != (0.0, 0, 0):
            raise PlanError(f"{where}: {tensor.dtype} has no scale, zero point or place in the arena")
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
    if isinstance(op, Constant):
        _check_constant(plan, op)
        return
    if not reads:
        raise PlanError("reads nothing")
    for number in (*reads, y):
        if not 0 <= number < len(plan.tensors):
            raise PlanError(f"there is no tensor {number}")
    x_t, y_t = plan.tensors[reads[0]], plan.tensors[y]
    takes = "float32" if isinstance(op, Quantize) else "int64" if isinstance(op, Embedding) else "uint8"
    gives = "float32" if isinstance(op, Dequantize) else "uint8"
    if any((plan.tensors[t].dtype, y_t.dtype) != (takes, gives) for t in reads):
        raise PlanError(f"takes {takes} and gives {gives}")
    if (
        y in plan.inputs
        or (takes != "uint8" and reads[0] not in plan.inputs)
        or (gives != "uint8" and y not in plan.outputs)
    ):
        raise PlanError(
            "a tensor at the border is an input that is read or an output that is written, no other"
        )
    for number in reads:
        t = plan.tensors[number]
        apart = t.offset + t.size_bytes <= y_t.offset or y_t.offset + y_t.size_bytes <= t.offset
        in_place = isinstance(op, Reshape) and t.offset == y_t.offset
        if t.dtype == y_t.dtype == "uint8" and not apart and not in_place:
            raise PlanError(f"{t.name!r} and {y_t.name!r} overlap in the arena")
    match op:
        case Quantize() | Dequantize() | Transpose():
            _check_order(op.order, x_t, y_t)
            if isinstance(op, Transpose):
                _same_grid(x_t, y_t)
        case Reshape():
            if x_t.elements != y_t.elements:
                raise PlanError(f"{x_t.elements} elements cannot become {y_t.elements}")
            _same_grid(x_t, y_t)
        case Add() | Multiply():
            _broadcasts(plan.tensors[op.b], x_t)
            _same_shape(y_t, x_t.shape)
            _check_rescale(op.rescale, 2 if isinstance(op, Add) else 1)
            if isinstance(op, Add) and op.rescale.shift[0] != op.rescale.shift[1]:
                raise PlanError("its two shifts differ")
        case Requantize():
            _same_shape(y_t, x_t.shape)
            _check_rescale(op.rescale, 1)
        case Lookup():
            if len(op.table) != 256:
                raise PlanError(f"its table has {len(op.table)} bytes, 256 are needed")
            _same_shape(y_t, x_t.shape)
        case FullyConnected():
            outputs = y_t.shape[-1]
            _same_shape(y_t, (*x_t.shape[:-1], outputs))
            _check_weights(plan, op, outputs, outputs, x_t.shape[-1])
        case MatMul():
            _check_matmul(op, x_t, plan.tensors[op.b], y_t)
        case Softmax():
            _check_softmax(plan, op, x_t, y_t)
        case LayerNorm():
            _check_layer_norm(op, x_t, y_t)
        case Concat():
            _check_concat(plan, op, y_t)
        case Slice():
            _check_slice(op, x_t, y_t)
        case Resize():
            _check_resize(op, x_t, y_t)
        case Embedding():
            _same_shape(y_t, (*x_t.shape, y_t.shape[-1]))
            size = _range(plan, op.weight)
            if size == 0 or size % y_t.shape[-1]:
                raise PlanError(f"range {op.weight} has {size} bytes, no number of rows of {y_t.shape[-1]}")
            _check_rescale(op.rescale, 1)
        case TransposedConvolution():
            _check_transposed(plan, op, x_t, y_t)
        case Convolution() | MaxPool() | AveragePool():
            _check_window(plan, op, x_t, y_t)


def _check_constant(plan: Plan, op: Constant) -> None:
    if not 0 <= op.y < len(plan.tensors):
        raise PlanError(f"there is no tensor {op.y}")
    y_t = plan.tensors[op.y]
    if y_t.dtype != "uint8":
        raise PlanError("gives uint8")
    size = _range(plan, op.weight)
    if size != y_t.elements:
        raise PlanError(f"range {op.weight} has {size} bytes, {y_t.elements} are needed")


def _check_order(order: tuple[int, ...], x_t: Tensor, y_t: Tensor) -> None:
    if sorted(order) != list(range(len(x_t.shape))):
        raise PlanError(f"{order} is no order of {len(x_t.shape)} axes")
    _same_shape(y_t, tuple(x_t.shape[axis] for axis in order))


def _check_matmul(op: MatMul, a_t: Tensor, b_t: Tensor, y_t: Tensor) -> None:
    if len(a_t.shape) < 2 or len(b_t.shape) != len(a_t.shape):
        raise PlanError(f"takes two tensors of the same rank, 2 or more, not {a_t.shape} and {b_t.shape}")
    *batch, rows, terms = a_t.shape
    columns = b_t.shape[-2] if op.transpose_b else b_t.shape[-1]
    _same_shape(b_t, (*batch, columns, terms) if op.transpose_b else (*batch, terms, columns))
    _same_shape(y_t, (*batch, rows, columns))
    if terms > MAX_MATMUL_TERMS:
        raise PlanError(f"sums {terms} products, at most {MAX_MATMUL_TERMS} fit 32 bits")
    _check_rescale(op.rescale, 1)


def _check_softmax(plan: Plan, op: Softmax, x_t: Tensor, y_t: Tensor) -> None:
    if op.mask is not None:
        _broadcasts(plan.tensors[op.mask], x_t)
    _same_shape(y_t, x_t.shape)
    if x_t.shape[-1] > MAX_SOFTMAX:
        raise PlanError(f"its rows have {x_t.shape[-1]} values, at most {MAX_SOFTMAX} are allowed")
    table = op.table
    if len(table) != 256 or table[0] != ONE or table[-1] < 0 or any(a < b for a, b in pairwise(table)):
        raise PlanError(f"its table has 256 values that start with {ONE} and never grow or go below 0")
    _check_rescale(op.rescale, 1)


def _check_layer_norm(op: LayerNorm, x_t: Tensor, y_t: Tensor) -> None:
    _same_shape(y_t, x_t.shape)
    values = x_t.shape[-1]
    if values > MAX_LAYER_NORM:
        raise PlanError(f"its rows have {values} values, at most {MAX_LAYER_NORM} are allowed")
    if len(op.gain) != values or len(op.offset) != values:
        raise PlanError(f"needs {values} gains and offsets, has {len(op.gain)}")
    if not all(-(1 << 31) <= g < 1 << 31 for g in op.gain) or not all(abs(o) < MAX_OFFSET for o in op.offset):
        raise PlanError("a gain is beyond 32 bits, or an offset beyond 55")
    if not 1 <= op.epsilon <= MAX_EPSILON:
        raise PlanError(f"epsilon {op.epsilon} is not in 1..{MAX_EPSILON}")
    _check_rescale(op.rescale, 1)
    if op.rescale.multiplier[0] != 1:
        raise PlanError("its multiplier is not 1")


def _check_concat(plan: Plan, op: Concat, y_t: Tensor) -> None:
    if not 0 <= op.axis < len(y_t.shape):
        raise PlanError(f"there is no axis {op.axis}")
    parts = [plan.tensors[t] for t in op.inputs]
    for part in parts:
        if len(part.shape) != len(y_t.shape):
            raise PlanError(f"{part.name!r} has {len(part.shape)} axes, {y_t.name!r} {len(y_t.shape)}")
        along = part.shape[op.axis]
        _same_shape(part, (*y_t.shape[: op.axis], along, *y_t.shape[op.axis + 1 :]))
        _same_grid(part, y_t)
    total = sum(part.shape[op.axis] for part in parts)
    if total != y_t.shape[op.axis]:
        raise PlanError(
            f"its inputs have {total} along axis {op.axis}, {y_t.name!r} has {y_t.shape[op.axis]}"
        )


def _check_slice(op: Slice, x_t: Tensor, y_t: Tensor) -> None:
    rank = len(x_t.shape)
    if (len(y_t.shape), len(op.starts), len(op.steps)) != (rank, rank, rank):
        raise PlanError(f"needs a start, a step and a size for each of {rank} axes")
    for start, step, size, most in zip(op.starts, op.steps, y_t.shape, x_t.shape, strict=True):
        if start < 0 or step < 1 or start + (size - 1) * step >= most:
            raise PlanError(f"{size} values from {start} in steps of {step} do not lie in {most}")
    _same_grid(x_t, y_t)


def _check_resize(op: Resize, x_t: Tensor, y_t: Tensor) -> None:
    if len(x_t.shape) != 3:
        raise PlanError("takes and gives (H, W, C)")
    _same_shape(y_t, (len(op.rows.first), len(op.columns.first), x_t.shape[2]))
    for along, size in ((op.rows, x_t.shape[0]), (op.columns, x_t.shape[1])):
        _check_interpolation(along, size)
    _check_rescale(op.rescale, 1)


def _check_interpolation(along: Interpolation, size: int) -> None:
    if not len(along.first) == len(along.second) == len(along.fraction):
        raise PlanError("its parts differ in length")
    if not all(0 <= i < size for i in (*along.first, *along.second)):
        raise PlanError(f"it looks outside 0..{size - 1}")
    if not all(0 <= f <= FULL for f in along.fraction):
        raise PlanError(f"a fraction is not in 0..{FULL}")


def _image(window: Window, x_t: Tensor, y_t: Tensor) -> tuple[tuple[int, ...], int]:
    """Spatial sizes and channels of x, its rank and the window's numbers being good."""
    axes = len(window.kernel)
    if len(x_t.shape) != axes + 1 or len(y_t.shape) != axes + 1:
        raise PlanError(f"takes and gives {axes} spatial axes and channels")
    values = (*window.kernel, *window.stride, *window.dilation)
    if not all(1 <= v <= MAX_WINDOW for v in values) or not all(0 <= v <= MAX_WINDOW for v in window.padding):
        raise PlanError(f"its window is out of bounds (1 to {MAX_WINDOW}; padding 0 to {MAX_WINDOW})")
    return x_t.shape[:-1], x_t.shape[-1]


def _check_window(plan: Plan, op: Convolution | MaxPool | AveragePool, x_t: Tensor, y_t: Tensor) -> None:
    window = op.window
    image, channels_in = _image(window, x_t, y_t)
    # Only a convolution may look at nothing but padding; in a pool each window must hold a real value.
    if not isinstance(op, Convolution):
        if any(p >= s for p, s in zip(window.padding, window.span * 2, strict=True)):
            raise PlanError("its padding is as large as its window")
        if any(d > n for d, n in zip(window.dilation, image, strict=True)):
            raise PlanError(f"its dilation is larger than {image}")
    size = window.output_size(*image)
    if min(size) < 1:
        raise PlanError(f"its window does not fit into {image}")
    if isinstance(op, Convolution):
        outputs = y_t.shape[-1]
        _same_shape(y_t, (*size, outputs))
        _check_groups(op.groups, channels_in, outputs)
        _check_weights(plan, op, outputs, outputs, channels_in // op.groups * window.taps)
        return
    _same_shape(y_t, (*size, channels_in))
    if isinstance(op, AveragePool):
        if window.taps > MAX_AVERAGED:
            raise PlanError(f"averages more than {MAX_AVERAGED} values")
        _check_rescale(op.rescale, 1)
    else:
        _same_grid(x_t, y_t)


def _check_transposed(plan: Plan, op: TransposedConvolution, x_t: Tensor, y_t: Tensor) -> None:
    window = op.window
    image, channels_in = _image(window, x_t, y_t)
    if any(not 0 <= e < max(s, d) for e, s, d in zip(op.extra, window.stride, window.dilation, strict=True)):
        raise PlanError("its extra is not below its stride or dilation")
    size = window.transposed_size(op.extra, *image)
    if min(size) < 1:
        raise PlanError("its padding takes all of its result")
    outputs = y_t.shape[-1]
    _same_shape(y_t, (*size, outputs))
    _check_groups(op.groups, channels_in, outputs)
    _check_weights(plan, op, outputs, channels_in, outputs // op.groups * window.taps)


def _check_groups(groups: int, channels_in: int, outputs: int) -> None:
    if groups < 1 or channels_in % groups or outputs % groups:
        raise PlanError(f"{groups} groups do not divide {channels_in} channels in and {outputs} out")


def _range(plan: Plan, number: int) -> int:
    """Size of a range."""
    if not 0 <= number < len(plan.ranges):
        raise PlanError(f"there is no range {number}")
    return plan.ranges[number].size


def _check_weights(
    plan: Plan,
    op: Convolution | FullyConnected | TransposedConvolution,
    outputs: int,
    rows: int,
    row: int,
) -> None:
    """`rows` rows of `row` weights, and what there is one of per output."""
    if op.weight_bits not in (4, 8):
        raise PlanError(f"weights of {op.weight_bits} bits; 8 and 4 are defined")
    row_bytes = row if op.weight_bits == 8 else (row + 1) // 2
    for number, size in ((op.weight, rows * row_bytes), (op.bias, 4 * outputs)):
        if number is not None and _range(plan, number) != size:
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


def _broadcasts(b: Tensor, a: Tensor) -> None:
    behind = a.shape[len(a.shape) - len(b.shape) :] if len(b.shape) <= len(a.shape) else ()
    if len(b.shape) != len(behind) or any(n not in (1, m) for n, m in zip(b.shape, behind, strict=True)):
        raise PlanError(f"{b.name!r} of shape {b.shape} does not broadcast to {a.shape}")


def _same_grid(x: Tensor, y: Tensor) -> None:
    if (x.scale, x.zero_point) != (y.scale, y.zero_point):
        raise PlanError(f"{x.name!r} and {y.name!r} differ in scale or zero point")


class _Arena:
    """Which uint8 tensors still lie whole in the arena while the operators run."""

    def __init__(self, plan: Plan) -> None:
        self._tensors = plan.tensors
        self._starts: list[int] = []  # sorted; the tensors there do not overlap
        self._at: dict[int, int] = {}

    def holds(self, number: int) -> bool:
        tensor = self._tensors[number]
        return tensor.dtype != "uint8" or self._at.get(tensor.offset) == number

    def write(self, number: int) -> None:
        tensor = self._tensors[number]
        if tensor.dtype != "uint8":
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
