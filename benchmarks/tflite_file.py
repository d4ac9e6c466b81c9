"""An ONNX graph, float32 or QDQ, as a TensorFlow Lite file, so that LiteRT runs the very same network.

Takes the operators of convolutional networks in the form that `edgewright.export` writes. Integers stay what
they are: an activation's uint8 `q` becomes int8 `q - 128`, and its zero point moves along. Inputs and outputs
stay float32; images are (N, H, W, C), as LiteRT wants them. Operators and quantization:
https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema

from edgewright.litert.file import BUILTIN, LiteRtFile
from edgewright.wiring import attributes, initializers, value_shapes

ACTIVATIONS = schema.ActivationFunctionType


def tflite_bytes(model: onnx.ModelProto) -> bytes:
    """The file's bytes, for a batch of one.

    Raises:
        ValueError: An operator, or a form of one, that has no translation here.
    """
    return _Writer(model).run()


class _Writer:
    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self.graph = inferred.graph
        self.shapes = value_shapes(inferred)
        self.constants = initializers(inferred)
        self.producer = {o: n for n in self.graph.node for o in n.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.file = LiteRtFile()
        self.numbers: dict[str, int] = {}

    def run(self) -> bytes:
        names = [i.name for i in self.graph.input if i.name not in self.constants]
        inputs = [(name, self._activation(name)) for name in names]
        done: set[str] = set()
        for node in self.graph.node:
            if node.name not in done:
                done |= self._node(node)
        return self.file.finish(inputs, [(o.name, self.numbers[o.name]) for o in self.graph.output])

    # Tensors

    def _activation(self, name: str, grid: tuple[float, int] | None = None) -> int:
        shape = [1, *(d or 1 for d in self.shapes[name][1:])]
        if len(shape) == 4:
            shape = [shape[0], shape[2], shape[3], shape[1]]
        dtype = np.float32 if grid is None else np.int8
        self.numbers[name] = self.file.tensor(name, shape, dtype, grid)
        return self.numbers[name]

    def _scales(self, name: str) -> Any:
        """The scales of a weight or bias, or None where it is float32."""
        dequantize = self.producer.get(name)
        return None if dequantize is None else self.constants[dequantize.input[1]].reshape(-1)

    def _constant(self, name: str, order: Sequence[int] | None, axis: int = 0) -> int:
        """A weight or bias: its axes in another order, its output channels then on `axis`."""
        dequantize = self.producer.get(name)
        source = name if dequantize is None else dequantize.input[0]
        value = self.constants[source]
        data = value if order is None else value.transpose(order)
        return self.file.constant(source, data, self._scales(name), axis=axis)

    def _grid_of(self, quantize: onnx.NodeProto) -> tuple[float, int]:
        scale, zero_point = (self.constants[n] for n in quantize.input[1:3])
        if zero_point.dtype != np.uint8 or scale.size != 1:
            raise ValueError(f"{quantize.name}: activations must be uint8 on one grid")
        return scale.item(), zero_point.item() - 128

    # Operators

    def _node(self, node: onnx.NodeProto) -> set[str]:
        """Translates a node and what is fused into it; gives the names of the nodes dealt with."""
        kind = node.op_type
        if kind == "QuantizeLinear":
            result = self._activation(node.output[0], self._grid_of(node))
            self.file.emit(BUILTIN.QUANTIZE, [self.numbers[node.input[0]]], result)
            return {node.name}
        if kind == "DequantizeLinear":
            if node.input[0] in self.constants:
                return {node.name}  # read where it is used
            self.numbers[node.output[0]] = self.numbers[node.input[0]]
            if any(node.output[0] == o.name for o in self.graph.output):
                source = self.numbers.pop(node.output[0])
                self.file.emit(BUILTIN.DEQUANTIZE, [source], self._activation(node.output[0]))
            return {node.name}
        last, activation = node, ACTIVATIONS.NONE
        after = self.readers.get(node.output[0], [])
        if kind in {"Conv", "Gemm", "Add"} and len(after) == 1 and after[0].op_type in {"Relu", "Clip"}:
            last, activation = after[0], self._activation_of(after[0])
        done = {node.name, last.name}
        after = self.readers.get(last.output[0], [])
        if len(after) == 1 and after[0].op_type == "QuantizeLinear":
            done.add(after[0].name)
            result = self._activation(after[0].output[0], self._grid_of(after[0]))
        else:
            result = self._activation(last.output[0])
        translate = getattr(self, f"_{kind.lower()}", None)
        if translate is None:
            raise ValueError(f"{node.name}: no translation of {kind}")
        translate(node, result, activation)
        return done

    def _activation_of(self, node: onnx.NodeProto) -> int:
        if node.op_type == "Relu":
            return int(ACTIVATIONS.RELU)
        bounds = [float(self.constants[n]) for n in node.input[1:]]
        if bounds != [0.0, 6.0]:
            raise ValueError(f"{node.name}: a clip to {bounds}; only [0, 6] has a translation")
        return int(ACTIVATIONS.RELU6)

    def _conv(self, node: onnx.NodeProto, result: int, activation: int) -> None:
        given = attributes(node)
        weight = node.input[1] if node.input[1] in self.constants else self.producer[node.input[1]].input[0]
        outputs, _, *kernel = self.constants[weight].shape
        strides = tuple(given.get("strides", (1, 1)))
        if tuple(given.get("dilations", (1, 1))) != (1, 1):
            raise ValueError(f"{node.name}: dilated")
        source, padding = self._padded(node, kernel, strides)
        groups, depthwise = given.get("group", 1), given.get("group", 1) == outputs > 1
        if groups > 1 and not depthwise:
            raise ValueError(f"{node.name}: {groups} groups")
        how = {
            "padding": padding,
            "fusedActivationFunction": activation,
            "strideH": strides[0],
            "strideW": strides[1],
        }
        if depthwise:
            filters = self._constant(node.input[1], (1, 2, 3, 0), axis=3)
            inputs = [source, filters, self._bias(node, outputs)]
            options = schema.DepthwiseConv2DOptionsT
            self.file.emit(BUILTIN.DEPTHWISE_CONV_2D, inputs, result, options, depthMultiplier=1, **how)
        else:
            filters = self._constant(node.input[1], (0, 2, 3, 1))
            inputs = [source, filters, self._bias(node, outputs)]
            self.file.emit(BUILTIN.CONV_2D, inputs, result, schema.Conv2DOptionsT, **how)

    def _padded(self, node: onnx.NodeProto, kernel: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
        """The input, after a PAD where the padding is neither none nor "same"; and the padding's name."""
        source = self.numbers[node.input[0]]
        size, grid = self.file.shape(source), self.file.grid(source)
        pads = list(attributes(node).get("pads", (0, 0, 0, 0)))
        if not any(pads):
            return source, int(schema.Padding.VALID)
        total = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(size[1:3], strides, kernel, strict=True)
        ]
        if pads == [*(t // 2 for t in total), *(t - t // 2 for t in total)]:
            return source, int(schema.Padding.SAME)
        table = np.array([[0, 0], pads[0::2], pads[1::2], [0, 0]], np.int32)
        shape = [n + int(p.sum()) for n, p in zip(size, table, strict=True)]
        padded = self.file.tensor(f"{node.name}_padded", shape, np.int8 if grid else np.float32, grid)
        inputs = [source, self.file.constant(f"{node.name}_pads", table)]
        self.file.emit(BUILTIN.PAD, inputs, padded, schema.PadOptionsT)
        return padded, int(schema.Padding.VALID)

    def _bias(self, node: onnx.NodeProto, outputs: int) -> int:
        if len(node.input) > 2 and node.input[2]:
            return self._constant(node.input[2], None)
        name, scales = f"{node.name}_no_bias", self._scales(node.input[1])
        if scales is None:
            return self.file.constant(name, np.zeros(outputs, np.float32))
        grid = self.file.grid(self.numbers[node.input[0]])
        assert grid is not None
        return self.file.constant(name, np.zeros(outputs, np.int32), grid[0] * scales)

    def _gemm(self, node: onnx.NodeProto, result: int, activation: int) -> None:
        weight = self._constant(node.input[1], None)
        outputs = self.file.shape(weight)[0]
        inputs = [self.numbers[node.input[0]], weight, self._bias(node, outputs)]
        options = schema.FullyConnectedOptionsT
        self.file.emit(BUILTIN.FULLY_CONNECTED, inputs, result, options, fusedActivationFunction=activation)

    def _add(self, node: onnx.NodeProto, result: int, activation: int) -> None:
        inputs = [self.numbers[n] for n in node.input]
        self.file.emit(BUILTIN.ADD, inputs, result, schema.AddOptionsT, fusedActivationFunction=activation)

    def _globalaveragepool(self, node: onnx.NodeProto, result: int, _: int) -> None:
        axes = self.file.constant(f"{node.name}_axes", np.array([1, 2], np.int32))
        inputs = [self.numbers[node.input[0]], axes]
        self.file.emit(BUILTIN.MEAN, inputs, result, schema.ReducerOptionsT, keepDims=True)

    def _maxpool(self, node: onnx.NodeProto, result: int, _: int) -> None:
        """After ReLU, where nothing lies below the zero that LiteRT pads with."""
        given = attributes(node)
        kernel, strides = given["kernel_shape"], tuple(given.get("strides", (1, 1)))
        source, padding = self._padded(node, kernel, strides)
        self.file.emit(
            BUILTIN.MAX_POOL_2D,
            [source],
            result,
            schema.Pool2DOptionsT,
            padding=padding,
            filterHeight=kernel[0],
            filterWidth=kernel[1],
            strideH=strides[0],
            strideW=strides[1],
        )

    def _flatten(self, node: onnx.NodeProto, result: int, _: int) -> None:
        source, shape = self.numbers[node.input[0]], self.file.shape(result)
        if self.file.shape(source)[1:3] != (1, 1):
            raise ValueError(f"{node.name}: flattens more than one pixel, which lie in another order here")
        inputs = [source, self.file.constant(f"{node.name}_shape", np.array(shape, np.int32))]
        self.file.emit(BUILTIN.RESHAPE, inputs, result, schema.ReshapeOptionsT, newShape=list(shape))
