"""The batch stays outside: a graph is rewritten so that the first axis of every value is the batch.

An integer program describes one sample. Models are free to move the batch about (torch's own
MultiheadAttention computes in (sequence, batch, features), and merges batch and heads into one axis), so its
place is followed through the graph, and each value that has it elsewhere is replaced by the same value with
the batch in front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgewright.elementwise import FUNCTIONS
from edgewright.wiring import Array, Wiring, attributes, make_node

PROBES = (2, 3)  # two batch sizes: what differs between them is the batch
Shape = tuple[int, ...]


class NotPerSampleError(Exception):
    """A node mixes samples, or moves the batch in a way that is not followed; the message names it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the batch is: axis `axis` has size `before * batch * after`."""

    axis: int
    before: int = 1
    after: int = 1


FRONT = Place(0)


def fold_batch(graph: Wiring) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Computes what depends on no input but on the size of the batch at most, and makes it constant.

    A value that is the same for every sample becomes a constant of batch size 1. What remains are shapes,
    which `batch_first` reads off the values themselves.

    Returns:
        The shapes of all values at the two batch sizes.
    """
    known: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    while True:
        shapes = graph.infer(PROBES[0], known[0])[0], graph.infer(PROBES[1], known[1])[0]
        found = 0
        for node in graph.nodes:
            if node.output[0] in known[0] or node.op_type in {"Loop", "If", "Scan"}:
                continue
            small, large = (_evaluate(graph, node, s, k) for s, k in zip(shapes, known, strict=True))
            if small is None or large is None:
                continue
            known[0].update(zip(node.output, small, strict=True))
            known[1].update(zip(node.output, large, strict=True))
            found += 1
        if not found:
            break
    joined = {n for node in graph.nodes if node.op_type == "Concat" for n in node.input}
    for name, first in known[0].items():
        value = _shared(first, known[1][name])
        if value is None or name in graph.outputs:
            continue
        graph.nodes = [n for n in graph.nodes if name not in n.output]
        if name in joined and value.shape != first.shape:  # a Concat does not broadcast
            _expand(graph, name, value)
        else:
            graph.constants[name] = value
    return shapes[0], shapes[1]


def _expand(graph: Wiring, name: str, value: Array) -> None:
    """Repeats a constant of batch size 1 for each sample of the first input."""
    size, shape = graph.fresh(f"{name}.batch"), graph.fresh(f"{name}.shape")
    inner = graph.constant(f"{name}.inner", np.array(value.shape[1:], np.int64))
    graph.nodes[:0] = [
        make_node("Shape", [graph.inputs[0]], size, start=0, end=1),
        make_node("Concat", [size, inner], shape, axis=0),
        make_node("Expand", [graph.constant(f"{name}.one", value), shape], name),
    ]


def _evaluate(
    graph: Wiring, node: onnx.NodeProto, shapes: Mapping[str, Shape], known: Mapping[str, Array]
) -> list[Array] | None:
    """The results of a node that reads no input's values."""
    if node.op_type == "Shape" and node.input[0] in shapes:
        given = attributes(node)
        shape = shapes[node.input[0]]
        return [np.array(shape[given.get("start", 0) : given.get("end", len(shape))], np.int64)]
    values = {n: graph.constants.get(n, known.get(n)) for n in node.input if n}
    if any(v is None for v in values.values()) or any(v.size > 1 << 24 for v in values.values()):  # type: ignore[union-attr]
        return None
    made = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in values.items()
            if v is not None
        ],
        [helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in node.output],
    )
    model = helper.make_model(made, opset_imports=list(graph.source.opset_import))
    try:
        return [np.asarray(r) for r in ReferenceEvaluator(model).run(None, values)]
    except Exception:  # the evaluator lacks an operator, or its form; the node stays
        return None


