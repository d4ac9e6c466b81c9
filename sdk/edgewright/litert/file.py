"""A TensorFlow Lite file while it is being written: tensors, operators, and the bytes.

The schema is that of the LiteRT package itself (ai-edge-litert); what quantized tensors mean:
https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgewright.errors import ExportError

Array = npt.NDArray[Any]
BUILTIN = schema.BuiltinOperator
ACTIVATION = schema.ActivationFunctionType
FILE_VERSION = 3
IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # bytes; the schema's own for constants, which are read in place
MAX_BYTES = (1 << 31) - 1  # of a flatbuffer
TYPES = {
    np.dtype(np.bool_): schema.TensorType.BOOL,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
}
# The versions in which these operators learnt int8; those of the others are 1.
VERSIONS = {
    BUILTIN.ADD: 2,
    BUILTIN.BATCH_MATMUL: 2,
    BUILTIN.CONCATENATION: 2,
    BUILTIN.CONV_2D: 3,
    BUILTIN.DEPTHWISE_CONV_2D: 3,
    BUILTIN.DEQUANTIZE: 2,
    BUILTIN.FULLY_CONNECTED: 5,
    BUILTIN.GATHER: 2,
    BUILTIN.MAXIMUM: 2,
    BUILTIN.MAX_POOL_2D: 2,
    BUILTIN.MEAN: 2,
    BUILTIN.MINIMUM: 2,
    BUILTIN.MUL: 2,
    BUILTIN.PAD: 2,
    BUILTIN.PADV2: 2,
    BUILTIN.QUANTIZE: 2,
    BUILTIN.RESIZE_BILINEAR: 3,
    BUILTIN.SOFTMAX: 2,
    BUILTIN.STRIDED_SLICE: 2,
    BUILTIN.TRANSPOSE: 2,
    BUILTIN.TRANSPOSE_CONV: 3,
}


class LiteRtFile:
    """A model of one graph that is built tensor by tensor, operator by operator.

    Tensors are known by their numbers. All have the batch, 1, as their first axis.
    """

    def __init__(self, description: str = "") -> None:
        self._model = schema.ModelT()
        self._model.version, self._model.description = FILE_VERSION, description
        self._model.buffers = [schema.BufferT()]  # by convention the first is empty
        self._model.operatorCodes = []
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._codes: dict[int, int] = {}
        self._constants: dict[tuple[Any, ...], int] = {}
        self._names: set[str] = set()
        self._size_bytes = 0

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        grid: tuple[float, int] | None = None,
    ) -> int:
        """Adds a value, float or on a grid (scale, zero point of int8); gives its number."""
        return self._add(name, shape, dtype, 0, None if grid is None else ([grid[0]], [grid[1]], 0))

    def constant(
        self,
        name: str,
        value: Array,
        scales: Sequence[float] | None = None,
        *,
        zero_point: int = 0,
        axis: int = 0,
    ) -> int:
        """Adds a constant; one that is there already, on the same grid, is used again.

        Args:
            name: Of the tensor.
            value: int8, int32, int64 or float32.
            scales: Of a quantized one: one, or one for each index of `axis`.
            zero_point: Of all of them.
            axis: See `scales`.
        """
        value = np.ascontiguousarray(value)
        data = value.tobytes()
        found = None if scales is None else (tuple(float(s) for s in scales), zero_point, axis)
        key = (value.shape, value.dtype.str, data, found)
        if key not in self._constants:
            self._size_bytes += len(data)
            if self._size_bytes > MAX_BYTES:
                raise ExportError("LiteRT: the weights are larger than the 2 GiB that a .tflite file holds")
            buffer = _Aligned()
            buffer.data = np.frombuffer(data, np.uint8)
            self._model.buffers.append(buffer)
            grid = None if found is None else (found[0], [zero_point] * len(found[0]), axis)
            number = len(self._model.buffers) - 1
            self._constants[key] = self._add(name, value.shape, value.dtype, number, grid)
        return self._constants[key]

    def emit(self, kind: int, inputs: Sequence[int], output: int, options: Any = None, **given: Any) -> int:
        """Adds an operator.

        Args:
            kind: One of BUILTIN.
            inputs: Tensors it reads; -1 for one that is left out.
            output: The tensor it gives.
            options: Of the schema, such as `schema.Conv2DOptionsT`.
            given: Fields of `options`.

        Returns:
            `output`.
        """
        if kind not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode = kind, min(kind, 127)
            code.version = VERSIONS.get(kind, 1)
            self._codes[kind] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self._codes[kind], list(inputs), [output]
        if options is not None:
            operator.builtinOptions = options()
            for name, value in given.items():
                if not hasattr(operator.builtinOptions, name):
                    raise ValueError(f"{options.__name__} has no {name}")
                setattr(operator.builtinOptions, name, value)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options.__name__.removesuffix("T"))
        self._graph.operators.append(operator)
        return output

    def shape(self, number: int) -> tuple[int, ...]:
        """A tensor's sizes, batch first."""
        return tuple(int(n) for n in self._graph.tensors[number].shape)

    def grid(self, number: int) -> tuple[float, int] | None:
        """Scale and zero point of a tensor with one of each, or None."""
        quantization = self._graph.tensors[number].quantization
        if quantization is None or len(quantization.scale) != 1:
            return None
        return float(quantization.scale[0]), int(quantization.zeroPoint[0])

    def finish(self, inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]) -> bytes:
        """The file's bytes.

        Args:
            inputs: Names in the signature, and tensors, in order.
            outputs: The same.
        """
        self._graph.inputs, self._graph.outputs = [n for _, n in inputs], [n for _, n in outputs]
        self._model.subgraphs = [self._graph]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = _named(inputs), _named(outputs)
        self._model.signatureDefs = [signature]
        builder = flatbuffers.Builder(self._size_bytes + (1 << 16))
        builder.Finish(self._model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())

    def _add(
        self,
        name: str,
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        buffer: int,
        grid: tuple[Sequence[float], Sequence[int], int] | None,
    ) -> int:
        tensor = schema.TensorT()
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}~{count}"
        self._names.add(unique)
        tensor.name, tensor.shape, tensor.type = unique, [int(n) for n in shape], TYPES[np.dtype(dtype)]
        tensor.buffer = buffer
        if grid is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.array(grid[0], np.float32)
            tensor.quantization.zeroPoint = np.array(grid[1], np.int64)
            tensor.quantization.quantizedDimension = grid[2]
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


class _Aligned(schema.BufferT):  # type: ignore[misc]  # the schema has no types
    """A constant whose bytes lie where the schema wants them, which its generated code does not see to."""

    def Pack(self, builder: Any) -> Any:  # noqa: N802  # the schema's name
        builder.StartVector(1, len(self.data), ALIGNMENT)
        builder.head -= len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def _named(ports: Sequence[tuple[str, int]]) -> list[Any]:
    found = []
    for name, number in ports:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, number
        found.append(entry)
    return found
