"""A program while it is being written: its tensors, its operators, and how each value lies in memory.

A value of the graph has axes, behind the batch, in the graph's order. In the program it may lie in another:
images have their channels last. `Value.order` says which; a transpose of the graph changes `order` and moves
nothing. Only where an operator needs another order than a value has, values are moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.int4 import INT4
from edgewright.lower.scales import REMEDY, describe, rescale_of
from edgewright.wiring import Wiring
from edgewright_kernels.plan import ByteRange, Constant, DType, Op, Requantize, Reshape, Tensor, Transpose

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the graph in the program: axis i of tensor `number` is axis `order[i]` of the value."""

    number: int
    order: Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A quantized constant: the name of its integers, scales, float32 (channels,) or (1,), shape, bits."""

    name: str
    scale: npt.NDArray[np.float32]
    shape: tuple[int, ...]
    bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Where an operator's result goes: what QuantizeLinear makes of it.

    Attributes:
        name: Of the quantized value.
        shape: Behind the batch, as the graph has it.
        scale: Of its grid.
        zero_point: Of its grid.
        low: Lower clamp in integers; a ReLU behind the operator raises it.
        high: Upper clamp.
        dtype: Of its integers.
        factor: What multiplies the operator's result.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    low: int
    high: int
    dtype: DType = "uint8"
    factor: float = 1.0

    def clamped(self, low: float, high: float) -> Result:
        """With the clamp of an activation, in real numbers."""

        def on_grid(value: float, otherwise: int) -> int:
            if math.isinf(value):
                return otherwise
            return int(np.clip(np.rint(value / self.scale) + self.zero_point, self.low, self.high))

        return replace(self, low=on_grid(low, self.low), high=on_grid(high, self.high))


class Draft:
    """A program while it is being written.

    Attributes:
        graph: The QDQ graph.
        shapes: Of all its values, at batch size 1.
        producers: The node that gives each value.
        readers: The nodes that read each value.
        tensors: So far; not yet placed.
        ops: So far.
        values: Of the program, by the name of the quantized value in the graph.
    """

    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, ByteRange]) -> None:
        self.graph = Wiring(model)
        self.shapes, self.kinds = self.graph.infer(1)
        self.producers, self.readers = self.graph.producers(), self.graph.readers()
        self.ranges = ranges
        self.range_numbers: dict[str, int] = {}
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {}
        self._moved: dict[tuple[int, Order], int] = {}
        self._names: set[str] = set()

    # Tensors

    def tensor(self, value: Value) -> Tensor:
        """The tensor a value lies in."""
        return self.tensors[value.number]

    def shape(self, value: Value) -> tuple[int, ...]:
        """A value's sizes, in the graph's order."""
        sizes = dict(zip(value.order, self.tensor(value).shape, strict=True))
        return tuple(sizes[i] for i in range(len(sizes)))

    def sample_shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a value of the graph, behind the batch."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) < 2:
            known = "is not known" if shape is None else f"{shape} has nothing behind the batch"
            raise ExportError(
                f"value {name!r}: its shape {known}; only the batch, the first dimension, may be free"
            )
        return shape[1:]

    def add(self, **fields: Any) -> int:
        """Adds a tensor; a name that is taken gets a number."""
        name, count = fields.pop("name"), 1
        unique = name
        while unique in self._names:
            count += 1
            unique = f"{name}~{count}"
        self._names.add(unique)
        self.tensors.append(Tensor(name=unique, **fields))
        return len(self.tensors) - 1

    def new(
        self,
        name: str,
        shape: Sequence[int],
        order: Order,
        scale: float,
        zero_point: int,
        dtype: DType = "uint8",
    ) -> Value:
        """Adds a tensor for a value of this shape, in the graph's order."""
        number = self.add(
            name=name,
            dtype=dtype,
            shape=tuple(shape[i] for i in order),
            scale=scale,
            zero_point=zero_point,
        )
        return Value(number, order)

    def like(self, value: Value, name: str, shape: Sequence[int], order: Order) -> Value:
        """Adds a tensor on the grid of another."""
        grid = self.tensor(value)
        return self.new(name, shape, order, grid.scale, grid.zero_point, grid.dtype)

    def give(self, result: Result, order: Order) -> Value:
        """Adds the tensor of an operator's result."""
        made = self.new(result.name, result.shape, order, result.scale, result.zero_point, result.dtype)
        self.values[result.name] = made
        return made

    def keep(self, node: onnx.NodeProto, value: Value, result: Result) -> None:
        """Hands on a value that was only moved; on to the grid of the result, if that is another."""
        t = self.tensor(value)
        grid = (t.dtype, t.scale, t.zero_point, *t.limits)
        if grid == (result.dtype, result.scale, result.zero_point, result.low, result.high):
            self.values[result.name] = value
            return
        y = self.give(result, value.order)
        change = rescale_of(node, [t.scale / result.scale], result.low, result.high)
        self.ops.append(Requantize(x=value.number, y=y.number, rescale=change))

    def arranged(self, value: Value, order: Order) -> Value:
        """The value with its axes in this order, moved if need be."""
        if value.order == order:
            return value
        axes = tuple(value.order.index(a) for a in order)
        if (value.number, axes) not in self._moved:
            t, shape = self.tensor(value), self.shape(value)
            made = self.like(value, t.name, shape, order)
            if [a for a in value.order if shape[a] != 1] == [a for a in order if shape[a] != 1]:
                self.ops.append(Reshape(x=value.number, y=made.number))
            else:
                self.ops.append(Transpose(x=value.number, y=made.number, order=axes))
            self._moved[value.number, axes] = made.number
        return Value(self._moved[value.number, axes], order)

    def widened(self, value: Value, rank: int) -> Value:
        """The value with axes of size 1 in front, so that it has `rank` of them."""
        more = rank - len(value.order)
        if more <= 0:
            return value
        order = (*range(more), *(a + more for a in value.order))
        made = self.like(value, self.tensor(value).name, [1] * more + list(self.shape(value)), order)
        self.ops.append(Reshape(x=value.number, y=made.number))
        return made

    # Operands

    def operand(self, node: onnx.NodeProto, index: int) -> Value:
        """The quantized value behind a node's input."""
        name = node.input[index]
        before = self.producers.get(name)
        if before is not None and before.op_type == "Expand":
            return self.operand(before, 0)
        if before is None or before.op_type != "DequantizeLinear":
            raise ExportError(f"{describe(node)}: its input {name!r} is not quantized; {REMEDY}")
        source = before.input[0]
        if source in self.values:
            return self.values[source]
        if source in self.graph.constants:
            return self._constant(node, before)
        raise ExportError(f"{describe(node)}: its input {name!r} is not quantized; {REMEDY}")

    def is_constant(self, name: str) -> bool:
        """Whether a value is a dequantized constant."""
        before = self.producers.get(name)
        return (
            before is not None
            and before.op_type == "DequantizeLinear"
            and before.input[0] in self.graph.constants
        )

    def _constant(self, node: onnx.NodeProto, dequantize: onnx.NodeProto) -> Value:
        """A constant operand: one scale. A batch of size 1 in front of its shape is left out."""
        name = dequantize.input[0]
        integers, (scale, zero_point, dtype) = self.graph.constants[name], self.grid(dequantize)
        shape = integers.shape
        rank = len(self.shapes.get(node.output[0], shape))
        if len(shape) == rank and shape[:1] == (1,):
            shape = shape[1:]
        shape = shape or (1,)
        made = self.new(name, shape, tuple(range(len(shape))), scale, zero_point, dtype)
        self.ops.append(Constant(y=made.number, weight=self.range(name)))
        self.values[name] = made
        return made

    def weight(self, node: onnx.NodeProto, index: int) -> Quantized:
        """A layer's weight or bias: a dequantized constant, perhaps transposed behind that."""
        dequantize = self.producers.get(node.input[index])
        if dequantize is not None and dequantize.op_type == "Transpose":
            dequantize = self.producers.get(dequantize.input[0])
        if (
            dequantize is None
            or dequantize.op_type != "DequantizeLinear"
            or dequantize.input[0] not in self.ranges
        ):
            raise ExportError(
                f"{describe(node)}: its input {node.input[index]!r} is not a quantized constant; {REMEDY}"
            )
        name = dequantize.input[0]
        scale = self.graph.constants[dequantize.input[1]].reshape(-1)
        integers = self.graph.constants[name]
        bits = 4 if integers.dtype == INT4 else 8 * integers.itemsize
        return Quantized(name=name, scale=scale, shape=integers.shape, bits=bits)

    def range(self, name: str) -> int:
        """The number of a constant's byte range."""
        return self.range_numbers.setdefault(name, len(self.range_numbers))

    def grid(self, node: onnx.NodeProto) -> tuple[float, int, DType]:
        """Scale, zero point and dtype of a QuantizeLinear or DequantizeLinear of activations."""
        scale, zero_point = (self.graph.constants.get(n) for n in [*node.input, ""][1:3])
        known = zero_point is not None and zero_point.dtype in {np.dtype(np.uint8), np.dtype(np.int16)}
        if scale is None or zero_point is None or not known or scale.size != 1:
            kind = "computed" if zero_point is None else zero_point.dtype
            raise ExportError(
                f"value {node.input[0]!r}: activations must be uint8 or int16 with one scale, not {kind}"
            )
        if zero_point.dtype == np.int16 and zero_point.item() != 0:
            raise ExportError(f"value {node.input[0]!r}: the zero point of int16 must be 0; {REMEDY}")
        dtype: DType = "int16" if zero_point.dtype == np.int16 else "uint8"
        return float(scale.item()), int(zero_point.item()), dtype


def straight(rank: int) -> Order:
    """The graph's own order of axes."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """The order of images: from (C, spatial...) to (spatial..., C)."""
    return (*range(1, rank), 0)


def last_stays(order: Order) -> Order:
    """This order where it leaves the last axis last, else the graph's own."""
    return order if order[-1] == len(order) - 1 else straight(len(order))
