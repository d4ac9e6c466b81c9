"""The truth: every operator in plain numpy integers, one function each. Slow, and exact by inspection.

Every path of the native engine gives these bits. All integer arithmetic is int64, so nothing can wrap: the
weights are checked to keep each accumulator in 32 bits, a multiplier has 31. Matrix products go through
float64, which holds such sums exactly.

The functions work on batches: arrays of uint8 or int16, (N, *tensor.shape), as the plan lays tensors out.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewright_kernels import plan as ir
from edgewright_kernels.errors import PlanError

Float32Array: TypeAlias = npt.NDArray[np.float32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
Value: TypeAlias = npt.NDArray[Any]  # float32 or int64 at the borders, uint8 or int16 inside
Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap | npt.NDArray[np.uint8]

MAX_ACCUMULATOR = (1 << 31) - 1
_NONE: Int64Array = np.zeros(0, np.int64)


def run(plan: ir.Plan, weights: Buffer, inputs: Mapping[str, Value]) -> dict[str, Float32Array]:
    """Runs a plan on a batch.

    Args:
        plan: The program.
        weights: The whole weights file.
        inputs: float32 or int64 arrays, as the plan has them, of shape (N, *shape), by name, N >= 1.

    Returns:
        The plan's outputs by name, float32, of shape (N, *shape).

    Raises:
        PlanError: The plan breaks a rule, or the weights do not belong to it.
        ValueError: An input is missing, unknown, or of the wrong shape or dtype, or an index is out of range.
    """
    values = trace(plan, weights, inputs)
    return {name: values[name] for name in (plan.tensors[t].name for t in plan.outputs)}


def trace(plan: ir.Plan, weights: Buffer, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """Runs a plan on a batch and keeps every tensor.

    Args:
        plan: The program.
        weights: The whole weights file.
        inputs: float32 or int64 arrays, as the plan has them, of shape (N, *shape), by name, N >= 1.

    Returns:
        Tensor name to array of shape (N, *tensor.shape), of its dtype.

    Raises:
        PlanError: The plan breaks a rule, or the weights do not belong to it.
        ValueError: An input is missing, unknown, or of the wrong shape or dtype, or an index is out of range.
    """
    parameters = check_weights(plan, weights)
    values: dict[int, Value] = dict(_bind(plan, inputs))
    for i, op in enumerate(plan.ops):
        if isinstance(op, ir.Constant):
            values[op.y] = _constant(plan, op, weights, len(values[plan.inputs[0]]))
            continue
        read = ir.tensor_inputs(op)
        weight, bias = parameters.get(i, (_NONE, _NONE))
        result = _run(plan, op, [values[t] for t in read], weight, bias)
        values[op.y] = np.ascontiguousarray(result)
    return {plan.tensors[number].name: value for number, value in values.items()}


def _constant(plan: ir.Plan, op: ir.Constant, weights: Buffer, samples: int) -> Value:
    """The same bytes for every sample."""
    at, y = plan.ranges[op.weight], plan.tensors[op.y]
    stored = memoryview(weights).cast("B")[at.offset : at.offset + at.size]  # type: ignore[arg-type]
    values = np.frombuffer(stored, np.dtype(y.dtype).newbyteorder("<")).astype(y.dtype).reshape(y.shape)
    return np.broadcast_to(values, (samples, *y.shape)).copy()


def _run(plan: ir.Plan, op: ir.Op, values: list[Value], weight: Int64Array, bias: Int64Array) -> Value:
    """One operator on what it reads."""
    read = [plan.tensors[t] for t in ir.tensor_inputs(op)]
    x, x_t, y_t = values[0], read[0], plan.tensors[op.y]
    batch_first = (0, *(axis + 1 for axis in getattr(op, "order", ())))
    match op:
        case ir.Quantize():
            return quantize(x, y_t).transpose(batch_first)
        case ir.Dequantize():
            return dequantize(x.transpose(batch_first), x_t)
        case ir.MaxPool():
            return _max_pool(x, op.window, y_t)
        case ir.Transpose():
            return x.transpose(batch_first)
        case ir.Reshape():
            return x.reshape(len(x), *y_t.shape)
        case ir.Lookup():
            return _look_up(x, op, y_t)
        case ir.Concat():
            return np.concatenate(values, axis=op.axis + 1)
        case ir.Slice():
            return x[(slice(None), *_stretches(op, y_t))]
        case ir.Softmax():
            kept = None if op.mask is None else _broadcast(values[1], read[1], x_t) != read[1].zero_point
            return _clamped(_softmax(x, kept, op), op.rescale, y_t)
    centred = [_centred(v, t) for v, t in zip(values, read, strict=True)]
    match op:
        case ir.Add():
            return _clamped(
                _add(centred[0], _broadcast(centred[1], read[1], x_t), op.rescale), op.rescale, y_t
            )
        case ir.LayerNorm():
            return _clamped(_layer_norm(centred[0], op), op.rescale, y_t)
        case ir.Multiply():
            acc = centred[0] * _broadcast(centred[1], read[1], x_t)
        case ir.MatMul():
            acc = _product(centred[0], centred[1].swapaxes(-1, -2) if op.transpose_b else centred[1])
        case ir.Convolution():
            acc = _convolve(centred[0], weight, bias, op, y_t)
        case ir.TransposedConvolution():
            acc = _convolve_transposed(centred[0], weight, bias, op, y_t)
        case ir.FullyConnected():
            acc = _product(centred[0], weight.T) + bias
        case ir.AveragePool():
            acc = _window_sum(centred[0], op.window, y_t)
        case ir.Requantize():
            acc = centred[0]  # by channel: numpy broadcasts along the last axis
        case ir.Resize():
            acc = _interpolate(_interpolate(centred[0], op.rows, 1), op.columns, 2)
        case ir.Embedding():
            acc = weight[_checked_indices(x, x_t, len(weight))]
        case ir.Constant():
            raise AssertionError("it reads nothing, and is seen to by its caller")
    return _clamped(requantize(acc, op.rescale.multiplier, op.rescale.shift), op.rescale, y_t)


def _product(a: Int64Array, b: Int64Array) -> Int64Array:
    """The matrix product `a @ b`, sooner, and exact: no sum leaves 32 bits, and float64 holds 53."""
    found: Int64Array = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    return found


def requantize(acc: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike) -> Int64Array:
    """The one rounding rule: `(acc * multiplier + 2^(shift-1)) >> shift`, halves towards plus infinity.

    Args:
        acc: Integers of any shape, at most 32 bits signed.
        multiplier: Integers in 0..2^31-1, broadcast against `acc`.
        shift: Integers in 1..62, broadcast against `acc`.

    Returns:
        int64 of the broadcast shape; no zero point added, nothing clamped.
    """
    m, s = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    half = np.left_shift(np.int64(1), s - 1)
    result: Int64Array = np.right_shift(np.asarray(acc, np.int64) * m + half, s)
    return result


def quantize(x: Float32Array, y: ir.Tensor) -> Value:
    """float32 to integers of y's dtype, in the same shape: `clamp(round_half_even(x / scale) + zero_point)`.

    The division is one IEEE float32 division. NaN becomes the zero point; infinities saturate.
    """
    with np.errstate(over="ignore", under="ignore"):
        steps = np.rint(np.asarray(x, np.float32) / np.float32(y.scale))
    steps = np.where(np.isnan(steps), np.float32(0), steps)
    low, high = (limit - y.zero_point for limit in y.limits)
    return (np.clip(steps, low, high).astype(np.int64) + y.zero_point).astype(y.dtype)


def dequantize(x: Value, x_t: ir.Tensor) -> Float32Array:
    """Integers to float32 of the same shape: `float32(x - zero_point) * scale`, one IEEE multiplication."""
    with np.errstate(over="ignore", under="ignore"):
        return (x.astype(np.int64) - x_t.zero_point).astype(np.float32) * np.float32(x_t.scale)


def _centred(x: Value, tensor: ir.Tensor) -> Int64Array:
    return x.astype(np.int64) - tensor.zero_point


def _clamped(value: Int64Array, rescale: ir.Rescale, y: ir.Tensor) -> Value:
    return np.clip(value + y.zero_point, rescale.low, rescale.high).astype(y.dtype)


def _broadcast(b: Value, b_t: ir.Tensor, a_t: ir.Tensor) -> Value:
    """`b` with the shape of `a`; numpy's rule knows nothing of the batch in front."""
    axes = (1,) * (len(a_t.shape) - len(b_t.shape))
    return np.broadcast_to(b.reshape(len(b), *axes, *b_t.shape), (len(b), *a_t.shape))


