"""Which activations are int16: those whose rounding costs most, or all that the engine takes.

A transformer's stream, the sum that runs through its blocks, has a few values a hundred times larger than the
others; on 256 steps the others vanish. It is what sums, norms and softmax read, and these do not multiply by
weights: 16 bits cost next to nothing there. So "mixed" has uint8 where products are computed and int16 where
those read. "int16" is 16 bits wherever the engine has them. "auto" has them where allocation.py says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import onnx

from edgewright.fusion import GRID_KEEPERS, POOLS, Fusion
from edgewright.wiring import Wiring

Activations = Literal["uint8", "int16", "mixed", "auto"]

SUMS = frozenset({"Add", "Sub", "LayerNormalization", "Softmax"})
UINT8_ONLY = frozenset({"Resize", "ConvTranspose"})


class Precision:
    """Decides for the values of a normalized float graph.

    Attributes:
        wide: Names of the values that are int16.
        deep: Those of them that "auto" has layers and functions read as int16 too.
    """

    def __init__(
        self,
        graph: Wiring,
        fusion: Fusion,
        activations: Activations,
        widened: Mapping[str, bool] | None = None,
    ) -> None:
        """Decides.

        Args:
            graph: Normalized.
            fusion: Of it.
            activations: How.
            widened: For "auto": the values that are int16, and whether layers read them so too.
        """
        self._fusion, self._activations = fusion, activations
        self._constants, self._outputs = graph.constants, set(graph.outputs)
        self._readers = graph.readers()
        self._integer = {id(n) for i, n in enumerate(graph.nodes) if i in fusion.integer}
        masks = {mask for _, mask in fusion.masks.values()}
        self._masks = masks | {fusion.roots[m] for m in masks if m in fusion.roots}
        self._widened = dict(widened or {})
        self.wide: set[str] = set()
        self.deep: set[str] = set()
        if activations == "uint8":
            return
        for name in graph.inputs:
            self._decide(name)
        for node in graph.nodes:
            if id(node) not in self._integer:
                continue
            result = node.output[0]
            if self._keeps(node):
                if node.input[0] in self.wide:
                    self.wide.add(result)
                if node.input[0] in self.deep:
                    self.deep.add(result)
            elif node.op_type != "Softmax" and node.op_type not in UINT8_ONLY:
                self._decide(result)

    def takes(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads int16 as it is; others read it on a grid of uint8."""
        op, result = node.op_type, node.output[0]
        if op in UINT8_ONLY or self._is_product(node) or self._fusion.roots.get(result) in self._masks:
            return False
        if result in self._fusion.masks or (op in SUMS and not self._is_function(node)):
            return True
        if op in GRID_KEEPERS or op in POOLS:
            return True
        if op == "Mul" and not self._is_function(node):
            return True
        return self._activations == "int16" or any(n in self.deep for n in node.input)

    def reads_deep(self, name: str) -> dict[int, bool]:
        """The integer nodes that read a value, by `id`, and whether each does so as a layer or a function."""
        found: dict[int, bool] = {}
        for node in self._readers.get(name, []):
            if id(node) not in self._integer:
                continue
            if self._keeps(node):
                behind = self.reads_deep(node.output[0])
                found[id(node)] = bool(behind) and all(behind.values())
            else:
                plain = node.output[0] in self._fusion.masks or node.op_type in SUMS | POOLS | {
                    "Concat",
                    "Mul",
                }
                found[id(node)] = not plain or self._is_function(node)
        return found

    def _decide(self, name: str) -> None:
        fusion = self._fusion
        if name not in fusion.floating or name in fusion.inside:
            return
        if self._widened.get(name):
            self.deep.add(name)
        if name in self._widened if self._activations == "auto" else self._gains(name):
            self.wide.add(name)

    def _gains(self, name: str) -> bool:
        """Whether a reader of a value, or the outside, is better off with int16."""
        if name in self._masks:
            return False
        return name in self._outputs or any(self._wants(n, name) for n in self._readers.get(name, []))

    def _wants(self, node: onnx.NodeProto, name: str) -> bool:
        if id(node) not in self._integer or not self.takes(node):
            return False
        result = node.output[0]
        if result in self._fusion.masks:
            return self._fusion.masks[result][0] == name
        if node.op_type in GRID_KEEPERS:
            return self._gains(result)
        return self._activations == "int16" or (node.op_type in SUMS and not self._is_function(node))

    def _keeps(self, node: onnx.NodeProto) -> bool:
        return node.op_type in GRID_KEEPERS - {"Concat", "Resize"}

    def _is_function(self, node: onnx.NodeProto) -> bool:
        """Whether a node is part of a function of one value, which becomes a table."""
        return node.output[0] in self._fusion.roots

    def _is_product(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies two activations as matrices."""
        return node.op_type == "MatMul" and not self._fusion.is_linear(node)
