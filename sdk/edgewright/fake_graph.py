"""A QDQ graph, its integers made floating point again: the graph that is trained on the grids of an artifact.

Each pair of QuantizeLinear and DequantizeLinear becomes one operator that moves values onto a grid that can
be learned; each dequantized weight, the float weight and an operator that does to it what quantization does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgewright.calibrate import Grid
from edgewright.fake_quantization import DOMAIN
from edgewright.overflow import OverflowSafe, safety
from edgewright.qdq_graph import grid_of
from edgewright.quantization import WEIGHTED
from edgewright.wiring import Wiring, attributes

Array = npt.NDArray[Any]


class FakeGraph:
    """Takes a QDQ graph apart.

    Attributes:
        model: The graph. Values named `grid_name(i)` are not in it: whoever runs it gives them.
        grids: The i-th of them, as it was chosen. Activations whose grids are equal share one.
    """

    def __init__(
        self,
        floating: onnx.ModelProto,
        quantized: onnx.ModelProto,
        learned: Collection[Grid],
        overflow_safe: OverflowSafe,
    ) -> None:
        """Makes the graph.

        Args:
            floating: The normalized float graph.
            quantized: What quantization made of it.
            learned: The grids that came from observed ranges; others come from tables of embeddings.
            overflow_safe: What was asked of all weights.
        """
        self._float, self._qdq = Wiring(floating), Wiring(quantized)
        self._twins = {o: n for n in self._float.nodes for o in n.output}
        self._producers, self._readers = self._qdq.producers(), self._qdq.readers()
        self._learned, self._safe = learned, overflow_safe
        self._numbers: dict[Grid, int] = {}
        self._made: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._weights: dict[str, str] = {}  # what a dequantized weight or bias is called here
        self._tables: dict[Grid, str] = {}  # the values that are grids of rows of tables
        for node in self._qdq.nodes:
            if node.op_type == "QuantizeLinear" and (gather := self._gather(node.input[0])) is not None:
                self._table_grid(gather, node)
        for node in self._qdq.nodes:
            if node.op_type in WEIGHTED and self._stored(node.input[1]):
                self._layer(node)
        for node in self._qdq.nodes:
            self._node(node)
        self.grids = tuple(self._numbers)
        self._qdq.nodes, self._qdq.constants = self._made, self._constants
        self._qdq.drop_dead()
        self.model = self._qdq.model()

    def _node(self, node: onnx.NodeProto) -> None:
        source = node.input[0] if node.input else ""
        if node.op_type == "QuantizeLinear":
            return
        if node.op_type == "DequantizeLinear":
            before = self._producers.get(source)
            if before is None:
                self._dequantized_constant(node)
            elif before.op_type == "Gather":
                self._rows(before, node)
            else:
                self._pair(before, node)
            return
        if node.op_type == "Gather" and any(
            r.op_type == "DequantizeLinear" for r in self._readers.get(node.output[0], [])
        ):
            return
        for index, name in enumerate(node.input):
            node.input[index] = self._weights.get(name) or self._read(name, node)
        self._made.append(node)

    def _read(self, name: str, node: onnx.NodeProto) -> str:
        """The name of an input here; a constant is that of the float graph, if it was one there."""
        if name not in self._qdq.constants:
            return name
        for own in (name, name.removesuffix(".float"), name.removesuffix(f".{node.name}")):
            if own in self._float.constants:
                self._constants[own] = self._float.constants[own]
                return own
        self._constants[name] = self._qdq.constants[name]
        return name

    # Activations

    def _grid(self, node: onnx.NodeProto) -> Grid:
        return grid_of(node, self._qdq.constants)

    def _pair(self, quantize: onnx.NodeProto, dequantize: onnx.NodeProto) -> None:
        source = self._read(quantize.input[0], quantize)
        self._add("OnGrid", [source, self._named(self._grid(quantize))], dequantize.output)

    def _named(self, grid: Grid) -> str:
        """The value that is this grid."""
        if grid not in self._learned:
            return self._tables[grid]
        return grid_name(self._numbers.setdefault(grid, len(self._numbers)))

    def _gather(self, name: str) -> onnx.NodeProto | None:
        """The Gather whose rows, dequantized, a value is."""
        row = self._producers.get(name)
        before = self._producers.get(row.input[0]) if row is not None and row.input else None
        return before if before is not None and before.op_type == "Gather" else None

    def _table_grid(self, gather: onnx.NodeProto, quantize: onnx.NodeProto) -> None:
        grid, name = self._grid(quantize), f"{gather.output[0]} grid"
        if grid not in self._learned:
            table = self._read(gather.input[0], gather)
            self._add("TableGrid", [table], [name], wide=int(grid.dtype == "int16"))
            self._tables[grid] = name

    def _rows(self, gather: onnx.NodeProto, dequantize: onnx.NodeProto) -> None:
        table = self._read(gather.input[0], gather)
        by_column = self._qdq.constants[dequantize.input[1]].ndim > 0
        self._add("Rows", [table, gather.input[1]], dequantize.output, by_column=int(by_column))

    # Constants

    def _stored(self, name: str) -> str:
        """The integers that a constant, perhaps turned, is dequantized from; "" for any other value."""
        node = self._producers.get(name)
        if node is not None and node.op_type == "Transpose":
            node = self._producers.get(node.input[0])
        dequantized = node is not None and node.op_type == "DequantizeLinear"
        return str(node.input[0]) if dequantized and node and node.input[0] in self._qdq.constants else ""

    def _dequantized_constant(self, node: onnx.NodeProto) -> None:
        stored, result = self._qdq.constants[node.input[0]], node.output[0]
        if stored.dtype in (np.int8, np.int32):  # a weight or a bias, which is read by another name
            return
        for reader in self._readers.get(result, []):
            if reader.op_type in {"Concat", "Expand"}:  # on the grid of what it is joined with
                self._add(
                    "OnGrid", [self._read(node.input[0], reader), self._named(self._grid(node))], [result]
                )
                return
        grid = self._grid(node)
        self._constants[result] = (
            np.float32(grid.scale) * (stored.astype(np.int32) - grid.zero_point)
        ).astype(np.float32)

    def _layer(self, node: onnx.NodeProto) -> None:
        twin = self._twins[self._float_name(node.output[0])]
        bias, given_bias = [*twin.input, ""][2], [*node.input, ""][2]
        (after,) = [*self._readers.get(node.output[0], []), None][:1]
        if not bias and after is not None and after.op_type == "Add":
            found = [n for n in after.input if (s := self._stored(n)) and self._is_bias(s)]
            if found:
                (given_bias,) = found
                added = self._twins[self._float_name(after.output[0])].input
                bias = next(n for n in added if n in self._float.constants)
        for name in filter(None, (twin.input[1], bias)):
            self._constants[name] = self._float.constants[name]
        axis = 1 if node.op_type in {"ConvTranspose", "MatMul"} else 0
        weight = self._float.constants[twin.input[1]]
        shape = np.moveaxis(weight, axis, 0).shape
        source = self._grid(self._producers[node.input[0]])
        results = [f"{node.output[0]} weight", f"{node.output[0]} bias"]
        self._add(
            "Layer",
            [twin.input[1], bias, self._named(source), self._named(self._result_grid(node))],
            results,
            axis=axis,
            groups=int(attributes(node).get("group", 1)) if node.op_type == "ConvTranspose" else 1,
            safe=safety(node, shape, self._safe),
        )
        self._weights[node.input[1]] = results[0]
        if bias:
            self._weights[given_bias] = results[1]

    def _is_bias(self, stored: str) -> bool:
        return bool(self._qdq.constants[stored].dtype == np.int32)

    def _float_name(self, name: str) -> str:
        """A value's name in the float graph; an output of the graph is computed under another name."""
        return name if name in self._twins else name.removesuffix("_float")

    def _result_grid(self, node: onnx.NodeProto) -> Grid:
        """The grid that a layer's results go to, behind what it takes in."""
        while node.op_type != "QuantizeLinear":
            node = self._readers[node.output[0]][0]
        return self._grid(node)

    def _add(self, op: str, inputs: list[str], outputs: Any, **given: Any) -> None:
        self._made.append(
            helper.make_node(op, inputs, list(outputs), name=f"{op} {outputs[0]}", domain=DOMAIN, **given)
        )


def grid_name(number: int) -> str:
    """The name of a grid among the values of a fake graph."""
    return f"grid {number}"
