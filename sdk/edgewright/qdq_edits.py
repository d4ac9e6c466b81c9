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
from edgewright.overflow import STEPS, OverflowSafe, safe_integers, safe_scale, safety
from edgewright.value_matching import GridValue, integers_of
from edgewright.wiring import Wiring, attributes

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
    for name, _, reader in _int8_weights(graph):
        weight = graph.constants[name]
        if np.abs(weight.astype(np.int16)).max(initial=0) > 64:
            halves = np.clip(np.rint(weight / 2.0), -64, 64).astype(np.int8)
            _put_instead(graph, name, halves, graph.constants[reader.input[1]] * np.float32(2))
    return _finished(graph)


def fitted(qdq: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of int8 changed where two products with uint8 can leave 16 bits, as little as can be.

    The pairs are those that ONNX Runtime adds (overflow.py); a layer without such a pair keeps its integers.
    """
    graph = Wiring(qdq)
    for name, layer, reader in _int8_weights(graph):
        weight = graph.constants[name]
        moved = reader.output[0] != layer.input[1]  # it is read turned, or in another shape
        if moved or layer.op_type == "ConvTranspose" or (layer.op_type == "MatMul" and weight.ndim > 2):
            continue
        axis = 0 if layer.op_type == "Conv" or attributes(layer).get("transB") else 1
        weight = np.moveaxis(weight, axis, 0)
        safe = safety(layer, weight.shape, "pairs")
        scale = graph.constants[reader.input[1]]
        by_row = np.broadcast_to(scale.reshape(-1), len(weight)).astype(np.float32)
        real = weight * by_row.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
        integers = safe_integers(real, by_row, safe)
        if safe == "off" or np.array_equal(integers, weight):
            continue
        if scale.size == 1:
            step = min(STEPS, key=lambda s: _off(real, by_row * np.float32(s), safe))
            by_row, scale = by_row * np.float32(step), scale * np.float32(step)
        else:
            by_row = safe_scale(real, by_row, safe)
            scale = by_row.reshape(scale.shape)
        integers = safe_integers(real, by_row, safe)
        _put_instead(graph, name, np.moveaxis(integers, 0, axis), scale)
    return _finished(graph)


def _off(real: Array, scale: Array, safe: OverflowSafe) -> float:
    """The squared error of integers that are safe to add, on one scale for all."""
    return float(np.square(real - safe_integers(real, scale, safe) * np.float64(scale[0])).sum())


def named_as(made: onnx.ModelProto, other: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the names that another has for its inputs and outputs, in order."""
    graph, wanted = Wiring(made), Wiring(other)
    names = dict(zip((*graph.inputs, *graph.outputs), (*wanted.inputs, *wanted.outputs), strict=True))
    taken = {o for n in graph.nodes for o in n.output} - names.keys()
    names |= {n: graph.fresh(n) for n in taken & set(names.values())}
    for node in graph.nodes:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    renamed = graph.model()
    for value in (*renamed.graph.input, *renamed.graph.output):
        value.name = names.get(value.name, value.name)
    return renamed


def _int8_weights(graph: Wiring) -> list[tuple[str, onnx.NodeProto, onnx.NodeProto]]:
    """Symmetric weights of int8: their name, the layer, and the node that dequantizes them."""
    producers = graph.producers()
    readers = {n.input[0]: n for n in graph.nodes if n.op_type == "DequantizeLinear"}
    found: dict[str, tuple[str, onnx.NodeProto, onnx.NodeProto]] = {}
    for layer in graph.nodes:
        name = integers_of(layer, graph, producers)
        if not name or graph.constants[name].dtype != np.int8:
            continue
        reader = readers[name]
        if len(reader.input) < 3 or not graph.constants[reader.input[2]].any():
            found[name] = (name, layer, reader)
    return list(found.values())


def _put_instead(graph: Wiring, name: str, integers: Array, scale: Array) -> None:
    """Other weights wherever some are dequantized."""
    new, on = graph.constant(f"{name}_safe", integers), graph.constant(f"{name}_scale", scale)
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] == name:
            node.input[0], node.input[1] = new, on


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
