"""Operators by themselves: each of a program's, in the engine, on integers that are chosen for it.

A whole network hides what one operator does wrong: sums rarely come near their ends, most channels are small,
and later layers forget. So each operator is made a program of its own, between a Quantize and a Dequantize
on the grids that it has, and is asked twice. At its extremes, the engine must give the reference's bits. On
values of model.onnx, it must give model.onnx's next values, up to rounding; that holds lowering to the graph
that it started from, by other arithmetic than its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from edgewright.checks import Check, at_most
from edgewright.graph import onnx_function
from edgewright.lower import place_in_arena
from edgewright.profiling import operator_macs
from edgewright.weights import byte_ranges
from edgewright.wiring import initializers
from edgewright_device import Artifact
from edgewright_kernels import Engine, reference
from edgewright_kernels.plan import (
    Add,
    Constant,
    Convolution,
    Dequantize,
    Embedding,
    FullyConnected,
    MatMul,
    Op,
    Plan,
    Quantize,
    Tensor,
    TransposedConvolution,
    decode,
    encode,
    tensor_inputs,
)

Array = npt.NDArray[Any]

WORK = 1_000_000_000  # multiply-accumulates that the reference may take for all of a program's extremes
SAMPLES = 24  # of extremes for one operator, at most
# A small operator gets more: halves that are rounded the wrong way are one sum in thousands.
LEAST_WORK, LEAST_VALUES, MOST_SAMPLES = 4_000_000, 250_000, 8192
CASES = 16
MOST_VALUES = 1 << 24  # of all tensors of a program, over all cases
SUMS = (Convolution, FullyConnected, MatMul, TransposedConvolution)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """One operator as a program.

    Attributes:
        plan: It.
        reads: Of each of its inputs: its name, and the tensor of the whole program that it stands for.
        gives: The tensor of the whole program that its output stands for.
    """

    plan: Plan
    reads: tuple[tuple[str, Tensor], ...]
    gives: Tensor

    @property
    def elements(self) -> int:
        """Of all that it reads and gives, for one sample."""
        return self.gives.elements + sum(t.elements for _, t in self.reads)


def alone(plan: Plan, at: int) -> Alone | None:
    """Makes a program of one operator; None of one that computes nothing from what lies inside."""
    op = plan.ops[at]
    if isinstance(op, Quantize | Dequantize | Constant | Embedding):
        return None
    numbers = list(dict.fromkeys(tensor_inputs(op)))
    tensors: list[Tensor] = []
    ops: list[Op] = []
    placed: dict[int, int] = {}
    reads: list[tuple[str, Tensor]] = []
    for number in numbers:
        inside = plan.tensors[number]
        port = Tensor(name=f"{inside.name}.in", dtype="float32", shape=inside.shape)
        tensors += [port, replace(inside, offset=0)]
        placed[number] = len(tensors) - 1
        reads.append((port.name, inside))
        order = tuple(range(len(inside.shape)))
        ops.append(Quantize(x=len(tensors) - 2, y=len(tensors) - 1, order=order))
    result = plan.tensors[op.y]
    tensors.append(replace(result, offset=0))
    y = len(tensors) - 1
    ops.append(_renumbered(op, placed, y))
    tensors.append(Tensor(name=f"{result.name}.out", dtype="float32", shape=result.shape))
    ops.append(Dequantize(x=y, y=y + 1, order=tuple(range(len(result.shape)))))
    arena, size = place_in_arena(tensors, ops)
    made = Plan(
        tensors=arena,
        ranges=plan.ranges,
        ops=tuple(ops),
        inputs=tuple(i for i, t in enumerate(tensors) if t.name in dict(reads)),
        outputs=(y + 1,),
        arena_bytes=size,
        weights_bytes=plan.weights_bytes,
    )
    return Alone(plan=made, reads=tuple(reads), gives=result)


def _renumbered(op: Op, placed: Mapping[int, int], y: int) -> Op:
    changes: dict[str, Any] = {"y": y}
    for name in ("x", "a", "b", "mask"):
        if (number := getattr(op, name, None)) is not None:
            changes[name] = placed[number]
    if hasattr(op, "inputs"):
        changes["inputs"] = tuple(placed[n] for n in op.inputs)
    return replace(op, **changes)


def probe_checks(artifact: Artifact, graph: onnx.ModelProto, inputs: Mapping[str, Array]) -> list[Check]:
    """Both checks of an artifact's programs.

    Args:
        artifact: With a program, or with parts.
        graph: Its model.onnx, constants inside.
        inputs: Real cases by input name, (cases, ...).
    """
    files = [p.file for p in artifact.parts if p.native] or ["plan.bin"]
    plans = {file: decode(artifact.read(file)) for file in files}
    weights = artifact.read("weights.safetensors")
    passed = {p.tensors[i].name for p in plans.values() for i in p.inputs} - inputs.keys()
    few = {n: v[:CASES] for n, v in inputs.items()}
    known = onnx_function(graph, sorted(passed))(few) if passed else {}
    return [kernel_check(plans, weights), steps_check(plans, weights, graph, few, known)]


# Extremes: the engine against the reference


def kernel_check(plans: Mapping[str, Plan], weights: bytes, seed: int = 0) -> Check:
    """Each operator at its extremes, in the engine and in the reference.

    Inputs are all at one end, all at the other, at random anywhere, at random at an end, and, for an operator
    with weights, at the end that drives an output channel up or down the most, term by term: where sums of
    two or four products leave 16 bits, a window's padding counts, or a tail is left out, results differ.

    Args:
        plans: By file.
        weights: The bytes of weights.safetensors.
        seed: Draws the random ones.
    """
    wrong: list[str] = []
    random = np.random.default_rng(seed)
    total = sum(operator_macs(plan, op) for plan in plans.values() for op in plan.ops)
    samples = max(3, min(SAMPLES, WORK // max(1, total)))
    for file, plan in plans.items():
        parameters = reference.check_weights(plan, weights)
        for at, op in enumerate(plan.ops):
            if (one := alone(plan, at)) is None:
                continue
            weight = parameters[at][0] if at in parameters else None
            more = min(
                MOST_SAMPLES, LEAST_WORK // max(1, operator_macs(plan, op)), LEAST_VALUES // one.elements
            )
            inputs = _extremes(one, op, weight, max(samples, more), random)
            feed = {n: _real(inputs[n], t) for n, t in one.reads}
            here = Engine(encode(one.plan), weights).run(feed)
            there = reference.run(one.plan, weights, feed)
            if any(not np.array_equal(here[n], there[n]) for n in there):
                wrong.append(f"{type(op).__name__} giving {one.gives.name!r} ({file})")
    what = "operators of the engine, each by itself at its extremes, that differ from the reference"
    if wrong:
        what += f": {'; '.join(wrong[:3])}"
    remedy = "the engine is wrong on this machine; EDGEWRIGHT_CPU=scalar tells whether one kernel path is"
    return at_most("engine", what, len(wrong), 0, "operators", remedy=remedy)


def _real(integers: Array, tensor: Tensor) -> Array:
    """float32 that Quantize turns into these integers."""
    steps = integers.astype(np.float64) - tensor.zero_point
    return np.ascontiguousarray((steps * tensor.scale).astype(np.float32))


def _extremes(
    one: Alone, op: Op, weight: Array | None, samples: int, random: np.random.Generator
) -> dict[str, Array]:
    """Integers for each input, (samples, ...)."""
    found: dict[str, Array] = {}
    for name, tensor in one.reads:
        low, high = tensor.limits
        shape = (samples, *tensor.shape)
        values = random.integers(low, high + 1, shape)
        ends = np.where(random.random(shape) < 0.5, low, high)
        values[1::4] = ends[1::4]
        values[0], values[samples - 1] = high, low
        if weight is not None and isinstance(op, FullyConnected | Convolution):
            chosen = random.permutation(len(weight))[: max(0, min(SAMPLES, samples) - 4) // 2]
            for row, channel in enumerate(chosen):
                up = _driving(op, weight[channel], channel, len(weight), tensor)
                values[1 + row] = np.where(up if row % 2 else ~up, high, low)
        found[name] = values
    return found


def _driving(
    op: FullyConnected | Convolution, row: Array, channel: int, outputs: int, tensor: Tensor
) -> npt.NDArray[np.bool_]:
    """Where an input is at its upper end, so that each term of one output channel is at its largest."""
    if isinstance(op, FullyConnected):
        return np.broadcast_to(row > 0, tensor.shape)
    positive = np.moveaxis(row, 0, -1) > 0  # (kernel..., C / groups)
    image, kernel = tensor.shape[:-1], positive.shape[:-1]
    for axis, (size, taps) in enumerate(zip(image, kernel, strict=True)):
        positive = np.take(positive, np.arange(size) % taps, axis=axis)
    each = positive.shape[-1]
    group = channel * op.groups // outputs
    whole = np.zeros(tensor.shape, np.bool_)
    whole[..., group * each : (group + 1) * each] = positive
    return whole


# The graph's values: lowering

MOST_STEPS = 1
# Where exact arithmetic and float32 differ at all, a value lies midway between two steps, give or take what
# float32 loses. Of sums of weights hardly any do. Of averages, sums and products of few integers many may lie
# exactly midway, up to every second, and half of those are rounded the other way.
MOST_OF_SUMS, MOST_OF_OTHERS = 0.05, 0.3
SIGMAS = 4.0  # of a count: of few values, a few may differ by chance
FACTOR_TOLERANCE = 2.0**-20  # float32 scales have 24 bits; lowering may use four of them for short factors


def steps_check(
    plans: Mapping[str, Plan],
    weights: bytes,
    graph: onnx.ModelProto,
    inputs: Mapping[str, Array],
    known: Mapping[str, Array] | None = None,
) -> Check:
    """Each operator of a program on the integers of model.onnx, held to those that model.onnx has after it.

    Args:
        plans: By file.
        weights: The bytes of weights.safetensors.
        graph: model.onnx, constants inside.
        inputs: Real cases by input name; the first 16 count.
        known: Of those cases: what programs of parts read from other parts, by name.
    """
    each = sum(t.elements for plan in plans.values() for t in plan.tensors)
    count = max(2, min(CASES, MOST_VALUES // max(1, each)))
    few = {n: v[:count] for n, v in inputs.items()}
    passed = {n: v[:count] for n, v in (known or {}).items()}
    integers = _integers(graph, few)
    wrong = [
        s
        for plan in plans.values()
        for s in _steps(plan, weights, integers, {**few, **passed})
        if not s.follows
    ]
    named = [f"{s.operator} giving {s.value!r} (up to {s.largest} steps off)" for s in wrong]
    seen = {s.value for s in wrong}
    named += [
        f"{operator} giving {value!r} (its factors are not those of the scales)"
        for plan in plans.values()
        for operator, value in wrong_factors(plan, weights)
        if value not in seen
    ]
    what = "operators of the program, each by itself, that do not do what model.onnx says"
    if named:
        what += f": {'; '.join(named[:3])}"
    remedy = "plan.bin is not what model.onnx says: export again, and report it where that does not help"
    return at_most("lowering", what, len(named), 0, "operators", remedy=remedy)


def wrong_factors(plan: Plan, weights: bytes) -> Iterator[tuple[str, str]]:
    """Sums whose multipliers and shifts are not `scale of x * scale of the weight / scale of y`.

    Values do not show this of a channel that no case brings above its clamp.

    Args:
        plan: The program.
        weights: The bytes of weights.safetensors, whose scales count.

    Yields:
        The operator's kind and the name of its result.
    """
    names = {(r.offset, r.size): n for n, r in byte_ranges(weights).items()}
    stored = safetensors.numpy.load(weights)
    for op in plan.ops:
        y = plan.tensors[op.y]
        if isinstance(op, Add):
            wanted = np.array([plan.tensors[op.a].scale, plan.tensors[op.b].scale]) / y.scale
        elif isinstance(op, Convolution | FullyConnected):
            place = plan.ranges[op.weight]
            scale = stored.get(f"{names.get((place.offset, place.size))}.scale")
            if scale is None or scale.shape != op.rescale.multiplier.shape:
                continue
            wanted = plan.tensors[op.x].scale * scale.astype(np.float64) / y.scale
        else:
            continue
        got = op.rescale.multiplier / np.exp2(op.rescale.shift.astype(np.float64))
        if (np.abs(got - wanted) > FACTOR_TOLERANCE * wanted + np.exp2(-op.rescale.shift)).any():
            yield type(op).__name__, y.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How far an operator's results lie from those of model.onnx, given what model.onnx has before it.

    Attributes:
        operator: Its kind.
        value: The name of its result.
        dtype: Of that.
        largest: The largest difference, in steps.
        share: Of the values that differ, 0..1; the largest of any channel, where those have enough values.
        count: Values that this is a share of.
    """

    operator: str
    value: str
    dtype: str
    largest: int
    share: float
    count: int

    @property
    def follows(self) -> bool:
        """Whether rounding explains it."""
        most = MOST_OF_SUMS if self.operator in {k.__name__ for k in SUMS} else MOST_OF_OTHERS
        expected = most * self.count
        return self.largest <= MOST_STEPS and self.share * self.count <= expected + SIGMAS * expected**0.5


