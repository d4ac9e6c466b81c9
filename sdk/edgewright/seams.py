"""Seams: places in a float graph where a channel may be divided by a number and multiplied by it later.

The function of the graph stays; the ranges of channels change, and with them what quantization costs. Before
a seam stands a layer or a layer norm, behind it are layers. Between them may be what any positive factor
passes through: ReLU, pooling, flattening, and the mean over tokens that attention takes of its values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.wiring import Wiring, attributes

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
ELEMENTWISE = frozenset({"LeakyRelu", "Relu"})
PASSING = frozenset({"AveragePool", "Flatten", "GlobalAveragePool", "MaxPool"})
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """One such place.

    Attributes:
        value: What the layers behind it read; ranges are looked at here.
        channels: How many.
        repeat: How many elements of `value`, in sequence along its channel axis, each channel has.
        before: The layer or the layer norm that gives it.
        bias: The constant that is added behind `before`, or "".
        after: The layers that read it.
        others: Whether something else reads it too, which must not change.
        moves: Whether an offset may pass as well as a factor: nothing but the norm stands before the layers.
    """

    value: str
    channels: int
    repeat: int
    before: onnx.NodeProto
    bias: str
    after: tuple[onnx.NodeProto, ...]
    others: bool
    moves: bool


def seams(graph: Wiring) -> list[Seam]:
    """All seams of a normalized float graph, in order."""
    return _Search(graph).found()


def is_layer(node: onnx.NodeProto, graph: Wiring) -> bool:
    """Whether a node multiplies by constant weights along channels."""
    if node.op_type not in LAYERS or node.input[0] in graph.constants:
        return False
    weight = graph.constants.get(node.input[1])
    if weight is None or not all(n in graph.constants for n in node.input[1:] if n):
        return False
    return node.op_type == "Conv" or (
        weight.ndim == 2 and (node.op_type == "MatMul" or attributes(node).get("transB", 0) == 1)
    )


def weight_rows(node: onnx.NodeProto, graph: Wiring) -> npt.NDArray[np.float32]:
    """A layer's weights, (O, inputs of an output...)."""
    weight: npt.NDArray[np.float32] = graph.constants[node.input[1]]
    return weight.T if node.op_type == "MatMul" else weight


def outputs_most(seam: Seam, graph: Wiring) -> Floats:
    """Of each channel, the largest of the weights that give it, (channels,); a layer stands before."""
    rows = weight_rows(seam.before, graph)
    most: Floats = np.abs(rows.reshape(len(rows), -1)).max(axis=1).astype(np.float64)
    return most


def inputs_most(seam: Seam, graph: Wiring) -> Floats:
    """Of each channel, the largest of the weights that read it, (channels,)."""
    found = np.zeros(seam.channels)
    for node in seam.after:
        rows = np.abs(weight_rows(node, graph)).astype(np.float64)
        if _is_depthwise(node):
            each = rows.reshape(seam.channels, -1).max(axis=1)
        else:
            each = np.moveaxis(rows, 1, 0).reshape(seam.channels, -1).max(axis=1)
        found = np.maximum(found, each)
    return found


def scale(graph: Wiring, seam: Seam, factor: Floats, offset: Floats | None = None) -> None:
    """Takes `offset` from each channel and divides it by `factor`; what reads it makes up for both.

    Where others read the value, a second norm is made for the layers.

    Args:
        graph: Is changed.
        seam: Of this graph.
        factor: (channels,), above 0.
        offset: (channels,); only where the seam `moves`.
    """
    if seam.before.op_type == "LayerNormalization":
        _scale_norm(graph, seam, factor, offset)
    else:
        weight = graph.constants[seam.before.input[1]]
        rows = factor if seam.before.op_type == "MatMul" else factor.reshape(-1, *[1] * (weight.ndim - 1))
        _store(graph, {seam.before.input[1]: weight / rows})
        if seam.bias:
            _store(graph, {seam.bias: graph.constants[seam.bias] / factor})
    for node in seam.after:
        if offset is not None:
            _absorb(graph, node, offset)
        _multiply(graph, node, np.repeat(factor, seam.repeat))


