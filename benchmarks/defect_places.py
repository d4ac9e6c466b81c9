"""A QDQ graph opened for defects: its layers, its grids, and the ways to change them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from defects import Array, GraphChange, Subject, UnsuitableError, pick

from edgewright.int4 import INT4
from edgewright.wiring import Wiring, attributes

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with constant integer weights.

    Attributes:
        node: It.
        dequantize: Of its weights.
        bias: The DequantizeLinear of its bias, or None.
        source: The DequantizeLinear of what it reads, or None.
    """

    node: onnx.NodeProto
    dequantize: onnx.NodeProto
    bias: onnx.NodeProto | None
    source: onnx.NodeProto | None

    @property
    def weight(self) -> str:
        """Name of its integers."""
        return str(self.dequantize.input[0])

    @property
    def scale(self) -> str:
        """Name of its scales."""
        return str(self.dequantize.input[1])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A QuantizeLinear and the DequantizeLinears that read it."""

    quantize: onnx.NodeProto
    dequantize: tuple[onnx.NodeProto, ...]


class Places:
    """What can be changed in a subject's graph."""

    def __init__(self, subject: Subject, random: np.random.Generator) -> None:
        self.random = random
        self.graph = Wiring(subject.model)
        self.constants = self.graph.constants
        self.producers, self.readers = self.graph.producers(), self.graph.readers()

    def change(self, note: str = "") -> GraphChange:
        """The graph as it is now."""
        return GraphChange(model=self.graph.model(), note=note)

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        """Nodes of some kinds."""
        return [n for n in self.graph.nodes if n.op_type in kinds]

    def any_of(self, *kinds: str) -> onnx.NodeProto:
        """One of them."""
        return pick(self.random, self.of(*kinds))

    def set(self, node: onnx.NodeProto, index: int, value: npt.ArrayLike) -> None:
        """Gives one node a constant of its own as an input."""
        node.input[index] = self.graph.constant(node.input[index], value)

    def attribute(self, node: onnx.NodeProto, name: str, value: Any) -> None:
        """Sets an attribute."""
        for at, given in enumerate(node.attribute):
            if given.name == name:
                del node.attribute[at]
                break
        node.attribute.append(onnx.helper.make_attribute(name, value))

    # Layers

    def layers(self) -> list[Layer]:
        """All layers whose weights are integers."""
        return [found for n in self.graph.nodes if n.op_type in WEIGHTED and (found := self._layer(n))]

    def _layer(self, node: onnx.NodeProto) -> Layer | None:
        weights = self._constant_behind(node.input[1])
        if weights is None:
            return None
        bias = self._constant_behind(node.input[2]) if len(node.input) > 2 else None
        readers = self.readers.get(node.output[0], [])
        if node.op_type == "MatMul" and len(readers) == 1 and readers[0].op_type == "Add":
            other = next(n for n in readers[0].input if n != node.output[0])
            bias = self._constant_behind(other)
        source = self.producers.get(node.input[0])
        if source is not None and source.op_type != "DequantizeLinear":
            source = None
        return Layer(node=node, dequantize=weights, bias=bias, source=source)

    def _constant_behind(self, name: str) -> onnx.NodeProto | None:
        node = self.producers.get(name)
        while node is not None and node.op_type in {"Transpose", "Reshape", "Squeeze", "Unsqueeze"}:
            node = self.producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
            return None
        return node

    def layer(self, *, wide: bool = False, bias: bool = False, square: bool = False) -> Layer:
        """One of the layers.

        Args:
            wide: With more than one channel to each output.
            bias: With one that is not 0.
            square: With a matrix of as many inputs as outputs.
        """
        found = self.layers()
        if wide:
            found = [each for each in found if self.constants[each.weight].shape[1] > 1]
        if bias:
            found = [
                each for each in found if each.bias is not None and self.constants[each.bias.input[0]].any()
            ]
        if square:
            found = [each for each in found if len(set(self.constants[each.weight].shape)) == 1]
            found = [each for each in found if self.constants[each.weight].ndim == 2]
        return pick(self.random, found)

    def axis(self, layer: Layer) -> int:
        """Of its output channels in the weights."""
        per_axis = self.constants[layer.scale].size > 1
        return int(attributes(layer.dequantize).get("axis", 1)) if per_axis else 0

    def integers(self, layer: Layer) -> Array:
        """A copy of its integers, less their zero point, as int64, output channels first."""
        values = self.constants[layer.weight].astype(np.int64) - self._centre(layer)
        return np.moveaxis(values, self.axis(layer), 0).copy()

    def put_integers(self, layer: Layer, rows: Array) -> None:
        """Its integers, less their zero point, output channels first."""
        old = self.constants[layer.weight]
        rows = rows + self._centre(layer)
        if old.dtype == np.uint8:
            rows = rows & 255
        self.constants[layer.weight] = np.ascontiguousarray(np.moveaxis(rows, 0, self.axis(layer))).astype(
            old.dtype
        )

    def _centre(self, layer: Layer) -> int:
        """The one zero point of weights that are uint8; 0 of others."""
        if self.constants[layer.weight].dtype != np.uint8:
            return 0
        return int(self.constants[layer.dequantize.input[2]].reshape(-1)[0])

    def most(self, layer: Layer) -> int:
        """The largest integer that its weights, less their zero point, can have on both sides of it."""
        if self.constants[layer.weight].dtype == np.uint8:
            return min(self._centre(layer), 255 - self._centre(layer))
        return 7 if self.constants[layer.weight].dtype == INT4 else 127

    def put_scales(self, layer: Layer, scales: npt.ArrayLike) -> None:
        """Other scales; the bias keeps its value, on the grid that follows."""
        old = self.constants[layer.scale]
        new = np.broadcast_to(np.asarray(scales, np.float32), old.shape).astype(np.float32)
        self.constants[layer.scale] = new.copy()
        if layer.bias is None:
            return
        ints, grid = (self.constants[layer.bias.input[i]] for i in (0, 1))
        if grid.size != new.size:
            return
        ratio = (new / old).reshape(grid.shape)
        self.constants[layer.bias.input[0]] = np.clip(np.rint(ints / ratio), -(2**30), 2**30).astype(np.int32)
        self.constants[layer.bias.input[1]] = (grid * ratio).astype(np.float32)

    # Grids

    def pairs(self, *, narrow: bool = False, inner: bool = False) -> list[Pair]:
        """Grids of activations.

        Args:
            narrow: Of 8 bits alone.
            inner: Not those of the model's inputs.
        """
        found = []
        for node in self.of("QuantizeLinear"):
            readers = tuple(
                r for r in self.readers.get(node.output[0], []) if r.op_type == "DequantizeLinear"
            )
            if not readers or node.input[1] not in self.constants:
                continue
            if narrow and self.zero_point(node).dtype.itemsize != 1:
                continue
            if inner and node.input[0] in self.graph.inputs:
                continue
            if self._keeps_grid(node):
                continue
            found.append(Pair(quantize=node, dequantize=readers))
        return found

    def _keeps_grid(self, node: onnx.NodeProto) -> bool:
        """Whether it only repeats the grid of what a move (Reshape, Transpose, pool) reads."""
        before = self.producers.get(node.input[0])
        moves = {"Reshape", "Transpose", "Flatten", "MaxPool", "Slice", "Squeeze", "Unsqueeze"}
        return before is not None and before.op_type in moves

    def pair(self, **how: bool) -> Pair:
        """One of them."""
        return pick(self.random, self.pairs(**how))

    def zero_point(self, node: onnx.NodeProto) -> Array:
        """Of a QuantizeLinear or DequantizeLinear."""
        return self.constants[node.input[2]] if len(node.input) > 2 else np.zeros((), np.uint8)

    def put_grid(self, pair: Pair, scale: float, zero_point: int) -> None:
        """Another grid, for both sides and for all that repeats it behind moves.

        Biases of the layers that read it keep their values, on the grids that follow.
        """
        kind = self.zero_point(pair.quantize).dtype
        ratio = float(scale) / float(self.constants[pair.quantize.input[1]])
        waiting = [pair.quantize]
        read: set[str] = set()
        while waiting:
            quantize = waiting.pop()
            for node in (quantize, *self.readers.get(quantize.output[0], [])):
                self.set(node, 1, np.asarray(scale, np.float32))
                self.set(node, 2, np.asarray(zero_point, kind))
                read.add(node.output[0])
                for move in self.readers.get(node.output[0], []) if node is not quantize else []:
                    after = self.readers.get(move.output[0], [])
                    waiting += [n for n in after if n.op_type == "QuantizeLinear" and self._keeps_grid(n)]

        for layer in self.layers() if ratio != 1 else ():
            if layer.bias is None or layer.node.input[0] not in read:
                continue
            ints, steps = (self.constants[layer.bias.input[i]] for i in (0, 1))
            moved = np.clip(np.rint(ints / ratio), -(2**30), 2**30).astype(np.int32)
            self.constants[layer.bias.input[0]] = moved
            self.constants[layer.bias.input[1]] = (steps * ratio).astype(np.float32)

    def grid(self, pair: Pair) -> tuple[float, int, int, int]:
        """Scale, zero point, and the limits of its integers."""
        zero = self.zero_point(pair.quantize)
        limits = np.iinfo(zero.dtype)
        return float(self.constants[pair.quantize.input[1]]), int(zero), int(limits.min), int(limits.max)

    # Wiring

    def bypass(self, node: onnx.NodeProto, kept: str) -> None:
        """Takes a node out: what it gave is `kept` from now on."""
        for reader in self.graph.nodes:
            for at, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[at] = kept
        if node.output[0] in self.graph.outputs:
            raise UnsuitableError
        self.graph.nodes = [n for n in self.graph.nodes if n is not node]
        self.graph.drop_dead()

    def computed(self, name: str) -> bool:
        """Whether a value is no constant, nor one on a grid."""
        node = self.producers.get(name)
        if node is None:
            return name not in self.constants
        return node.op_type != "DequantizeLinear" or node.input[0] not in self.constants