def _shared(first: Array, second: Array) -> Array | None:
    """The value for any batch size, from those at the two sizes; None where samples differ."""
    if first.shape == second.shape:
        return first if np.array_equal(first, second, equal_nan=first.dtype.kind == "f") else None
    if first.ndim != second.ndim or first.ndim == 0:
        return None
    axes = [i for i in range(first.ndim) if first.shape[i] != second.shape[i]]
    if axes != [0] or (len(first), len(second)) != PROBES:
        return None
    one = first[:1]
    return one if all(bool((v == one).all()) for v in (first, second)) else None


def batch_first(graph: Wiring, small: Mapping[str, Shape], large: Mapping[str, Shape]) -> None:
    """Rewrites the graph: the first axis of every value is the batch, and reshapes have constant shapes.

    Args:
        graph: After `fold_batch`; changed in place.
        small: Shapes at the smaller of the two batch sizes.
        large: At the larger.

    Raises:
        NotPerSampleError: It cannot be done; the graph is then in no state to be used.
    """
    _Mover(graph, small, large).run()


class _Mover:
    def __init__(self, graph: Wiring, small: Mapping[str, Shape], large: Mapping[str, Shape]) -> None:
        self.graph, self.small, self.large = graph, small, large
        self.place: dict[str, Place] = dict.fromkeys(graph.inputs, FRONT)
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in self.graph.nodes:
            moving = [n for n in node.input if n in self.place]
            if not moving:
                self.nodes.append(node)  # a shape of what was; nobody will read it
                continue
            if any(n not in self.small or n not in self.large for n in (*moving, *node.output) if n):
                raise NotPerSampleError(f"the shapes at node {node.name!r} are not known")
            self._node(node, moving)
        self.graph.nodes = self.nodes
        for name in self.graph.outputs:
            if self.place.get(name, FRONT) != FRONT:
                raise NotPerSampleError(f"output {name!r} does not have the batch first")
        self.graph.drop_dead()
        given = {*self.graph.inputs, *self.graph.constants, *(o for n in self.graph.nodes for o in n.output)}
        for node in self.graph.nodes:
            if any(n and n not in given for n in node.input):
                raise NotPerSampleError(
                    f"node {node.name!r} ({node.op_type}) reads the shape of a moved value"
                )

    # A value with the batch elsewhere is held as (batch, *shape), its batch axis shrunk to before * after.

    def _inner(self, name: str, place: Place) -> list[int]:
        """The sizes behind the batch of a value as it is held."""
        sizes = list(self.small[name])
        if place == FRONT:
            return sizes[1:]
        sizes[place.axis] = place.before * place.after
        return sizes

    def _node(self, node: onnx.NodeProto, moving: Sequence[str]) -> None:
        handler = _MOVES.get(node.op_type)
        places = [self.place[n] for n in moving]
        if handler is not None:
            handler(self, node, moving[0])
            return
        result = node.output[0]
        if all(p == FRONT for p in places):
            if any(self._sizes(o)[0] != PROBES for o in node.output if o and self.small[o]):
                raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) moves the batch")
            self.nodes.append(node)
            self.place.update(dict.fromkeys((o for o in node.output if o), FRONT))
            return
        if node.op_type in FUNCTIONS or node.op_type in {"Cast", "QuantizeLinear", "DequantizeLinear"}:
            place = self._aligned(node, moving)
        elif node.op_type in {"Softmax", "LayerNormalization", "LogSoftmax"}:
            place = places[0]
            axis = attributes(node).get("axis", -1) % len(self.small[moving[0]])
            if axis <= place.axis:
                raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) works across samples")
            _set(node, axis=axis - len(self.small[moving[0]]))
        elif node.op_type == "MatMul":
            place = self._matmul(node, moving)
        elif node.op_type == "Gemm":
            self._gemm(node)
            return
        elif node.op_type in {"Gather", "Slice", "Split", "Concat", "ReduceMean", "ReduceSum", "ReduceMax"}:
            self._along(node, moving, places)
            return
        else:
            raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) has the batch elsewhere than first")
        self.nodes.append(node)
        self.place[result] = place

    def _sizes(self, name: str) -> list[tuple[int, int]]:
        return list(zip(self.small[name], self.large[name], strict=True))

    def _aligned(self, node: onnx.NodeProto, moving: Sequence[str]) -> Place:
        """The common place of an elementwise node's inputs, counted from the last axis."""
        rank = len(self.small[node.output[0]])
        found = {
            (len(self.small[n]) - p.axis, p.before, p.after) for n, p in ((n, self.place[n]) for n in moving)
        }
        if len(found) != 1:
            raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) joins values of different order")
        from_end, before, after = found.pop()
        if any(len(self.small[n]) != rank for n in moving):
            raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) widens a value across samples")
        return Place(rank - from_end, before, after)

    def _matmul(self, node: onnx.NodeProto, moving: Sequence[str]) -> Place:
        place, rank = self.place[moving[0]], len(self.small[node.output[0]])
        if len(moving) == 1:
            fits = (
                node.input[0] == moving[0]
                and place.axis < rank - 1
                and self.graph.constants[node.input[1]].ndim == 2
            )
        else:
            fits = place == self.place[moving[1]] and place.axis < rank - 2
        if not fits:
            raise NotPerSampleError(f"node {node.name!r} (MatMul) works across samples")
        return place

    def _gemm(self, node: onnx.NodeProto) -> None:
        """A fully connected layer over (before * batch * after, features)."""
        given, constants = attributes(node), self.graph.constants
        place = self.place.get(node.input[0])
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
        if (
            place is None
            or place.axis != 0
            or not plain
            or any(n not in constants for n in node.input[1:] if n)
        ):
            raise NotPerSampleError(f"node {node.name!r} (Gemm) has the batch elsewhere than first")
        weight = constants[node.input[1]]
        name = (
            self.graph.constant(f"{node.input[1]}.T", weight.T) if given.get("transB", 0) else node.input[1]
        )
        result = node.output[0]
        bias = [*node.input, ""][2]
        product = self.graph.fresh(f"{result}.product") if bias else result
        self.nodes.append(make_node("MatMul", [node.input[0], name], product, node.name))
        if bias:
            self.nodes.append(make_node("Add", [product, bias], result, f"{node.name}_bias"))
        self.place[result] = place

    def _along(self, node: onnx.NodeProto, moving: Sequence[str], places: Sequence[Place]) -> None:
        """A node that works along axes other than the batch's."""
        source, result = moving[0], node.output[0]
        place, rank = places[0], len(self.small[source])
        if any(p != place for p in places) or (node.op_type == "Gather" and node.input[0] != source):
            raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) joins values of different order")
        given, constants = attributes(node), self.graph.constants
        by_input = {"Slice": 3, "ReduceMean": 1, "ReduceSum": 1, "ReduceMax": 1}.get(node.op_type)
        if by_input is not None and len(node.input) > by_input and node.input[by_input]:
            axes = [int(a) % rank for a in np.ravel(constants.get(node.input[by_input], [place.axis]))]
        elif by_input is not None:
            axes = [a % rank for a in given.get("axes", range(rank))]
        else:
            axes = [given.get("axis", 0) % rank]
        if place.axis in axes:
            raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) works across samples")
        if by_input is None:
            _set(node, axis=axes[0] + 1)
        else:
            while len(node.input) <= by_input:
                node.input.append("")
            node.input[by_input] = self.graph.constant("axes", np.array([a + 1 for a in axes], np.int64))
        gone = 0
        if node.op_type == "Gather" and constants[node.input[1]].ndim == 0:
            gone = int(axes[0] < place.axis)
        elif node.op_type.startswith("Reduce") and not given.get("keepdims", 1):
            gone = sum(a < place.axis for a in axes)
        self.nodes.append(node)
        held = Place(place.axis - gone, place.before, place.after)
        for name in node.output:
            self._settle(name, held)
        del result

    def _settle(self, name: str, place: Place) -> None:
        """Notes a result that is held as one with the batch elsewhere, though it may be in front by now."""
        if place != FRONT:
            self.place[name] = place
            return
        raw = self.graph.fresh(f"{name}.held")
        for node in self.nodes[::-1]:
            if name in node.output:
                node.output[list(node.output).index(name)] = raw
                break
        self._reshape(raw, name, [*self.small[name][1:]])
        self.place[name] = FRONT

    def _reshape(self, source: str, result: str, inner: Sequence[int]) -> None:
        shape = self.graph.constant("shape", np.array([-1, *inner], np.int64))
        self.nodes.append(make_node("Reshape", [source, shape], result))

    # Moves

    def transpose(self, node: onnx.NodeProto, source: str) -> None:
        place, rank = self.place[source], len(self.small[source])
        order = [a % rank for a in attributes(node).get("perm", range(rank)[::-1])]
        result = Place(order.index(place.axis), place.before, place.after)
        if place == result == FRONT:
            self.nodes.append(node)
            self.place[node.output[0]] = FRONT
            return
        held = source
        if place == FRONT:
            held = self.graph.fresh(f"{source}.held")
            self._reshape(source, held, [1, *self.small[source][1:]])
        output = node.output[0]
        moved = self.graph.fresh(f"{output}.held") if result == FRONT else output
        self.nodes.append(make_node("Transpose", [held], moved, node.name, perm=[0, *(a + 1 for a in order)]))
        if result == FRONT:
            self._reshape(moved, output, self.small[output][1:])
        self.place[output] = result

    def view(self, node: onnx.NodeProto, source: str) -> None:
        """Reshape, Flatten, Squeeze, Unsqueeze, an idle Expand: the order of elements stays."""
        place, result = self.place[source], node.output[0]
        if node.op_type == "Expand" and math.prod(self.small[source]) != math.prod(self.small[result]):
            if (
                place != FRONT
                or self._sizes(result)[0] != PROBES
                or len(self.small[source]) != len(self.small[result])
            ):
                raise NotPerSampleError(f"node {node.name!r} (Expand) widens a value across samples")
            shape = np.array([1, *self.small[result][1:]], np.int64)
            self.nodes.append(
                make_node("Expand", [source, self.graph.constant("shape", shape)], result, node.name)
            )
            self.place[result] = FRONT
            return
        if source not in node.input[:1]:
            raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) reshapes by a computed value")
        ahead = math.prod(self.small[source][: place.axis]) * place.before
        axes = [i for i, (a, b) in enumerate(self._sizes(result)) if a != b]
        if len(axes) != 1:
            raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) mixes samples")
        axis = axes[0]
        size = self.small[result][axis] // PROBES[0]
        before, rest = divmod(ahead, math.prod(self.small[result][:axis]))
        if rest or before < 1 or size % before:
            raise NotPerSampleError(f"node {node.name!r} ({node.op_type}) mixes samples")
        self.place[result] = Place(axis, before, size // before)
        self._reshape(source, result, self._inner(result, self.place[result]))

    def shape(self, node: onnx.NodeProto, source: str) -> None:
        """What reads it was folded, or is a reshape whose shape is constant by now, but for a batch size."""
        if self.place[source] == FRONT:
            self.nodes.append(node)


_MOVES: Mapping[str, Any] = {
    "Transpose": _Mover.transpose,
    "Reshape": _Mover.view,
    "Flatten": _Mover.view,
    "Squeeze": _Mover.view,
    "Unsqueeze": _Mover.view,
    "Expand": _Mover.view,
    "Shape": _Mover.shape,
}


def _set(node: onnx.NodeProto, **given: Any) -> None:
    kept = [a for a in node.attribute if a.name not in given]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in given.items())
