"""The noise that each value's and each layer's quantization adds to the outputs, one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.calibrate import Grid
from edgewright.fusion import Fusion
from edgewright.precision import Precision
from edgewright.quantization import Quantized, activations_to_observe, narrow_name
from edgewright.seams import is_layer
from edgewright.walk import Values, Walk
from edgewright.wiring import Wiring, make_node

BATCH = 32


class Noise:
    """A float graph on samples, in which single things can be quantized.

    Ask in the order of `values`: it goes through the graph once.

    Attributes:
        values: Those with grids of their own, in the order in which they are computed.
        layers: The layer that gives each value, behind its bias and activation, or None.
        exact: The outputs, in floating point.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        quantized: Quantized,
        samples: Mapping[str, npt.NDArray[Any]],
        keep_float: frozenset[str] = frozenset(),
    ) -> None:
        """Runs the graph once.

        Args:
            model: A normalized float graph.
            quantized: What was made of it; whose grids and integers are looked at.
            samples: Its inputs by name, (samples, ...).
            keep_float: Nodes that stay in floating point.
        """
        graph = Wiring(model)
        fusion = Fusion(graph, (), keep_float)
        self._quantized, self._inside = quantized, fusion.inside
        self._precision = Precision(graph, fusion, "int16")
        self._producers = graph.producers()
        self.outputs = tuple(graph.outputs)
        own = set(activations_to_observe(model, None, keep_float)) & quantized.grids.keys()
        order = [*graph.inputs, *(o for n in graph.nodes for o in n.output)]
        self.values = tuple(n for n in order if n in own)
        self.layers = {n: self._layer_before(graph, n) for n in self.values}
        self.deep = {n for n in self.values if self._split(graph, n)}
        self._walk = Walk(graph.model(), samples, BATCH)
        self.exact = self._walk.rest(self.outputs, {})

    def of_value(self, name: str, *, sums: bool = True, layers: bool = True) -> Values:
        """The outputs when one value is on its grid, where sums, norms and pools or layers read it."""
        value = self._walk.to(name)
        return self._walk.rest(self.outputs, self._on_grid(name, value, sums=sums, layers=layers))

    def of_layer(self, name: str) -> Values:
        """The outputs when one value is on its grid, and the layer that gives it has its integer weights."""
        layer = self.layers[name]
        integers = self._integer_weight(layer) if layer is not None else None
        if layer is None or integers is None:
            return self.of_value(name)
        exact = self._walk.constants[layer.input[1]]
        self._walk.constants[layer.input[1]] = integers
        value = self._walk.rest([name], {})[name]
        self._walk.constants[layer.input[1]] = exact
        self._walk.to(name)
        return self._walk.rest(self.outputs, self._on_grid(name, value, sums=True, layers=True))

    def error(self, outputs: Values) -> float:
        """Mean over the outputs of the squared error over the squared output."""
        shares = []
        for name in self.outputs:
            exact = self.exact[name].astype(np.float64)
            signal = float(np.sum(exact**2)) or 1.0
            shares.append(float(np.sum((outputs[name] - exact) ** 2)) / signal)
        return float(np.mean(shares))

    def readers_deep(self, name: str) -> list[bool]:
        """Of each node that reads a value in integers, whether it is a layer or a function."""
        return list(self._precision.reads_deep(name).values())

    def widenable(self, name: str) -> bool:
        """Whether a value can be int16."""
        return name in self._precision.wide

    def _split(self, graph: Wiring, name: str) -> bool:
        """Gives the layers that read a value a copy of it, if others read it too."""
        found = self._precision.reads_deep(name)
        mixed = len(set(found.values())) == 2
        if mixed:
            copy = make_node("Identity", [name], _copy(name))
            for node in graph.nodes:
                if found.get(id(node)):
                    for index, read in enumerate(node.input):
                        node.input[index] = copy.output[0] if read == name else read
            at = next((i + 1 for i, n in enumerate(graph.nodes) if name in n.output), 0)
            graph.nodes.insert(at, copy)
        return mixed

    def _on_grid(
        self, name: str, value: npt.NDArray[np.float32], *, sums: bool, layers: bool
    ) -> dict[str, npt.NDArray[np.float32]]:
        grids = self._quantized.grids
        wide = _rounded(value, grids[name])
        narrow = grids.get(narrow_name(name))
        deep = wide if narrow is None else _rounded(wide, narrow)
        if name not in self.deep:
            only_deep = narrow is not None and all(self.readers_deep(name))
            return {name: deep if only_deep else wide}
        exact = self._walk.values.get(name, value)
        return {name: wide if sums else exact, _copy(name): deep if layers else exact}

    def _integer_weight(self, layer: onnx.NodeProto) -> npt.NDArray[np.float32] | None:
        for own in (f"{layer.input[1]}.{layer.name}", layer.input[1]):
            integers, scale = (self._quantized.weights.get(n) for n in (own, f"{own}.scale"))
            if integers is not None and scale is not None:
                axis = 1 if layer.op_type == "ConvTranspose" else 0
                along = [1] * integers.ndim
                along[axis] = -1
                real: npt.NDArray[np.float32] = (integers * scale.reshape(along)).astype(np.float32)
                return real.T if layer.op_type == "MatMul" else real
        return None

    def _layer_before(self, graph: Wiring, name: str) -> onnx.NodeProto | None:
        """The layer whose result becomes a value, behind its bias and activation."""
        node = self._producers.get(name)
        while node is not None and not is_layer(node, graph) and node.op_type != "ConvTranspose":
            inner = [n for n in node.input if n not in graph.constants and n in self._inside]
            node = self._producers.get(inner[0]) if len(inner) == 1 else None
        return node


def _copy(name: str) -> str:
    return f"{name}.for_layers"


def _rounded(value: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    steps = np.clip(np.rint(value / np.float32(grid.scale)) + grid.zero_point, *grid.limits)
    real: npt.NDArray[np.float32] = ((steps - grid.zero_point) * np.float32(grid.scale)).astype(np.float32)
    return real
