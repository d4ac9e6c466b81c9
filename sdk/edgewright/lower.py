"""Lowering: a QDQ graph becomes the integer program that the native engine runs.

Reads graphs in which every operator stands between DequantizeLinear and QuantizeLinear, with uint8
activations and int8 weights that are symmetric per output channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright.graph import attributes, initializers, value_shapes
from edgewright_kernels.plan import (
    ARENA_ALIGNMENT,
    Add,
    AveragePool,
    ByteRange,
    Convolution,
    Dequantize,
    FullyConnected,
    MaxPool,
    Op,
    Plan,
    Quantize,
    Requantize,
    Rescale,
    Reshape,
    Tensor,
    Transpose,
    Window,
    tensor_inputs,
)

NATIVE_OPERATORS = (
    "Add",
    "AveragePool",
    "Clip",
    "Conv",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "MaxPool",
    "Relu",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Constant:
    """A dequantized constant: where its integers are, and their scales."""

    name: str
    scale: npt.NDArray[np.float32]


def rescale(
    factors: npt.NDArray[np.float64] | Sequence[float],
    *,
    low: int = 0,
    high: int = 255,
    same_shift: bool = False,
) -> Rescale:
    """Integer multipliers and shifts for real factors: `factor ~ multiplier / 2^shift`.

    Each multiplier has 31 significant bits where the shift allows (1..62), so the relative error of a factor
    is below 2^-31. With `same_shift` all factors share the shift of the largest.

    Raises:
        ExportError: A factor is not in (0, 2^30 - 1).
    """
    values = np.asarray(factors, np.float64)
    if not (np.isfinite(values).all() and (values > 0).all() and (values < 2.0**30 - 1).all()):
        raise ExportError(f"a change of scale by {values.max()} does not fit the integer program")
    largest = np.full_like(values, values.max()) if same_shift else values
    # frexp: value = mantissa * 2^exponent, mantissa in [0.5, 1); so value * 2^(31 - exponent) < 2^31.
    shift = np.clip(31 - np.frexp(largest)[1], 1, 62)
    multiplier = np.rint(np.ldexp(values, shift))
    over = multiplier > 2**31 - 1
    multiplier = np.where(over, np.rint(np.ldexp(values, shift - 1)), multiplier)
    shift = np.where(over, shift - 1, shift)
    if same_shift and over.any():
        shift = np.full_like(shift, shift.min())
        multiplier = np.rint(np.ldexp(values, shift))
    return Rescale(multiplier=multiplier.astype(np.int32), shift=shift.astype(np.int32), low=low, high=high)


def lower(model: onnx.ModelProto, ranges: Mapping[str, ByteRange], weights_bytes: int) -> Plan:
    """Lowers a QDQ graph.

    Args:
        model: The graph, its constants inside.
        ranges: Where each constant's bytes lie in weights.safetensors, by name.
        weights_bytes: Size of that file.

    Raises:
        ExportError: An operator, or a form of one, that the native engine lacks; named, with the backend that
            can run it.
    """
    return _Lowering(model, ranges, weights_bytes).run()


class _Lowering:
    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, ByteRange], weights_bytes: int) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self.graph = inferred.graph
        self.shapes = value_shapes(inferred)
        self.values = initializers(inferred)
        self.ranges, self.weights_bytes = ranges, weights_bytes
        self.producer = {o: n for n in self.graph.node for o in n.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.tensors: list[Tensor] = []
        self.numbers: dict[str, int] = {}
        self.range_numbers: dict[str, int] = {}
        self.ops: list[Op] = []

    def run(self) -> Plan:
        initial = set(self.values)
        inputs = [
            self._tensor(i.name, "float32", self._sample_shape(i.name))
            for i in self.graph.input
            if i.name not in initial
        ]
        outputs: list[int] = []
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear":
                if node.input[0] in self.numbers:
                    self._quantize(node)
            elif node.op_type == "DequantizeLinear":
                if node.output[0] in {o.name for o in self.graph.output}:
                    outputs.append(self._dequantize(node))
            elif not self._is_fused(node):
                self._operator(node)
        order = {self.tensors[n].name: n for n in outputs}
        for value in self.graph.output:
            if value.name not in order:
                raise ExportError(
                    f"output {value.name!r} is not quantized; the native engine needs a QDQ graph"
                )
        tensors, arena_bytes = place_in_arena(self.tensors, self.ops)
        return Plan(
            tensors=tensors,
            ranges=tuple(self.ranges[name] for name in self.range_numbers),
            ops=tuple(self.ops),
            inputs=tuple(inputs),
            outputs=tuple(order[o.name] for o in self.graph.output),
            arena_bytes=arena_bytes,
            weights_bytes=self.weights_bytes,
        )

    # Values

    def _tensor(
        self, name: str, dtype: str, shape: tuple[int, ...], scale: float = 0.0, zero_point: int = 0
    ) -> int:
        self.numbers[name] = len(self.tensors)
        self.tensors.append(
            Tensor(
                name=name,
                dtype="float32" if dtype == "float32" else "uint8",
                shape=shape,
                scale=scale,
                zero_point=zero_point,
            )
        )
        return self.numbers[name]

    def _sample_shape(self, name: str) -> tuple[int, ...]:
        shape = self.shapes.get(name, ())
        dims = [d for d in shape[1:] if d is not None]
        if not dims or len(dims) != len(shape) - 1:
            raise ExportError(
                f"value {name!r} has shape {shape}; only the first dimension, the batch, may be free"
            )
        return tuple(dims)

    def _quantized(self, quantize: onnx.NodeProto) -> int:
        """The uint8 tensor that a QuantizeLinear gives."""
        scale, zero_point = self.values[quantize.input[1]], self.values[quantize.input[2]]
        if zero_point.dtype != np.uint8 or scale.size != 1:
            raise ExportError(
                f"value {quantize.input[0]!r}: activations must be uint8 with one scale, "
                f"not {zero_point.dtype}"
            )
        shape = self._sample_shape(quantize.output[0])
        if len(shape) == 3:
            shape = (shape[1], shape[2], shape[0])
        return self._tensor(quantize.output[0], "uint8", shape, scale.item(), zero_point.item())

    def _input(self, node: onnx.NodeProto, index: int) -> int:
        """The uint8 tensor behind an operator's input."""
        dequantize = self.producer.get(node.input[index])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            raise ExportError(
                f"{_describe(node)}: its input {node.input[index]!r} is not quantized; {_REMEDY}"
            )
        return self.numbers[dequantize.input[0]]

    def _constant(self, node: onnx.NodeProto, index: int) -> _Constant:
        dequantize = self.producer.get(node.input[index])
        if dequantize is None or dequantize.input[0] not in self.ranges:
            raise ExportError(
                f"{_describe(node)}: its input {node.input[index]!r} is not a quantized constant; {_REMEDY}"
            )
        scale = self.values[dequantize.input[1]].reshape(-1)
        return _Constant(name=dequantize.input[0], scale=scale)

    def _range(self, name: str) -> int:
        return self.range_numbers.setdefault(name, len(self.range_numbers))

    # Operators

    def _quantize(self, node: onnx.NodeProto) -> None:
        x = self.numbers[node.input[0]]
        order = (1, 2, 0) if len(self.tensors[x].shape) == 3 else tuple(range(len(self.tensors[x].shape)))
        self.ops.append(Quantize(x=x, y=self._quantized(node), order=order))

    def _dequantize(self, node: onnx.NodeProto) -> int:
        x = self.numbers[node.input[0]]
        y = self._tensor(node.output[0], "float32", self._sample_shape(node.output[0]))
        axes = len(self.tensors[x].shape)
        order = (2, 0, 1) if axes == 3 else tuple(range(axes))
        self.ops.append(Dequantize(x=x, y=y, order=order))
        return y

    def _is_fused(self, node: onnx.NodeProto) -> bool:
        before = self.producer.get(node.input[0])
        return (
            node.op_type in {"Relu", "Clip"} and before is not None and before.op_type != "DequantizeLinear"
        )

    def _result(self, node: onnx.NodeProto) -> tuple[int, int, int]:
        """The uint8 tensor an operator ends in, and the clamp of an activation fused on the way."""
        bounds = self._clip(node) if node.op_type in {"Relu", "Clip"} else (-math.inf, math.inf)
        after = self.readers.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type in {"Relu", "Clip"}:
            bounds = self._clip(after[0])
            after = self.readers.get(after[0].output[0], [])
        if len(after) != 1 or after[0].op_type != "QuantizeLinear":
            reader = f"{_describe(after[0])} reads it" if after else "it is an output"
            raise ExportError(f"{_describe(node)}: its result is not quantized ({reader}); {_REMEDY}")
        y = self._quantized(after[0])
        t = self.tensors[y]

        def on_grid(value: float, otherwise: int) -> int:
            if math.isinf(value):
                return otherwise
            return int(np.clip(np.rint(value / t.scale) + t.zero_point, 0, 255))

        return y, on_grid(bounds[0], 0), on_grid(bounds[1], 255)

    def _clip(self, node: onnx.NodeProto) -> tuple[float, float]:
        if node.op_type == "Relu":
            return 0.0, math.inf
        names = [*node.input[1:], "", ""][:2]
        if any(n and n not in self.values for n in names):
            raise ExportError(f"{_describe(node)}: its bounds are not constant; {_REMEDY}")
        low, high = (self.values[n].item() if n else None for n in names)
        return (-math.inf if low is None else low), (math.inf if high is None else high)

    def _operator(self, node: onnx.NodeProto) -> None:
        if node.op_type not in NATIVE_OPERATORS:
            raise ExportError(f"{_describe(node)}: the native engine has no such operator; {_REMEDY}")
        x = self._input(node, 0)
        if node.op_type in {"Conv", "Gemm"}:
            self._weighted(node, x)
            return
        y, low, high = self._result(node)
        x_t, y_t = self.tensors[x], self.tensors[y]
        if node.op_type == "Add":
            b = self._input(node, 1)
            factors = [x_t.scale / y_t.scale, self.tensors[b].scale / y_t.scale]
            if x_t.shape != self.tensors[b].shape:
                raise ExportError(f"{_describe(node)}: broadcasting is not in the native engine; {_REMEDY}")
            change = _rescale(node, factors, low, high, same_shift=True)
            self.ops.append(Add(a=x, b=b, y=y, rescale=change))
        elif node.op_type in {"Relu", "Clip"}:
            change = _rescale(node, [x_t.scale / y_t.scale], low, high)
            self.ops.append(Requantize(x=x, y=y, rescale=change))
        elif node.op_type == "Flatten":
            if attributes(node).get("axis", 1) != 1:
                raise ExportError(f"{_describe(node)}: only axis 1 is in the native engine; {_REMEDY}")
            self.ops.append(Reshape(x=self._channels_first(x), y=y))
        elif node.op_type == "MaxPool":
            self.ops.append(MaxPool(x=x, y=y, window=self._window(node, x_t)))
        else:
            if len(x_t.shape) != 3:
                raise ExportError(f"{_describe(node)}: only 2-D pools are in the native engine; {_REMEDY}")
            if node.op_type == "GlobalAveragePool":
                window = Window(kernel=(x_t.shape[0], x_t.shape[1]))
            else:
                window = self._window(node, x_t)
                if any(window.padding) and not attributes(node).get("count_include_pad", 0):
                    raise ExportError(
                        f"{_describe(node)}: padding that does not count is not in the native engine; "
                        f"{_REMEDY}"
                    )
            area = window.kernel[0] * window.kernel[1]
            change = _rescale(node, [x_t.scale / (y_t.scale * area)], low, high)
            self.ops.append(AveragePool(x=x, y=y, window=window, rescale=change))

    def _channels_first(self, x: int) -> int:
        """An image in the order of the graph, (C, H, W)."""
        t = self.tensors[x]
        if len(t.shape) != 3 or t.shape[:2] == (1, 1):
            return x
        height, width, channels = t.shape
        moved = (channels, height, width)
        y = self._tensor(f"{t.name}.channels_first", "uint8", moved, t.scale, t.zero_point)
        self.ops.append(Transpose(x=x, y=y, order=(2, 0, 1)))
        return y

    def _weighted(self, node: onnx.NodeProto, x: int) -> None:
        weight = self._constant(node, 1)
        shape = self.values[weight.name].shape
        has_bias = len(node.input) > 2 and bool(node.input[2])
        bias = self._range(self._constant(node, 2).name) if has_bias else None
        y, low, high = self._result(node)
        scale = np.broadcast_to(weight.scale.astype(np.float64), (shape[0],))
        factors = scale * self.tensors[x].scale / self.tensors[y].scale
        change = _rescale(node, factors, low, high)
        number = self._range(weight.name)
        if node.op_type == "Gemm":
            self.ops.append(FullyConnected(x=x, y=y, weight=number, bias=bias, rescale=change))
            return
        if len(shape) != 4:
            raise ExportError(f"{_describe(node)}: only 2-D convolution is in the native engine; {_REMEDY}")
        groups = int(attributes(node).get("group", 1))
        channels = self.tensors[x].shape[2]
        if groups != 1 and not groups == channels == shape[0]:
            raise ExportError(
                f"{_describe(node)}: {groups} groups for {channels} channels; the native engine has 1 "
                f"group and depthwise; {_REMEDY}"
            )
        window = self._window(node, self.tensors[x], kernel=(shape[2], shape[3]))
        self.ops.append(
            Convolution(x=x, y=y, weight=number, bias=bias, window=window, groups=groups, rescale=change)
        )

    def _window(self, node: onnx.NodeProto, x: Tensor, kernel: tuple[int, int] | None = None) -> Window:
        given = attributes(node)
        size = kernel or tuple(given["kernel_shape"])
        if len(size) != 2 or len(x.shape) != 3:
            raise ExportError(f"{_describe(node)}: only 2-D windows are in the native engine; {_REMEDY}")
        strides = tuple(given.get("strides", (1, 1)))
        dilations = tuple(given.get("dilations", (1, 1)))
        pads = tuple(given.get("pads", (0, 0, 0, 0)))
        auto = given.get("auto_pad", b"NOTSET")
        if auto in {b"SAME_UPPER", b"SAME_LOWER"}:
            total = [
                max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
                for n, s, d, k in zip(x.shape[:2], strides, dilations, size, strict=True)
            ]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            first, last = (less, more) if auto == b"SAME_UPPER" else (more, less)
            pads = (*first, *last)
        if given.get("ceil_mode", 0):
            raise ExportError(f"{_describe(node)}: ceil_mode is not in the native engine; {_REMEDY}")
        return Window(
            kernel=(size[0], size[1]),
            stride=(strides[0], strides[1]),
            padding=(pads[0], pads[1], pads[2], pads[3]),
            dilation=(dilations[0], dilations[1]),
        )


