"""Integer layers of a QDQ graph: 8-bit weights, the integers that meet them, and what becomes of the sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.value_ranges import integer_ranges
from edgewright.wiring import Wiring, attributes

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

_QDQ = {"QuantizeLinear", "DequantizeLinear"}
_TABLES = {"Gather", "Constant"}
# What leaves integers as they are, so that runtimes move a DequantizeLinear behind it.
_MOVED = {"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True, kw_only=True)
class OutputGrid:
    """What a layer's results are rounded to.

    Attributes:
        scale, zero_point: Of the grid.
        low, high: The integers that results are clamped to, an activation between included.
        dtype: Of the integers.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True)
class IntegerLayer:
    """A convolution or matrix product of 8-bit activations with constant 8-bit weights.

    Attributes:
        name: Of the node, or of its result where the node has none.
        node: Of the graph.
        weight: int8 or uint8, (O, C) or (O, C, positions...), C of one group; as stored.
        weight_zero: (O,) or one for all, the zero points of the weights.
        weight_scale: (O,).
        bias: (O,), in steps of the sums.
        groups: Of a convolution.
        value: The name of the activations, as the node reads them.
        scale, zero_point, dtype: Their grid.
        low, high: The least and greatest integer they can be, whatever the network is fed.
        padded: Whether zero points are put around them.
        output: The grid of the result; None where it stays in floating point.
        clamped: Whether a ReLU or a clamp that its grid does not cover lies between the result and that grid,
            which keeps ONNX Runtime from running the layer in integers.
    """

    name: str
    node: onnx.NodeProto
    weight: Array
    weight_zero: Integers
    weight_scale: npt.NDArray[np.float64]
    bias: Integers
    groups: int
    value: str
    scale: float
    zero_point: int
    dtype: np.dtype[Any]
    low: int
    high: int
    padded: bool
    output: OutputGrid | None
    clamped: bool

    @property
    def depthwise(self) -> bool:
        """Whether each channel meets its own weights alone."""
        return self.node.op_type == "Conv" and self.groups == len(self.weight) and self.weight.shape[1] == 1

    @property
    def terms(self) -> int:
        """Products that one result is the sum of."""
        return math.prod(self.weight.shape[1:])


def integer_layers(model: onnx.ModelProto) -> tuple[IntegerLayer, ...]:
    """The layers of a QDQ graph, with its constants inside, that a runtime can multiply in integers.

    Weights of 4 and activations of 16 bits are left out: no kernel here multiplies them.
    """
    return _read(model)[0]


def unread_layers(model: onnx.ModelProto) -> tuple[onnx.NodeProto, ...]:
    """Nodes that may multiply by constant int8 matrices, in forms that `integer_layers` does not read.

    They read such a constant themselves, as ONNX Runtime's operators on integers do (QLinearConv,
    MatMulInteger), or multiply 8-bit activations by a dequantized one that lies otherwise.
    """
    return _read(model)[1]


def _read(model: onnx.ModelProto) -> tuple[tuple[IntegerLayer, ...], tuple[onnx.NodeProto, ...]]:
    graph = Wiring(model)
    producers, readers, ranges = graph.producers(), graph.readers(), integer_ranges(graph)
    layers: list[IntegerLayer] = []
    unread: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.op_type in _QDQ or node.op_type in _MOVED or node.op_type in _TABLES:
            continue
        if any(_is_matrix(graph.constants.get(n)) for n in node.input):
            unread.append(node)
            continue
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        source, weights = producers.get(node.input[0]), producers.get(node.input[1])
        while source is not None and source.op_type in _MOVED:
            source = producers.get(source.input[0])
        turned = weights is not None and weights.op_type == "Transpose"
        if turned and weights is not None:
            weights = producers.get(weights.input[0])
        if (
            source is None
            or weights is None
            or {source.op_type, weights.op_type} != {"DequantizeLinear"}
            or source.input[0] in graph.constants
        ):
            continue
        layer = _layer(graph, node, source, weights, turned, ranges, readers)
        if layer is not None:
            layers.append(layer)
        elif _fixed(graph, producers, weights.input[0]) and _in_8_bits(graph, source):
            unread.append(node)
    return tuple(layers), tuple(unread)


def _is_matrix(value: Array | None) -> bool:
    return value is not None and value.dtype == np.int8 and value.ndim > 1


def _fixed(graph: Wiring, producers: dict[str, onnx.NodeProto], name: str) -> bool:
    """Whether a value is an int8 matrix that does not depend on the network's inputs."""
    if name in graph.constants:
        return _is_matrix(graph.constants[name])
    node = producers.get(name)
    if node is None:
        return False
    if node.op_type == "QuantizeLinear":
        return node.input[0] in graph.constants
    return node.op_type in _MOVED and _fixed(graph, producers, node.input[0])


def _in_8_bits(graph: Wiring, node: onnx.NodeProto) -> bool:
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    return zero is None or zero.dtype.itemsize == 1


