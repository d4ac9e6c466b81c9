"""The rules of what only moves values."""

from __future__ import annotations

from edgewright_kernels.errors import PlanError
from edgewright_kernels.operators import Concat, Constant, Slice
from edgewright_kernels.program import Plan, Tensor
from edgewright_kernels.rules import range_size, same_grid, same_shape


def check_order(order: tuple[int, ...], x_t: Tensor, y_t: Tensor) -> None:
    """The order names each axis of x once, and y has them so."""
    if sorted(order) != list(range(len(x_t.shape))):
        raise PlanError(f"{order} is no order of {len(x_t.shape)} axes")
    same_shape(y_t, tuple(x_t.shape[axis] for axis in order))


def check_concat(plan: Plan, op: Concat, y_t: Tensor) -> None:
    """The inputs make up y along one axis, and are like it elsewhere."""
    if not 0 <= op.axis < len(y_t.shape):
        raise PlanError(f"there is no axis {op.axis}")
    parts = [plan.tensors[t] for t in op.inputs]
    for part in parts:
        if len(part.shape) != len(y_t.shape):
            raise PlanError(f"{part.name!r} has {len(part.shape)} axes, {y_t.name!r} {len(y_t.shape)}")
        along = part.shape[op.axis]
        same_shape(part, (*y_t.shape[: op.axis], along, *y_t.shape[op.axis + 1 :]))
        same_grid(part, y_t)
    total = sum(part.shape[op.axis] for part in parts)
    if total != y_t.shape[op.axis]:
        raise PlanError(
            f"its inputs have {total} along axis {op.axis}, {y_t.name!r} has {y_t.shape[op.axis]}"
        )


def check_slice(op: Slice, x_t: Tensor, y_t: Tensor) -> None:
    """What is taken lies in x."""
    rank = len(x_t.shape)
    if (len(y_t.shape), len(op.starts), len(op.steps)) != (rank, rank, rank):
        raise PlanError(f"needs a start, a step and a size for each of {rank} axes")
    for start, step, size, most in zip(op.starts, op.steps, y_t.shape, x_t.shape, strict=True):
        if start < 0 or step < 1 or start + (size - 1) * step >= most:
            raise PlanError(f"{size} values from {start} in steps of {step} do not lie in {most}")
    same_grid(x_t, y_t)


def check_constant(plan: Plan, op: Constant) -> None:
    """The range has the bytes that y needs."""
    if not 0 <= op.y < len(plan.tensors):
        raise PlanError(f"there is no tensor {op.y}")
    y_t = plan.tensors[op.y]
    if not y_t.is_inside:
        raise PlanError(f"gives uint8 or int16; {y_t.name!r} is {y_t.dtype}")
    size = range_size(plan, op.weight)
    if size != y_t.size_bytes:
        raise PlanError(f"range {op.weight} has {size} bytes, {y_t.size_bytes} are needed")
