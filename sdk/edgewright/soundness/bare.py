"""A QDQ graph laid bare: its grids, its integer constants, and the float graph that is left without them.

Reads our own QDQ graphs and those of other tools. Nothing is judged here, so a broken graph is read too:
activations get the grid of their QuantizeLinear, whatever their DequantizeLinears say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.wiring import Wiring, attributes

Array = npt.NDArray[Any]
_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
_WEIGHT_AXES = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}
"""Axis of output channels in a weight; of Gemm it follows from transB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A QuantizeLinear of an activation and the DequantizeLinears that read it.

    Attributes:
        value: Name of what it quantizes, in the bare graph.
        name: Of the QuantizeLinear.
        scale: float32 (), or one for each channel.
        zero_point: Of the same shape, of the integers' dtype.
        readers: Name, scale and zero point of each DequantizeLinear.
    """

    value: str
    name: str
    scale: Array
    zero_point: Array
    readers: tuple[tuple[str, Array, Array], ...]

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        kind = np.iinfo(self.zero_point.dtype)
        return int(kind.min), int(kind.max)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest real value, where there is one scale."""
        low, high = self.limits
        scale, zero = float(self.scale.reshape(-1)[0]), int(self.zero_point.reshape(-1)[0])
        return scale * (low - zero), scale * (high - zero)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """A dequantized constant of the bare graph.

    Attributes:
        name: Of the integers in the QDQ graph.
        steps: int64, the zero point taken off, of the constant's shape.
        scale: float64, broadcast against `steps`.
        most: The largest magnitude that the dtype has room for.
        axis: Along which the scale runs in `steps`; None where there is one for all.
        zero_point: Whether any zero point is not 0.
    """

    name: str
    steps: Array
    scale: Array
    most: int
    axis: int | None
    zero_point: bool

    def moved(self, steps: Array, scale: Array, axis: int | None) -> Integers:
        """The same behind a move."""
        return Integers(
            name=self.name, steps=steps, scale=scale, most=self.most, axis=axis, zero_point=self.zero_point
        )


@dataclass(frozen=True, kw_only=True)
class Bare:
    """A QDQ graph without its grids.

    Attributes:
        graph: Float operators alone; dequantized constants are float constants.
        pairs: Of activations.
        integers: By the name of the float constant that they became.
    """

    graph: Wiring
    pairs: list[Pair] = field(default_factory=list)
    integers: dict[str, Integers] = field(default_factory=dict)


def bare(model: onnx.ModelProto) -> Bare:
    """Takes out every QuantizeLinear and DequantizeLinear.

    Args:
        model: A QDQ graph, constants inside.
    """
    graph = Wiring(model)
    made = Bare(graph=graph)
    known: dict[str, str] = {}  # what a value is called now
    quantized: dict[str, tuple[onnx.NodeProto, str]] = {}
    readers: dict[str, list[tuple[str, Array, Array]]] = {}
    rows: dict[str, str] = {}  # a table of integers, by what is taken from it
    kept: list[onnx.NodeProto] = []
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = known.get(name, name)
        source, result = [*node.input, ""][0], [*node.output, ""][0]
        if node.op_type == "QuantizeLinear" and source not in graph.constants:
            quantized[result] = node, source
        elif node.op_type == "QuantizeLinear":
            graph.constants[result] = _quantized(graph, node)
        elif node.op_type == "DequantizeLinear" and source in quantized:
            known[result] = quantized[source][1]
            readers.setdefault(source, []).append((node.name or result, *_numbers(graph, node)))
        elif node.op_type == "DequantizeLinear" and source in graph.constants:
            integers = _integers(graph, node)
            graph.constants[result] = (integers.steps * integers.scale).astype(np.float32)
            made.integers[result] = integers
        elif node.op_type == "DequantizeLinear" and source in rows:
            table = rows[source]
            row = _integers(graph, node, table)
            graph.constants[f"{table}.float"] = (row.steps * row.scale).astype(np.float32)
            made.integers[f"{table}.float"] = row
            gather = next(n for n in kept if source in n.output)
            gather.input[0] = f"{table}.float"
            known[result] = source
        elif node.op_type == "Gather" and source in graph.constants:
            if graph.constants[source].dtype.kind != "f":
                rows[result] = source
            kept.append(node)
        elif node.op_type in _MOVES and source in made.integers:
            _move(graph, node, made)
        else:
            kept.append(node)
    graph.nodes = kept
    for result, (node, source) in quantized.items():
        scale, zero_point = _numbers(graph, node)
        made.pairs.append(
            Pair(
                value=source,
                name=node.name or result,
                scale=scale,
                zero_point=zero_point,
                readers=tuple(readers.get(result, ())),
            )
        )
    _name_outputs(made, known)
    graph.drop_dead()
    return made