# Windows


def _taps(
    x: Int64Array, window: ir.Window, y: ir.Tensor, fill: int
) -> Iterator[tuple[tuple[int, ...], Int64Array]]:
    """For each tap of the window, in order: its place, and what all windows see there (N, spatial..., C)."""
    axes, size = len(window.kernel), y.shape[:-1]
    around = [(window.padding[i], window.padding[axes + i]) for i in range(axes)]
    padded = np.pad(x, ((0, 0), *around, (0, 0)), constant_values=fill)
    for tap in np.ndindex(*window.kernel):
        seen = [
            slice(k * d, k * d + (n - 1) * step + 1, step)
            for k, d, n, step in zip(tap, window.dilation, size, window.stride, strict=True)
        ]
        yield tap, padded[(slice(None), *seen)]


def _convolve(
    x: Int64Array, weight: Int64Array, bias: Int64Array, op: ir.Convolution, y: ir.Tensor
) -> Int64Array:
    acc = np.zeros((len(x), *y.shape), np.int64) + bias
    depthwise = op.groups == x.shape[-1] == len(weight)
    inputs, outputs = x.shape[-1] // op.groups, len(weight) // op.groups
    for tap, seen in _taps(x, op.window, y, fill=0):
        place: tuple[slice | int, ...] = (slice(None), slice(None), *tap)
        at_tap = weight[place]
        if depthwise:
            acc += seen * at_tap[:, 0]
            continue
        for group in range(op.groups):
            to = slice(group * outputs, (group + 1) * outputs)
            acc[..., to] += _product(seen[..., group * inputs : (group + 1) * inputs], at_tap[to].T)
    return acc