def steps(plan: Plan, weights: bytes, graph: onnx.ModelProto, inputs: Mapping[str, Array]) -> Iterator[Steps]:
    """Runs each operator in the engine on the integers that model.onnx has, and compares what it gives.

    Args:
        plan: Of the whole graph.
        weights: The bytes of weights.safetensors.
        graph: model.onnx, constants inside.
        inputs: Real cases by input name, (cases, ...).
    """
    return _steps(plan, weights, _integers(graph, inputs), inputs)


def _steps(
    plan: Plan, weights: bytes, integers: Mapping[str, Array], floats: Mapping[str, Array]
) -> Iterator[Steps]:
    inputs = {plan.tensors[i].name: floats[plan.tensors[i].name] for i in plan.inputs}
    values = _as_in(plan, integers, weights, inputs)
    count = len(next(iter(inputs.values())))
    for at, op in enumerate(plan.ops):
        result = plan.tensors[op.y]
        if isinstance(op, Dequantize):
            continue
        if isinstance(op, Constant):
            place = plan.ranges[op.weight]
            stored = np.frombuffer(weights, np.dtype(result.dtype), result.elements, place.offset)
            values[result.name] = np.broadcast_to(stored.reshape(result.shape), (count, *result.shape))
            continue
        got = _given(plan, at, weights, inputs, values)
        if got is None:
            continue
        if result.name in values:
            yield _compared(type(op).__name__, result, got - values[result.name])
        else:  # a move that the graph has not, or has elsewhere: seen by what reads it
            values[result.name] = got


