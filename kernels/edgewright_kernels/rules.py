"""What the rules of several operators share. All raise PlanError."""

from __future__ import annotations

from edgewright_kernels.errors import PlanError
from edgewright_kernels.operators import Convolution, FullyConnected, TransposedConvolution
from edgewright_kernels.parameters import Rescale
from edgewright_kernels.program import Plan, Tensor


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


def check_rescale(rescale: Rescale, channels: int) -> None:
    """One multiplier and shift per channel, in range, and clamps the right way round."""
    if rescale.multiplier.shape != (channels,) or rescale.shift.shape != (channels,):
        raise PlanError(f"needs {channels} multipliers and shifts, has {rescale.multiplier.shape}")
    if (rescale.multiplier < 0).any() or (rescale.shift < 1).any() or (rescale.shift > 62).any():
        raise PlanError("a multiplier is negative, or a shift is not in 1..62")
    if not 0 <= rescale.low <= rescale.high <= 255:
        raise PlanError(f"clamps to {rescale.low}..{rescale.high}")


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
    outputs: int,
    rows: int,
    row: int,
) -> None:
    """`rows` rows of `row` weights, and what there is one of per output."""
    if op.weight_bits not in (4, 8):
        raise PlanError(f"weights of {op.weight_bits} bits; 8 and 4 are defined")
    row_bytes = row if op.weight_bits == 8 else (row + 1) // 2
    for number, size in ((op.weight, rows * row_bytes), (op.bias, 4 * outputs)):
        if number is not None and range_size(plan, number) != size:
            raise PlanError(f"range {number} has {plan.ranges[number].size} bytes, {size} are needed")
    check_rescale(op.rescale, outputs)
