"""Quantized graphs of other tools: the float graph inside, and what was decided about its integers.

Reads QDQ graphs as ONNX Runtime's `quantize_static` writes them, and torchao's pt2e through
`torch.onnx.export(dynamo=True)`. A pair of QuantizeLinear and DequantizeLinear puts a value on a grid; a
dequantized constant lies on one. Both are taken out here, and quantization puts them back in the form that
lowering reads, so that foreign graphs and our own go one way.

What changes no result, and so is done:
    * int8 activations become uint8: 128 is added to integers and zero points
    * a grid wanted behind moves, maxima and clamps is put before them: rounding is monotone, so both commute
    * weights outside -127..127, which the integer program lacks, are split (widening.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.calibrate import LEAST_SCALE, Grid
from edgewright.errors import ExportError
from edgewright.fusion import ACTIVATIONS, GRID_KEEPERS, POOLS
from edgewright.normalform import normalize
from edgewright.wiring import Wiring, attributes, make_node

Array = npt.NDArray[Any]
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
_CLOSE = 1e-3  # of a step: float32 products of integers and scales are nearer than that, others are not
_SAME = 1e-5  # relative: two ways to compute one scale
# Operators of files that are quantized, but not in QDQ format.
_OTHER_FORMATS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A dequantized constant.

    Attributes:
        values: float32, `scale * integers`.
        integers: int32, the zero point taken off.
        scale: float32, of the same shape.
        grid: Where it has one scale and an 8-bit zero point: as activations have it.
    """

    values: Array
    integers: Array
    scale: Array
    grid: Grid | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a quantized graph says of the float graph inside.

    Attributes:
        grids: Of activations, by name.
        constants: Every dequantized one.
        widened: Layers that read some inputs twice, because of weights outside -127..127.
        floating: Layers whose weights the file leaves in floating point.
    """

    grids: dict[str, Grid] = field(default_factory=dict)
    constants: list[Constant] = field(default_factory=list)
    widened: list[str] = field(default_factory=list)
    floating: list[str] = field(default_factory=list)

    def scale_of(self, rows: Array) -> npt.NDArray[np.float32] | None:
        """The step of each row of a weight, float32 (rows,); None for a weight that no constant became.

        Constants are known by what is in them, since simplifying a graph gives them other names, turns them,
        and multiplies rows by what followed the layer.
        """
        for constant in self.constants:
            for integers, scale in _layouts(constant, rows.shape):
                steps = integers.reshape(len(rows), -1).astype(np.float64)
                step = scale.reshape(len(rows), -1)
                values = rows.reshape(len(rows), -1).astype(np.float64)
                if not (step == step[:, :1]).all():
                    continue
                squares = (steps * steps).sum(axis=1)
                ratio = (values * steps).sum(axis=1) / np.maximum(squares, 1)
                if (np.abs(values - ratio[:, None] * steps) > _CLOSE * np.abs(ratio[:, None])).any():
                    continue
                own = step[:, 0].astype(np.float64)
                same = (squares == 0) | (np.abs(ratio / own - 1) < _SAME)
                found: npt.NDArray[np.float32] = np.where(same, own, np.abs(ratio)).astype(np.float32)
                return found
        return None

    def grid_of(self, values: Array) -> Grid | None:
        """The grid of a constant operand; None for one that was not quantized."""
        for constant in self.constants:
            if constant.grid is not None and constant.values.size == values.size:
                close = _CLOSE * constant.grid.scale
                if np.allclose(constant.values.reshape(-1), values.reshape(-1), rtol=0, atol=close):
                    return constant.grid
        return None


def _layouts(constant: Constant, shape: tuple[int, ...]) -> Iterator[tuple[Array, Array]]:
    """Integers and scales of a constant in each way that gives this shape."""
    integers, scale = constant.integers, constant.scale
    if integers.shape == shape:
        yield integers, scale
    if integers.ndim > 1 and np.moveaxis(integers, 1, 0).shape == shape:
        yield np.moveaxis(integers, 1, 0), np.moveaxis(scale, 1, 0)
    if integers.shape != shape and integers.size == np.prod(shape):
        yield integers.reshape(shape), scale.reshape(shape)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a graph holds QuantizeLinear or DequantizeLinear.

    Raises:
        ExportError: It is quantized in another format than QDQ.
    """
    ops = {n.op_type for n in model.graph.node if n.domain in _DOMAINS}
    other = sorted(op for op in ops if op in _OTHER_FORMATS or op.startswith("QLinear"))
    if other:
        raise ExportError(
            f"the graph is quantized with {other[0]}; only the QDQ format can be read: quantize the float "
            "model with quantize_static(..., quant_format=QuantFormat.QDQ)"
        )
    return bool(ops & _PAIR)