def _convolve_transposed(
    x: Int64Array, weight: Int64Array, bias: Int64Array, op: ir.TransposedConvolution, y: ir.Tensor
) -> Int64Array:
    window, axes, image = op.window, len(op.extra), x.shape[1:-1]
    inputs, outputs = x.shape[-1] // op.groups, weight.shape[1]
    whole = [
        step * (n - 1) + span + e
        for step, n, span, e in zip(window.stride, image, window.span, op.extra, strict=True)
    ]
    acc = np.zeros((len(x), *whole, y.shape[-1]), np.int64)
    for tap in np.ndindex(*window.kernel):
        reached = tuple(
            slice(k * d, k * d + (n - 1) * step + 1, step)
            for k, d, n, step in zip(tap, window.dilation, image, window.stride, strict=True)
        )
        for group in range(op.groups):
            seen = slice(group * inputs, (group + 1) * inputs)
            at_tap = weight[(seen, slice(None), *tap)]
            to = slice(group * outputs, (group + 1) * outputs)
            acc[(slice(None), *reached, to)] += _product(x[..., seen], at_tap)
    inside = [slice(window.padding[i], window.padding[i] + y.shape[i]) for i in range(axes)]
    result: Int64Array = acc[(slice(None), *inside)] + bias
    return result


def _window_sum(x: Int64Array, window: ir.Window, y: ir.Tensor) -> Int64Array:
    acc = np.zeros((len(x), *y.shape), np.int64)
    for _, seen in _taps(x, window, y, fill=0):
        acc += seen
    return acc


def _max_pool(x: Value, window: ir.Window, y: ir.Tensor) -> Value:
    nothing = y.limits[0] - 1
    best = np.full((len(x), *y.shape), nothing, np.int64)
    for _, seen in _taps(x.astype(np.int64), window, y, fill=nothing):
        best = np.maximum(best, seen)
    return best.astype(y.dtype)


def _interpolate(x: Int64Array, along: ir.Interpolation, axis: int) -> Int64Array:
    weight = np.array(along.fraction, np.int64).reshape(-1, *(1,) * (x.ndim - axis - 1))
    first, second = (x.take(np.array(which), axis) for which in (along.first, along.second))
    result: Int64Array = first * (2048 - weight) + second * weight
    return result


# One value, or one row, at a time


def _add(a: Int64Array, b: Int64Array, rescale: ir.Rescale) -> Int64Array:
    ma, mb = (int(m) for m in rescale.multiplier)
    shift = int(rescale.shift[0])
    return (a * ma + b * mb + (1 << (shift - 1))) >> shift


def _look_up(x: Value, op: ir.Lookup, y: ir.Tensor) -> Value:
    if x.dtype == np.uint8:
        entries = np.frombuffer(op.table, np.dtype(y.dtype).newbyteorder("<"))
        return entries[x].astype(y.dtype)
    table, place = np.frombuffer(op.table, "<i4").astype(np.int64), x.astype(np.int64) + 32768
    i, f = place >> 7, place & 127
    between: Int64Array = table[i] * (128 - f) + table[i + 1] * f
    return ((between + 8192) >> 14).astype(y.dtype)


