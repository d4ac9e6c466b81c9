"""Defects of lowering: the integer program says something else than the QDQ graph it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from defects import ProgramChange, Subject, UnsuitableError, defect, pick

from edgewright_kernels.plan import (
    Add,
    AveragePool,
    Convolution,
    FullyConnected,
    LayerNorm,
    Lookup,
    MatMul,
    Multiply,
    Op,
    Plan,
    Quantize,
    Softmax,
    TransposedConvolution,
)

Random = np.random.Generator
SUMS = (Convolution, FullyConnected, TransposedConvolution)


def _one(plan: Plan, random: Random, kinds: Any, where: Callable[[Any], bool] = lambda _: True) -> int:
    """The place of one operator."""
    return pick(random, [i for i, op in enumerate(plan.ops) if isinstance(op, kinds) and where(op)])


def _with(plan: Plan, at: int, op: Op) -> Plan:
    return replace(plan, ops=(*plan.ops[:at], op, *plan.ops[at + 1 :]))


def _named(plan: Plan, at: int) -> str:
    op = plan.ops[at]
    return f"{type(op).__name__} {plan.tensors[op.y].name}"


@defect("multiplier", "program", "one channel's multiplier is 1/16 too large, or all are")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, (*SUMS, MatMul, AveragePool))
    op: Any = plan.ops[at]
    multiplier = op.rescale.multiplier.astype(np.int64)
    which = slice(None) if random.integers(2) else slice(0, 1)
    multiplier[which] = np.minimum(multiplier[which] * 17 // 16, (1 << 31) - 1)
    rescale = replace(op.rescale, multiplier=multiplier.astype(np.int32))
    return ProgramChange(plan=_with(plan, at, replace(op, rescale=rescale)), note=_named(plan, at))


@defect("shift", "program", "one channel's shift is one off, or all are")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, (*SUMS, MatMul, Multiply))
    op: Any = plan.ops[at]
    shift = op.rescale.shift.copy()
    shift[slice(None) if random.integers(2) else slice(0, 1)] += 1
    rescale = replace(op.rescale, shift=shift)
    return ProgramChange(plan=_with(plan, at, replace(op, rescale=rescale)), note=_named(plan, at))


@defect("multiplier of few bits", "program", "multipliers keep 8 bits")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, (*SUMS, MatMul))
    op: Any = plan.ops[at]
    rescale = replace(op.rescale, multiplier=op.rescale.multiplier >> 23 << 23)
    return ProgramChange(plan=_with(plan, at, replace(op, rescale=rescale)), note=_named(plan, at))


@defect("clamp", "program", "a fused ReLU's clamp is missing, or the upper one lies in the middle")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan

    def cut(op: Any) -> bool:
        y = plan.tensors[op.y]
        return bool(y.dtype == "uint8" and op.rescale.high == 255)

    at = _one(plan, random, (*SUMS, Add), cut)
    op: Any = plan.ops[at]
    if op.rescale.low > 0:
        rescale = replace(op.rescale, low=0)
    else:
        rescale = replace(op.rescale, high=max(op.rescale.low, 127))
    return ProgramChange(plan=_with(plan, at, replace(op, rescale=rescale)), note=_named(plan, at))


@defect("zero point of a tensor", "program", "the program has another zero point for a tensor")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, (*SUMS, Add, Multiply), lambda op: plan.tensors[op.y].dtype == "uint8")
    number = plan.ops[at].y
    tensor, by = plan.tensors[number], int(pick(random, [1, 3, 8]))
    zero = tensor.zero_point + by if tensor.zero_point + by <= 255 else tensor.zero_point - by
    tensors = list(plan.tensors)
    for i, other in enumerate(tensors):  # what lies on the same grid behind moves goes with it
        same = (other.scale, other.zero_point, other.dtype) == (tensor.scale, tensor.zero_point, "uint8")
        if i == number or same:
            tensors[i] = replace(other, zero_point=zero)
    return ProgramChange(plan=replace(plan, tensors=tuple(tensors)), note=f"{tensor.name}: by {by}")


@defect("operands in the wrong order", "program", "the two multipliers of a sum are swapped")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, Add, lambda op: op.rescale.multiplier[0] != op.rescale.multiplier[1])
    op: Any = plan.ops[at]
    rescale = replace(op.rescale, multiplier=op.rescale.multiplier[::-1].copy())
    return ProgramChange(plan=_with(plan, at, replace(op, rescale=rescale)), note=_named(plan, at))


@defect("stale operand", "program", "an operator reads the same tensor twice, or one from before")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan

    def alike(op: Any) -> bool:
        a, b = plan.tensors[op.a], plan.tensors[op.b]
        return op.a != op.b and (a.shape, a.dtype) == (b.shape, b.dtype)

    at = _one(plan, random, (Add, Multiply, MatMul), alike)
    op: Any = plan.ops[at]
    return ProgramChange(plan=_with(plan, at, replace(op, b=op.a)), note=_named(plan, at))


@defect("table", "program", "a table of a function is one place off")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, Lookup)
    op: Any = plan.ops[at]
    each = 1 if len(op.table) == 256 else len(op.table) // 256 if len(op.table) == 512 else 4
    return ProgramChange(
        plan=_with(plan, at, replace(op, table=op.table[each:] + op.table[-each:])), note=_named(plan, at)
    )


@defect("softmax table", "program", "a softmax's table is for another scale")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, Softmax)
    op: Any = plan.ops[at]
    table, first = np.array(op.table, np.float64), op.table[0]
    flat = np.rint(first * (table / first) ** 1.25)
    if len(op.table) == 512:
        flat[256:] = np.rint(65536 * (table[256:] / 65536) ** 1.25)
    return ProgramChange(
        plan=_with(plan, at, replace(op, table=tuple(int(v) for v in flat))), note=_named(plan, at)
    )


@defect("area of a pool", "program", "an average divides by one value too few")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, AveragePool, lambda op: op.window.taps > 1)
    op: Any = plan.ops[at]
    taps = op.window.taps
    multiplier = op.rescale.multiplier.astype(np.int64) * taps // (taps - 1)
    shift = op.rescale.shift.copy()
    while multiplier.max() > (1 << 31) - 1:
        multiplier, shift = multiplier // 2, shift - 1
    rescale = replace(op.rescale, multiplier=multiplier.astype(np.int32), shift=shift)
    return ProgramChange(plan=_with(plan, at, replace(op, rescale=rescale)), note=_named(plan, at))


@defect("window moved", "program", "a convolution's padding lies on the other side")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, Convolution, lambda op: any(op.window.padding))
    op: Any = plan.ops[at]
    padding, axes = list(op.window.padding), len(op.window.kernel)
    axis = int(random.integers(axes))
    if padding[axis] != padding[axes + axis]:
        padding[axis], padding[axes + axis] = padding[axes + axis], padding[axis]
    elif padding[axis]:
        padding[axis], padding[axes + axis] = padding[axis] - 1, padding[axes + axis] + 1
    else:
        raise UnsuitableError
    window = replace(op.window, padding=tuple(padding))
    return ProgramChange(plan=_with(plan, at, replace(op, window=window)), note=_named(plan, at))


@defect("no bias", "program", "the program leaves a bias out")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, SUMS, lambda op: op.bias is not None and _used(subject, plan, op.bias))
    op: Any = plan.ops[at]
    return ProgramChange(plan=_with(plan, at, replace(op, bias=None)), note=_named(plan, at))


def _used(subject: Subject, plan: Plan, number: int) -> bool:
    at = plan.ranges[number]
    return any(subject.artifact.read("weights.safetensors")[at.offset : at.offset + at.size])


@defect("another layer's weights", "program", "an operator reads the weights of another of the same size")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan

    def size(number: int) -> int:
        return plan.ranges[number].size

    places = [(i, op) for i, op in enumerate(plan.ops) if isinstance(op, SUMS)]
    couples = [
        (i, a, b.weight)
        for i, a in places
        for _, b in places
        if a.weight != b.weight and size(a.weight) == size(b.weight) and a.weight_bits == b.weight_bits
    ]
    at, op, weight = pick(random, couples)
    return ProgramChange(plan=_with(plan, at, replace(op, weight=weight)), note=_named(plan, at))


@defect("image turned", "program", "rows and columns of the input are exchanged")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan

    def square(op: Any) -> bool:
        return len(op.order) == 3 and len(set(plan.tensors[op.x].shape[1:])) == 1

    at = _one(plan, random, Quantize, square)
    op: Any = plan.ops[at]
    order = tuple({1: 2, 2: 1}.get(a, a) for a in op.order)
    return ProgramChange(plan=_with(plan, at, replace(op, order=order)), note=_named(plan, at))


@defect("offset of a norm", "program", "a layer norm's offsets are missing")
def _(subject: Subject, random: Random) -> ProgramChange:
    plan = subject.plan
    at = _one(plan, random, LayerNorm, lambda op: any(op.offset))
    op: Any = plan.ops[at]
    return ProgramChange(
        plan=_with(plan, at, replace(op, offset=(0,) * len(op.offset))), note=_named(plan, at)
    )
