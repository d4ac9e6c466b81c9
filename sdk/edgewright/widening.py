"""Weights of other tools that lie outside -127..127: exact all the same, at a price.

The integer program has weights in -127..127. Many files hold -128, and those with uint8 weights and a zero
point far from 128 more than that. Such a weight is a sum w = a + b of two that fit, and

    x @ w  =  concat(x, x') @ concat(a, b')

where x' and b' are the channels of the input for which b is not zero. The layer gives the same accumulators;
it reads these channels twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.qdq import Constant, Given
from edgewright.wiring import Wiring, attributes, make_node

LARGEST = 127
MOST_PIECES = 8
_INPUTS_AXIS = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1, "MatMul": 0}
Array = npt.NDArray[Any]


def split_wide(model: onnx.ModelProto, given: Given) -> onnx.ModelProto:
    """Splits every weight that does not fit; notes new constants, grids and the layers in `given`.

    Args:
        model: The float graph inside a QDQ graph, normalized.
        given: What was decided about its integers; grows.

    Raises:
        ExportError: A table of embeddings needs more than two parts.
    """
    graph = Wiring(model)
    shapes = graph.infer(1)[0]
    for node in list(graph.nodes):
        if node.op_type == "Gather":
            _split_table(graph, node, given)
        elif node.op_type in _INPUTS_AXIS and node.input[1] in graph.constants:
            _split_layer(graph, node, given, shapes)
    graph.drop_dead()
    made = graph.model()
    onnx.checker.check_model(made)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def _split_layer(
    graph: Wiring, node: onnx.NodeProto, given: Given, shapes: dict[str, tuple[int, ...]]
) -> None:
    inputs_axis, weight = _INPUTS_AXIS[node.op_type], graph.constants[node.input[1]]
    if weight.ndim < 2:
        return
    rows = np.moveaxis(weight, 1 - inputs_axis, 0)
    scale = given.scale_of(rows)
    if scale is None:
        given.floating.append(node.name)
        return
    steps = np.rint(rows / scale.reshape(-1, *[1] * (rows.ndim - 1))).astype(np.int32)
    if np.abs(steps).max(initial=0) <= LARGEST:
        return
    groups = int(attributes(node).get("group", 1))
    # (outputs, groups, inputs of a group, kernel...); in Conv the groups share these inputs' numbers.
    split = groups if node.op_type == "ConvTranspose" else 1
    rest = steps.reshape(len(rows), split, rows.shape[1] // split, *rows.shape[2:])
    parts, pieces = [np.clip(rest, -LARGEST, LARGEST)], list[tuple[int, int]]()
    rest = rest - parts[0]
    while rest.any():
        used = np.moveaxis(rest, 2, 0).reshape(rest.shape[2], -1).any(axis=1)
        fitting = np.clip(rest, -LARGEST, LARGEST)
        for start, end in _runs(np.flatnonzero(used).tolist()):
            pieces.append((start, end))
            parts.append(fitting[:, :, start:end])
        rest = rest - fitting
    joined = np.concatenate(parts, axis=2).reshape(len(rows), -1, *rows.shape[2:])
    scales = np.broadcast_to(scale.reshape(-1, *[1] * (joined.ndim - 1)), joined.shape)
    wide = _noted(given, *(np.moveaxis(a, 0, 1 - inputs_axis) for a in (joined, scales)))
    source = node.input[0]
    axis = len(shapes[source]) - 1 if node.op_type == "MatMul" else 1
    made, node.input[0] = _repeated(graph, given, source, shapes[source], axis, groups, pieces)
    node.input[1] = graph.constant(f"{node.input[1]}.wide", wide)
    graph.replace(node, *made, node)
    given.widened.append(node.name)


def _noted(given: Given, integers: Array, scale: Array) -> Array:
    """The values of a new constant, which is noted."""
    values = (integers.astype(np.float32) * scale).astype(np.float32)
    given.constants.append(Constant(values=values, integers=integers, scale=scale, grid=None))
    return values


def _runs(columns: Sequence[int]) -> list[tuple[int, int]]:
    """At most eight half-open runs that hold these columns, joined where the gaps are smallest."""
    runs = [(c, c + 1) for c in columns]
    while len(runs) > 1:
        gaps = [b[0] - a[1] for a, b in itertools.pairwise(runs)]
        at = int(np.argmin(gaps))
        if gaps[at] and len(runs) <= MOST_PIECES:
            break
        runs[at : at + 2] = [(runs[at][0], runs[at + 1][1])]
    return runs


def _repeated(
    graph: Wiring,
    given: Given,
    source: str,
    shape: tuple[int, ...],
    axis: int,
    groups: int,
    pieces: Sequence[tuple[int, int]],
) -> tuple[list[onnx.NodeProto], str]:
    """Nodes that join a value and pieces of it along an axis, within each group of channels."""
    made: list[onnx.NodeProto] = []

    def put(make: Callable[[str], onnx.NodeProto]) -> str:
        name = graph.fresh(f"{source}.wide")
        made.append(make(name))
        if source in given.grids:
            given.grids[name] = given.grids[source]
        return name

    def reshaped(value: str, inner: Sequence[int]) -> str:
        to = graph.constant("shape", np.array([-1, *inner], np.int64))
        return put(lambda name: make_node("Reshape", [value, to], name))

    value = source
    if groups > 1:
        value, axis = reshaped(source, [groups, shape[1] // groups, *shape[2:]]), 2

    def sliced(piece: tuple[int, int]) -> str:
        numbers = [graph.constant("piece", np.array([n], np.int64)) for n in (*piece, axis)]
        return put(lambda name: make_node("Slice", [value, *numbers], name))

    parts = [value, *map(sliced, pieces)]
    joined = put(lambda name: make_node("Concat", parts, name, axis=axis))
    if groups > 1:
        extra = sum(end - start for start, end in pieces)
        joined = reshaped(joined, [shape[1] + groups * extra, *shape[2:]])
    return made, joined


def _split_table(graph: Wiring, node: onnx.NodeProto, given: Given) -> None:
    """A table of embeddings: rows of two tables are added."""
    table = graph.constants.get(node.input[0])
    scale = None if table is None else given.scale_of(table.reshape(1, -1))
    if table is None or scale is None:
        return
    steps = np.rint(table / scale).astype(np.int32)
    largest = int(np.abs(steps).max(initial=0))
    if largest <= LARGEST:
        return
    if largest > 2 * LARGEST:
        raise ExportError(
            f"node {node.name!r}: its table has integers up to {largest} from its zero point, over twice "
            f"{LARGEST}; quantize it to int8, or to uint8 with a zero point near 128"
        )
    first = np.clip(steps, -LARGEST, LARGEST)
    made: list[onnx.NodeProto] = []
    for part in (first, steps - first):
        name = graph.constant(
            f"{node.input[0]}.part", _noted(given, part, np.broadcast_to(scale, part.shape))
        )
        made.append(make_node("Gather", [name, node.input[1]], graph.fresh(f"{node.output[0]}.part"), axis=0))
    graph.replace(node, *made, make_node("Add", [n.output[0] for n in made], node.output[0], node.name))
    given.widened.append(node.name)
