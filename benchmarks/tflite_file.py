"""An ONNX graph, float32 or QDQ, as a TensorFlow Lite file, so that LiteRT runs the very same network.

Takes the operators of convolutional networks in the form that `edgewright.export` writes. Integers stay what
they are: an activation's uint8 `q` becomes int8 `q - 128`, and its zero point moves along. Inputs and outputs
stay float32; images are (N, H, W, C), as LiteRT wants them. Operators and quantization:
https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
import onnx
from ai_edge_litert import schema_py_generated as schema

from edgewright.wiring import attributes, initializers, value_shapes

FILE_VERSION = 3
IDENTIFIER = b"TFL3"
BUILTIN = schema.BuiltinOperator
# The versions in which these operators learnt int8.
VERSIONS = {
    BUILTIN.ADD: 2,
    BUILTIN.CONV_2D: 3,
    BUILTIN.DEPTHWISE_CONV_2D: 3,
    BUILTIN.DEQUANTIZE: 2,
    BUILTIN.FULLY_CONNECTED: 4,
    BUILTIN.MAX_POOL_2D: 2,
    BUILTIN.MEAN: 2,
    BUILTIN.PAD: 2,
    BUILTIN.QUANTIZE: 1,
    BUILTIN.RESHAPE: 1,
}
ACTIVATIONS = schema.ActivationFunctionType
TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
}


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
        self.file = schema.ModelT()
        self.file.version = FILE_VERSION
        self.file.buffers = [schema.BufferT()]  # by convention the first is empty
        self.file.operatorCodes = []
        self.sub = schema.SubGraphT()
        self.sub.tensors, self.sub.operators = [], []
        self.numbers: dict[str, int] = {}
        self.codes: dict[int, int] = {}

    def run(self) -> bytes:
        names = [i.name for i in self.graph.input if i.name not in self.constants]
        self.sub.inputs = [self._activation(name) for name in names]
        done: set[str] = set()
        for node in self.graph.node:
            if node.name not in done:
                done |= self._node(node)
        self.sub.outputs = [self.numbers[o.name] for o in self.graph.output]
        self.file.subgraphs = [self.sub]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.file.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())

    # Tensors

    def _tensor(
        self, name: str, shape: Sequence[int], dtype: Any, data: npt.NDArray[Any] | None = None
    ) -> schema.TensorT:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), TYPES[np.dtype(dtype)]
        tensor.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            tensor.buffer = len(self.file.buffers)
            self.file.buffers.append(buffer)
        self.numbers[name] = len(self.sub.tensors)
        self.sub.tensors.append(tensor)
        return tensor

    def _activation(self, name: str, grid: tuple[float, int] | None = None) -> int:
        shape = [1, *(d or 1 for d in self.shapes[name][1:])]
        if len(shape) == 4:
            shape = [shape[0], shape[2], shape[3], shape[1]]
        return self._on_grid(name, shape, grid)

    def _on_grid(self, name: str, shape: Sequence[int], grid: tuple[float, int] | None) -> int:
        tensor = self._tensor(name, shape, np.float32 if grid is None else np.int8)
        if grid is not None:
            _set_grid(tensor, [grid[0]], [grid[1] - 128])
        return self.numbers[name]

    def _constant(self, name: str, order: Sequence[int] | None, axis: int = 0) -> int:
        """A weight or bias: its axes in another order, its output channels then on `axis`."""
        dequantize = self.producer.get(name)
        source = name if dequantize is None else dequantize.input[0]
        value = self.constants[source]
        data = value if order is None else value.transpose(order)
        if source not in self.numbers:
            tensor = self._tensor(source, data.shape, data.dtype, data)
            if dequantize is not None:
                scales = self.constants[dequantize.input[1]].reshape(-1)
                _set_grid(tensor, scales.tolist(), [0] * len(scales), axis)
        return self.numbers[source]

    def _grid_of(self, quantize: onnx.NodeProto) -> tuple[float, int]:
        scale, zero_point = (self.constants[n] for n in quantize.input[1:3])
        if zero_point.dtype != np.uint8 or scale.size != 1:
            raise ValueError(f"{quantize.name}: activations must be uint8 on one grid")
        return scale.item(), zero_point.item()

    # Operators

    def _emit(self, kind: int, inputs: Sequence[int], output: int, options: Any = None) -> None:
        if kind not in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode = kind, min(kind, 127)
            code.version = VERSIONS[kind]
            self.codes[kind] = len(self.file.operatorCodes)
            self.file.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self.codes[kind], list(inputs), [output]
        if options is not None:
            operator.builtinOptions = options
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        self.sub.operators.append(operator)

    def _node(self, node: onnx.NodeProto) -> set[str]:
        """Translates a node and what is fused into it; gives the names of the nodes dealt with."""
        kind = node.op_type
        if kind == "QuantizeLinear":
            result = self._activation(node.output[0], self._grid_of(node))
            self._emit(BUILTIN.QUANTIZE, [self.numbers[node.input[0]]], result)
            return {node.name}
        if kind == "DequantizeLinear":
            if node.input[0] in self.constants:
                return {node.name}  # read where it is used
            self.numbers[node.output[0]] = self.numbers[node.input[0]]
            if any(node.output[0] == o.name for o in self.graph.output):
                source = self.numbers.pop(node.output[0])
                self._emit(BUILTIN.DEQUANTIZE, [source], self._activation(node.output[0]))
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
        options: Any = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        options.padding, options.fusedActivationFunction = padding, activation
        options.strideH, options.strideW = strides
        options.dilationHFactor = options.dilationWFactor = 1
        if depthwise:
            options.depthMultiplier = 1
            filters = self._constant(node.input[1], (1, 2, 3, 0), axis=3)
        else:
            filters = self._constant(node.input[1], (0, 2, 3, 1))
        code = BUILTIN.DEPTHWISE_CONV_2D if depthwise else BUILTIN.CONV_2D
        bias = self._bias(node, filters, axis=3 if depthwise else 0)
        self._emit(code, [source, filters, bias], result, options)

    def _padded(self, node: onnx.NodeProto, kernel: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
        """The input, after a PAD where the padding is neither none nor "same"; and the padding's name."""
        source = self.numbers[node.input[0]]
        tensor = self.sub.tensors[source]
        pads = list(attributes(node).get("pads", (0, 0, 0, 0)))
        if not any(pads):
            return source, int(schema.Padding.VALID)
        total = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(tensor.shape[1:3], strides, kernel, strict=True)
        ]
        if pads == [*(t // 2 for t in total), *(t - t // 2 for t in total)]:
            return source, int(schema.Padding.SAME)
        table = np.array([[0, 0], pads[0::2], pads[1::2], [0, 0]], np.int32)
        name = f"{node.name}_pads"
        self._tensor(name, table.shape, np.int32, table)
        shape = [n + int(p.sum()) for n, p in zip(tensor.shape, table, strict=True)]
        padded = self._on_grid(f"{node.name}_padded", shape, None)
        self.sub.tensors[padded].type, self.sub.tensors[padded].quantization = (
            tensor.type,
            tensor.quantization,
        )
        self._emit(BUILTIN.PAD, [source, self.numbers[name]], padded, schema.PadOptionsT())
        return padded, int(schema.Padding.VALID)

    def _bias(self, node: onnx.NodeProto, weight: int, axis: int) -> int:
        if len(node.input) > 2 and node.input[2]:
            return self._constant(node.input[2], None)
        source, filters = self.sub.tensors[self.numbers[node.input[0]]], self.sub.tensors[weight]
        name, outputs = f"{node.name}_no_bias", filters.shape[axis]
        integer = filters.type == schema.TensorType.INT8
        dtype = np.int32 if integer else np.float32
        tensor = self._tensor(name, (outputs,), dtype, np.zeros(outputs, dtype))
        if integer:
            scales = source.quantization.scale[0] * np.asarray(filters.quantization.scale)
            _set_grid(tensor, scales.tolist(), [0] * outputs)
        return self.numbers[name]

    def _gemm(self, node: onnx.NodeProto, result: int, activation: int) -> None:
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = activation
        weight = self._constant(node.input[1], None)
        inputs = [self.numbers[node.input[0]], weight, self._bias(node, weight, axis=0)]
        self._emit(BUILTIN.FULLY_CONNECTED, inputs, result, options)

    def _add(self, node: onnx.NodeProto, result: int, activation: int) -> None:
        options = schema.AddOptionsT()
        options.fusedActivationFunction = activation
        self._emit(BUILTIN.ADD, [self.numbers[n] for n in node.input], result, options)

    def _globalaveragepool(self, node: onnx.NodeProto, result: int, _: int) -> None:
        options = schema.ReducerOptionsT()
        options.keepDims = True
        name = f"{node.name}_axes"
        self._tensor(name, (2,), np.int32, np.array([1, 2], np.int32))
        inputs = [self.numbers[node.input[0]], self.numbers[name]]
        self._emit(BUILTIN.MEAN, inputs, result, options)

    def _maxpool(self, node: onnx.NodeProto, result: int, _: int) -> None:
        """After ReLU, where nothing lies below the zero that LiteRT pads with."""
        given = attributes(node)
        options = schema.Pool2DOptionsT()
        options.filterHeight, options.filterWidth = given["kernel_shape"]
        options.strideH, options.strideW = given.get("strides", (1, 1))
        strides = (options.strideH, options.strideW)
        source, options.padding = self._padded(node, given["kernel_shape"], strides)
        self._emit(BUILTIN.MAX_POOL_2D, [source], result, options)

    def _flatten(self, node: onnx.NodeProto, result: int, _: int) -> None:
        source = self.numbers[node.input[0]]
        if list(self.sub.tensors[source].shape[1:3]) != [1, 1]:
            raise ValueError(f"{node.name}: flattens more than one pixel, which lie in another order here")
        options = schema.ReshapeOptionsT()
        options.newShape = list(self.sub.tensors[result].shape)
        name = f"{node.name}_shape"
        self._tensor(name, (2,), np.int32, np.array(options.newShape, np.int32))
        self._emit(BUILTIN.RESHAPE, [source, self.numbers[name]], result, options)


def _set_grid(
    tensor: schema.TensorT, scales: Sequence[float], zero_points: Sequence[int], axis: int = 0
) -> None:
    grid = schema.QuantizationParametersT()
    grid.scale = np.array(scales, np.float32)
    grid.zeroPoint = np.array(zero_points, np.int64)
    grid.quantizedDimension = axis
    tensor.quantization = grid
