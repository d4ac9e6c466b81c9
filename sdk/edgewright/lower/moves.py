"""Moves: what changes where values are, or at most interpolates between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.lower.draft import Draft, Order, Result, Value, channels_last, straight
from edgewright.lower.scales import REMEDY, describe, rescale_of
from edgewright.wiring import attributes
from edgewright_kernels.plan import Concat, Interpolation, Reshape, Resize, Slice

FRACTIONS = 2048


def reshape(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """Reshape of each sample. Nothing is moved where the axes that are joined lie side by side already."""
    value = draft.operand(node, 0)
    before, after = draft.shape(value), result.shape
    if math.prod(before) != math.prod(after):
        raise ExportError(f"{describe(node)}: mixes samples, {before} to {after}; {REMEDY}")
    order = _order_after(before, after, value.order)
    if order is None:
        value = draft.arranged(value, straight(len(before)))
        order = straight(len(after))
    shape = tuple(after[i] for i in order)
    if shape != draft.tensor(value).shape:
        made = draft.like(value, f"{result.name}", after, order)
        draft.ops.append(Reshape(x=value.number, y=made.number))
        value = made
    draft.keep(node, Value(value.number, order), result)


def _order_after(before: Sequence[int], after: Sequence[int], order: Order) -> Order | None:
    """The order of a reshaped value that lies as it did, or None where there is no such order."""
    groups = _groups(before, after)
    place: dict[int, int] = {}  # of an axis before: the group it is in
    for number, (old, _) in enumerate(groups):
        place.update(dict.fromkeys(old, number))
    lies = [a for a in order if before[a] != 1]
    result: list[int] = []
    while lies:
        old = [a for a in groups[place[lies[0]]][0] if before[a] != 1]
        if lies[: len(old)] != old:
            return None
        result += groups[place[lies[0]]][1]
        lies = lies[len(old) :]
    ones = [i for i in range(len(after)) if i not in result]
    return (*ones, *result)


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes, of more than one element, that a reshape turns into one another."""
    old = [i for i, n in enumerate(before) if n != 1]
    new = [i for i, n in enumerate(after) if n != 1]
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old):
        a, b = [old[i]], [new[j]]
        i, j = i + 1, j + 1
        left, right = before[a[0]], after[b[0]]
        while left != right:
            if left < right:
                a.append(old[i])
                left *= before[old[i]]
                i += 1
            else:
                b.append(new[j])
                right *= after[new[j]]
                j += 1
        groups.append((a, b))
    return groups


