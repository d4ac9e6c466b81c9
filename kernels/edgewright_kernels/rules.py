"""What the rules of several operators share. All raise PlanError."""

from __future__ import annotations

import numpy as np

from edgewright_kernels.errors import PlanError
from edgewright_kernels.operators import (
    Concat,
    Convolution,
    Dequantize,
    Embedding,
    FullyConnected,
    Lookup,
    MatMul,
    MaxPool,
    Op,
    Quantize,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Transpose,
    TransposedConvolution,
)
from edgewright_kernels.parameters import Rescale
from edgewright_kernels.program import DType, Plan, Tensor

_EITHER: tuple[DType, ...] = ("uint8", "int16")
_UINT8: tuple[DType, ...] = ("uint8",)


def check_dtypes(op: Op, reads: list[Tensor], y: Tensor) -> None:
    """Which integers an operator takes and gives."""
    takes, others, gives = _EITHER, _EITHER, _EITHER  # what it reads first, and behind that
    match op:
        case Quantize():
            takes = ("float32",)
        case Dequantize():
            gives = ("float32",)
        case Embedding():
            takes = ("int64",)
        case MatMul():
            takes = others = _UINT8
        case Softmax():
            others = gives = _UINT8
        case Resize() | TransposedConvolution():
            takes = gives = _UINT8
        case MaxPool() | Transpose() | Reshape() | Concat() | Slice():
            gives = others = (reads[0].dtype,) if reads[0].dtype in _EITHER else _EITHER
    for tensor, allowed, verb in (
        (reads[0], takes, "takes"),
        *((t, others, "takes") for t in reads[1:]),
        (y, gives, "gives"),
    ):
        if tensor.dtype not in allowed:
            raise PlanError(f"{verb} {' or '.join(allowed)}; {tensor.name!r} is {tensor.dtype}")


def same_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """The tensor has that shape."""
    if tensor.shape != shape:
        raise PlanError(f"{tensor.name!r} has shape {tensor.shape}, {shape} is needed")


def same_grid(x: Tensor, y: Tensor) -> None:
    """The two share scale and zero point."""
    if (x.scale, x.zero_point) != (y.scale, y.zero_point):
        raise PlanError(f"{x.name!r} and {y.name!r} differ in scale or zero point")


def check_broadcast(b: Tensor, a: Tensor) -> None:
    """Numpy's rule, where the result has the shape of `a`."""
    behind = a.shape[len(a.shape) - len(b.shape) :] if len(b.shape) <= len(a.shape) else ()
    if len(b.shape) != len(behind) or any(n not in (1, m) for n, m in zip(b.shape, behind, strict=True)):
        raise PlanError(f"{b.name!r} of shape {b.shape} does not broadcast to {a.shape}")


def check_table(op: Lookup, x: Tensor, y: Tensor) -> None:
    """A uint8 has an entry for each value; an int16 has 513 of them, in 128ths of a step of y."""
    wide = x.dtype == "int16"
    needed = 513 * 4 if wide else 256 * (2 if y.dtype == "int16" else 1)
    if len(op.table) != needed:
        raise PlanError(f"its table has {len(op.table)} bytes, {needed} are needed")
    lowest, highest = (128 * limit for limit in y.limits)
    if wide and not all(lowest <= entry <= highest for entry in np.frombuffer(op.table, "<i4")):
        raise PlanError(f"an entry of its table is not in {lowest}..{highest}")


def check_rescale(rescale: Rescale, channels: int, y: Tensor) -> None:
    """One multiplier and shift per channel, in range, and clamps the right way round, within y's dtype."""
    if rescale.multiplier.shape != (channels,) or rescale.shift.shape != (channels,):
        raise PlanError(f"needs {channels} multipliers and shifts, has {rescale.multiplier.shape}")
    if (rescale.multiplier < 0).any() or (rescale.shift < 1).any() or (rescale.shift > 62).any():
        raise PlanError("a multiplier is negative, or a shift is not in 1..62")
    lowest, highest = y.limits
    if not lowest <= rescale.low <= rescale.high <= highest:
        raise PlanError(f"clamps to {rescale.low}..{rescale.high}")


def check_rescale_by_channel(rescale: Rescale, y: Tensor) -> None:
    """As `check_rescale`, with one multiplier for all, or one for each channel of y's last axis."""
    check_rescale(rescale, 1 if rescale.multiplier.size == 1 else y.shape[-1], y)


def check_groups(groups: int, channels_in: int, outputs: int) -> None:
    """The groups divide the channels in and out."""
    if groups < 1 or channels_in % groups or outputs % groups:
        raise PlanError(f"{groups} groups do not divide {channels_in} channels in and {outputs} out")


def range_size(plan: Plan, number: int) -> int:
    """Size of a range."""
    if not 0 <= number < len(plan.ranges):
        raise PlanError(f"there is no range {number}")
    return plan.ranges[number].size


def check_weights(
    plan: Plan,
    op: Convolution | FullyConnected | TransposedConvolution,
    y: Tensor,
    rows: int,
    row: int,
) -> None:
    """`rows` rows of `row` weights, and what there is one of per output."""
    outputs = y.shape[-1]
    if op.weight_bits not in (4, 8):
        raise PlanError(f"weights of {op.weight_bits} bits; 8 and 4 are defined")
    row_bytes = row if op.weight_bits == 8 else (row + 1) // 2
    for number, size in ((op.weight, rows * row_bytes), (op.bias, 4 * outputs)):
        if number is not None and range_size(plan, number) != size:
            raise PlanError(f"range {number} has {plan.ranges[number].size} bytes, {size} are needed")
    check_rescale(op.rescale, outputs, y)