def _given(
    plan: Plan, at: int, weights: bytes, inputs: Mapping[str, Array], values: Mapping[str, Array]
) -> Array | None:
    """The integers that one operator gives for those before it; None where they are not known."""
    op = plan.ops[at]
    result = plan.tensors[op.y]
    if isinstance(op, Quantize):
        if plan.tensors[op.x].name not in inputs:
            return None
        order = (0, *(axis + 1 for axis in op.order))
        return reference.quantize(inputs[plan.tensors[op.x].name], result).transpose(order).astype(np.int64)
    one = alone(plan, at)
    if one is None or any(t.name not in values for _, t in one.reads):
        return None
    feed = {n: _real(values[t.name], t) for n, t in one.reads}
    (given,) = Engine(encode(one.plan), weights).run(feed).values()
    integers: Array = np.rint(given.astype(np.float64) / result.scale).astype(np.int64) + result.zero_point
    return integers


def _compared(operator: str, tensor: Tensor, difference: Array) -> Steps:
    flat = difference.reshape(-1, difference.shape[-1])
    if len(flat) < 32:
        flat = difference.reshape(-1, 1)
    return Steps(
        operator=operator,
        value=tensor.name,
        dtype=tensor.dtype,
        largest=int(np.abs(difference).max(initial=0)),
        share=float((flat != 0).mean(0).max()),
        count=len(flat),
    )