def read_quantized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Given]:
    """The float graph inside a QDQ graph, normalized, and what was decided about its integers.

    Raises:
        ExportError: Something in the graph has no exact counterpart in an integer program; named.
    """
    graph, given = Wiring(model), Given()
    _take_constants(graph, given)
    graph = Wiring(normalize(graph.model()))
    _take_pairs(graph, given)
    _put_before_moves(graph, given)
    graph.drop_dead()
    return graph.model(), given


# Constants


def _take_constants(graph: Wiring, given: Given) -> None:
    """Computes every constant that is quantized or dequantized, and notes its integers."""
    kept: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "Constant" and (value := attributes(node).get("value")) is not None:
            graph.constants[node.output[0]] = onnx.numpy_helper.to_array(value)
            continue
        if node.op_type in _PAIR and node.domain in _DOMAINS:
            node.domain = ""
            if node.input[0] in graph.constants:
                compute = _quantized if node.op_type == "QuantizeLinear" else _dequantized
                graph.constants[node.output[0]] = compute(graph, node, given)
                continue
        kept.append(node)
    graph.nodes = kept


def _numbers(graph: Wiring, node: onnx.NodeProto, shape: Sequence[int]) -> tuple[Array, Array]:
    """Scale and zero point of a node, to broadcast against a value of this shape."""
    names = [*node.input, ""][1:3]
    if attributes(node).get("block_size", 0):
        raise ExportError(f"{_place(node)}: scales by block are not supported; use one per output channel")
    if any(n and n not in graph.constants for n in names):
        raise ExportError(
            f"{_place(node)}: its scale is computed at run time; quantize with fixed scales (static "
            "quantization)"
        )
    scale = graph.constants[names[0]].astype(np.float32)
    zero_point = graph.constants[names[1]] if names[1] else np.zeros_like(scale, np.uint8)
    usable = np.isfinite(scale).all() and (scale >= LEAST_SCALE).all()
    if not usable:
        raise ExportError(f"{_place(node)}: its scale is {scale.min():g}; is the model calibrated?")
    if scale.size > 1:
        axis = attributes(node).get("axis", 1) % len(shape)
        inner = [-1 if i == axis else 1 for i in range(len(shape))]
        return scale.reshape(inner), zero_point.reshape(inner) if zero_point.size > 1 else zero_point
    return scale.reshape(()), zero_point.reshape(())


def _quantized(graph: Wiring, node: onnx.NodeProto, given: Given) -> Array:
    del given
    values = graph.constants[node.input[0]]
    scale, zero_point = _numbers(graph, node, values.shape)
    limits = np.iinfo(zero_point.dtype)
    steps = np.rint(values.astype(np.float32) / scale) + zero_point.astype(np.float32)
    return np.asarray(np.clip(steps, limits.min, limits.max), zero_point.dtype)


def _dequantized(graph: Wiring, node: onnx.NodeProto, given: Given) -> Array:
    stored = graph.constants[node.input[0]]
    if not (np.issubdtype(stored.dtype, np.integer) or stored.dtype.name in {"int4", "uint4"}):
        raise ExportError(
            f"{_place(node)}: its weight is {stored.dtype}; integers of up to 8 bits can be read"
        )
    scale, zero_point = _numbers(graph, node, stored.shape)
    integers = stored.astype(np.int64) - zero_point.astype(np.int64)
    values = (integers.astype(np.float32) * scale).astype(np.float32)
    eight = stored.dtype in (np.uint8, np.int8) and scale.size == zero_point.size == 1
    given.constants.append(
        Constant(
            values=values,
            integers=integers.astype(np.int32),
            scale=np.broadcast_to(scale, values.shape),
            grid=_grid(scale, zero_point) if eight else None,
        )
    )
    return values


def _grid(scale: Array, zero_point: Array) -> Grid:
    """The grid of uint8 that is the same as this one of uint8 or int8."""
    moved = 128 if zero_point.dtype == np.int8 else 0
    return Grid(scale=float(scale.item()), zero_point=int(zero_point.item()) + moved)


# Activations


