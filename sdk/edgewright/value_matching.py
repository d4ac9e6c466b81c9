"""Which value of a QDQ graph is which value of its float model.

A value keeps its name through quantization in this SDK and in ONNX Runtime's tools, so names decide. A clamp
that a quantizer left to the ends of a grid is stepped over. Where a file has names of its own, its layers are
taken to be the float model's in order, if they are as many and as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.wiring import Wiring

CLAMPS = frozenset({"Relu", "Clip"})
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MOVES = frozenset({"Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GridValue:
    """A value that a QDQ graph puts on a grid.

    Attributes:
        source: Its name in the QDQ graph before that.
        quantized: The name of its integers.
        read: Names by which it is read afterwards, each given by a DequantizeLinear.
        scale: Of the grid; the first of several.
        zero_point: Likewise.
        dtype: Of the integers, such as "uint8".
        node: The layer, or else the operator, that gives it; "" for an input.
        operator: Its kind.
        weight: The name of that layer's integers; "" where it has none.
        reads: Names from `read` of the values that it is computed from.
        expected: The same value in the float model; "" where none was found.
    """

    source: str
    quantized: str
    read: tuple[str, ...]
    scale: float
    zero_point: int
    dtype: str
    node: str
    operator: str
    weight: str
    reads: tuple[str, ...]
    expected: str = ""

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        bits = 8 if self.dtype.endswith("8") else 16
        return (0, (1 << bits) - 1) if self.dtype[0] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest real value."""
        low, high = self.limits
        return self.scale * (low - self.zero_point), self.scale * (high - self.zero_point)


def grid_values(qdq: onnx.ModelProto, floats: onnx.ModelProto) -> list[GridValue]:
    """Values of a QDQ graph that are put on a grid, in the order in which they are computed.

    Args:
        qdq: With its constants inside.
        floats: The float model, in the names that the QDQ graph was made from where possible.
    """
    graph, model = Wiring(qdq), Wiring(floats)
    found = _on_grids(graph)
    expected = _by_name(found, graph, model)
    if sum(map(bool, expected)) * 2 < len(found):
        expected = _by_order(found, graph, model)
    return [_with(v, e) for v, e in zip(found, expected, strict=True)]


def on_grids(qdq: onnx.ModelProto) -> list[GridValue]:
    """The same without a float model."""
    return _on_grids(Wiring(qdq))


def _with(value: GridValue, expected: str) -> GridValue:
    fields = {name: getattr(value, name) for name in GridValue.__slots__}
    return GridValue(**fields | {"expected": expected})


def _on_grids(graph: Wiring) -> list[GridValue]:
    producers = graph.producers()
    readers = graph.readers()
    found: list[GridValue] = []
    for node in graph.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] in graph.constants:
            continue
        if node.input[1] not in graph.constants:
            continue  # a scale computed at run time
        scale = graph.constants[node.input[1]].reshape(-1)
        zero = graph.constants[node.input[2]].reshape(-1) if len(node.input) > 2 else np.zeros(1, np.uint8)
        read = tuple(n.output[0] for n in readers.get(node.output[0], []) if n.op_type == "DequantizeLinear")
        layer, weight, reads = _layer_of(node.input[0], graph, producers)
        found.append(
            GridValue(
                source=node.input[0],
                quantized=node.output[0],
                read=read,
                scale=float(scale[0]),
                zero_point=int(zero[0]),
                dtype=str(zero.dtype),
                node=layer.name if layer is not None else "",
                operator=layer.op_type if layer is not None else "",
                weight=weight,
                reads=reads,
            )
        )
    return found


