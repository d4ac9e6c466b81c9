"""Post-training quantization to INT8: a float graph in, a QDQ graph out.

Weights: int8, symmetric, one scale per output channel, in [-127, 127]. Activations: uint8, affine, one scale
per tensor. Biases: int32 on the grid `input scale * weight scale`. Batch norm was folded before.
Scheme: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", with per-channel weights as in Krishnamoorthi 2018, arXiv:1806.08342.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgewright.calibrate import LEAST_SCALE, Grid, Method, Observed
from edgewright.errors import ExportError
from edgewright.graph import attributes, drop_unused_initializers, initializers, set_initializer

INTEGER_OPS = frozenset(
    {"Conv", "Gemm", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten"}
)
WEIGHTED = frozenset({"Conv", "Gemm"})
# Their output lies on the grid of their input.
GRID_KEEPERS = frozenset({"MaxPool", "Flatten"})
FUSABLE = frozenset({"Conv", "Gemm", "Add"})
ACTIVATIONS = frozenset({"Relu", "Clip"})

# A base's grid is kept while it still fits: at most this share of its range may be overshot (and is clipped),
# and at least this share must be in use.
BASE_OVERSHOOT = 0.02
BASE_USE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseGrids:
    """The grids of the artifact now on the devices, by name in the graph.

    Attributes:
        activations: Grid of each activation.
        weights: Scales of each weight, float32, shape (outputs,).
    """

    activations: Mapping[str, Grid]
    weights: Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A QDQ graph and what was decided for it.

    Attributes:
        model: The graph; constants still inside.
        grids: Grid of every activation that has one, inputs and outputs of the graph among them.
        weights: Constants that belong into weights.safetensors, by name.
        kept_grids: How many activation grids and weight channels were taken from the base.
    """

    model: onnx.ModelProto
    grids: Mapping[str, Grid]
    weights: Mapping[str, npt.NDArray[Any]]
    kept_grids: int


def activations_to_observe(model: onnx.ModelProto) -> list[str]:
    """Names of the values that get a grid of their own from calibration, inputs of the graph among them."""
    constants = set(initializers(model))
    names: list[str] = []
    for node in model.graph.node:
        if node.op_type in INTEGER_OPS and _is_integer(node, constants):
            names += [n for n in _activation_inputs(node, constants) if n]
            names += node.output
    return list(dict.fromkeys(names))


def quantize_graph(
    model: onnx.ModelProto,
    observed: Mapping[str, Observed],
    *,
    method: Method = "minmax",
    percentile: float = 99.99,
    base: BaseGrids | None = None,
) -> Quantized:
    """Inserts QuantizeLinear and DequantizeLinear around every operator that runs in integers.

    Args:
        model: A normalized float graph.
        observed: What calibration saw of `activations_to_observe(model)`.
        method: How a grid follows from a histogram.
        percentile: For "percentile": the share of values kept, in percent.
        base: Keep its grids where they still fit, so that few integers change.

    Raises:
        ExportError: A weight is NaN or infinite, or nothing in the graph can run in integers.
    """
    return _Quantizer(model, observed, method, percentile, base).run()