def _take_pairs(graph: Wiring, given: Given) -> None:
    """Takes out every pair; its value gets the grid.

    A value that is also read as it was before its pair is read on the grid from now on. One that is put on
    two grids is computed twice.
    """
    quantized: dict[str, tuple[str, Grid]] = {}
    known: dict[str, str] = {}  # what a dequantized value is called now
    again: list[onnx.NodeProto] = []
    kept: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            quantized[node.output[0]] = node.input[0], _activation_grid(graph, node)
            continue
        if node.op_type == "DequantizeLinear":
            if node.input[0] not in quantized:
                raise ExportError(
                    f"{_place(node)}: dequantizes {node.input[0]!r}, which no QuantizeLinear gives; inputs "
                    "must be float32, and integers must lie between QuantizeLinear and DequantizeLinear alone"
                )
            source, grid = quantized[node.input[0]]
            if _activation_grid(graph, node) != grid:
                raise ExportError(
                    f"{_place(node)}: its scale or zero point is not that of its QuantizeLinear"
                )
            value = known.get(source, source)
            if given.grids.setdefault(value, grid) == grid:
                known[node.output[0]] = value
                continue
            other = make_node("Identity", [value], node.output[0])
            given.grids[node.output[0]] = grid
            if source not in known:
                again.append(other)
            kept.append(other)
            continue
        for index, name in enumerate(node.input):
            node.input[index] = known.get(name, name)
        if set(node.input) & quantized.keys():
            raise ExportError(f"{_place(node)}: reads integers; only DequantizeLinear may")
        kept.append(node)
    graph.nodes = kept
    for other in again:
        _compute_again(graph, other, given)
    for name in graph.outputs:
        if name in known:
            _give_out(graph, known, name, given)


def _activation_grid(graph: Wiring, node: onnx.NodeProto) -> Grid:
    scale, zero_point = _numbers(graph, node, (1, 1))
    if scale.size > 1:
        raise ExportError(f"{_place(node)}: activations must have one scale, not {scale.size}")
    if zero_point.dtype not in (np.uint8, np.int8):
        raise ExportError(
            f"{_place(node)}: activations are {zero_point.dtype}; files with int8 or uint8 ones can be read"
        )
    return _grid(scale, zero_point)


def _compute_again(graph: Wiring, other: onnx.NodeProto, given: Given) -> None:
    """Replaces an Identity by what its input is computed by, back to values on a grid."""
    producers = graph.producers()
    made: list[onnx.NodeProto] = []

    def copy(name: str) -> str:
        node = producers.get(name)
        if node is None or (made and name in given.grids):
            return name
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        made.append(twin)
        twin.input[:] = [copy(n) for n in node.input]
        twin.output[:] = [graph.fresh(n) if n else "" for n in node.output]
        twin.name = f"{node.name}_{twin.output[0]}"
        return str(twin.output[list(node.output).index(name)])

    if other.input[0] in producers:
        name = copy(other.input[0])
        for node in made:
            node.output[:] = [other.output[0] if n == name else n for n in node.output]
        graph.replace(other, *made[::-1])


def _give_out(graph: Wiring, known: dict[str, str], name: str, given: Given) -> None:
    """An output of the graph that was dequantized: its value takes the output's name."""
    value = known[name]
    if value in graph.inputs or value in graph.outputs:
        graph.nodes.append(make_node("Identity", [value], name))
        given.grids[name] = given.grids[value]
        return
    for node in graph.nodes:
        node.input[:] = [name if n == value else n for n in node.input]
        node.output[:] = [name if n == value else n for n in node.output]
    given.grids[name] = given.grids.pop(value)
    known.update({k: name for k, v in known.items() if v == value})


def _put_before_moves(graph: Wiring, given: Given) -> None:
    """Grids spread over operators that move values, take their maximum or clamp them."""
    readers, producers = graph.readers(), graph.producers()
    early = GRID_KEEPERS | POOLS | {"LayerNormalization", "Softmax"}
    names = [*graph.inputs, *(o for n in graph.nodes for o in n.output if o)]
    for name in reversed(names):
        after = readers.get(name, [])
        if name in given.grids or name in graph.outputs or not after:
            continue
        # A layer takes in the clamp behind it; any other value is clamped on its grid.
        clamped = ACTIVATIONS if name not in producers or producers[name].op_type in early else frozenset()
        moves = GRID_KEEPERS - {"Resize"} | clamped
        wanted = {given.grids.get(n.output[0]) for n in after if n.op_type in moves}
        if len(wanted) == 1 and all(n.op_type in moves for n in after) and (grid := wanted.pop()):
            given.grids[name] = grid
    for node in graph.nodes:
        grid = given.grids.get([*node.input, ""][0])
        moved = node.op_type in GRID_KEEPERS - {"Concat"}
        if grid and (moved or (node.op_type in ACTIVATIONS and _stays_on(graph, node, grid))):
            given.grids.setdefault(node.output[0], grid)


def _stays_on(graph: Wiring, node: onnx.NodeProto, grid: Grid) -> bool:
    """Whether a clamp of values on a grid gives values on it: its bounds lie there, or beyond."""
    for name in node.input[1:]:
        bound = graph.constants.get(name)
        if name and bound is None:
            return False
        if bound is not None and grid.low < bound.item() < grid.high:
            steps = float(bound.item()) / grid.scale
            if abs(steps - round(steps)) > _CLOSE:
                return False
    return True


def _place(node: onnx.NodeProto) -> str:
    return f"operator {node.op_type} (node {node.name or node.output[0]!r})"
