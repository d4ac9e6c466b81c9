"""The rules of what works on whole rows."""

from __future__ import annotations

from itertools import pairwise

from edgewright_kernels.errors import PlanError
from edgewright_kernels.operators import LayerNorm, MatMul, Softmax
from edgewright_kernels.program import DType, Plan, Tensor
from edgewright_kernels.rules import check_broadcast, check_rescale, same_shape

MAX_MATMUL_TERMS = ((1 << 31) - 1) // (255 * 255)
MAX_SOFTMAX = 1 << 16
MAX_LAYER_NORM = 1 << 15
MAX_EPSILON: dict[DType, int] = {"uint8": 1 << 46, "int16": 1 << 60}
MAX_OFFSET = 1 << 55
ONE = 1 << 16  # in Softmax's table, and in that of high bytes
LOW_ONE = 1 << 15  # in that of low bytes


def check_matmul(op: MatMul, a_t: Tensor, b_t: Tensor, y_t: Tensor) -> None:
    """The shapes follow, and the sums fit 32 bits."""
    if len(a_t.shape) < 2 or len(b_t.shape) != len(a_t.shape):
        raise PlanError(f"takes two tensors of the same rank, 2 or more, not {a_t.shape} and {b_t.shape}")
    *batch, rows, terms = a_t.shape
    columns = b_t.shape[-2] if op.transpose_b else b_t.shape[-1]
    same_shape(b_t, (*batch, columns, terms) if op.transpose_b else (*batch, terms, columns))
    same_shape(y_t, (*batch, rows, columns))
    if terms > MAX_MATMUL_TERMS:
        raise PlanError(f"sums {terms} products, at most {MAX_MATMUL_TERMS} fit 32 bits")
    check_rescale(op.rescale, 1, y_t)


def check_softmax(plan: Plan, op: Softmax, x_t: Tensor, y_t: Tensor) -> None:
    """The mask broadcasts, and the table never grows."""
    if op.mask is not None:
        check_broadcast(plan.tensors[op.mask], x_t)
    same_shape(y_t, x_t.shape)
    if x_t.shape[-1] > MAX_SOFTMAX:
        raise PlanError(f"its rows have {x_t.shape[-1]} values, at most {MAX_SOFTMAX} are allowed")
    tables = {"uint8": ((op.table, ONE),), "int16": ((op.table[:256], LOW_ONE), (op.table[256:], ONE))}
    for table, one in tables[x_t.dtype]:
        if len(table) != 256 or table[0] != one or table[-1] < 0 or any(a < b for a, b in pairwise(table)):
            raise PlanError(f"a table has 256 values that start with {one} and never grow or go below 0")
    check_rescale(op.rescale, 1, y_t)


def check_layer_norm(op: LayerNorm, x_t: Tensor, y_t: Tensor) -> None:
    """One gain and one offset for each value, all within the bounds that 64 bits need."""
    same_shape(y_t, x_t.shape)
    values = x_t.shape[-1]
    if values > MAX_LAYER_NORM:
        raise PlanError(f"its rows have {values} values, at most {MAX_LAYER_NORM} are allowed")
    if len(op.gain) != values or len(op.offset) != values:
        raise PlanError(f"needs {values} gains and offsets, has {len(op.gain)}")
    if not all(-(1 << 31) <= g < 1 << 31 for g in op.gain) or not all(abs(o) < MAX_OFFSET for o in op.offset):
        raise PlanError("a gain is beyond 32 bits, or an offset beyond 55")
    if not 1 <= op.epsilon <= MAX_EPSILON[x_t.dtype]:
        raise PlanError(f"epsilon {op.epsilon} is not in 1..{MAX_EPSILON[x_t.dtype]}")
    check_rescale(op.rescale, 1, y_t)
    if op.rescale.multiplier[0] != 1:
        raise PlanError("its multiplier is not 1")
