"""The rules every program keeps; those on its bytes are in plan.py, those on its weights in reference.py."""

from __future__ import annotations

import bisect

import numpy as np

from edgewright_kernels.errors import PlanError
from edgewright_kernels.program import (
    ARENA_ALIGNMENT,
    Add,
    AveragePool,
    Conv2d,
    Dequantize,
    Flatten,
    FullyConnected,
    MaxPool,
    Op,
    Plan,
    Quantize,
    Requantize,
    Rescale,
    Tensor,
    tensor_inputs,
)

MAX_RANK = 6
MAX_DIM = 1 << 20
MAX_TENSOR_ELEMENTS = 1 << 28
MAX_ARENA_BYTES = 1 << 31
MAX_AVERAGED = ((1 << 31) - 1) // 255  # values under one average pool: their sum fits 32 bits
MAX_NAME_BYTES = 255


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