def _layer_of(
    name: str, graph: Wiring, producers: dict[str, onnx.NodeProto]
) -> tuple[onnx.NodeProto | None, str, tuple[str, ...]]:
    """What computes a value from values on grids: its layer, that layer's integers, and those values."""
    last = layer = producers.get(name)
    weight = ""
    reads: list[str] = []
    waiting, seen = [name], set()
    while waiting:
        value = waiting.pop()
        node = producers.get(value)
        if value in seen or value in graph.constants:
            continue
        seen.add(value)
        if node is None:
            reads.append(value)
        elif node.op_type == "DequantizeLinear":
            if node.input[0] not in graph.constants:
                reads.append(value)
        else:
            integers = integers_of(node, graph, producers)
            if integers and not weight:
                layer, weight = node, integers
            waiting += [n for n in node.input if n]
    if layer is not None and layer.op_type == "DequantizeLinear":  # put on another grid
        layer = None if layer is last and producers.get(layer.input[0]) is None else layer
    return layer, weight, tuple(reads)


def integers_of(node: onnx.NodeProto, graph: Wiring, producers: dict[str, onnx.NodeProto]) -> str:
    """The name of the integers that a layer has as its weight; "" where it has none."""
    if node.op_type not in WEIGHTED or len(node.input) < 2:
        return ""
    name = node.input[1]
    while name in producers:
        before = producers[name]
        if before.op_type == "DequantizeLinear" and before.input[0] in graph.constants:
            return str(before.input[0])
        if before.op_type not in _MOVES | {"DequantizeLinear", "QuantizeLinear"}:
            return ""
        name = before.input[0]
    return ""


def _by_name(found: Sequence[GridValue], graph: Wiring, model: Wiring) -> list[str]:
    ours = {*model.inputs, *(o for n in model.nodes for o in n.output)}
    theirs = {o for n in graph.nodes for o in n.output}
    readers = model.readers()
    root: dict[str, str] = {}  # of what is read from a grid
    names: list[str] = []
    for value in found:
        if value.source in root:  # on a second grid
            name = root[value.source]
        else:
            outputs = [n for n in value.read if n in ours and n in graph.outputs]
            name = outputs[0] if outputs else value.source if value.source in ours else ""
        while name and name not in model.outputs:
            after = readers.get(name, [])
            if not after or any(n.op_type not in CLAMPS or n.output[0] in theirs for n in after):
                break
            name = after[0].output[0]
        names.append(name)
        root |= dict.fromkeys(value.read, name)
    return names


def _by_order(found: Sequence[GridValue], graph: Wiring, model: Wiring) -> list[str]:
    """Inputs and outputs by their place, layers by theirs if sizes agree."""
    ours = [
        (n, model.constants[n.input[1]].size)
        for n in model.nodes
        if n.op_type in WEIGHTED and n.input[1] in model.constants
    ]
    theirs = [v for v in found if v.weight]
    sizes = [graph.constants[v.weight].size for v in theirs]
    readers = model.readers()
    names = dict(zip(graph.inputs, model.inputs, strict=False))
    if sizes == [size for _, size in ours]:
        for value, (node, _) in zip(theirs, ours, strict=True):
            names[value.quantized] = _behind(node, model, readers)
    ends = dict(zip(graph.outputs, model.outputs, strict=False))
    for value in found:
        for name in value.read:
            if name in ends:
                names[value.quantized] = ends[name]
    return [names.get(v.quantized) or names.get(v.source, "") for v in found]


def _behind(node: onnx.NodeProto, model: Wiring, readers: dict[str, list[onnx.NodeProto]]) -> str:
    """The result of a layer, behind its bias and its activation."""
    name = str(node.output[0])
    while name not in model.outputs:
        after = readers.get(name, [])
        constant = (
            len(after) == 1 and after[0].op_type == "Add" and set(after[0].input) & set(model.constants)
        )
        if len(after) != 1 or not (constant or after[0].op_type in CLAMPS):
            break
        name = str(after[0].output[0])
    return name


def integers_bits(weight: npt.NDArray[np.generic]) -> int:
    """How many bits the integers of a weight have."""
    return 4 if "int4" in weight.dtype.name else 8 * weight.dtype.itemsize
