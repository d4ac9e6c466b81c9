"""Post-training quantization to INT8: a float graph in, a QDQ graph out.

Weights: int8, symmetric, one scale per output channel, in [-127, 127], or int4 (int4.py).
Activations: uint8, affine, or int16, symmetric (precision.py says which), one scale per tensor. Biases: int32
on the grid `input scale * weight scale`. Batch norm was folded before.
Scheme: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", with per-channel weights as in Krishnamoorthi 2018, arXiv:1806.08342.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.calibrate import LEAST_SCALE, Grid, Integers, Method, Observed
from edgewright.errors import ExportError
from edgewright.fusion import GRID_KEEPERS, MASKED, Fusion
from edgewright.int4 import INT4, IR_VERSION
from edgewright.int4 import MOST as MOST_OF_INT4
from edgewright.overflow import OverflowSafe, safe_integers, safety
from edgewright.precision import Activations, Precision
from edgewright.qdq import Given
from edgewright.qdq_graph import QdqGraph
from edgewright.weight_scale import BASE_OVERSHOOT, BASE_USE, least_scale, weight_scale
from edgewright.wiring import Wiring, attributes, make_node

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

INT16_OPSET = 21  # the first in which QuantizeLinear gives int16, and DequantizeLinear takes int4
MOST_SUM = (1 << 31) - 1  # of an accumulator


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseGrids:
    """The grids of the artifact now on the devices, by name in the graph.

    Attributes:
        activations: Grid of each activation.
        weights: Scales of each weight, float32, shape (outputs,).
        integers: Of each weight whose scales shall follow it where it grew or shrank as a whole.
    """

    activations: Mapping[str, Grid]
    weights: Mapping[str, npt.NDArray[np.float32]]
    integers: Mapping[str, npt.NDArray[np.int8]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A QDQ graph and what was decided for it.

    Attributes:
        model: The graph; constants still inside.
        grids: Grid of every activation that has one, inputs and outputs of the graph among them.
        weights: Constants that belong into weights.safetensors, by name.
        kept_grids: How many activation grids and weight channels were taken from the base.
        narrowed: Layers that read uint8 though int16 was wanted, as their sums could leave 32 bits.
        widened: Values that are int16 because of "auto", and whether layers read them so too.
    """

    model: onnx.ModelProto
    grids: Mapping[str, Grid]
    weights: Mapping[str, npt.NDArray[Any]]
    kept_grids: int
    narrowed: tuple[str, ...] = ()
    widened: Mapping[str, bool] = field(default_factory=dict)


def activations_to_observe(
    model: onnx.ModelProto, given: Given | None = None, keep_float: Collection[str] = ()
) -> list[str]:
    """Names of the values that get a grid of their own from calibration, inputs of the graph among them.

    Args:
        model: A normalized float graph.
        given: What a quantized file has decided.
        keep_float: Names of layers that stay in floating point.
    """
    graph = Wiring(model)
    grids: Mapping[str, Grid] = given.grids if given else {}
    fusion = Fusion(graph, grids, keep_float)
    names: list[str] = []
    for index, node in enumerate(graph.nodes):
        if index in fusion.integer:
            read = (n for n in node.input if n and n not in graph.constants and n not in fusion.inside)
            names += [n for n in read if n in fusion.floating]
            names += [n for n in node.output if n not in fusion.inside]
    operators = {o: n.op_type for n in graph.nodes for o in n.output}
    kept = GRID_KEEPERS - {"Concat"}
    return [n for n in dict.fromkeys(names) if n not in grids and operators.get(n) not in kept | {"Expand"}]