def transpose(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """Transpose: the value stays, its axes have other names."""
    value = draft.operand(node, 0)
    rank = len(value.order)
    perm = attributes(node).get("perm", range(rank + 1)[::-1])
    if perm[0] != 0:
        raise ExportError(f"{describe(node)}: moves the batch, the first axis; {REMEDY}")
    named = {old - 1: new for new, old in enumerate(perm[1:])}
    draft.keep(node, Value(value.number, tuple(named[a] for a in value.order)), result)


def slice_(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """Slice along any axes but the batch, by steps of 1 or more."""
    value = draft.operand(node, 0)
    shape = draft.shape(value)
    numbers = [draft.graph.constants.get(n) for n in node.input[1:] if n]
    if len(numbers) < 2 or any(n is None for n in numbers):
        raise ExportError(f"{describe(node)}: its places are not constants; {REMEDY}")
    begins, ends, *more = ([int(v) for v in np.ravel(n)] for n in numbers if n is not None)
    axes = [a % (len(shape) + 1) for a in (more[0] if more else range(len(begins)))]
    jumps = more[1] if len(more) > 1 else [1] * len(begins)
    starts, steps = [0] * len(shape), [1] * len(shape)
    for axis, begin, end, step in zip(axes, begins, ends, jumps, strict=True):
        if axis == 0 and begin == 0 and end >= 1 << 31 and step == 1:
            continue
        if axis == 0 or step < 1:
            what = "the batch" if axis == 0 else "backwards"
            raise ExportError(f"{describe(node)}: slices {what}, which is not in the native engine; {REMEDY}")
        size = shape[axis - 1]
        starts[axis - 1] = min(max(begin + size if begin < 0 else begin, 0), size)
        steps[axis - 1] = step
    y = draft.like(value, result.name, result.shape, value.order)
    draft.ops.append(
        Slice(
            x=value.number,
            y=y.number,
            starts=tuple(starts[a] for a in value.order),
            steps=tuple(steps[a] for a in value.order),
        )
    )
    draft.keep(node, y, result)


def concat(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """Concat along any axis but the batch; what is on another grid is brought to that of the result."""
    axis = attributes(node)["axis"] % (len(result.shape) + 1) - 1
    if axis < 0:
        raise ExportError(f"{describe(node)}: joins batches; {REMEDY}")
    values = [draft.operand(node, i) for i in range(len(node.input))]
    order = values[0].order
    for value in values:
        t = draft.tensor(value)
        if (t.dtype, t.scale, t.zero_point) != (result.dtype, result.scale, result.zero_point):
            raise ExportError(f"{describe(node)}: {t.name!r} is on another grid than its result; {REMEDY}")
    inputs = tuple(draft.arranged(v, order).number for v in values)
    y = draft.like(values[0], result.name, result.shape, order)
    draft.ops.append(Concat(y=y.number, axis=order.index(axis), inputs=inputs))
    draft.keep(node, y, result)


def resize(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """Resize of images, nearest or linear, along one or two axes."""
    given = draft.operand(node, 0)
    shape, rank = draft.shape(given), len(given.order)
    if rank not in {2, 3} or result.shape[0] != shape[0]:
        raise ExportError(
            f"{describe(node)}: only one or two spatial axes are in the native engine; {REMEDY}"
        )
    scales = draft.graph.constants.get([*node.input, "", ""][2])
    tables = [
        interpolation(node, shape[i], result.shape[i], _factor(scales, i + 1, shape[i], result.shape[i]))
        for i in range(1, rank)
    ]
    x = draft.arranged(given, channels_last(rank))
    source = x.number
    if rank == 2:  # a line is an image of one row
        tables.insert(0, Interpolation(first=(0,), second=(0,), fraction=(0,)))
        row = draft.like(x, draft.tensor(x).name, (1, *draft.tensor(x).shape), straight(3))
        draft.ops.append(Reshape(x=source, y=row.number))
        source = row.number
    t = draft.tensors[source]
    change = rescale_of(node, [t.scale / result.scale / FRACTIONS**2], result.low, result.high)
    if rank == 3:
        y = draft.give(result, x.order).number
    else:
        size = (1, result.shape[1], result.shape[0])
        y = draft.new(f"{result.name}.row", size, straight(3), result.scale, result.zero_point).number
    draft.ops.append(Resize(x=source, y=y, rows=tables[0], columns=tables[1], rescale=change))
    if rank == 2:
        flat = draft.give(result, x.order)
        draft.ops.append(Reshape(x=y, y=flat.number))


def _factor(scales: npt.NDArray[np.float32] | None, axis: int, size: int, wanted: int) -> float:
    """How much larger the result is along an axis: as the node says, or by the sizes."""
    return float(scales[axis]) if scales is not None and scales.size > axis else wanted / size


def interpolation(node: onnx.NodeProto, size: int, wanted: int, factor: float) -> Interpolation:
    """Which inputs each output lies between, by ONNX's rules of coordinates."""
    given = attributes(node)
    mode = given.get("coordinate_transformation_mode", b"half_pixel").decode()
    at = np.arange(wanted, dtype=np.float64)
    if mode == "asymmetric":
        places = at / factor
    elif mode == "align_corners":
        places = at * (size - 1) / (wanted - 1) if wanted > 1 else np.zeros(1)
    elif mode in {"half_pixel", "pytorch_half_pixel"}:
        places = (at + 0.5) / factor - 0.5
        places = places if wanted > 1 or mode == "half_pixel" else np.zeros(1)
    elif mode == "half_pixel_symmetric":
        middle, exact = size / 2, wanted / (factor * size)
        places = middle * (1 - exact) + (at + 0.5) / factor - 0.5
    else:
        raise ExportError(f"{describe(node)}: coordinates by {mode!r} are not in the native engine; {REMEDY}")
    kind = given.get("mode", b"nearest").decode()
    if kind not in {"nearest", "linear"} or given.get("antialias", 0):
        raise ExportError(f"{describe(node)}: mode {kind!r} is not in the native engine; {REMEDY}")
    if kind == "nearest":
        nearest = given.get("nearest_mode", b"round_prefer_floor").decode()
        rounding: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
            "floor": np.floor,
            "ceil": np.ceil,
            "round_prefer_ceil": lambda p: np.floor(p + 0.5),
            "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        }
        rounded = rounding[nearest](places)
        first = np.clip(rounded, 0, size - 1).astype(np.int64)
        second, fraction = first, np.zeros(wanted, np.int64)
    else:
        places = np.clip(places, 0, size - 1)
        first = np.floor(places).astype(np.int64)
        second = np.minimum(first + 1, size - 1)
        fraction = np.rint((places - first) * FRACTIONS).astype(np.int64)
    return Interpolation(
        first=tuple(first.tolist()), second=tuple(second.tolist()), fraction=tuple(fraction.tolist())
    )