def _scale_norm(graph: Wiring, seam: Seam, factor: Floats, offset: Floats | None) -> None:
    norm, (_, gain, *rest) = seam.before, seam.before.input
    shift = graph.constants[rest[0]] if rest and rest[0] else np.zeros(seam.channels)
    if seam.others:
        norm = onnx.NodeProto()
        norm.CopyFrom(seam.before)
        norm.name, norm.output[0] = f"{seam.before.name}.scaled", graph.fresh(f"{seam.value}.scaled")
        graph.replace(seam.before, seam.before, norm)
        for node in seam.after:
            node.input[0] = norm.output[0]
    names = [graph.fresh(f"{seam.value}.{n}") for n in ("gain", "offset")]
    moved = shift - (0 if offset is None else offset)
    _store(graph, {names[0]: graph.constants[gain] / factor, names[1]: moved / factor})
    del norm.input[1:]
    norm.input.extend(names)


def with_biases(graph: Wiring) -> None:
    """Gives a bias of zeros to each layer that has none."""
    readers = graph.readers()
    for node in list(graph.nodes):
        if not is_layer(node, graph) or bias_of(node, graph, readers):
            continue
        rows = len(weight_rows(node, graph))
        name = f"{node.output[0]}.bias"
        graph.constants[name] = np.zeros(rows, np.float32)
        if node.op_type == "MatMul":
            result = node.output[0]
            node.output[0] = f"{result}.product"
            graph.replace(
                node,
                node,
                onnx.helper.make_node("Add", [node.output[0], name], [result], name=f"{node.name}.bias"),
            )
        else:
            del node.input[2:]
            node.input.append(name)


