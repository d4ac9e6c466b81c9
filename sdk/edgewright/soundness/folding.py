"""Layers that read some inputs twice, folded back to layers that read each once.

A weight outside -127..127 is written as a sum of two (widening.py), and the layer reads a Concat of its input
and parts of that. Here the integers are added up again, so that they can be compared with the float model's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.soundness.bare import Bare, layer_axis
from edgewright.wiring import Wiring, attributes

Array = npt.NDArray[Any]
_INPUT_AXIS = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1, "MatMul": 0}


def fold(found: Bare) -> None:
    """Changes every such layer of a bare graph; values on the way that nothing else reads are gone."""
    graph = found.graph
    producers = graph.producers()
    shapes = graph.infer(1)[0]
    changed = False
    for node in graph.nodes:
        axis = _INPUT_AXIS.get(node.op_type)
        if axis is None or len(node.input) < 2 or node.input[1] not in found.integers:
            continue
        if node.op_type == "Gemm" and layer_axis(node) == 1:
            axis = 0
        taken = _taken(node.input[0], producers, graph, shapes, node.op_type)
        if taken is None:
            continue
        source, channels, order = taken
        before = found.integers[node.input[1]]
        if before.steps.shape[axis] != len(order):
            continue
        rows = np.moveaxis(before.steps, axis, 0)
        steps = np.zeros((channels, *rows.shape[1:]), np.int64)
        np.add.at(steps, order, rows)
        first = np.array([int(np.flatnonzero(order == c)[0]) for c in range(channels)])
        scale = np.moveaxis(np.moveaxis(before.scale, axis, 0)[first], 0, axis)
        whole = np.moveaxis(steps, 0, axis)
        name = graph.fresh(f"{node.input[1]}.folded")
        graph.constants[name] = (whole * scale).astype(np.float32)
        found.integers[name] = before.moved(whole, scale, before.axis)
        node.input[0], node.input[1] = source, name
        changed = True
    if changed:
        graph.drop_dead()
        kept = {*graph.inputs, *(o for n in graph.nodes for o in n.output)}
        found.pairs[:] = [p for p in found.pairs if p.value in kept]


def _taken(
    name: str,
    producers: dict[str, onnx.NodeProto],
    graph: Wiring,
    shapes: dict[str, tuple[int, ...]],
    operator: str,
) -> tuple[str, int, Array] | None:
    """The one value whose channels a Concat joins again, how many it has, and which of them are joined."""
    joined = producers.get(name)
    if joined is None or joined.op_type != "Concat":
        return None
    rank = len(shapes.get(name, ()))
    axis = rank - 1 if operator in {"Gemm", "MatMul"} else 1
    source = joined.input[0]
    channels = shapes[source][axis] if source in shapes and rank else 0

    def order(value: str, depth: int = 0) -> Array | None:
        """Places of the source's channels in a value, along the axis."""
        if value == source:
            return np.arange(channels)
        node = producers.get(value)
        if node is None or depth > 8:
            return None
        if node.op_type == "Concat" and attributes(node)["axis"] % rank == axis:
            parts = [order(n, depth + 1) for n in node.input]
            return (
                None if any(p is None for p in parts) else np.concatenate([p for p in parts if p is not None])
            )
        if node.op_type == "Slice":
            of = order(node.input[0], depth + 1)
            numbers = [graph.constants.get(n) for n in node.input[1:]]
            if of is None or len(numbers) not in (3, 4) or any(n is None or n.size != 1 for n in numbers):
                return None
            start, end, along, *step = (int(n.reshape(())) for n in numbers if n is not None)
            return of[slice(start, end, *step)] if along % rank == axis else None
        return None

    found = order(name)
    if channels == 0 or found is None or len(found) == channels:
        return None
    return source, channels, found