_REMEDY = "ONNX Runtime can run it: export with backend='onnxruntime'"


def _describe(node: onnx.NodeProto) -> str:
    return f"operator {node.op_type} (node {node.name or node.output[0]!r})"


def _rescale(
    node: onnx.NodeProto,
    factors: npt.NDArray[np.float64] | Sequence[float],
    low: int,
    high: int,
    *,
    same_shift: bool = False,
) -> Rescale:
    try:
        return rescale(factors, low=low, high=high, same_shift=same_shift)
    except ExportError as error:
        raise ExportError(
            f"{_describe(node)}: {error}; its output hardly moves on the calibration data: is it enough, and "
            "is the model trained?"
        ) from None


def place_in_arena(tensors: Iterable[Tensor], ops: Sequence[Op]) -> tuple[tuple[Tensor, ...], int]:
    """Gives every uint8 tensor a place, so that values alive at the same time do not overlap.

    Greedy by size, the largest first, each at the lowest place that is free during its life.
    (Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", greedy by size.)

    Returns:
        The tensors with their offsets, and the bytes the arena needs.
    """
    placed = list(tensors)
    life: dict[int, tuple[int, int]] = {}
    for step, op in enumerate(ops):
        for number in (*tensor_inputs(op), op.y):
            first, _ = life.get(number, (step, step))
            life[number] = (first, step)
    order = sorted(
        (n for n, t in enumerate(placed) if t.dtype == "uint8" and n in life),
        key=lambda n: (-placed[n].size_bytes, n),
    )
    done: list[tuple[int, int, int]] = []  # number, offset, end
    for number in order:
        size = -(-placed[number].size_bytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
        first, last = life[number]
        busy = sorted((offset, end) for n, offset, end in done if life[n][0] <= last and first <= life[n][1])
        at = 0
        for offset, end in busy:
            if at + size <= offset:
                break
            at = max(at, end)
        done.append((number, at, at + size))
        placed[number] = replace(placed[number], offset=at)
    return tuple(placed), max((end for _, _, end in done), default=0)
