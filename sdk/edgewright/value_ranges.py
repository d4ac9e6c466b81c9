"""Value ranges: which integers a quantized value can take at all, whatever is fed to the network.

A grid has 256 steps, but behind a ReLU, a softmax or a clamp a part of them is never seen. Ranges follow the
operators that say something on their own; of all others anything is expected. Every bound is rounded outward,
so no value lies outside, but for NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.wiring import Wiring, attributes

Range = tuple[float, float]
Array = npt.NDArray[Any]

ANYTHING: Range = (-math.inf, math.inf)
SLACK = 1e-6  # of a bound, for what float32 makes of it on its way

_BOUNDED: dict[str, Range] = {
    "HardSigmoid": (0, 1),
    "HardSwish": (-0.375, math.inf),
    "Sigmoid": (0, 1),
    "Softmax": (0, 1),
    "Tanh": (-1, 1),
    "Abs": (0, math.inf),
    "Sqrt": (0, math.inf),
    "Exp": (0, math.inf),
}
# Each result is one of the inputs' values, or a mean of some.
_SAME = {
    "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Identity",
    "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_WITH_ZERO = {"AveragePool", "Pad"}


def integer_ranges(graph: Wiring) -> dict[str, tuple[int, int]]:
    """The least and the greatest integer of each quantized value, by its name.

    The result of a DequantizeLinear is listed as well, with the integers it was made of. Grids are those of
    one scale for a whole value; others are left out.
    """
    floats: dict[str, Range] = {}
    integers: dict[str, tuple[int, int]] = {}
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            found = _quantized(graph, node, _range(graph, floats, node.input[0]))
            if found is not None:
                integers[node.output[0]] = found
        elif node.op_type == "DequantizeLinear":
            if node.input[0] not in graph.constants and (grid := _grid(graph, node)) is not None:
                scale, zero, limits = grid
                low, high = integers.get(node.input[0], limits)
                integers[node.output[0]] = (low, high)
                floats[node.output[0]] = ((low - zero) * scale, (high - zero) * scale)
        else:
            result = _of_node(node, lambda name: _range(graph, floats, name))
            floats.update(dict.fromkeys(node.output, result))
    return integers


def _range(graph: Wiring, floats: dict[str, Range], name: str) -> Range:
    value = graph.constants.get(name)
    if value is None:
        return floats.get(name, ANYTHING)
    if value.size == 0 or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        return ANYTHING
    return float(value.min()), float(value.max())


def _of_node(node: onnx.NodeProto, of: Callable[[str], Range]) -> Range:
    kind = node.op_type
    if kind == "Relu":
        low, high = of(node.input[0])
        return max(low, 0.0), max(high, 0.0)
    if kind in _BOUNDED:
        return _BOUNDED[kind]
    if kind in _SAME:
        return of(node.input[0])
    if kind in _WITH_ZERO:
        more = of(node.input[2]) if kind == "Pad" and len(node.input) > 2 and node.input[2] else (0.0, 0.0)
        return _join(of(node.input[0]), more)
    if kind == "Concat":
        found = of(node.input[0])
        for name in node.input[1:]:
            found = _join(found, of(name))
        return found
    if kind == "Clip":
        low = of(node.input[1])[0] if len(node.input) > 1 and node.input[1] else -math.inf
        high = of(node.input[2])[1] if len(node.input) > 2 and node.input[2] else math.inf
        low, high = attributes(node).get("min", low), attributes(node).get("max", high)
        return _meet(of(node.input[0]), (float(low), float(high)))
    if kind == "Add":
        (a, b), (c, d) = of(node.input[0]), of(node.input[1])
        return a + c, b + d
    return ANYTHING


def _meet(a: Range, b: Range) -> Range:
    """What lies in both; where nothing does, `b`, to which values are clamped."""
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low <= high else b


def _join(a: Range, b: Range) -> Range:
    return min(a[0], b[0]), max(a[1], b[1])


def _grid(graph: Wiring, node: onnx.NodeProto) -> tuple[float, int, tuple[int, int]] | None:
    scale = graph.constants.get(node.input[1])
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else np.array(0, np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or zero.dtype.kind not in "iu":
        return None
    limits = np.iinfo(zero.dtype)
    return float(scale.reshape(())), int(zero.reshape(())), (int(limits.min), int(limits.max))


def _quantized(graph: Wiring, node: onnx.NodeProto, value: Range) -> tuple[int, int] | None:
    grid = _grid(graph, node)
    if grid is None:
        return None
    scale, zero, limits = grid

    def step(bound: float, outward: float) -> int:
        if math.isinf(bound) or scale == 0:
            return limits[bound > 0]
        return int(np.clip(np.rint((bound + outward * abs(bound)) / scale) + zero, *limits))

    return step(value[0], -SLACK), step(value[1], SLACK)
