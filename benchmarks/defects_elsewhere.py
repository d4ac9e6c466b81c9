"""Defects of engines, of what feeds them, and of an artifact's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from defect_places import Places
from defects import (
    Array,
    Change,
    EngineChange,
    FileChange,
    InputChange,
    Run,
    Subject,
    UnsuitableError,
    defect,
    pick,
    remade,
)

from edgewright_device import encode_golden
from edgewright_kernels import reference
from edgewright_kernels.plan import (
    Add,
    AveragePool,
    Convolution,
    FullyConnected,
    LayerNorm,
    MatMul,
    Plan,
    Requantize,
    Softmax,
    tensor_inputs,
)

Random = np.random.Generator
SLOW = 20e6  # multiply-accumulates of one sample that a broken engine in numpy may take


# Engines: the numpy reference with one function that is wrong


def _engine(operator: Callable[..., Any] | None = None, **wrong: Callable[..., Any]) -> Run:
    """An engine in which one operator, or some functions, are others.

    Args:
        operator: Takes what `reference._run` takes, and that function first.
        wrong: By name in the reference.
    """

    def run(plan: Plan, weights: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        right = {n: getattr(reference, n) for n in ("_run", *wrong)}
        changed: dict[str, Any] = dict(wrong)
        if operator is not None:
            changed["_run"] = lambda *given: operator(right["_run"], *given)
        for name, function in changed.items():
            setattr(reference, name, function)
        try:
            return reference.run(plan, weights, inputs)
        finally:
            for name, function in right.items():
                setattr(reference, name, function)

    return run


def _small(subject: Subject) -> Plan:
    from edgewright.profiling import operator_macs

    plan = subject.plan
    if sum(operator_macs(plan, op) for op in plan.ops) > SLOW:
        raise UnsuitableError
    return plan


@defect("pairs saturate", "engine", "products are added in pairs of 16 bits, which saturate")
def _(subject: Subject, random: Random) -> Change:
    plan = _small(subject)

    def operator(right: Any, plan: Plan, op: Any, values: list[Array], weight: Array, bias: Array) -> Array:
        if not isinstance(op, FullyConnected) or plan.tensors[op.x].dtype != "uint8":
            return np.asarray(right(plan, op, values, weight, bias))
        x, zero = values[0].astype(np.int64), plan.tensors[op.x].zero_point
        even = x.shape[-1] // 2 * 2
        acc = x[..., even:] @ weight[:, even:].T - zero * weight.sum(1) + bias
        for at in range(0, even, 2):
            pair = x[..., at : at + 2] @ weight[:, at : at + 2].T
            acc = acc + np.clip(pair, -32768, 32767)
        y = plan.tensors[op.y]
        q = reference.requantize(acc, op.rescale.multiplier, op.rescale.shift)
        return np.clip(q + y.zero_point, op.rescale.low, op.rescale.high).astype(y.dtype)

    if not _saturates(plan, subject):
        raise UnsuitableError
    return EngineChange(run=_engine(operator))


def _saturates(plan: Plan, subject: Subject) -> bool:
    """Whether any two neighbouring weights can leave 16 bits."""
    found = reference.check_weights(plan, subject.artifact.read("weights.safetensors"))
    for i, op in enumerate(plan.ops):
        if isinstance(op, FullyConnected) and plan.tensors[op.x].dtype == "uint8":
            rows = found[i][0]
            even = rows.shape[1] // 2 * 2
            pairs = rows[:, :even].reshape(len(rows), -1, 2)
            if 255 * max(np.maximum(pairs, 0).sum(2).max(), np.maximum(-pairs, 0).sum(2).max()) > 32767:
                return True
    return False


@defect("tail dropped", "engine", "the terms behind the last full four are not added")
def _(subject: Subject, random: Random) -> Change:
    plan = _small(subject)
    odd = [
        op
        for op in plan.ops
        if isinstance(op, Convolution | FullyConnected) and plan.tensors[op.x].shape[-1] % 8
    ]
    op_y = pick(random, [op.y for op in odd])

    def operator(right: Any, plan: Plan, op: Any, values: list[Array], weight: Array, bias: Array) -> Array:
        if op.y == op_y and isinstance(op, Convolution | FullyConnected):
            weight = weight.copy()
            channels = weight.shape[1]
            weight[:, channels - max(1, channels % 4) :] = 0
        return np.asarray(right(plan, op, values, weight, bias))

    return EngineChange(run=_engine(operator), note=plan.tensors[op_y].name)


@defect(
    "stale buffer",
    "engine",
    "from the second sample on, half of a layer's outputs are those of the one before",
)
def _(subject: Subject, random: Random) -> Change:
    plan = _small(subject)
    op_y = pick(random, [op.y for op in plan.ops if isinstance(op, Convolution | FullyConnected)])

    def operator(right: Any, plan: Plan, op: Any, values: list[Array], weight: Array, bias: Array) -> Array:
        result = np.array(right(plan, op, values, weight, bias))
        if op.y == op_y:
            half = -(-result.shape[-1] // 2)
            result[1:, ..., :half] = result[:-1, ..., :half].copy()
        return result

    return EngineChange(run=_engine(operator), note=plan.tensors[op_y].name)


@defect("padding of 0", "engine", "padding counts as the integer 0, not as the zero point")
def _(subject: Subject, random: Random) -> Change:
    plan = _small(subject)
    padded = [op for op in plan.ops if isinstance(op, Convolution) and any(op.window.padding)]
    if not any(plan.tensors[op.x].zero_point for op in padded):
        raise UnsuitableError  # where the zero point is 0, that is right
    taps = reference._taps

    def operator(right: Any, plan: Plan, op: Any, values: list[Array], weight: Array, bias: Array) -> Array:
        zero = plan.tensors[op.x].zero_point if isinstance(op, Convolution) else 0

        def filled(x: Any, window: Any, y: Any, fill: int) -> Any:
            return taps(x, window, y, fill - zero)

        reference._taps = filled
        try:
            return np.asarray(right(plan, op, values, weight, bias))
        finally:
            reference._taps = taps

    return EngineChange(run=_engine(operator))


@defect("no rounding", "engine", "requantization cuts off in place of rounding")
def _(subject: Subject, random: Random) -> Change:
    _small(subject)

    def cut(acc: Any, multiplier: Any, shift: Any) -> Any:
        m, s = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
        return np.right_shift(np.asarray(acc, np.int64) * m, s)

    return EngineChange(run=_engine(requantize=cut))


@defect("wraps around", "engine", "inputs beyond the range wrap around in place of saturating")
def _(subject: Subject, random: Random) -> Change:
    _small(subject)

    def wrapped(x: Array, y: Any) -> Array:
        with np.errstate(all="ignore"):
            steps = np.rint(np.asarray(x, np.float32) / np.float32(y.scale))
        steps = np.nan_to_num(np.clip(steps, -1e9, 1e9))
        return np.asarray((steps.astype(np.int64) + y.zero_point).astype(y.dtype))

    return EngineChange(run=_engine(quantize=wrapped))


@defect("halves away from zero", "engine", "requantization rounds halves away from zero")
def _(subject: Subject, random: Random) -> Change:
    plan = _small(subject)

    def away(acc: Any, multiplier: Any, shift: Any) -> Any:
        m, s = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
        product = np.asarray(acc, np.int64) * m
        half = np.left_shift(np.int64(1), s - 1)
        return np.sign(product) * np.right_shift(np.abs(product) + half, s)

    return EngineChange(run=_engine(requantize=away), equivalent=_no_ties(plan, subject))


def _no_ties(plan: Plan, subject: Subject) -> str:
    """Why no result can lie half way between two integers; empty if one can.

    `acc * m` is an odd multiple of 2^(s-1) only if 2^(s - 1 - k) divides `acc`, with 2^k the largest power
    of two in `m`; a sum that cannot reach that magnitude, and is not 0, is none. In a sum of weights, acc is
    at most 255 (or 32,768) times the sum of their magnitudes, plus the bias.
    """
    found = reference.check_weights(plan, subject.artifact.read("weights.safetensors"))
    for i, op in enumerate(plan.ops):
        if not hasattr(op, "rescale") or isinstance(op, Add | Softmax | LayerNorm):
            continue  # they round by other code, which is right here
        if op.rescale.low >= plan.tensors[op.y].zero_point:
            continue  # what lies below 0 is clamped
        read = [plan.tensors[t] for t in tensor_inputs(op)]
        largest = max(255 if t.dtype == "uint8" else 32768 for t in read)
        if isinstance(op, Convolution | FullyConnected):
            rows, bias = found[i]
            most = np.abs(rows.reshape(len(rows), -1)).sum(1) * largest + np.abs(bias)
        elif isinstance(op, AveragePool):
            most = np.array(op.window.taps * largest)
        elif isinstance(op, MatMul):
            most = np.array(read[0].shape[-1] * 255 * 255)
        elif isinstance(op, Requantize):
            most = np.array(largest)
        else:
            return ""
        multiplier = op.rescale.multiplier.astype(np.int64)
        power = np.where(multiplier > 0, multiplier & -multiplier, 1)
        if (power * most >= np.left_shift(np.int64(1), op.rescale.shift - 1)).any():
            return ""
    return "no sum of any layer can lie half way between two results: its multiplier has too few factors of 2"


@defect("one column late", "engine", "a batch of more than 64 samples is given back in the wrong order")
def _(subject: Subject, random: Random) -> Change:
    _small(subject)

    def run(plan: Plan, weights: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = reference.run(plan, weights, inputs)
        return {n: np.roll(v, 1, axis=0) if len(v) > 64 else v for n, v in found.items()}

    return EngineChange(run=run)


# What feeds the engines


def _mask(subject: Subject) -> str:
    ports = [p.name for p in subject.artifact.inputs]
    if "mask" not in ports:
        raise UnsuitableError
    return "mask"


@defect("mask ignored", "engine", "every token counts, padding too")
def _(subject: Subject, random: Random) -> Change:
    mask = _mask(subject)
    return InputChange(change=lambda x: {**x, mask: np.ones_like(x[mask])})


@defect("mask inverted", "engine", "padding counts, and nothing else does")
def _(subject: Subject, random: Random) -> Change:
    mask = _mask(subject)
    return InputChange(change=lambda x: {**x, mask: 1 - x[mask]})


@defect("rows and columns", "engine", "images are handed over transposed")
def _(subject: Subject, random: Random) -> Change:
    shapes = {p.name: p.shape for p in subject.artifact.inputs}
    name = pick(random, [n for n, s in shapes.items() if len(s) == 4 and s[2] == s[3]])
    return InputChange(change=lambda x: {**x, name: np.ascontiguousarray(x[name].swapaxes(2, 3))})


# Files


def _another_version(subject: Subject, random: Random, part: float) -> dict[str, bytes]:
    """The files of a version whose weights lie so far away, in their own spread, and half a step at least.

    What lies nearer than rounding does is the same weights, rounded otherwise.
    """
    if subject.artifact.lengths or subject.artifact.parts:
        raise UnsuitableError
    places = Places(subject, random)
    for layer in places.layers():
        rows, most = places.integers(layer), places.most(layer)
        moved = rows + random.normal(0, max(0.5, part * rows.std()), rows.shape)
        places.put_integers(layer, np.clip(np.rint(moved), -most, most).astype(np.int64))
    out = subject.beside("version")
    made = remade(subject, places.graph.model(), out)
    return {n: made.read(n) for n in made.files}


@defect(
    "another version", "files", "all files are those of another version, of weights 5 % of their spread away"
)
def _(subject: Subject, random: Random) -> Change:
    return FileChange(files=_another_version(subject, random, 0.05))


@defect("weights of another version", "files", "the weights are of another version, 5 % of their spread away")
def _(subject: Subject, random: Random) -> Change:
    files = _another_version(subject, random, 0.05)
    return FileChange(files={"weights.safetensors": files["weights.safetensors"]})


@defect("golden vectors of another version", "files", "the golden vectors were made by another version")
def _(subject: Subject, random: Random) -> Change:
    return FileChange(files={"golden.npz": _another_version(subject, random, 0.05)["golden.npz"]})


@defect("program of another version", "files", "plan.bin is that of another calibration")
def _(subject: Subject, random: Random) -> Change:
    places = Places(subject, random)
    for pair in places.pairs(narrow=True):
        scale, zero, *_ = places.grid(pair)
        places.put_grid(pair, scale * 1.1, zero)
    _needs_a_plan(subject)
    made = remade(subject, places.graph.model(), subject.beside("version"))
    if "plan.bin" not in made.files or made.read("plan.bin") == subject.artifact.read("plan.bin"):
        raise UnsuitableError  # all of it is int16
    return FileChange(files={n: made.read(n) for n in ("plan.bin", "golden.npz")})


@defect("model.onnx of another version", "files", "model.onnx is that of another calibration")
def _(subject: Subject, random: Random) -> Change:
    _needs_a_plan(subject)
    places = Places(subject, random)
    for pair in places.pairs(narrow=True):
        scale, zero, *_ = places.grid(pair)
        places.put_grid(pair, scale * 1.1, zero)
    made = remade(subject, places.graph.model(), subject.beside("version"))
    if made.read("model.onnx") == subject.artifact.read("model.onnx"):
        raise UnsuitableError
    return FileChange(files={"model.onnx": made.read("model.onnx")})


@defect("one golden value", "files", "one bit of one golden output is another")
def _(subject: Subject, random: Random) -> Change:
    if subject.artifact.lengths or subject.artifact.parts:
        raise UnsuitableError
    inputs, outputs = subject.artifact.golden()
    name = min(outputs)
    changed = {n: v.copy() for n, v in outputs.items()}
    flat = changed[name].view(np.uint32).reshape(-1)
    flat[int(random.integers(len(flat)))] ^= 1
    return FileChange(files={"golden.npz": encode_golden(inputs, changed)})


@defect("report of another artifact", "files", "a report that passed lies beside another artifact")
def _(subject: Subject, random: Random) -> Change:
    return FileChange(report=f'{{"artifact": "{"0" * 64}", "passed": true, "checks": []}}')


@defect("ports swapped", "files", "the manifest lists two ports of one shape in the wrong order")
def _(subject: Subject, random: Random) -> Change:
    for side in ("outputs", "inputs"):
        ports = list(getattr(subject.artifact, side))
        couples = [
            (i, j)
            for i, a in enumerate(ports)
            for j, b in enumerate(ports)
            if i < j and (a.shape, a.dtype) == (b.shape, b.dtype)
        ]
        if couples:
            i, j = pick(random, couples)
            ports[i], ports[j] = ports[j], ports[i]
            if side == "inputs":
                return FileChange(inputs=tuple(ports))
            return FileChange(outputs=tuple(ports))
    raise UnsuitableError


@defect("range of a port", "files", "the manifest gives an input a range or a grid of another size")
def _(subject: Subject, random: Random) -> Change:
    ports = list(subject.artifact.inputs)
    at = pick(random, [i for i, p in enumerate(ports) if p.dtype == "float32"])
    ports[at] = replace(ports[at], scale=ports[at].scale * 2, zero_point=ports[at].zero_point // 2)
    return FileChange(inputs=tuple(ports))


def _needs_a_plan(subject: Subject) -> None:
    """Raises UnsuitableError where there is no program, or several."""
    assert subject.plan.ops
