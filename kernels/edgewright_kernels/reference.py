"""The truth: every operator in plain numpy integers, one function each. Slow, and exact by inspection.

Every path of the native engine gives these bits. All integer arithmetic is int64, so nothing can wrap: the
weights are checked to keep each accumulator in 32 bits, a multiplier has 31.

The functions work on batches: uint8 arrays of shape (N, *tensor.shape), as the plan lays tensors out.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgewright_kernels import plan as ir
from edgewright_kernels.errors import PlanError

Float32Array: TypeAlias = npt.NDArray[np.float32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Value: TypeAlias = npt.NDArray[Any]  # float32 at the borders, uint8 inside
Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap | npt.NDArray[np.uint8]

MAX_ACCUMULATOR = (1 << 31) - 1


def run(plan: ir.Plan, weights: Buffer, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    """Runs a plan on a batch.

    Args:
        plan: The program.
        weights: The whole weights file.
        inputs: float32 arrays of shape (N, *shape), by name, N >= 1.

    Returns:
        The plan's outputs by name, float32, of shape (N, *shape).

    Raises:
        PlanError: The plan breaks a rule, or the weights do not belong to it.
        ValueError: An input is missing, unknown, or of the wrong shape or dtype.
    """
    values = trace(plan, weights, inputs)
    return {name: values[name] for name in (plan.tensors[t].name for t in plan.outputs)}


def trace(plan: ir.Plan, weights: Buffer, inputs: Mapping[str, Float32Array]) -> dict[str, Value]:
    """Runs a plan on a batch and keeps every tensor.

    Args:
        plan: The program.
        weights: The whole weights file.
        inputs: float32 arrays of shape (N, *shape), by name, N >= 1.

    Returns:
        Tensor name to array of shape (N, *tensor.shape): uint8, (H, W, C) inside; float32 at the borders.

    Raises:
        PlanError: The plan breaks a rule, or the weights do not belong to it.
        ValueError: An input is missing, unknown, or of the wrong shape or dtype.
    """
    parameters = check_weights(plan, weights)
    values: dict[int, Value] = dict(_bind(plan, inputs))
    for i, op in enumerate(plan.ops):
        x = values[ir.tensor_inputs(op)[0]]
        x_t, y_t = plan.tensors[ir.tensor_inputs(op)[0]], plan.tensors[op.y]
        y: Value
        match op:
            case ir.Quantize():
                y = quantize(x, y_t.scale, y_t.zero_point)
                y = y.transpose(0, 2, 3, 1) if y.ndim == 4 else y
            case ir.Dequantize():
                y = dequantize(x, x_t.scale, x_t.zero_point)
                y = y.transpose(0, 3, 1, 2) if y.ndim == 4 else y
            case ir.Conv2d():
                y = _rescale(_convolve(_centred(x, x_t), *parameters[i], op), op.rescale, y_t)
            case ir.FullyConnected():
                weight, bias = parameters[i]
                y = _rescale(_centred(x, x_t) @ weight.T + bias, op.rescale, y_t)
            case ir.MaxPool():
                y = _max_pool(x, op.window, y_t)
            case ir.AveragePool():
                y = _rescale(_window_sum(_centred(x, x_t), op.window, y_t), op.rescale, y_t)
            case ir.Add():
                y = _add(_centred(x, x_t), _centred(values[op.b], plan.tensors[op.b]), op.rescale, y_t)
            case ir.Requantize():
                y = _rescale(_centred(x, x_t), op.rescale, y_t)
            case ir.Flatten():
                y = (x.transpose(0, 3, 1, 2) if x.ndim == 4 else x).reshape(len(x), -1)
        values[op.y] = np.ascontiguousarray(y)
    return {plan.tensors[number].name: value for number, value in values.items()}


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


def quantize(x: Float32Array, scale: float, zero_point: int) -> UInt8Array:
    """float32 to uint8 of the same shape: `clamp(round_half_even(x / scale) + zero_point)`.

    The division is one IEEE float32 division. NaN becomes the zero point; infinities saturate.
    """
    with np.errstate(over="ignore", under="ignore"):
        steps = np.rint(np.asarray(x, np.float32) / np.float32(scale))
    steps = np.where(np.isnan(steps), np.float32(0), steps)
    return (np.clip(steps, -zero_point, 255 - zero_point).astype(np.int64) + zero_point).astype(np.uint8)


def dequantize(x: UInt8Array, scale: float, zero_point: int) -> Float32Array:
    """uint8 to float32 of the same shape: `float32(x - zero_point) * scale`, one IEEE multiplication."""
    with np.errstate(over="ignore", under="ignore"):
        return (x.astype(np.int64) - zero_point).astype(np.float32) * np.float32(scale)


def _centred(x: Value, tensor: ir.Tensor) -> Int64Array:
    return x.astype(np.int64) - tensor.zero_point


def _rescale(acc: Int64Array, rescale: ir.Rescale, y: ir.Tensor) -> UInt8Array:
    return _clamped(requantize(acc, rescale.multiplier, rescale.shift), rescale, y)


def _clamped(value: Int64Array, rescale: ir.Rescale, y: ir.Tensor) -> UInt8Array:
    return np.clip(value + y.zero_point, rescale.low, rescale.high).astype(np.uint8)


def _taps(x: Int64Array, window: ir.Window, y: ir.Tensor, fill: int) -> Iterator[tuple[int, int, Int64Array]]:
    """For each tap of the window, in order: its row, its column, what all windows see there (N, H, W, C)."""
    top, left, bottom, right = window.padding
    height, width = y.shape[:2]
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    for row in range(window.kernel[0]):
        for column in range(window.kernel[1]):
            first_row, first_column = row * window.dilation[0], column * window.dilation[1]
            yield (
                row,
                column,
                padded[
                    :,
                    first_row : first_row + (height - 1) * window.stride[0] + 1 : window.stride[0],
                    first_column : first_column + (width - 1) * window.stride[1] + 1 : window.stride[1],
                ],
            )


def _convolve(x: Int64Array, weight: Int64Array, bias: Int64Array, op: ir.Conv2d) -> Int64Array:
    height, width = op.window.output_size(*x.shape[1:3])
    y = ir.Tensor(name="y", dtype="uint8", shape=(height, width, len(weight)))
    acc = np.zeros((len(x), *y.shape), np.int64) + bias
    for row, column, seen in _taps(x, op.window, y, fill=0):
        at_tap = weight[:, :, row, column]
        acc += seen * at_tap[:, 0] if op.groups > 1 else seen @ at_tap.T
    return acc


def _window_sum(x: Int64Array, window: ir.Window, y: ir.Tensor) -> Int64Array:
    acc = np.zeros((len(x), *y.shape), np.int64)
    for _, _, seen in _taps(x, window, y, fill=0):
        acc += seen
    return acc


def _max_pool(x: Value, window: ir.Window, y: ir.Tensor) -> UInt8Array:
    best = np.full((len(x), *y.shape), -1, np.int64)
    for _, _, seen in _taps(x.astype(np.int64), window, y, fill=-1):
        best = np.maximum(best, seen)
    return best.astype(np.uint8)


def _add(a: Int64Array, b: Int64Array, rescale: ir.Rescale, y: ir.Tensor) -> UInt8Array:
    ma, mb = (int(m) for m in rescale.multiplier)
    shift = int(rescale.shift[0])
    return _clamped((a * ma + b * mb + (1 << (shift - 1))) >> shift, rescale, y)


def _bind(plan: ir.Plan, inputs: Mapping[str, Float32Array]) -> dict[int, Float32Array]:
    """Checks the caller's arrays; tensor number to array."""
    wanted = {plan.tensors[t].name: t for t in plan.inputs}
    bound: dict[int, Float32Array] = {}
    samples: int | None = None
    for name, number in wanted.items():
        if name not in inputs:
            raise ValueError(f"input {name!r} is missing")
        array, shape = np.asarray(inputs[name]), plan.tensors[number].shape
        if array.dtype != np.float32:
            raise ValueError(f"input {name!r} is {array.dtype}, a float32 array is needed")
        if array.ndim and samples is None:
            samples = len(array)
        if array.shape != (samples, *shape) or samples == 0:
            needed = ", ".join(str(d) for d in ("N", *shape))
            raise ValueError(f"input {name!r} has shape {array.shape}, ({needed}) with one N >= 1 is needed")
        bound[number] = array
    for name in inputs:
        if name not in wanted:
            raise ValueError(f"unknown input {name!r}; the plan has {', '.join(map(repr, wanted))}")
    return bound