class _Quantizer:
    def __init__(
        self,
        model: onnx.ModelProto,
        observed: Mapping[str, Observed],
        method: Method,
        percentile: float,
        base: BaseGrids | None,
    ) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.observed, self.method, self.percentile, self.base = observed, method, percentile, base
        self.constants = initializers(self.model)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in self.model.graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.grids: dict[str, Grid] = {}
        self.weights: dict[str, npt.NDArray[Any]] = {}
        self.dequantized: dict[str, str] = {}
        self.kept = 0

    def run(self) -> Quantized:
        nodes = list(self.model.graph.node)
        if not any(n.op_type in WEIGHTED for n in nodes):
            raise ExportError("nothing to quantize: the graph has no Conv and no Gemm with constant weights")
        for node in nodes:
            if node.op_type in INTEGER_OPS and _is_integer(node, set(self.constants)):
                self._integer(node)
            else:
                renamed = [self.dequantized.get(n, n) for n in node.input]
                del node.input[:]
                node.input.extend(renamed)
                self.nodes.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        del self.model.graph.value_info[:]
        drop_unused_initializers(self.model)
        onnx.checker.check_model(self.model)
        return Quantized(model=self.model, grids=self.grids, weights=self.weights, kept_grids=self.kept)

    def _integer(self, node: onnx.NodeProto) -> None:
        inputs = [self._quantized_input(n) if n and n not in self.constants else n for n in node.input]
        source = node.input[0]
        if node.op_type in WEIGHTED:
            inputs[1:] = self._weight_inputs(node, self.grids[source].scale)
        del node.input[:]
        node.input.extend(inputs)
        result = node.output[0]
        self.nodes.append(node)
        after = self.readers.get(result, [])
        fused = (
            node.op_type in FUSABLE
            and len(after) == 1
            and after[0].op_type in ACTIVATIONS
            and result not in self.outputs
        )
        if fused:
            self.dequantized[result] = result  # the activation reads it directly
            return
        if node.op_type in GRID_KEEPERS:
            self._boundary(result, self.grids[source], produced=node)
        else:
            self._boundary(result, self._grid(result), produced=node)

    def _quantized_input(self, name: str) -> str:
        if name not in self.dequantized:
            self._boundary(name, self._grid(name), produced=None)
        return self.dequantized[name]

    def _boundary(self, name: str, grid: Grid, *, produced: onnx.NodeProto | None) -> None:
        """Puts `name` on a grid: QuantizeLinear, DequantizeLinear; a graph output keeps its name."""
        self.grids[name] = grid
        source, result = name, f"{name}_dequantized"
        if produced is not None and name in self.outputs:
            source, result = f"{name}_float", name
            produced.output[0] = source
        scale, zero = f"{name}_scale", f"{name}_zero_point"
        set_initializer(self.model, scale, np.array(grid.scale, np.float32))
        set_initializer(self.model, zero, np.array(grid.zero_point, np.uint8))
        self.nodes.append(
            helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_quantized"], name=f"{name}_q")
        )
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}_quantized", scale, zero], [result], name=f"{name}_dq"
            )
        )
        self.dequantized[name] = result

    def _grid(self, name: str) -> Grid:
        seen = self.observed[name]
        fresh = seen.grid(self.method, self.percentile)
        old = self.base.activations.get(name) if self.base else None
        if old is None:
            return fresh
        overshoot = max(fresh.high - old.high, old.low - fresh.low)
        span, fresh_span = old.high - old.low, fresh.high - fresh.low
        if overshoot <= BASE_OVERSHOOT * span and fresh_span >= BASE_USE * span:
            self.kept += 1
            return old
        return fresh

    def _weight_inputs(self, node: onnx.NodeProto, input_scale: float) -> list[str]:
        weight_name, bias_name = node.input[1], [*node.input, ""][2]
        weight = self.constants[weight_name]
        bias = self.constants[bias_name].astype(np.float64) if bias_name else np.zeros(len(weight))
        if not np.isfinite(weight).all() or not np.isfinite(bias).all():
            raise ExportError(f"layer {node.name!r}: its weights hold NaN or infinity; train it again")
        prefix = weight_name if weight_name not in self.weights else f"{weight_name}.{node.name}"
        scale = self._weight_scale(prefix, weight, bias, input_scale)
        steps = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
        integers = np.clip(steps, -127, 127).astype(np.int8)
        names = [self._dequantized_constant(prefix, integers, scale, f"{prefix}.scale")]
        if bias_name:
            bias_scale = (np.float32(input_scale) * scale).astype(np.float32)
            bias_integers = np.clip(np.rint(bias / bias_scale), -(2**30), 2**30).astype(np.int32)
            own = bias_name if bias_name not in self.weights else f"{bias_name}.{node.name}"
            names.append(self._dequantized_constant(own, bias_integers, bias_scale, f"{own}.scale"))
        return names

    def _weight_scale(
        self, name: str, weight: npt.NDArray[Any], bias: npt.NDArray[np.float64], input_scale: float
    ) -> npt.NDArray[np.float32]:
        """One scale per output channel; large enough that bias and accumulator stay within 32 bits."""
        largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
        # The second bound keeps input_scale * scale, the bias's grid, far from underflow.
        least = np.maximum(np.abs(bias) / (input_scale * 2.0**29), LEAST_SCALE / min(input_scale, 1.0))
        fresh: npt.NDArray[np.float32] = np.maximum(largest / 127, least).astype(np.float32)
        old = self.base.weights.get(name) if self.base else None
        if old is None or old.shape != fresh.shape:
            return fresh
        ratio = fresh / old
        keep = (ratio <= 1 + BASE_OVERSHOOT) & (ratio >= BASE_USE) & (old >= least)
        self.kept += int(keep.sum())
        chosen: npt.NDArray[np.float32] = np.where(keep, old, fresh).astype(np.float32)
        return chosen

    def _dequantized_constant(
        self, name: str, integers: npt.NDArray[Any], scale: npt.NDArray[np.float32], scale_name: str
    ) -> str:
        for key, value in ((name, integers), (scale_name, scale)):
            self.weights[key] = value
            set_initializer(self.model, key, value)
        inputs = [name, scale_name]
        if integers.dtype == np.int8:
            # Zero is the default, but ONNX Runtime's rewrites of 8-bit weights want it spelled out.
            inputs.append(f"{name}_zero_point")
            set_initializer(self.model, inputs[2], np.zeros(len(integers), np.int8))
        self.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], name=f"{name}_dq", axis=0)
        )
        return f"{name}_dequantized"


def _is_integer(node: onnx.NodeProto, constants: set[str]) -> bool:
    """Whether this node, in this form, runs in integers."""
    if node.op_type in WEIGHTED:
        given = attributes(node)
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
        transposed = node.op_type == "Conv" or given.get("transB", 0) == 1
        return plain and transposed and all(n in constants for n in node.input[1:] if n)
    if node.op_type == "Add":
        return not any(n in constants for n in node.input)
    return True


def _activation_inputs(node: onnx.NodeProto, constants: set[str]) -> list[str]:
    return [n for n in node.input if n and n not in constants]