def bias_of(node: onnx.NodeProto, graph: Wiring, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> str:
    """The name of a layer's bias: its own, or that of the Add behind a MatMul; "" where it has none."""
    if node.op_type != "MatMul":
        return str([*node.input, ""][2])
    after = readers.get(node.output[0], [])
    if len(after) != 1 or after[0].op_type != "Add" or node.output[0] in graph.outputs:
        return ""
    name = next((n for n in after[0].input if n in graph.constants), "")
    outputs = graph.constants[node.input[1]].shape[1]
    return name if name and graph.constants[name].shape == (outputs,) else ""


def _store(graph: Wiring, constants: Mapping[str, Floats]) -> None:
    for name, value in constants.items():
        graph.constants[name] = value.astype(np.float32)


def _is_depthwise(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and int(attributes(node).get("group", 1)) > 1


def _multiply(graph: Wiring, node: onnx.NodeProto, factor: Floats) -> None:
    """Multiplies a layer's weights by a factor for each of its inputs."""
    weight = graph.constants[node.input[1]]
    if node.op_type == "MatMul":
        along = factor.reshape(-1, 1)
    elif _is_depthwise(node):
        along = factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        along = factor.reshape(1, -1, *[1] * (weight.ndim - 2))
    _store(graph, {node.input[1]: weight * along})


def _absorb(graph: Wiring, node: onnx.NodeProto, offset: Floats) -> None:
    """Adds to a layer's bias what it loses when its inputs lose `offset`."""
    name = bias_of(node, graph, graph.readers())
    moved = weight_rows(node, graph).astype(np.float64) @ offset
    _store(graph, {name: graph.constants[name] + moved})


class _Search:
    def __init__(self, graph: Wiring) -> None:
        self.graph = graph
        self.producers, self.readers = graph.producers(), graph.readers()
        self.shapes = graph.infer(1)[0]

    def found(self) -> list[Seam]:
        made: list[Seam] = []
        for node in self.graph.nodes:
            seam = None
            if node.op_type == "LayerNormalization" and all(
                n in self.graph.constants for n in node.input[1:] if n
            ):
                seam = self._of_norm(node)
            elif is_layer(node, self.graph) and self._own(node):
                seam = self._of_layer(node)
            if seam is not None:
                made.append(seam)
        return made

    def _own(self, node: onnx.NodeProto) -> bool:
        """Whether nothing else reads a layer's weights and bias."""
        names = (node.input[1], bias_of(node, self.graph, self.readers))
        return all(len(self.readers[n]) == 1 for n in names if n)

    def _of_norm(self, node: onnx.NodeProto) -> Seam | None:
        value = node.output[0]
        readers = self.readers.get(value, [])
        rank = len(self.shapes.get(value, ()))
        layers = [
            n
            for n in readers
            if is_layer(n, self.graph) and n.op_type == "MatMul" and self._own(n) and n.input[0] == value
        ]
        if not layers or rank != len(self.shapes.get(layers[0].output[0], ())):
            return None
        return Seam(
            value=value,
            channels=self.shapes[value][-1],
            repeat=1,
            before=node,
            bias="",
            after=tuple(layers),
            others=len(layers) < len(readers) or value in self.graph.outputs,
            moves=all(bias_of(n, self.graph, self.readers) for n in layers),
        )

    def _of_layer(self, node: onnx.NodeProto) -> Seam | None:
        channels = len(weight_rows(node, self.graph))
        value = node.output[0]
        bias = bias_of(node, self.graph, self.readers)
        if node.op_type == "MatMul" and bias:
            value = self.readers[value][0].output[0]
        flat = 1
        while True:
            after = self._only_reader(value)
            if after is None:
                return None
            if is_layer(after, self.graph) and after.input[0] == value:
                break
            passed = self._passed(after, value, channels_last=node.op_type == "MatMul")
            if passed is None:
                return None
            value, more = passed
            flat *= more
        inputs = self.graph.constants[after.input[1]]
        count = len(inputs) if after.op_type == "MatMul" else inputs.shape[1]
        groups = int(attributes(after).get("group", 1))
        if groups > 1:  # depthwise, as many outputs as inputs
            count = groups if inputs.shape[:2] == (groups, 1) else 0
        if count != channels * flat or not self._own(after):
            return None
        return Seam(
            value=value,
            channels=channels,
            repeat=flat,
            before=node,
            bias=bias,
            after=(after,),
            others=False,
            moves=False,
        )

    def _only_reader(self, value: str) -> onnx.NodeProto | None:
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.graph.outputs else None

    def _passed(self, node: onnx.NodeProto, value: str, *, channels_last: bool) -> tuple[str, int] | None:
        """What a node makes of a value without mixing its channels, and how many elements each then has."""
        result, shape = node.output[0], self.shapes.get(value, ())
        if node.op_type in ELEMENTWISE:
            return result, 1
        if channels_last and len(shape) == 3 and node.op_type == "Reshape":
            return self._attention(node)
        if node.op_type not in PASSING or (channels_last and len(shape) > 2):
            return None
        return result, math.prod(shape[2:]) if node.op_type == "Flatten" else 1

    def _attention(self, split: onnx.NodeProto) -> tuple[str, int] | None:
        """Behind the values of attention: heads apart, the mean over tokens, heads together again."""
        heads = self.shapes.get(split.output[0], ())
        merged = self.shapes[split.input[0]]
        if len(heads) != 4 or heads[2] * heads[3] != merged[2] or heads[1] != merged[1]:
            return None
        apart = self._turn(split.output[0])
        product = self._only_reader(apart) if apart else None
        if product is None or product.op_type != "MatMul" or product.input[1] != apart:
            return None
        together = self._turn(product.output[0])
        joined = self._only_reader(together) if together else None
        if joined is None or joined.op_type != "Reshape" or self.shapes.get(joined.output[0], ()) != merged:
            return None
        return joined.output[0], 1

    def _turn(self, value: str) -> str | None:
        node = self._only_reader(value)
        if node is None or node.op_type != "Transpose" or attributes(node).get("perm") != [0, 2, 1, 3]:
            return None
        return str(node.output[0])