def check_weights(plan: ir.Plan, weights: Buffer) -> dict[int, tuple[Int64Array, Int64Array]]:
    """Holds a plan to its rules, and its weights to theirs: none is -128, no accumulator can leave 32 bits.

    An accumulator is bounded by the sum of its |weights| times 255, plus its |bias| after the zero point of
    the input is folded in.

    Returns:
        Weight and bias of every operator that has them, by its number: (O, I, kernel height, kernel width) or
        (O, I), and (O,).

    Raises:
        PlanError: A rule is broken; the message names the tensor, or the operator and output channel.
    """
    ir.check(plan)
    data = memoryview(weights).cast("B")  # type: ignore[arg-type]  # numpy arrays are buffers
    if len(data) != plan.weights_bytes:
        raise PlanError(f"the weights have {len(data)} bytes, the plan was made for {plan.weights_bytes}")
    found: dict[int, tuple[Int64Array, Int64Array]] = {}
    for i, op in enumerate(plan.ops):
        if not isinstance(op, ir.Conv2d | ir.FullyConnected):
            continue
        where = f"operator {i} ({type(op).__name__})"
        x_t, outputs = plan.tensors[op.x], plan.tensors[op.y].shape[-1]
        at = plan.ranges[op.weight]
        weight = np.frombuffer(data[at.offset : at.offset + at.size], np.int8).astype(np.int64)
        bias = np.zeros(outputs, np.int64)
        if op.bias is not None:
            at = plan.ranges[op.bias]
            bias = np.frombuffer(data[at.offset : at.offset + at.size], "<i4").astype(np.int64)
        rows = weight.reshape(outputs, -1)
        if (rows < -127).any():
            channel = int(np.argmax((rows < -127).any(axis=1)))
            raise PlanError(f"{where}: output channel {channel} has the weight -128; they lie in -127..127")
        bound = np.abs(rows).sum(axis=1) * 255 + np.abs(bias - x_t.zero_point * rows.sum(axis=1))
        if (bound > MAX_ACCUMULATOR).any():
            channel = int(np.argmax(bound > MAX_ACCUMULATOR))
            raise PlanError(f"{where}: output channel {channel} can reach {bound[channel]}, beyond 32 bits")
        shape = op.window.kernel if isinstance(op, ir.Conv2d) else ()
        found[i] = weight.reshape(outputs, -1, *shape), bias
    return found