def quantize_graph(
    model: onnx.ModelProto,
    observed: Mapping[str, Observed],
    *,
    method: Method = "minmax",
    percentile: float = 99.99,
    base: BaseGrids | None = None,
    overflow_safe: OverflowSafe = "off",
    given: Given | None = None,
    activations: Activations = "uint8",
    constants: Mapping[str, Grid] | None = None,
    keep_float: Collection[str] = (),
    widened: Mapping[str, bool] | None = None,
    four_bits: Collection[str] = (),
) -> Quantized:
    """Inserts QuantizeLinear and DequantizeLinear around every operator that runs in integers.

    Args:
        model: A normalized float graph.
        observed: What calibration saw of `activations_to_observe(model)`.
        method: How a grid follows from a histogram.
        percentile: For "percentile": the share of values kept, in percent.
        base: Keep its grids where they still fit, so that few integers change.
        overflow_safe: Which products of weights and activations must add up within 16 bits (overflow.py).
        given: What a quantized file has decided; it stands, and only the rest is chosen here.
        activations: Which of them are int16 (precision.py); those of a quantized file are as it says.
        constants: Grids of constant operands that are decided already, by name.
        keep_float: Names of layers that stay in floating point.
        widened: For activations "auto": the values that are int16, and whether layers read them so too.
        four_bits: Weights that have 4 bits, by their names in the result.

    Raises:
        ExportError: A weight is NaN or infinite, or nothing in the graph can run in integers.
    """
    return _Quantizer(
        model,
        observed,
        method,
        percentile,
        base,
        overflow_safe,
        given or Given(),
        activations,
        constants or {},
        keep_float,
        widened or {},
        four_bits,
    ).run()


