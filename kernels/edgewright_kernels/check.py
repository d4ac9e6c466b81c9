"""The rules every program keeps; those on its bytes are in plan.py, those on its weights in reference.py.

Those of its operators are in check_movement.py, check_rows.py and check_windows.py, by family.
"""

from __future__ import annotations

import bisect

import numpy as np

from edgewright_kernels.check_movement import check_concat, check_constant, check_order, check_slice
from edgewright_kernels.check_rows import check_layer_norm, check_matmul, check_softmax
from edgewright_kernels.check_windows import check_resize, check_transposed, check_window
from edgewright_kernels.errors import PlanError
from edgewright_kernels.operators import (
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
from edgewright_kernels.program import ARENA_ALIGNMENT, Plan, Tensor
from edgewright_kernels.rules import (
    check_broadcast,
    check_dtypes,
    check_rescale,
    check_rescale_by_channel,
    check_table,
    check_weights,
    range_size,
    same_grid,
    same_shape,
)

MAX_RANK = 6
MAX_DIM = 1 << 20
MAX_TENSOR_ELEMENTS = 1 << 28
MAX_ARENA_BYTES = 1 << 31
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
    if not tensor.is_inside:
        if (tensor.scale, tensor.zero_point, tensor.offset) != (0.0, 0, 0):
            raise PlanError(f"{where}: {tensor.dtype} has no scale, zero point or place in the arena")
        return
    scale = np.float32(tensor.scale)
    if not (np.isfinite(scale) and scale > 0 and float(scale) == tensor.scale):
        raise PlanError(f"{where}: scale {tensor.scale} is not a positive float32")
    most = 255 if tensor.dtype == "uint8" else 0
    if not 0 <= tensor.zero_point <= most:
        raise PlanError(f"{where}: zero point {tensor.zero_point} is not in 0..{most}")
    if tensor.offset % ARENA_ALIGNMENT or tensor.offset + tensor.size_bytes > plan.arena_bytes:
        raise PlanError(f"{where}: lies at {tensor.offset}, outside the arena or not aligned")


def _check_op(plan: Plan, op: Op) -> None:
    reads, y = tensor_inputs(op), op.y
    if isinstance(op, Constant):
        check_constant(plan, op)
        return
    if not reads:
        raise PlanError("reads nothing")
    for number in (*reads, y):
        if not 0 <= number < len(plan.tensors):
            raise PlanError(f"there is no tensor {number}")
    x_t, y_t = plan.tensors[reads[0]], plan.tensors[y]
    check_dtypes(op, [plan.tensors[t] for t in reads], y_t)
    if (
        y in plan.inputs
        or (not x_t.is_inside and reads[0] not in plan.inputs)
        or (not y_t.is_inside and y not in plan.outputs)
    ):
        raise PlanError(
            "a tensor at the border is an input that is read or an output that is written, no other"
        )
    for number in reads:
        t = plan.tensors[number]
        apart = t.offset + t.size_bytes <= y_t.offset or y_t.offset + y_t.size_bytes <= t.offset
        in_place = isinstance(op, Reshape) and t.offset == y_t.offset
        if t.is_inside and y_t.is_inside and not apart and not in_place:
            raise PlanError(f"{t.name!r} and {y_t.name!r} overlap in the arena")
    match op:
        case Quantize() | Dequantize() | Transpose():
            check_order(op.order, x_t, y_t)
            if isinstance(op, Transpose):
                same_grid(x_t, y_t)
        case Reshape():
            if x_t.elements != y_t.elements:
                raise PlanError(f"{x_t.elements} elements cannot become {y_t.elements}")
            same_grid(x_t, y_t)
        case Add() | Multiply():
            check_broadcast(plan.tensors[op.b], x_t)
            same_shape(y_t, x_t.shape)
            check_rescale(op.rescale, 2 if isinstance(op, Add) else 1, y_t)
            if isinstance(op, Add) and op.rescale.shift[0] != op.rescale.shift[1]:
                raise PlanError("its two shifts differ")
        case Requantize():
            same_shape(y_t, x_t.shape)
            check_rescale_by_channel(op.rescale, y_t)
        case Lookup():
            check_table(op, x_t, y_t)
            same_shape(y_t, x_t.shape)
        case FullyConnected():
            outputs = y_t.shape[-1]
            same_shape(y_t, (*x_t.shape[:-1], outputs))
            check_weights(plan, op, y_t, outputs, x_t.shape[-1])
        case MatMul():
            check_matmul(op, x_t, plan.tensors[op.b], y_t)
        case Softmax():
            check_softmax(plan, op, x_t, y_t)
        case LayerNorm():
            check_layer_norm(op, x_t, y_t)
        case Concat():
            check_concat(plan, op, y_t)
        case Slice():
            check_slice(op, x_t, y_t)
        case Resize():
            check_resize(op, x_t, y_t)
        case Embedding():
            same_shape(y_t, (*x_t.shape, y_t.shape[-1]))
            size = range_size(plan, op.weight)
            if size == 0 or size % y_t.shape[-1]:
                raise PlanError(f"range {op.weight} has {size} bytes, no number of rows of {y_t.shape[-1]}")
            check_rescale_by_channel(op.rescale, y_t)
        case TransposedConvolution():
            check_transposed(plan, op, x_t, y_t)
        case Convolution() | MaxPool() | AveragePool():
            check_window(plan, op, x_t, y_t)


class _Arena:
    """Which tensors still lie whole in the arena while the operators run."""

    def __init__(self, plan: Plan) -> None:
        self._tensors = plan.tensors
        self._starts: list[int] = []  # sorted; the tensors there do not overlap
        self._at: dict[int, int] = {}

    def holds(self, number: int) -> bool:
        tensor = self._tensors[number]
        return not tensor.is_inside or self._at.get(tensor.offset) == number

    def write(self, number: int) -> None:
        tensor = self._tensors[number]
        if not tensor.is_inside:
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