def _exponentials(difference: Int64Array, table: Int64Array) -> Int64Array:
    """What e is to the power of minus a difference, times 65,536."""
    e: Int64Array = table[difference & 255]
    return e if table.size == 256 else (table[256 + (difference >> 8)] * e + (1 << 14)) >> 15


def _softmax(x: Value, kept: npt.NDArray[np.bool_] | None, op: ir.Softmax) -> Int64Array:
    keep = np.ones(x.shape, np.bool_) if kept is None else kept
    q = x.astype(np.int64)
    top = np.where(keep, q, -32768).max(axis=-1, keepdims=True)
    e = np.where(keep, _exponentials(np.where(keep, top - q, 0), np.array(op.table, np.int64)), 0)
    total = e.sum(axis=-1, keepdims=True)
    multiplier, shift = int(op.rescale.multiplier[0]), int(op.rescale.shift[0])
    r = np.minimum((multiplier << 16) // np.maximum(total, 1), (1 << 31) - 1)
    return requantize(e, r, shift)  # where nothing is kept, each e is 0


def _layer_norm(c: Int64Array, op: ir.LayerNorm) -> Int64Array:
    n, shift = c.shape[-1], int(op.rescale.shift[0])
    total = c.sum(axis=-1, keepdims=True)
    spread = n * (c * c).sum(axis=-1, keepdims=True) - total * total + op.epsilon
    k = (62 - _bits(spread)) & ~1
    root = _square_root(spread << k)
    r = np.minimum((1 << 61) // root, (1 << 31) - 1)
    normalized = requantize(n * c - total, r, 46 - k // 2)
    gain, offset = np.array(op.gain, np.int64), np.array(op.offset, np.int64)
    return (normalized * gain + offset + (1 << (shift - 1))) >> shift


def _bits(value: Int64Array) -> Int64Array:
    """How many bits values of 1 to 2^62 have; by halves, which float64 holds exactly."""
    high = value >> 31
    halves = np.where(high > 0, high, value).astype(np.float64)
    return np.frexp(halves)[1].astype(np.int64) + np.where(high > 0, 31, 0)


def _square_root(value: Int64Array) -> Int64Array:
    """Whole part of the square root of values below 2^62."""
    root = np.sqrt(value.astype(np.float64)).astype(np.int64)
    root -= root * root > value
    return root + ((root + 1) * (root + 1) <= value)


def _stretches(op: ir.Slice, y: ir.Tensor) -> list[slice]:
    return [
        slice(start, start + (n - 1) * step + 1, step)
        for start, n, step in zip(op.starts, y.shape, op.steps, strict=True)
    ]


# Borders


def _checked_indices(x: Int64Array, x_t: ir.Tensor, rows: int) -> Int64Array:
    wrong = (x < 0) | (x >= rows)
    if wrong.any():
        raise ValueError(f"input {x_t.name!r} holds the index {x[wrong][0]}; 0 to {rows - 1} are allowed")
    return x


def _bind(plan: ir.Plan, inputs: Mapping[str, Value]) -> dict[int, Value]:
    """Checks the caller's arrays; tensor number to array."""
    wanted = {plan.tensors[t].name: t for t in plan.inputs}
    bound: dict[int, Value] = {}
    samples: int | None = None
    for name, number in wanted.items():
        if name not in inputs:
            raise ValueError(f"input {name!r} is missing")
        array, tensor = np.asarray(inputs[name]), plan.tensors[number]
        if array.dtype != np.dtype(tensor.dtype):
            article = "an" if tensor.dtype == "int64" else "a"
            raise ValueError(f"input {name!r} is {array.dtype}, {article} {tensor.dtype} array is needed")
        if array.ndim and samples is None:
            samples = len(array)
        if array.shape != (samples, *tensor.shape) or samples == 0:
            needed = ", ".join(str(d) for d in ("N", *tensor.shape))
            raise ValueError(f"input {name!r} has shape {array.shape}, ({needed}) with one N >= 1 is needed")
        bound[number] = array
    for name in inputs:
        if name not in wanted:
            raise ValueError(f"unknown input {name!r}; the plan has {', '.join(map(repr, wanted))}")
    return bound


# Weights


def check_weights(plan: ir.Plan, weights: Buffer) -> dict[int, tuple[Int64Array, Int64Array]]:
    """Holds a plan to its rules, and its weights to theirs: none is -128, no accumulator can leave 32 bits.

    An accumulator of a convolution is bounded by the sum of its |weights| times 255, for int16 times 32,768,
    plus its |bias| after the zero point of the input is folded in; that of a transposed one by the weights
    that can meet at one output, and its |bias|.

    Returns:
        Weight and bias of every operator that has them, by its number: the weight in the shape that
        operators.py gives it, (rows, C) for an Embedding; the bias (O,), zeros where there is none.

    Raises:
        PlanError: A rule is broken; the message names the tensor, or the operator and row.
    """
    ir.check(plan)
    data = memoryview(weights).cast("B")  # type: ignore[arg-type]  # numpy arrays are buffers
    if len(data) != plan.weights_bytes:
        raise PlanError(f"the weights have {len(data)} bytes, the plan was made for {plan.weights_bytes}")
    found: dict[int, tuple[Int64Array, Int64Array]] = {}
    for i, op in enumerate(plan.ops):
        if not isinstance(op, ir.Convolution | ir.FullyConnected | ir.Embedding | ir.TransposedConvolution):
            continue
        where = f"operator {i} ({type(op).__name__})"
        inputs, outputs = plan.tensors[op.x].shape[-1], plan.tensors[op.y].shape[-1]
        at = plan.ranges[op.weight]
        stored = data[at.offset : at.offset + at.size]
        bias = np.zeros(outputs, np.int64)
        match op:
            case ir.Embedding():
                found[i] = _int8_rows(stored, at.size // outputs, where), bias
                continue
            case ir.TransposedConvolution():
                rows, shape = inputs, (outputs // op.groups, *op.window.kernel)
            case ir.FullyConnected():
                rows, shape = outputs, (inputs,)
            case ir.Convolution():
                rows, shape = outputs, (inputs // op.groups, *op.window.kernel)
        if op.weight_bits == 4:
            weight = _int4_rows(stored, rows, math.prod(shape), where)
        else:
            weight = _int8_rows(stored, rows, where)
        if op.bias is not None:
            at = plan.ranges[op.bias]
            bias = np.frombuffer(data[at.offset : at.offset + at.size], "<i4").astype(np.int64)
        weight = weight.reshape(rows, *shape)
        if isinstance(op, ir.TransposedConvolution):
            bound = 255 * _most_that_meets(weight, op) + np.abs(bias)
        else:
            flat = weight.reshape(rows, -1)
            folded = bias - plan.tensors[op.x].zero_point * flat.sum(axis=1)
            most = 255 if plan.tensors[op.x].dtype == "uint8" else 32768
            bound = np.abs(flat).sum(axis=1) * most + np.abs(folded)
        if (bound > MAX_ACCUMULATOR).any():
            channel = int(np.argmax(bound > MAX_ACCUMULATOR))
            raise PlanError(f"{where}: output channel {channel} can reach {bound[channel]}, beyond 32 bits")
        found[i] = weight, bias
    return found


def _int8_rows(stored: memoryview, rows: int, where: str) -> Int64Array:
    weight = np.frombuffer(stored, np.int8).reshape(rows, -1)
    lowest = (weight == -128).any(axis=1)
    if lowest.any():
        raise PlanError(f"{where}: row {int(np.argmax(lowest))} has the weight -128; they lie in -127..127")
    return weight.astype(np.int64)


def _int4_rows(stored: memoryview, rows: int, row: int, where: str) -> Int64Array:
    pairs = np.frombuffer(stored, np.uint8).reshape(rows, -1)
    halves = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(rows, -1).astype(np.int64)
    if halves[:, row:].any():
        raise PlanError(f"{where}: the unused half of a row's last byte is not 0")
    weight = np.where(halves > 7, halves - 16, halves)[:, :row]
    lowest = (weight == -8).any(axis=1)
    if lowest.any():
        raise PlanError(f"{where}: row {int(np.argmax(lowest))} has the weight -8; they lie in -7..7")
    return weight


def _most_that_meets(weight: Int64Array, op: ir.TransposedConvolution) -> Int64Array:
    """For each output channel, the largest sum of |weights| whose taps fall on the same outputs."""
    grouped = np.abs(weight).reshape(op.groups, -1, *weight.shape[1:]).sum(axis=1)
    sums = grouped.reshape(-1, *op.window.kernel)  # (O, kernel...)
    for axis, (size, step, dilation) in enumerate(
        zip(op.window.kernel, op.window.stride, op.window.dilation, strict=True), start=1
    ):
        phases = np.arange(size) * dilation % step
        sums = np.stack([sums.compress(phases == p, axis).sum(axis) for p in np.unique(phases)], axis)
    result: Int64Array = sums.reshape(len(sums), -1).max(axis=1)
    return result