def layer_axis(node: onnx.NodeProto) -> int | None:
    """The axis of output channels in the weight of a node; None of one that has no weight."""
    if node.op_type == "Gemm":
        return 0 if attributes(node).get("transB", 0) else 1
    return _WEIGHT_AXES.get(node.op_type)


def _numbers(graph: Wiring, node: onnx.NodeProto) -> tuple[Array, Array]:
    scale = graph.constants[node.input[1]]
    zero = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    return scale, np.zeros(scale.shape, np.uint8) if zero is None else zero


def _quantized(graph: Wiring, node: onnx.NodeProto) -> Array:
    """A float constant that the graph itself quantizes."""
    scale, zero = _numbers(graph, node)
    value = graph.constants[node.input[0]].astype(np.float32)
    axis = attributes(node).get("axis", 1)
    low, high = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    steps = np.rint(value / _along(scale, value.ndim, axis)) + _along(zero, value.ndim, axis).astype(np.int64)
    return np.asarray(np.clip(steps, low, high), zero.dtype)


def _along(numbers: Array, rank: int, axis: int) -> Array:
    if numbers.size == 1:
        return numbers.reshape(())
    return numbers.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _integers(graph: Wiring, node: onnx.NodeProto, table: str = "") -> Integers:
    name = table or node.input[0]
    stored = graph.constants[name]
    scale, zero = _numbers(graph, node)
    axis = attributes(node).get("axis", 1) if scale.size > 1 else None
    rank, along = stored.ndim, axis if axis is not None else 0
    steps = stored.astype(np.int64) - _along(zero, rank, along).astype(np.int64)
    kind = stored.dtype
    most = 7 if "int4" in kind.name else (1 << 8 * kind.itemsize - 1) - 1
    return Integers(
        name=name,
        steps=steps,
        scale=np.broadcast_to(_along(scale, rank, along).astype(np.float64), steps.shape),
        most=most,
        axis=None if axis is None else axis % rank,
        zero_point=bool(np.any(zero.astype(np.int64) != 0)),
    )


def _move(graph: Wiring, node: onnx.NodeProto, made: Bare) -> None:
    """A constant that is turned or reshaped stays a constant."""
    before, result = made.integers[node.input[0]], node.output[0]

    def move(values: Array) -> Array:
        if node.op_type == "Transpose":
            return values.transpose(attributes(node).get("perm") or range(values.ndim)[::-1])
        return values

    shape: Sequence[int] | None = None
    if node.op_type in {"Reshape", "Squeeze", "Unsqueeze"}:
        single = onnx.helper.make_graph(
            [node],
            "move",
            [],
            [onnx.helper.make_empty_tensor_value_info(result)],
            [onnx.numpy_helper.from_array(graph.constants[n], n) for n in node.input],
        )
        from onnx.reference import ReferenceEvaluator

        model = onnx.helper.make_model(single, opset_imports=list(graph.source.opset_import))
        shape = np.asarray(next(iter(ReferenceEvaluator(model).run(None, {})))).shape
    steps, scale = move(before.steps), move(before.scale)
    axis = before.axis
    if shape is not None:
        steps, scale, axis = steps.reshape(shape), scale.reshape(shape), None
    elif axis is not None and node.op_type == "Transpose":
        axis = list(attributes(node).get("perm") or range(steps.ndim)[::-1]).index(axis)
    graph.constants[result] = (steps * scale).astype(np.float32)
    made.integers[result] = before.moved(steps, scale, axis)


def _name_outputs(made: Bare, known: dict[str, str]) -> None:
    """A value that became an output of the graph only behind its grid takes the output's name."""
    graph = made.graph
    given = {o for n in graph.nodes for o in n.output}
    for name in graph.outputs:
        value = known.get(name)
        if value is None:
            continue
        if value not in given or value in graph.outputs:
            graph.nodes.append(onnx.helper.make_node("Identity", [value], [name], name=f"{name}_copy"))
            continue
        for node in graph.nodes:
            node.input[:] = [name if n == value else n for n in node.input]
            node.output[:] = [name if n == value else n for n in node.output]
        made.pairs[:] = [_renamed(p, name) if p.value == value else p for p in made.pairs]


def _renamed(pair: Pair, value: str) -> Pair:
    return Pair(
        value=value, name=pair.name, scale=pair.scale, zero_point=pair.zero_point, readers=pair.readers
    )