def _layer(
    graph: Wiring,
    node: onnx.NodeProto,
    source: onnx.NodeProto,
    weights: onnx.NodeProto,
    turned: bool,
    ranges: dict[str, tuple[int, int]],
    readers: dict[str, list[onnx.NodeProto]],
) -> IntegerLayer | None:
    stored = graph.constants.get(weights.input[0])
    numbers = [graph.constants.get(n) for n in source.input[1:]]
    settings = attributes(node)
    if (
        stored is None
        or stored.dtype not in (np.int8, np.uint8)
        or stored.ndim < 2
        or any(n is None or n.size != 1 for n in numbers)
        or source.output[0] not in ranges
        or settings.get("transA")
    ):
        return None
    scale = numbers[0]
    zero = numbers[1] if len(numbers) > 1 else np.zeros((), np.uint8)
    if scale is None or zero is None or zero.dtype not in (np.int8, np.uint8):
        return None
    weight = stored
    if turned and (stored.ndim != 2 or node.op_type == "Conv"):
        return None
    if turned != (node.op_type == "MatMul" or (node.op_type == "Gemm" and not settings.get("transB"))):
        weight = np.ascontiguousarray(stored.swapaxes(-1, -2)).reshape(-1, stored.shape[-2])
    rows = len(weight)
    weight_scale = _per_row(graph, weights.input[1], rows, 1.0).astype(np.float64)
    weight_zero = _per_row(graph, weights.input[2] if len(weights.input) > 2 else "", rows, 0)
    output, clamped = _output(graph, node, readers)
    low, high = ranges[source.output[0]]
    padded = bool(any(settings.get("pads", []))) or settings.get("auto_pad", b"") in (
        b"SAME_UPPER",
        b"SAME_LOWER",
    )
    if padded:
        low, high = min(low, int(zero)), max(high, int(zero))
    return IntegerLayer(
        name=node.name or node.output[0],
        node=node,
        weight=weight,
        weight_zero=weight_zero.astype(np.int64),
        weight_scale=weight_scale,
        bias=_bias(graph, node, float(scale.reshape(())) * weight_scale),
        groups=settings.get("group", 1),
        value=node.input[0],
        scale=float(scale.reshape(())),
        zero_point=int(zero.reshape(())),
        dtype=zero.dtype,
        low=low,
        high=high,
        padded=padded,
        output=output,
        clamped=clamped,
    )


def _per_row(graph: Wiring, name: str, rows: int, otherwise: float) -> Array:
    """A constant with one number for each row of the weights; a batch of matrices repeats them."""
    value = graph.constants.get(name)
    if value is None:
        return np.full(rows, otherwise)
    flat = value.reshape(-1)
    return np.resize(flat, rows) if rows % max(1, flat.size) == 0 else np.full(rows, flat.max())


def _bias(graph: Wiring, node: onnx.NodeProto, steps: npt.NDArray[np.float64]) -> Integers:
    """A layer's own bias in whole steps of its sums; that of an Add behind it is not looked for."""
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(len(steps), np.int64)
    name = node.input[2]
    value, scale = graph.constants.get(name), np.array(1.0)
    producer = graph.producers().get(name)
    if value is None and producer is not None and producer.op_type == "DequantizeLinear":
        value, scale = graph.constants.get(producer.input[0]), graph.constants.get(producer.input[1], scale)
    if value is None or value.size not in (1, len(steps)):
        return np.zeros(len(steps), np.int64)
    real = value.reshape(-1).astype(np.float64) * scale.reshape(-1)
    return np.rint(np.broadcast_to(real, steps.shape) / np.where(steps == 0, 1, steps)).astype(np.int64)


def _output(
    graph: Wiring, node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]
) -> tuple[OutputGrid | None, bool]:
    """What the result is rounded to; and whether a clamp before that is narrower than the grid."""
    name, least, most = node.output[0], -math.inf, math.inf
    for _ in range(2):
        following = readers.get(name, [])
        if name in graph.outputs or len(following) != 1:
            return None, least > -math.inf or most < math.inf
        after = following[0]
        if after.op_type == "QuantizeLinear" and after.input[0] == name:
            return _rounded(graph, after, least, most)
        if after.op_type == "Relu":
            least = 0.0
        elif after.op_type == "Clip":
            ends = [graph.constants.get(n) if n else None for n in (*after.input[1:], "", "")[:2]]
            settings = attributes(after)
            least = float(ends[0].reshape(())) if ends[0] is not None else settings.get("min", -math.inf)
            most = float(ends[1].reshape(())) if ends[1] is not None else settings.get("max", math.inf)
        else:
            return None, False
        name = after.output[0]
    return None, True


def _rounded(
    graph: Wiring, node: onnx.NodeProto, least: float, most: float
) -> tuple[OutputGrid | None, bool]:
    scale = graph.constants.get(node.input[1])
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.dtype not in (np.int8, np.uint8):
        return None, least > -math.inf or most < math.inf
    step, at = float(scale.reshape(())), int(zero.reshape(()))
    limits = np.iinfo(zero.dtype)
    ends = [
        np.clip(np.rint(np.clip(v / step, -1e9, 1e9)) + at, limits.min, limits.max) for v in (least, most)
    ]
    grid = OutputGrid(scale=step, zero_point=at, low=int(ends[0]), high=int(ends[1]), dtype=zero.dtype)
    return grid, bool(grid.low > limits.min or grid.high < limits.max)