def _integers(graph: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The integers behind each QuantizeLinear with one scale, by name."""
    constants = initializers(graph)
    given = {n.output[0] for n in graph.graph.node if n.op_type == "QuantizeLinear"}
    read: dict[str, onnx.NodeProto] = {}
    for node in graph.graph.node:
        single = node.op_type == "DequantizeLinear" and constants[node.input[1]].size == 1
        if single and node.input[0] in given:
            read.setdefault(node.input[0], node)
    run = onnx_function(graph, [n.output[0] for n in read.values()])
    found = run(inputs)
    integers: dict[str, Array] = {}
    for name, node in read.items():
        scale = float(constants[node.input[1]].reshape(-1)[0])
        zero = int(constants[node.input[2]].reshape(-1)[0]) if len(node.input) > 2 else 0
        integers[name] = np.rint(found[node.output[0]].astype(np.float64) / scale).astype(np.int64) + zero
    return integers


def _as_in(
    plan: Plan, known: Mapping[str, Array], weights: bytes, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Values of the graph that the program has too, their axes as there: channels last, or as they are."""
    found: dict[str, Array] = {}
    either: dict[str, list[Array]] = {}
    for tensor in plan.tensors:
        if tensor.name not in known:
            continue
        value = known[tensor.name]
        forms = [value, np.moveaxis(value, 1, -1)] if value.ndim > 2 else [value]
        fitting = [f for f in forms if f.shape[1:] == tensor.shape]
        if not fitting and [d for d in value.shape[1:] if d > 1] == [d for d in tensor.shape if d > 1]:
            fitting = [value.reshape(len(value), *tensor.shape)]
        if len(fitting) == 1:
            found[tensor.name] = fitting[0]
        elif fitting:
            either[tensor.name] = fitting
    if either:  # all axes are equally long: the program itself tells
        traced = reference.trace(plan, weights, {n: v[:1] for n, v in inputs.items()})
        for name, forms in either.items():
            found[name] = min(forms, key=lambda f: float(np.abs(f[:1] - traced[name]).mean()))
    return found
