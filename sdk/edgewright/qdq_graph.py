"""A QDQ graph under construction: its nodes in order, its constants, and which of them are weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.calibrate import Grid, Integers
from edgewright.errors import ExportError
from edgewright.int4 import INT4, packed
from edgewright.wiring import Wiring, make_node

Array = npt.NDArray[Any]


class QdqGraph:
    """Nodes and constants that are added one after the other.

    Attributes:
        nodes: So far.
        weights: Constants that belong into weights.safetensors, by name.
    """

    def __init__(self, graph: Wiring, floats: Mapping[str, Array]) -> None:
        """Starts without nodes; constants go into `graph`, `floats` are those of the float graph."""
        self._graph, self._floats = graph, floats
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}

    def parameter(self, name: str, value: Array, *, inline: bool = False) -> str:
        """Adds a constant; one that is not inline belongs into weights.safetensors."""
        self._graph.constants[name] = value
        if not inline:
            self.weights[name] = value
        return name

    def float_parameter(self, name: str, node: onnx.NodeProto) -> str:
        """Adds a constant of the float graph as it is, for a node that reads it in floating point."""
        value = self._floats[name]
        if not np.isfinite(value).all():
            raise ExportError(f"layer {node.name!r}: its weights hold NaN or infinity; train it again")
        taken = name in self.weights and self.weights[name].dtype != value.dtype
        return self.parameter(f"{name}.{node.name}" if taken else name, value)

    def pair(self, source: str, name: str, result: str, grid: Grid) -> None:
        """Puts `source` on a grid, QuantizeLinear and DequantizeLinear, under the name `result`."""
        numbers = self._numbers(name, grid)
        quantized = f"{name}_quantized"
        self.nodes.append(make_node("QuantizeLinear", [source, *numbers], quantized, f"{name}_q"))
        self.nodes.append(make_node("DequantizeLinear", [quantized, *numbers], result, f"{name}_dq"))

    def operand(self, name: str, value: npt.NDArray[np.float64], grid: Grid) -> str:
        """Adds a constant on a grid; gives the name by which it is read."""
        steps = np.clip(np.rint(value / grid.scale) + grid.zero_point, *grid.limits).astype(grid.dtype)
        inputs = [self.parameter(name, steps), *self._numbers(name, grid)]
        self.nodes.append(make_node("DequantizeLinear", inputs, f"{name}_dequantized", f"{name}_dq"))
        return f"{name}_dequantized"

    def weight(
        self, name: str, integers: Array, scale: npt.NDArray[np.float32], scale_name: str, axis: int
    ) -> str:
        """Adds integers with one scale per index of an axis; gives the name by which they are read."""
        inputs = [self.parameter(name, integers), self.parameter(scale_name, scale)]
        if integers.dtype == INT4:
            self.weights[name] = packed(integers)
        elif integers.dtype == np.int8:
            # Zero is the default, but ONNX Runtime's rewrites of 8-bit weights want it spelled out.
            zeros = np.zeros(len(scale), np.int8)
            inputs.append(self.parameter(f"{name}_zero_point", zeros, inline=True))
        result = f"{name}_dequantized"
        self.nodes.append(make_node("DequantizeLinear", inputs, result, f"{name}_dq", axis=axis))
        return result

    def _numbers(self, name: str, grid: Grid) -> list[str]:
        return [
            self.parameter(f"{name}_scale", np.array(grid.scale, np.float32), inline=True),
            self.parameter(f"{name}_zero_point", np.array(grid.zero_point, grid.dtype), inline=True),
        ]


def grid_of(node: onnx.NodeProto, constants: Mapping[str, Array]) -> Grid:
    """The grid of a QuantizeLinear or DequantizeLinear of uint8 or int16."""
    scale, zero_point = (constants[name] for name in node.input[1:3])
    dtype: Integers = "int16" if zero_point.dtype == np.int16 else "uint8"
    return Grid(scale=float(scale.item()), zero_point=int(zero_point.item()), dtype=dtype)
