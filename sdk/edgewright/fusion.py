"""Which values of a float graph lie on a grid of their own, and which stay inside one integer operator.

Inside stay: what only a bias, an activation or a scale behind a layer reads; what a function of one value
computes on its way (GELU is five nodes in many graphs, and one table); the sum of scores and mask that
softmax reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.elementwise import evaluate, moving_inputs
from edgewright.wiring import Wiring, attributes, scale_of

MASKED = -1000.0  # a score this low is masked: exp of it is 0
ACTIVATIONS = frozenset({"Relu", "Clip"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
# Their output lies on the grid of their input.
GRID_KEEPERS = frozenset({"Concat", "Flatten", "MaxPool", "Reshape", "Resize", "Slice", "Transpose"})
PAIRS = frozenset({"Add", "Sub", "Mul"})
Array = npt.NDArray[Any]


class Fusion:
    """What becomes of each node and value of a normalized float graph.

    Attributes:
        integer: Numbers of the nodes that run in integers.
        inside: Values without a grid, though an integer node gives them.
        masks: For each Add of a mask to scores, by its output: (scores, mask).
        biases: Outputs of the Adds that add a bias to MatMul.
    """

    def __init__(
        self, graph: Wiring, on_grids: Collection[str] = (), keep_float: Collection[str] = ()
    ) -> None:
        """Looks through a graph.

        Args:
            graph: Normalized.
            on_grids: Values that must lie on grids of their own.
            keep_float: Names of layers that stay in floating point, with what is behind them.
        """
        self.graph, self.on_grids = graph, frozenset(on_grids)
        self.shapes, kinds = graph.infer(1)
        self.floating = {n for n, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
        self.readers, self.producers = graph.readers(), graph.producers()
        self.biases: set[str] = set()
        self.masks: dict[str, tuple[str, str]] = {}
        self.inside: set[str] = set()
        self._kept = self._kept_nodes(keep_float)
        self._behind_layers()
        self._functions()
        self.integer = {i for i, n in enumerate(graph.nodes) if self._is_integer(n)}

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.readers.get(name, [])
        alone = len(readers) == 1 and name not in self.graph.outputs and name not in self.on_grids
        return readers[0] if alone else None

    # Layers

    def _kept_nodes(self, names: Collection[str]) -> set[int]:
        """Nodes that stay floating-point, by `id`: layers, their biases and activations."""
        kept: set[int] = set()
        for node in self.graph.nodes:
            if node.name not in names:
                continue
            kept.add(id(node))
            after = self._only_reader(node.output[0])
            if after is not None and node.op_type == "MatMul" and after.op_type == "Add":
                kept.add(id(after))
                after = self._only_reader(after.output[0])
            if after is not None and after.op_type in ACTIVATIONS:
                kept.add(id(after))
        return kept

    def _behind_layers(self) -> None:
        """Biases, activations, scales and masks that a layer takes in."""
        constants = self.graph.constants
        self.fused: set[str] = set()  # outputs of nodes that a layer takes in
        for node in self.graph.nodes:
            result = node.output[0] if node.output else ""
            after = self._only_reader(result)
            if after is None or id(node) in self._kept:
                continue
            if node.op_type == "MatMul" and after.op_type == "Add" and self.is_linear(node):
                other = [n for n in after.input if n != result]
                outputs = constants[node.input[1]].shape[1]
                if len(other) == 1 and other[0] in constants and constants[other[0]].shape == (outputs,):
                    self._take_in(result, after)
                    self.biases.add(after.output[0])
                    continue
            layer = (
                node.op_type in {"Conv", "ConvTranspose", "Gemm"}
                or (node.op_type == "MatMul" and not any(n in constants for n in node.input))
                or self.is_linear(node)
                or result in self.biases
                or (node.op_type in PAIRS - {"Mul"} and self._moving_pair(node))
            )
            activated = layer and after.op_type in ACTIVATIONS and self._plain_clip(after)
            product = node.op_type == "MatMul" and not self.is_linear(node)
            if activated or (product and scale_of(after, constants)):
                self._take_in(result, after)
            elif node.op_type == "Add" and after.op_type == "Softmax" and (parts := self._mask_of(node)):
                self.masks[result] = parts
                self._take_in(result, after)

    def _take_in(self, value: str, reader: onnx.NodeProto) -> None:
        self.inside.add(value)
        self.fused.add(reader.output[0])

    def is_linear(self, node: onnx.NodeProto) -> bool:
        """Whether a node is MatMul by a constant matrix."""
        constants = self.graph.constants
        return (
            node.op_type == "MatMul"
            and node.input[0] not in constants
            and node.input[1] in constants
            and constants[node.input[1]].ndim == 2
        )

    def _plain_clip(self, node: onnx.NodeProto) -> bool:
        return all(n in self.graph.constants for n in node.input[1:] if n)

    def _moving_pair(self, node: onnx.NodeProto) -> bool:
        return len({n for n in node.input if n not in self.graph.constants}) == 2

    def _mask_of(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        """Scores and mask, where an Add before softmax adds 0 to what counts and far less to the rest."""
        for index in range(2):
            mask, scores = node.input[index], node.input[1 - index]
            if scores in self.graph.constants or mask == scores:
                continue
            constant = self.graph.constants.get(mask)
            if constant is not None:
                values = constant.astype(np.float64)
            else:
                source = self._source(mask)
                if source is None:
                    continue
                values = evaluate(mask, source, np.array([0.0, 1.0]), self.producers, self.graph.constants)
            keeps, hides = np.abs(values) < 1e-3, values <= MASKED
            if hides.any() and keeps.any() and (keeps | hides).all():
                return scores, mask
        return None

    def _source(self, name: str) -> str | None:
        """The one value that `name` is a function of, element by element; None where it is its own."""
        seen: set[str] = set()
        waiting, sources = [name], set()
        while waiting:
            value = waiting.pop()
            node = self.producers.get(value)
            moving = moving_inputs(node, self.graph.constants) if node is not None else None
            if moving is None:
                sources.add(value)
            else:
                waiting += [m for m in moving if m not in seen]
                seen.update(moving)
        return sources.pop() if len(sources) == 1 and sources != {name} else None

    # Functions of one value

    def _functions(self) -> None:
        """Finds the regions: every node of one gives a function of the same value, its root."""
        own = set(self.on_grids)  # values on a grid though they are in the midst of a region
        self.dropped: set[str] = set()  # results of elementwise nodes that stay floating-point
        while True:
            roots = self._roots(own)
            inner: set[str] = set()
            lost: set[str] = set()
            for node in self.graph.nodes:
                if not node.output:
                    continue
                name = node.output[0]
                root = roots.get(name, name)
                if root == name:
                    continue
                readers = self.readers.get(name, [])
                if name not in self.graph.outputs and all(
                    self._within(r, name, root, roots) for r in readers
                ):
                    inner.add(name)
                elif name not in self.floating:
                    lost.add(name)
            split = {n for n, r in roots.items() if n != r and n not in inner and n not in lost} - own
            if not split and not lost - self.dropped:
                break
            own |= split
            self.dropped |= lost
        self.roots = roots
        self.inside |= inner

    def _within(self, reader: onnx.NodeProto, name: str, root: str, roots: Mapping[str, str]) -> bool:
        result = reader.output[0]
        if result in self.masks:
            return self.masks[result][1] == name
        return bool(result != root and roots.get(result, result) == root)

    def _roots(self, own: set[str]) -> dict[str, str]:
        roots: dict[str, str] = {}
        for node in self.graph.nodes:
            moving = moving_inputs(node, self.graph.constants)
            result = node.output[0] if node.output else ""
            if (
                moving is None
                or id(node) in self._kept
                or result in self.fused
                or result in self.masks
                or result in self.dropped
            ):
                continue
            found = {n if n in own else roots.get(n, n) for n in moving}
            if len(found) != 1:
                continue
            (root,) = found
            if root in self.floating and self.shapes.get(root) == self.shapes.get(result, ()):
                roots[result] = root
        return roots

    # Nodes

    def _is_repeated(self, name: str) -> bool:
        """Whether a value is a constant, repeated for each sample, which has no grid."""
        node = self.producers.get(name)
        return node is not None and node.op_type == "Expand"

    def _is_integer(self, node: onnx.NodeProto) -> bool:
        """Whether this node, in this form, runs in integers."""
        constants, given = self.graph.constants, attributes(node)
        op, result = node.op_type, node.output[0] if node.output else ""
        if result not in self.floating or not node.input or id(node) in self._kept:
            return False
        fixed = [n in constants for n in node.input]
        if op in {"Conv", "ConvTranspose", "Gemm"}:
            plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
            straight = op != "Gemm" or given.get("transB", 0) == 1
            return plain and straight and not fixed[0] and all(n in constants for n in node.input[1:] if n)
        if op == "MatMul":
            ranks = {len(self.shapes.get(n, ())) for n in node.input}
            return self.is_linear(node) or (not any(fixed) and len(ranks) == 1 and min(ranks) > 2)
        if op == "Gather":
            table = constants.get(node.input[0])
            return table is not None and table.ndim == 2 and given.get("axis", 0) == 0 and not fixed[1]
        if op in {"Softmax", "LayerNormalization"}:
            last = given.get("axis", -1) in {-1, len(self.shapes.get(node.input[0], ())) - 1}
            return last and not fixed[0] and all(fixed[1:]) and len(node.output) == 1
        if op == "Resize":
            return not fixed[0] and given.get("mode", b"nearest") in {b"nearest", b"linear"}
        if op in GRID_KEEPERS or op in POOLS:
            return not all(fixed) if op == "Concat" else not fixed[0] and not self._is_repeated(node.input[0])
        if result in self.roots or result in self.fused or result in self.masks:
            return True
        if op in PAIRS:
            return len(node.input) == 2 and not all(fixed) and (op != "Sub" or not any(fixed))
        return op in ACTIVATIONS and self._plain_clip(node) and not fixed[0]
