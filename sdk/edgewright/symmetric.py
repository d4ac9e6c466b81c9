"""symmetric.onnx: the same model for engines whose integers are signed and whose zero points are 0: TensorRT.

Weights are the same bytes. An activation's grid of uint8 whose zero lies off the middle gets a symmetric one
of int8 that covers the same range, which costs up to one bit. What such engines do not take in integers, or
run sooner in floating point, is left there, after TensorRT's documentation ("Working with Quantized Types",
"Q/DQ Layer-Placement Recommendations"):

    * quantize what weighted operators and pools read, and sums and movements between them
    * do not quantize what softmax, norms and element-wise functions read
    * of a residual sum, quantize one side; the other is fused with the layer that gives it
    * biases are floating point, and so are values of int16
    * weights of 4 bits, which TensorRT takes in blocks alone, become int8
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.calibrate import Grid
from edgewright.int4 import INT4
from edgewright.qdq_graph import grid_of
from edgewright.wiring import Wiring

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool"})
MOVES = frozenset({"Concat", "Flatten", "Reshape", "Slice", "Transpose"})
ACTIVATIONS = frozenset({"Clip", "Relu"})

Array = npt.NDArray[Any]


def symmetric_graph(qdq: onnx.ModelProto) -> onnx.ModelProto:
    """A QDQ graph as `export` writes it, with signed and symmetric activations.

    Args:
        qdq: With uint8 or int16 activations, its constants inside.

    Returns:
        Another graph with the same names of inputs, outputs and weights.
    """
    graph = Wiring(qdq)
    _float_biases(graph)
    _wide_weights(graph)
    _drop_pairs(graph)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            _make_symmetric(graph, node)
    graph.drop_dead()
    made = graph.model()
    onnx.checker.check_model(made)
    return made


def symmetric_scale(grid: Grid) -> float:
    """The finest scale of int8 in [-127, 127] that covers a grid of uint8; the same where its zero is 128."""
    if grid.zero_point == 128:
        return grid.scale
    return float(np.float32(max(-grid.low, grid.high) / 127.0))


def _float_biases(graph: Wiring) -> None:
    """Constants of int32 on a grid become float32."""
    for node in list(graph.nodes):
        stored = graph.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is not None and stored.dtype == np.int32:
            _read_floats(graph, node, stored.astype(np.float64))
            graph.nodes = [n for n in graph.nodes if n is not node]


def _read_floats(graph: Wiring, dequantize: onnx.NodeProto, steps: Array) -> None:
    """Makes all that read a dequantized constant read it as a constant of float32."""
    value = (steps * graph.constants[dequantize.input[1]]).astype(np.float32)
    graph.read_instead(dequantize.output[0], graph.constant(f"{dequantize.input[0]}.float", value))


def _wide_weights(graph: Wiring) -> None:
    for node in graph.nodes:
        stored = graph.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None:
            continue
        if stored.dtype == INT4:
            node.input[0] = graph.constant(f"{node.input[0]}.int8", stored.astype(np.int8))
            zeros = np.zeros_like(graph.constants[node.input[1]], np.int8)
            del node.input[2:]
            node.input.append(graph.constant(f"{node.input[0]}.zero", zeros))
        elif stored.dtype in (np.uint8, np.int16):  # an operand of a sum or a product: a value, not a weight
            zero = graph.constants[node.input[2]] if len(node.input) > 2 else np.zeros((), stored.dtype)
            _read_floats(graph, node, stored.astype(np.float64) - zero)


def _drop_pairs(graph: Wiring) -> None:
    """Takes away the QuantizeLinear and DequantizeLinear of values that stay in floating point."""
    readers, producers = graph.readers(), graph.producers()
    joined: set[int] = set()  # sums of which one side is left in floating point
    for node in [n for n in graph.nodes if n.op_type == "QuantizeLinear"]:
        pairs = [n for n in readers.get(node.output[0], []) if n.op_type == "DequantizeLinear"]
        reading = [r for dq in pairs for r in readers.get(dq.output[0], [])]
        wide = graph.constants[node.input[2]].dtype == np.int16
        idle = wide or not any(_in_integers(r, readers) for r in reading)
        if idle or _fused(node, reading, producers, joined):
            for dq in pairs:
                _bypass(graph, dq.output[0], node.input[0])


def _in_integers(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]) -> bool:
    """Whether a node gains from reading integers: itself, or what it only moves values to."""
    if node.op_type in WEIGHTED or node.op_type in POOLS or node.op_type == "Add":
        return True
    after = readers.get(node.output[0], [])
    return node.op_type in MOVES and any(r.op_type == "QuantizeLinear" for r in after)


def _fused(
    node: onnx.NodeProto,
    reading: list[onnx.NodeProto],
    producers: Mapping[str, onnx.NodeProto],
    joined: set[int],
) -> bool:
    """Whether a value is the one side of a sum that the layer giving it is fused with."""
    if len(reading) != 1 or reading[0].op_type != "Add" or id(reading[0]) in joined:
        return False
    source = producers.get(node.input[0])
    if source is not None and source.op_type in ACTIVATIONS:
        source = producers.get(source.input[0])
    if source is None or source.op_type not in WEIGHTED:
        return False
    joined.add(id(reading[0]))
    return True


def _bypass(graph: Wiring, old: str, new: str) -> None:
    """Makes all read `new`; where `old` is an output of the graph, what gives `new` gives it."""
    if old not in graph.outputs:
        graph.read_instead(old, new)
        return
    graph.nodes = [n for n in graph.nodes if old not in n.output]
    if new in graph.inputs or new in graph.outputs:
        graph.nodes.append(onnx.helper.make_node("Identity", [new], [old], name=f"identity_{old}"))
        return
    for node in graph.nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == new:
                    names[index] = old


def _make_symmetric(graph: Wiring, node: onnx.NodeProto) -> None:
    """Gives a QuantizeLinear, and all that read it, a scale of int8."""
    grid = grid_of(node, graph.constants)
    scale = graph.constant(f"{node.output[0]}_scale", np.array(symmetric_scale(grid), np.float32))
    zero = graph.constant(f"{node.output[0]}_zero_point", np.array(0, np.int8))
    for each in [node, *graph.readers().get(node.output[0], [])]:
        each.input[1:] = [scale, zero]