class _Quantizer:
    def __init__(
        self,
        model: onnx.ModelProto,
        observed: Mapping[str, Observed],
        method: Method,
        percentile: float,
        base: BaseGrids | None,
        overflow_safe: OverflowSafe,
        given: Given,
        activations: Activations,
        fixed: Mapping[str, Grid],
        keep_float: Collection[str],
        widened: Mapping[str, bool],
        four_bits: Collection[str],
    ) -> None:
        self.graph, self.given = Wiring(model), given
        self.fusion = Fusion(self.graph, given.grids, keep_float)
        self.observed, self.method, self.percentile, self.base = observed, method, percentile, base
        self.overflow_safe, self.fixed, self.four_bits = overflow_safe, fixed, frozenset(four_bits)
        self.widened = widened
        self.precision = Precision(self.graph, self.fusion, "uint8" if given.grids else activations, widened)
        self.narrowed: list[str] = []
        self.constants = dict(self.graph.constants)
        self.qdq = QdqGraph(self.graph, self.constants)
        self.producers, self.readers = self.graph.producers(), self.graph.readers()
        self.moved_from = {name: node.input[0] for name, node in self.producers.items() if node.input}
        self.outputs = set(self.graph.outputs)
        self.grids: dict[str, Grid] = {}
        self.decided: dict[str, Grid] = {}
        self.wanted = self._grids_of_concats()
        self.dequantized: dict[str, str] = {}
        self.bias_scales: dict[str, npt.NDArray[np.float32]] = {}
        self.kept = 0

    def run(self) -> Quantized:
        nodes = list(self.graph.nodes)
        self.quantized = {n for i in self.fusion.integer for n in nodes[i].input if n in self.constants}
        if not any(n.op_type in WEIGHTED and i in self.fusion.integer for i, n in enumerate(nodes)):
            raise ExportError(
                "nothing to quantize: the graph has no Conv, Gemm or MatMul with constant weights"
            )
        for index, node in enumerate(nodes):
            if index in self.fusion.integer:
                self._integer(node)
            else:
                self._rewired(node, [self._floating(n) for n in node.input])
        self.graph.nodes = self.qdq.nodes
        self.graph.drop_dead()
        made = self.graph.model()
        if self.precision.wide or self.four_bits:
            _raise_opset(made)
        if self.four_bits:
            made.ir_version = max(made.ir_version, IR_VERSION)
        onnx.checker.check_model(made)
        return Quantized(
            model=made,
            grids=self.grids,
            weights=self.qdq.weights,
            kept_grids=self.kept,
            narrowed=tuple(self.narrowed),
            widened=self.widened,
        )

    # Nodes

    def _integer(self, node: onnx.NodeProto) -> None:
        source, result = node.input[0], node.output[0]
        if node.op_type == "Gather":
            self._embedding(node)
            return
        takes = self._takes_int16(node)
        inputs = [self._activation(n, takes=takes) for n in node.input]
        if node.op_type in WEIGHTED and node.input[1] in self.constants:
            inputs[1:] = self._weight_inputs(node, self._grid_read(source, takes=takes))
        elif result in self.fusion.biases:
            inputs = [
                i if n not in self.constants else self._bias(node, n)
                for i, n in zip(inputs, node.input, strict=True)
            ]
        elif node.op_type == "LayerNormalization":
            inputs[1:] = [self.qdq.float_parameter(n, node) for n in node.input[1:] if n]
        elif node.op_type == "Concat":
            inputs = self._joined(node)
        elif result in self.fusion.masks:
            inputs = [
                self._mask(n) if n in self.constants else i for i, n in zip(inputs, node.input, strict=True)
            ]
        elif (
            result not in self.fusion.roots
            and result not in self.fusion.fused
            and node.op_type in {"Add", "Mul"}
        ):
            inputs = [
                self._constant(n, node) if n in self.constants else i
                for i, n in zip(inputs, node.input, strict=True)
            ]
        self._rewired(node, inputs)
        if result in self.fusion.inside:
            self.dequantized[result] = result  # the next node reads it directly
        elif node.op_type in GRID_KEEPERS and node.op_type != "Concat":
            read = self._grid_read(source, takes=takes)
            self._boundary(result, self.given.grids.get(result, read), produced=node)
        else:
            self._boundary(result, self._grid(result), produced=node)

    def _floating(self, name: str) -> str:
        """The name by which a node that stays floating-point reads an input."""
        if name not in self.constants:
            return self.dequantized.get(name, name)
        if name not in self.quantized:
            return name
        self.graph.constants[f"{name}.float"] = self.constants[name]
        return f"{name}.float"

    def _rewired(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        del node.input[:]
        node.input.extend(inputs)
        self.qdq.nodes.append(node)

    def _embedding(self, node: onnx.NodeProto) -> None:
        """A table of int8, one scale; what is taken from it lies on the same grid, moved to uint8.

        Where that is int16, the table has a scale for each column.
        """
        name, result = node.input[0], node.output[0]
        table = self.constants[name]
        wide = result in self.precision.wide
        most = np.abs(table).max(axis=0 if wide else None)
        scale = np.maximum(most.astype(np.float64) / 127, LEAST_SCALE).astype(np.float32)
        if not np.isfinite(scale).all():
            raise ExportError(f"layer {node.name!r}: its weights hold NaN or infinity; train it again")
        if (known := self.given.scale_of(table.reshape(1, -1))) is not None:
            scale = np.asarray(known[0], np.float32)
        if wide:
            self.grids[result] = Grid.around(float(table.min()), float(table.max()), "int16")
        else:
            self.grids[result] = Grid(scale=float(scale), zero_point=128)
        integers = np.clip(np.rint(table / scale), -127, 127).astype(np.int8)
        parameters = [
            self.qdq.parameter(f"{name}.scale", np.asarray(scale)),
            self.qdq.parameter(f"{name}_zero_point", np.zeros(scale.shape, np.int8), inline=True),
        ]
        axis: dict[str, Any] = {"axis": -1} if wide else {}
        raw, taken = f"{result}_taken", f"{result}_row"
        self.qdq.nodes.append(
            make_node("Gather", [self.qdq.parameter(name, integers), node.input[1]], raw, node.name, axis=0)
        )
        rows = make_node("DequantizeLinear", [raw, *parameters], taken, **axis)
        self.qdq.nodes.append(rows)
        self._boundary(result, self.given.grids.get(result, self.grids[result]), produced=rows, source=taken)

    def _joined(self, node: onnx.NodeProto) -> list[str]:
        """Inputs of a Concat, all on the grid of its result."""
        moving = [n for n in node.input if n in self.grids]
        result = node.output[0]
        found = {self.grids[n] for n in moving}
        if len(found) == 1 and len(moving) == len(node.input):
            self.wanted[result] = found.pop()
        grid = self._grid(result)
        inputs: list[str] = []
        for name in node.input:
            if name not in self.grids:
                inputs.append(
                    self._constant(name, node, grid) if name in self.constants else self._expanded(name, grid)
                )
            elif self.grids[name] == grid:
                inputs.append(self.dequantized[name])
            elif (again := f"{name}_to_{result}_dequantized") in inputs:
                inputs.append(again)
            else:
                inputs.append(self._requantized(name, f"{name}_to_{result}", grid))
        return inputs

    def _grids_of_concats(self) -> dict[str, Grid]:
        """Grids of values that only a Concat reads: its own, so that joining them computes nothing."""
        wanted: dict[str, Grid] = {}
        for index, node in reversed(list(enumerate(self.graph.nodes))):
            if node.op_type != "Concat" or index not in self.fusion.integer:
                continue
            for name in node.input:
                before = self.producers.get(name)
                alone = (
                    len(self.readers[name]) == 1
                    and name not in self.outputs
                    and name not in self.fusion.inside
                )
                if (
                    before is not None
                    and alone
                    and name not in self.given.grids
                    and before.op_type not in GRID_KEEPERS - {"Concat"} | {"Gather", "Expand"}
                ):
                    wanted[name] = wanted.get(node.output[0]) or self._fresh_grid(node.output[0])
        return wanted

    # Values

    def _takes_int16(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads int16 as it is. A layer does where its sums are sure to fit 32 bits."""
        if not self.precision.takes(node):
            return False
        name = node.input[0]
        layer = node.op_type in WEIGHTED and node.input[1] in self.constants
        if not layer or name not in self.precision.wide:
            return True
        self._activation(name, takes=True)
        integers, bias = self._layer_integers(node, self.grids[name])
        sums = np.abs(integers.reshape(len(integers), -1).astype(np.int64)).sum(axis=1)
        if (sums * (1 << 15) + np.abs(bias) <= MOST_SUM).all():
            return True
        self.narrowed.append(node.name)
        return False

    def _layer_integers(
        self, node: onnx.NodeProto, grid: Grid
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
        """A layer's weights, output channels first, and biases, as integers for an input on this grid."""
        rows = self.constants[node.input[1]]
        rows = rows.T if node.op_type == "MatMul" else rows
        name = self._later_bias(node) or [*node.input, ""][2]
        bias = np.abs(self.constants[name].astype(np.float64)) if name else np.zeros(len(rows))
        scale, _ = weight_scale(
            rows,
            bias,
            grid,
            self._result_grid(node),
            "off",
            self._old_scale(node.input[1]),
            self._old_integers(node.input[1]),
        )
        return safe_integers(rows, scale, "off"), np.rint(bias / (np.float32(grid.scale) * scale))

    def _grid_read(self, name: str, *, takes: bool) -> Grid:
        """The grid on which a node reads a value."""
        return self.grids[name] if takes or name not in self.precision.wide else self.grids[narrow_name(name)]

    def _activation(self, name: str, *, takes: bool = True) -> str:
        """The name to read an input by: dequantized, where it has a grid; from uint8 unless `takes`."""
        if not name or name in self.constants or name not in self.fusion.floating:
            return name
        before = self.producers.get(name)
        if before is not None and before.op_type == "Expand" and name not in self.dequantized:
            return name
        if name not in self.dequantized:
            self._boundary(name, self._grid(name), produced=None)
        if takes or name not in self.precision.wide:
            return self.dequantized[name]
        if narrow_name(name) not in self.grids:
            self.grids[narrow_name(name)] = self._narrow_grid(name)
            self._requantized(name, narrow_name(name), self.grids[narrow_name(name)])
        return f"{narrow_name(name)}_dequantized"

    def _narrow_grid(self, name: str) -> Grid:
        """A grid of uint8 for a value that lies on one of int16, perhaps moved from where it was observed."""
        while name not in self.observed:
            name = self.moved_from[name]
        return self.observed[name].grid(self.method, self.percentile)

    def _boundary(
        self, name: str, grid: Grid, *, produced: onnx.NodeProto | None, source: str | None = None
    ) -> None:
        """Puts `name` on a grid: QuantizeLinear, DequantizeLinear; a graph output keeps its name."""
        self.grids[name] = grid
        source, result = source or name, f"{name}_dequantized"
        if produced is not None and name in self.outputs:
            source, result = f"{name}_float", name
            produced.output[0] = source
        self.qdq.pair(source, name, result, grid)
        self.dequantized[name] = result

    def _requantized(self, name: str, new: str, grid: Grid) -> str:
        self.qdq.pair(self.dequantized[name], new, f"{new}_dequantized", grid)
        return f"{new}_dequantized"

    def _grid(self, name: str) -> Grid:
        if name not in self.decided:
            self.decided[name] = self._decide(name)
        return self.decided[name]

    def _decide(self, name: str) -> Grid:
        if name in self.given.grids:
            return self.given.grids[name]
        fresh = self.wanted.get(name) or self._fresh_grid(name)
        old = self.base.activations.get(name) if self.base else None
        if old is None or old.dtype != fresh.dtype or name in self.wanted:
            return fresh
        overshoot = max(fresh.high - old.high, old.low - fresh.low)
        span, fresh_span = old.high - old.low, fresh.high - fresh.low
        if overshoot <= BASE_OVERSHOOT * span and fresh_span >= BASE_USE * span:
            self.kept += 1
            return old
        return fresh

    def _fresh_grid(self, name: str) -> Grid:
        if name in self.given.grids:
            return self.given.grids[name]
        return self.observed[name].grid(self.method, self.percentile, self._dtype(name))

    def _dtype(self, name: str) -> Integers:
        return "int16" if name in self.precision.wide else "uint8"

    # Constants

    def _constant(self, name: str, node: onnx.NodeProto, grid: Grid | None = None) -> str:
        """A constant operand on a grid of its own, int16 beside or before int16, or on the one given."""
        value = self.constants[name].astype(np.float64)
        if not np.isfinite(value).all():
            raise ExportError(f"node {node.name!r}: its constant {name!r} holds NaN or infinity")
        wide = self.precision.wide.intersection([*node.input, *node.output])
        ends = float(value.min()), float(value.max())
        own = f"{name}.{node.name}" if name in self.qdq.weights else name
        grid = grid or self.fixed.get(own) or self.given.grid_of(value)
        grid = grid or Grid.around(*ends, "int16" if wide else "uint8")
        return self.qdq.operand(own, value, grid)

    def _expanded(self, name: str, grid: Grid) -> str:
        """A constant that is repeated for each sample."""
        expand = self.producers[name]
        if expand.input[0] in self.constants:
            expand.input[0] = self._constant(expand.input[0], expand, grid)
            at = next(i for i, n in enumerate(self.qdq.nodes) if n is expand)
            self.qdq.nodes.append(self.qdq.nodes.pop(at))
        return name

    def _mask(self, name: str) -> str:
        """A constant mask: 1 keeps and 0 hides, made into 0 and far less behind its grid."""
        if f"{name}_mask" not in self.graph.constants:
            keep = (self.constants[name] > MASKED).astype(np.float32)
            self.constants[f"{name}_keep"] = keep
            node = make_node("Identity", [name], f"{name}_mask")
            read = self._constant(f"{name}_keep", node, Grid(scale=float(np.float32(1 / 255)), zero_point=0))
            one = self.qdq.parameter(f"{name}_one", np.array(1, np.float32), inline=True)
            far = self.qdq.parameter(f"{name}_far", np.array(-10 * MASKED, np.float32), inline=True)
            self.qdq.nodes.append(make_node("Sub", [read, one], f"{name}_hidden"))
            self.qdq.nodes.append(make_node("Mul", [f"{name}_hidden", far], f"{name}_mask"))
        return f"{name}_mask"

    def _weight_inputs(self, node: onnx.NodeProto, grid: Grid) -> list[str]:
        """Weight and bias for an input on this grid."""
        weight_name, bias_name = node.input[1], [*node.input, ""][2]
        # Output channels first, as lowering wants them; all but ConvTranspose's, which are second.
        weight = self.constants[weight_name].T if node.op_type == "MatMul" else self.constants[weight_name]
        axis = 1 if node.op_type == "ConvTranspose" else 0
        groups = int(attributes(node).get("group", 1)) if axis else 1
        channels = weight.shape[axis] * groups
        bias_name = self._later_bias(node) or bias_name
        bias = self.constants[bias_name].astype(np.float64) if bias_name else np.zeros(channels)
        if not np.isfinite(weight).all() or not np.isfinite(bias).all():
            raise ExportError(f"layer {node.name!r}: its weights hold NaN or infinity; train it again")
        prefix = weight_name if weight_name not in self.qdq.weights else f"{weight_name}.{node.name}"
        rows = np.moveaxis(weight, axis, 0)
        largest_bias = np.abs(bias).reshape(groups, -1).max(axis=0)
        known, safe = self.given.scale_of(rows), safety(node, rows.shape, self.overflow_safe)
        four = prefix in self.four_bits and known is None
        if known is None:
            result = self._result_grid(node)
            old = self._old_scale(prefix), None if axis else self._old_integers(prefix)
            scale, kept = weight_scale(rows, largest_bias, grid, result, safe, *old, four=four)
            self.kept += kept
        else:
            scale, safe = np.maximum(known, least_scale(largest_bias, grid.scale)), "off"
            scale = scale.astype(np.float32)
        if four:  # whose products fit 16 bits in any order
            steps = np.rint(rows / scale.reshape(-1, *[1] * (rows.ndim - 1)))
            integers = np.clip(steps, -MOST_OF_INT4, MOST_OF_INT4).astype(INT4)
        else:
            integers = np.ascontiguousarray(np.moveaxis(safe_integers(rows, scale, safe), 0, axis))
        names = [self.qdq.weight(prefix, integers, scale, f"{prefix}.scale", axis)]
        if node.op_type == "MatMul":
            self.qdq.nodes.append(make_node("Transpose", names, f"{prefix}_turned", perm=[1, 0]))
            self.bias_scales[node.output[0]] = np.float32(grid.scale) * scale
            return [f"{prefix}_turned"]
        if bias_name:
            names.append(
                self._bias_constant(node, bias_name, np.tile(np.float32(grid.scale) * scale, groups))
            )
        return names

    def _result_grid(self, node: onnx.NodeProto) -> Grid:
        """The grid that a layer's results go to, behind what it takes in."""
        name = node.output[0]
        while name in self.fusion.inside:
            name = self.readers[name][0].output[0]
        return self._grid(name)

    def _old_scale(self, name: str) -> npt.NDArray[np.float32] | None:
        return self.base.weights.get(name) if self.base else None

    def _old_integers(self, name: str) -> npt.NDArray[np.int8] | None:
        return self.base.integers.get(name) if self.base else None

    def _later_bias(self, node: onnx.NodeProto) -> str:
        """The bias that an Add gives to a MatMul."""
        after = self.readers.get(node.output[0], [])
        if not after or after[0].output[0] not in self.fusion.biases:
            return ""
        return str(next(n for n in after[0].input if n in self.constants))

    def _bias(self, node: onnx.NodeProto, name: str) -> str:
        product = next(n for n in node.input if n not in self.constants)
        return self._bias_constant(node, name, self.bias_scales[product])

    def _bias_constant(self, node: onnx.NodeProto, name: str, scale: npt.NDArray[np.float32]) -> str:
        scale = scale.astype(np.float32)
        steps = np.rint(self.constants[name].astype(np.float64) / scale)
        integers = np.clip(steps, -(2**30), 2**30).astype(np.int32)
        own = name if name not in self.qdq.weights else f"{name}.{node.name}"
        return self.qdq.weight(own, integers, scale, f"{own}.scale", 0)


def narrow_name(name: str) -> str:
    """The name of an int16 value on a grid of uint8."""
    return f"{name}_to_uint8"


def _raise_opset(model: onnx.ModelProto) -> None:
    """Brings a graph to the opset of int16, in which nothing of a normalized graph means something else."""
    for opset in model.opset_import:
        if opset.domain in {"", "ai.onnx"}:
            opset.version = max(opset.version, INT16_OPSET)
