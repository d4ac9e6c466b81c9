"""Changes to a QDQ graph that may heal it: another range, 16 bits, no grid, weights that are safe to add.

Each returns a changed copy. Biases follow: engines add them as they are, on the grid of input times weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.calibrate import Grid
from edgewright.value_matching import GridValue, integers_of
from edgewright.wiring import Wiring

Array = npt.NDArray[Any]
_BIAS = 2  # place of the bias among a layer's inputs
_OPSET_OF_16_BITS = 21


def regridded(
    qdq: onnx.ModelProto, grids: Mapping[str, Grid], values: Collection[GridValue]
) -> onnx.ModelProto:
    """Values on other grids.

    Args:
        qdq: With its constants inside.
        grids: By name of the integers, of uint8 or int16; int8 is made of uint8 where it was int8 before.
        values: Of the graph.
    """
    graph = Wiring(qdq)
    dtypes = {v.quantized: v.dtype for v in values}
    for name, grid in grids.items():
        signed = dtypes[name] == "int8" and grid.dtype == "uint8"
        dtype = "int8" if signed else grid.dtype
        scale = graph.constant(f"{name}_scale", np.array(grid.scale, np.float32))
        zero = graph.constant(f"{name}_zero_point", np.array(grid.zero_point - 128 * signed, dtype))
        for node in graph.nodes:
            given = node.op_type == "QuantizeLinear" and node.output[0] == name
            if given or (node.op_type == "DequantizeLinear" and node.input[0] == name):
                del node.input[1:]
                node.input.extend([scale, zero])
    return _finished(graph, wide=any(g.dtype == "int16" for g in grids.values()))


def ungridded(qdq: onnx.ModelProto, floats: onnx.ModelProto, value: GridValue) -> onnx.ModelProto:
    """A layer in floating point: its result on no grid, its weights those of the float model if they fit."""
    graph, model = Wiring(qdq), Wiring(floats)
    for name in value.read:
        if name in graph.outputs:
            graph.read_instead(name, value.source)
            for node in graph.nodes:
                if name in node.output:
                    node.op_type = "Identity"
                    del node.input[:], node.attribute[:]
                    node.input.append(value.source)
        else:
            graph.read_instead(name, value.source)
    layer = next((n for n in graph.nodes if n.name == value.node), None)
    own = next((n for n in model.nodes if n.name == value.node), None)
    if layer is not None and own is not None and value.weight:
        weight, exact = graph.constants[value.weight], model.constants.get(own.input[1])
        if exact is not None and exact.shape == weight.shape and layer.op_type == own.op_type:
            layer.input[1] = graph.constant(f"{value.weight}_float", exact)
    return _finished(graph)


def unsigned(qdq: onnx.ModelProto) -> onnx.ModelProto:
    """All integers of int8 as uint8, 128 higher: the same numbers, for kernels that add in 32 bits."""
    graph = Wiring(qdq)
    made: dict[str, str] = {}

    def moved(name: str) -> str:
        if name not in made:
            value = graph.constants[name]
            made[name] = graph.constant(f"{name}_unsigned", (value.astype(np.int16) + 128).astype(np.uint8))
        return made[name]

    for node in graph.nodes:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        source = graph.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if len(node.input) > 2 and node.input[2]:
            if graph.constants[node.input[2]].dtype != np.int8:
                continue
            node.input[2] = moved(node.input[2])
        elif source is not None and source.dtype == np.int8:
            shape = graph.constants[node.input[1]].shape
            node.input.append(graph.constant(f"{node.input[0]}_zero_point", np.full(shape, 128, np.uint8)))
        if source is not None and source.dtype == np.int8:
            node.input[0] = moved(node.input[0])
    return _finished(graph)


def reduced(qdq: onnx.ModelProto) -> onnx.ModelProto:
    """All weights of int8 with 7 bits: no two products with uint8 can leave 16 bits (255 * 128 < 2^15)."""
    graph = Wiring(qdq)
    producers = graph.producers()
    for name in {integers_of(n, graph, producers) for n in graph.nodes} - {""}:
        weight = graph.constants[name]
        reader = next(n for n in graph.nodes if n.op_type == "DequantizeLinear" and n.input[0] == name)
        if weight.dtype != np.int8 or np.abs(weight.astype(np.int16)).max(initial=0) <= 64:
            continue
        halves = graph.constant(f"{name}_halved", np.clip(np.rint(weight / 2.0), -64, 64).astype(np.int8))
        scale = graph.constant(f"{name}_scale", graph.constants[reader.input[1]] * np.float32(2))
        for node in graph.nodes:
            if node.op_type == "DequantizeLinear" and node.input[0] == name:
                node.input[0], node.input[1] = halves, scale
    return _finished(graph)


def _finished(graph: Wiring, *, wide: bool = False) -> onnx.ModelProto:
    _rebias(graph)
    graph.drop_dead()
    made = graph.model()
    for opset in made.opset_import:
        if wide and opset.domain in {"", "ai.onnx"}:
            opset.version = max(opset.version, _OPSET_OF_16_BITS)
            made.ir_version = max(made.ir_version, 10)
    return made


def _rebias(graph: Wiring) -> None:
    """Puts the integer biases of layers on the grid of input times weight."""
    producers = graph.producers()
    for layer in list(graph.nodes):
        name = integers_of(layer, graph, producers)
        bias = producers.get(layer.input[_BIAS]) if name and len(layer.input) > _BIAS else None
        read, weight = producers.get(layer.input[0]), producers.get(layer.input[1] if name else "")
        if bias is None or read is None or weight is None or bias.input[0] not in graph.constants:
            continue
        if {n.op_type for n in (bias, read, weight)} != {"DequantizeLinear"}:
            continue
        scale = (
            (graph.constants[read.input[1]] * graph.constants[weight.input[1]]).astype(np.float32).reshape(-1)
        )
        old = graph.constants[bias.input[1]]
        same = old.size == scale.size and np.allclose(old.reshape(-1), scale, rtol=1e-5)
        if old.size in {scale.size, 1} and not same:
            real = graph.constants[bias.input[0]].astype(np.float64) * old
            steps = np.clip(np.rint(real / scale), -(1 << 31), (1 << 31) - 1).astype(np.int32)
            again = onnx.NodeProto()
            again.CopyFrom(bias)
            again.output[0] = graph.fresh(bias.output[0])
            again.name = again.output[0]
            del again.input[:]
            again.input.extend([graph.constant(bias.input[0], steps), graph.constant(bias.input[1], scale)])
            if scale.size > 1 and not any(a.name == "axis" for a in again.attribute):
                again.attribute.append(onnx.helper.make_attribute("axis", 0))
            layer.input[_BIAS] = again.output[0]
            graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is layer), again)
