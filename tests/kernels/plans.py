"""Builds small plans and random operators for the tests of the integer engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_kernels import plan as ir

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


RANGES: dict[ir.DType, tuple[int, int]] = {"uint8": (0, 255), "int16": (-32768, 32767)}


@dataclass
class Program:
    """A plan under construction. Tensors never share memory; `weights` grows with the operators."""

    tensors: list[ir.Tensor] = field(default_factory=list)
    ranges: list[ir.ByteRange] = field(default_factory=list)
    ops: list[ir.Op] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    weights: bytearray = field(default_factory=bytearray)
    arena: int = 0

    def plan(self) -> ir.Plan:
        return ir.Plan(
            tensors=tuple(self.tensors),
            ranges=tuple(self.ranges),
            ops=tuple(self.ops),
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            arena_bytes=self.arena,
            weights_bytes=len(self.weights),
        )

    def value(
        self, shape: tuple[int, ...], scale: float = 1.0, zero_point: int = 0, dtype: ir.DType = "uint8"
    ) -> int:
        """A tensor inside; the zero point is uint8's alone."""
        tensor = ir.Tensor(
            name=f"t{len(self.tensors)}",
            dtype=dtype,
            shape=shape,
            scale=float(np.float32(scale)),
            zero_point=zero_point if dtype == "uint8" else 0,
            offset=self.arena,
        )
        self.arena += -(-tensor.size_bytes // ir.ARENA_ALIGNMENT) * ir.ARENA_ALIGNMENT
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def bytes(self, data: bytes) -> int:
        self.ranges.append(ir.ByteRange(offset=len(self.weights), size=len(data)))
        self.weights += data
        return len(self.ranges) - 1

    def input(
        self,
        name: str,
        shape: tuple[int, ...],
        scale: float = 1.0,
        zero_point: int = 0,
        order: tuple[int, ...] | None = None,
        dtype: ir.DType = "uint8",
    ) -> int:
        """A float32 input that becomes a tensor of this shape inside: that tensor. Images are (C, H, W)."""
        axes = len(shape)
        order = order or ((1, 2, 0) if axes == 3 else tuple(range(axes)))
        given = tuple(shape[order.index(axis)] for axis in range(axes))
        self.tensors.append(ir.Tensor(name=name, dtype="float32", shape=given))
        self.inputs.append(len(self.tensors) - 1)
        y = self.value(shape, scale, zero_point, dtype)
        self.ops.append(ir.Quantize(x=self.inputs[-1], y=y, order=order))
        return y

    def indices(self, name: str, shape: tuple[int, ...]) -> int:
        """An int64 input."""
        self.tensors.append(ir.Tensor(name=name, dtype="int64", shape=shape))
        self.inputs.append(len(self.tensors) - 1)
        return self.inputs[-1]

    def output(self, name: str, x: int, order: tuple[int, ...] | None = None) -> None:
        shape = self.tensors[x].shape
        order = order or ((2, 0, 1) if len(shape) == 3 else tuple(range(len(shape))))
        self.tensors.append(ir.Tensor(name=name, dtype="float32", shape=tuple(shape[a] for a in order)))
        self.outputs.append(len(self.tensors) - 1)
        self.ops.append(ir.Dequantize(x=x, y=self.outputs[-1], order=order))

    def weighted(self, weight: Int8Array, bias: Int32Array | None, bits: int) -> dict[str, Any]:
        """What the operators with weights have in common; four-bit weights are packed by rows."""
        data = weight.tobytes() if bits == 8 else four_bits(weight)
        return {
            "weight": self.bytes(data),
            "weight_bits": bits,
            "bias": None if bias is None else self.bytes(bias.astype("<i4").tobytes()),
        }

    def convolution(
        self,
        x: int,
        weight: Int8Array,
        bias: Int32Array | None,
        window: ir.Window,
        rescale: ir.Rescale,
        *,
        groups: int = 1,
        zero_point: int = 0,
        bits: int = 8,
        dtype: ir.DType = "uint8",
    ) -> int:
        size = window.output_size(*self.tensors[x].shape[:-1])
        y = self.value((*size, len(weight)), zero_point=zero_point, dtype=dtype)
        self.ops.append(
            ir.Convolution(
                x=x,
                y=y,
                **self.weighted(weight, bias, bits),
                window=window,
                groups=groups,
                rescale=rescale,
            )
        )
        return y

    def transposed_convolution(
        self,
        x: int,
        weight: Int8Array,
        bias: Int32Array | None,
        window: ir.Window,
        extra: tuple[int, ...],
        rescale: ir.Rescale,
        *,
        groups: int = 1,
        zero_point: int = 0,
        bits: int = 8,
    ) -> int:
        size = window.transposed_size(extra, *self.tensors[x].shape[:-1])
        y = self.value((*size, weight.shape[1] * groups), zero_point=zero_point)
        self.ops.append(
            ir.TransposedConvolution(
                x=x,
                y=y,
                **self.weighted(weight, bias, bits),
                window=window,
                extra=extra,
                groups=groups,
                rescale=rescale,
            )
        )
        return y

    def fully_connected(
        self,
        x: int,
        weight: Int8Array,
        bias: Int32Array | None,
        rescale: ir.Rescale,
        zero_point: int = 0,
        bits: int = 8,
        dtype: ir.DType = "uint8",
    ) -> int:
        y = self.value((*self.tensors[x].shape[:-1], len(weight)), zero_point=zero_point, dtype=dtype)
        self.ops.append(ir.FullyConnected(x=x, y=y, **self.weighted(weight, bias, bits), rescale=rescale))
        return y

    def average_pool(
        self, x: int, window: ir.Window, rescale: ir.Rescale, zero_point: int = 0, dtype: ir.DType = "uint8"
    ) -> int:
        *size, channels = self.tensors[x].shape
        y = self.value((*window.output_size(*size), channels), zero_point=zero_point, dtype=dtype)
        self.ops.append(ir.AveragePool(x=x, y=y, window=window, rescale=rescale))
        return y

    def max_pool(self, x: int, window: ir.Window) -> int:
        t = self.tensors[x]
        y = self._same_grid(x, (*window.output_size(*t.shape[:-1]), t.shape[-1]))
        self.ops.append(ir.MaxPool(x=x, y=y, window=window))
        return y

    def add(self, a: int, b: int, rescale: ir.Rescale, zero_point: int = 0, dtype: ir.DType = "uint8") -> int:
        y = self.value(self.tensors[a].shape, zero_point=zero_point, dtype=dtype)
        self.ops.append(ir.Add(a=a, b=b, y=y, rescale=rescale))
        return y

    def multiply(
        self, a: int, b: int, rescale: ir.Rescale, zero_point: int = 0, dtype: ir.DType = "uint8"
    ) -> int:
        y = self.value(self.tensors[a].shape, zero_point=zero_point, dtype=dtype)
        self.ops.append(ir.Multiply(a=a, b=b, y=y, rescale=rescale))
        return y

    def matmul(
        self,
        a: int,
        b: int,
        rescale: ir.Rescale,
        zero_point: int = 0,
        *,
        transpose_b: bool = False,
        dtype: ir.DType = "uint8",
    ) -> int:
        columns = self.tensors[b].shape[-2 if transpose_b else -1]
        y = self.value((*self.tensors[a].shape[:-1], columns), zero_point=zero_point, dtype=dtype)
        self.ops.append(ir.MatMul(a=a, b=b, y=y, transpose_b=transpose_b, rescale=rescale))
        return y

    def constant(self, values: npt.NDArray[Any], zero_point: int = 0, dtype: ir.DType = "uint8") -> int:
        y = self.value(values.shape, zero_point=zero_point, dtype=dtype)
        self.ops.append(ir.Constant(y=y, weight=self.bytes(values.tobytes())))
        return y

    def requantize(self, x: int, rescale: ir.Rescale, zero_point: int = 0, dtype: ir.DType = "uint8") -> int:
        y = self.value(self.tensors[x].shape, zero_point=zero_point, dtype=dtype)
        self.ops.append(ir.Requantize(x=x, y=y, rescale=rescale))
        return y

    def lookup(self, x: int, table: npt.NDArray[Any], dtype: ir.DType = "uint8") -> int:
        y = self.value(self.tensors[x].shape, dtype=dtype)
        self.ops.append(ir.Lookup(x=x, y=y, table=table.tobytes()))
        return y

    def softmax(self, x: int, mask: int | None, rescale: ir.Rescale, zero_point: int = 0) -> int:
        t = self.tensors[x]
        table = exponentials(t)
        y = self.value(t.shape, zero_point=zero_point)
        self.ops.append(ir.Softmax(x=x, mask=mask, y=y, table=tuple(table.tolist()), rescale=rescale))
        return y

    def layer_norm(
        self,
        x: int,
        gain: Int64Array,
        offset: Int64Array,
        epsilon: int,
        rescale: ir.Rescale,
        zero_point: int = 0,
        dtype: ir.DType = "uint8",
    ) -> int:
        y = self.value(self.tensors[x].shape, zero_point=zero_point, dtype=dtype)
        self.ops.append(
            ir.LayerNorm(
                x=x,
                y=y,
                gain=tuple(gain.tolist()),
                offset=tuple(offset.tolist()),
                epsilon=epsilon,
                rescale=rescale,
            )
        )
        return y

    def embedding(
        self, x: int, weight: Int8Array, rescale: ir.Rescale, zero_point: int = 0, dtype: ir.DType = "uint8"
    ) -> int:
        y = self.value((*self.tensors[x].shape, weight.shape[1]), zero_point=zero_point, dtype=dtype)
        self.ops.append(ir.Embedding(x=x, y=y, weight=self.bytes(weight.tobytes()), rescale=rescale))
        return y

    def _same_grid(self, x: int, shape: tuple[int, ...]) -> int:
        t = self.tensors[x]
        return self.value(shape, t.scale, t.zero_point, t.dtype)

    def transpose(self, x: int, order: tuple[int, ...]) -> int:
        y = self._same_grid(x, tuple(self.tensors[x].shape[axis] for axis in order))
        self.ops.append(ir.Transpose(x=x, y=y, order=order))
        return y

    def reshape(self, x: int, shape: tuple[int, ...]) -> int:
        y = self._same_grid(x, shape)
        self.ops.append(ir.Reshape(x=x, y=y))
        return y

    def flatten(self, x: int) -> int:
        """(H, W, C) to (C * H * W,), in the order (C, H, W), as ONNX and PyTorch flatten."""
        return self.reshape(self.transpose(x, (2, 0, 1)), (self.tensors[x].elements,))

    def concat(self, inputs: list[int], axis: int) -> int:
        shape = list(self.tensors[inputs[0]].shape)
        shape[axis] = sum(self.tensors[x].shape[axis] for x in inputs)
        y = self._same_grid(inputs[0], tuple(shape))
        self.ops.append(ir.Concat(y=y, axis=axis, inputs=tuple(inputs)))
        return y

    def slice(self, x: int, starts: tuple[int, ...], steps: tuple[int, ...], shape: tuple[int, ...]) -> int:
        y = self._same_grid(x, shape)
        self.ops.append(ir.Slice(x=x, y=y, starts=starts, steps=steps))
        return y

    def resize(
        self,
        x: int,
        rows: ir.Interpolation,
        columns: ir.Interpolation,
        rescale: ir.Rescale,
        zero_point: int = 0,
    ) -> int:
        shape = (len(rows.first), len(columns.first), self.tensors[x].shape[2])
        y = self.value(shape, zero_point=zero_point)
        self.ops.append(ir.Resize(x=x, y=y, rows=rows, columns=columns, rescale=rescale))
        return y


def exponentials(t: ir.Tensor) -> Int64Array:
    """The table of Softmax over values of a tensor, as the exporter makes it."""
    steps = np.arange(256)
    parts = [65536 * np.exp(-t.scale * steps)]
    if t.dtype == "int16":
        parts = [32768 * np.exp(-t.scale * steps), 65536 * np.exp(-t.scale * 256 * steps)]
    table: Int64Array = np.rint(np.concatenate(parts)).astype(np.int64)
    return table


def four_bits(weight: Int8Array) -> bytes:
    """Rows of int8 in -7..7 as the plan packs four-bit weights."""
    rows = weight.reshape(len(weight), -1)
    even = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    return ((even[:, ::2] & 15) | (even[:, 1::2] & 15) << 4).astype(np.uint8).tobytes()


def rescale(multiplier: int | list[int], shift: int | list[int], low: int = 0, high: int = 255) -> ir.Rescale:
    m, s = np.atleast_1d(np.array(multiplier, np.int32)), np.atleast_1d(np.array(shift, np.int32))
    return ir.Rescale(multiplier=m, shift=s, low=low, high=high)


class Draw:
    """Random parts of a plan, with the extremes drawn often.

    Where it is `wide`, activations are int16 more often than uint8.
    """

    def __init__(self, seed: int, *, wide: bool = False) -> None:
        self.rng, self.wide = np.random.default_rng(seed), wide

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def zero_point(self) -> int:
        return int(self.rng.choice([0, 255, *self.rng.integers(0, 256, 3)]))

    def dtype(self) -> ir.DType:
        return "int16" if self.wide and self.rng.random() < 0.65 else "uint8"

    def grid(self) -> dict[str, Any]:
        """Dtype and zero point of a tensor."""
        return {"dtype": self.dtype(), "zero_point": self.zero_point()}

    def weight(self, shape: tuple[int, ...], bits: int = 8, x: ir.DType = "uint8") -> Int8Array:
        most = 127 if bits == 8 else 7
        w = self.rng.integers(-most, most + 1, shape).astype(np.int8)
        kind = self.number(0, 5)
        if kind == 0:
            w = np.where(self.rng.random(shape) < 0.5, most, -most).astype(np.int8)
        if kind == 1:
            w[...] = self.rng.choice([-most, most])
        if x == "int16":  # as large as accumulators of 32 bits allow, and any bias beside them
            sums = np.abs(w.reshape(len(w), -1).astype(np.int64)).sum(axis=1)
            fits = np.minimum(1, ((1 << 31) - 1 - 10**8) // (1 << 15) / np.maximum(sums, 1))
            w = np.trunc(w * fits.reshape(-1, *(1,) * (w.ndim - 1))).astype(np.int8)
        return w

    def bits(self) -> int:
        return int(self.rng.choice([8, 8, 8, 4]))

    def bias(self, outputs: int) -> Int32Array | None:
        if self.rng.random() < 0.25:
            return None
        limit = 10 ** self.number(1, 8)
        return self.rng.integers(-limit, limit, outputs).astype(np.int32)

    def clamps(self, dtype: ir.DType = "uint8") -> tuple[int, int]:
        ends = RANGES[dtype]
        if self.rng.random() < 0.7:
            return ends
        low, high = sorted((self.number(*ends), self.number(*ends)))
        return low, high

    def rescale(self, channels: int, spread: float, y: ir.DType = "uint8") -> ir.Rescale:
        """Mostly factors that spread `spread` over all bits; now and then the ends of the format."""
        multiplier = self.rng.integers(1 << 30, (1 << 31) - 1, channels)
        exponent = np.log2((RANGES[y][1] - RANGES[y][0]) / spread) + self.rng.uniform(-2, 2, channels)
        shift = np.clip(np.round(30.5 - exponent), 1, 62).astype(np.int64)
        wild = self.rng.random(channels) < self.rng.choice([0.0, 0.0, 0.15])
        multiplier = np.where(wild, self.rng.choice([0, 1, (1 << 31) - 1, 12345], channels), multiplier)
        shift = np.where(wild, self.rng.choice([1, 2, 31, 32, 33, 61, 62], channels), shift)
        low, high = self.clamps(y)
        return ir.Rescale(
            multiplier=multiplier.astype(np.int32), shift=shift.astype(np.int32), low=low, high=high
        )

    def window(self, *size: int, pool: bool, transposed: bool = False) -> ir.Window:
        axes = len(size)
        while True:
            kernel = tuple(self.number(1, 5 if axes < 3 else 3) for _ in size)
            dilation = tuple(self.number(1, 2) for _ in size)
            stride = tuple(self.number(1, 3) for _ in size)
            if self.number(0, 1) == 0:  # as most networks have them, and kernels of their own
                kernel = (self.number(1, 2) * 2 + 1 if axes < 3 else 3,) * axes
                dilation, stride = (1,) * axes, (self.number(1, 2),) * axes
            span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
            most = [s - 1 if pool else s + 1 for s in span]
            window = ir.Window(
                kernel=kernel,
                stride=stride,
                padding=tuple(self.number(0, m) for m in most * 2),
                dilation=dilation,
            )
            nothing = (0,) * axes
            result = window.transposed_size(nothing, *size) if transposed else window.output_size(*size)
            if min(result) >= 1 and not (pool and any(d > n for d, n in zip(dilation, size, strict=True))):
                return window

    def shape(self, rank: int, most: int = 7) -> tuple[int, ...]:
        return tuple(self.number(1, most) for _ in range(rank))

    def broadcastable(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape that broadcasts to another, all its forms drawn often."""
        kept = [n if self.rng.random() < 0.6 else 1 for n in shape]
        return tuple(kept[self.number(0, len(shape) - 1) :])

    def order(self, rank: int) -> tuple[int, ...]:
        return tuple(self.rng.permutation(rank).tolist())

    def image(self, channels: int | None = None) -> tuple[int, int, int]:
        return self.number(1, 9), self.number(1, 9), channels or self.number(1, 40)

    def integers(self, dtype: ir.DType, shape: tuple[int, ...]) -> Int64Array:
        ends = RANGES[dtype]
        q = self.rng.integers(ends[0], ends[1] + 1, shape)
        kind = self.number(0, 5)
        if kind == 0:
            q = np.where(self.rng.random(shape) < 0.5, *ends)
        if kind == 1:
            q[...] = self.rng.choice(ends)
        if kind == 2 and dtype == "int16":  # as most real ones are: near to one another
            q = q // 256
        return q

    def inputs(self, plan: ir.Plan, batch: int) -> dict[str, npt.NDArray[Any]]:
        """Indices, and float32 values that the plan's Quantize turns into chosen integers."""
        found: dict[str, npt.NDArray[Any]] = {}
        for op in plan.ops:
            if isinstance(op, ir.Embedding):
                x = plan.tensors[op.x]
                rows = plan.ranges[op.weight].size // plan.tensors[op.y].shape[-1]
                found[x.name] = self.rng.integers(0, rows, (batch, *x.shape))
            if isinstance(op, ir.Quantize):
                x, y = plan.tensors[op.x], plan.tensors[op.y]
                q = self.integers(y.dtype, (batch, *x.shape)).astype(np.float32)
                found[x.name] = (q - np.float32(y.zero_point)) * np.float32(y.scale)
        return found


def _gain(dtype: ir.DType) -> float:
    """How much further values of this dtype reach than those of uint8."""
    return 1.0 if dtype == "uint8" else 128.0


def _convolution(draw: Draw, p: Program, shape: tuple[int, ...], groups: int, outputs: int) -> int:
    x, to = p.input("x", shape, **draw.grid()), draw.grid()
    window, bits, given = draw.window(*shape[:-1], pool=False), draw.bits(), p.tensors[x].dtype
    weight = draw.weight((outputs, shape[-1] // groups, *window.kernel), bits, given)
    scale = draw.rescale(outputs, (40000.0 if bits == 8 else 3000.0) * _gain(given), to["dtype"])
    return p.convolution(x, weight, draw.bias(outputs), window, scale, groups=groups, bits=bits, **to)


def _dense(draw: Draw, p: Program) -> int:
    return _convolution(draw, p, draw.image(), 1, draw.number(1, 40))


def _dense_1d(draw: Draw, p: Program) -> int:
    return _convolution(draw, p, (draw.number(1, 20), draw.number(1, 20)), 1, draw.number(1, 20))


def _dense_3d(draw: Draw, p: Program) -> int:
    return _convolution(draw, p, (*draw.shape(3, 5), draw.number(1, 9)), 1, draw.number(1, 20))


def _grouped(draw: Draw, p: Program) -> int:
    groups, axes = draw.number(1, 5), draw.number(1, 3)
    channels = groups * draw.number(1, 5)
    return _convolution(draw, p, (*draw.shape(axes, 5), channels), groups, groups * draw.number(1, 9))


def _depthwise(draw: Draw, p: Program) -> int:
    shape: tuple[int, ...] = draw.image()
    if draw.number(0, 3) == 0:
        shape = shape[1:] if draw.number(0, 1) else (draw.number(1, 3), *shape[:2], draw.number(1, 6))
    return _convolution(draw, p, shape, shape[-1], shape[-1])


def _pointwise(draw: Draw, p: Program) -> int:
    x, to = p.input("x", draw.image(), **draw.grid()), draw.grid()
    channels, outputs, given = p.tensors[x].shape[2], draw.number(1, 40), p.tensors[x].dtype
    weight = draw.weight((outputs, channels, 1, 1), x=given)
    scale = draw.rescale(outputs, 40000.0 * _gain(given), to["dtype"])
    stride = draw.number(1, 2)
    window = ir.Window(kernel=(1, 1), stride=(stride, stride))
    return p.convolution(x, weight, draw.bias(outputs), window, scale, **to)


def _transposed_convolution(draw: Draw, p: Program) -> int:
    groups, axes = draw.number(1, 3), draw.number(1, 3)
    shape = (*draw.shape(axes, 4), groups * draw.number(1, 5))
    outputs = groups * draw.number(1, 5)
    x = p.input("x", shape, zero_point=draw.zero_point())
    window, bits = draw.window(*shape[:-1], pool=False, transposed=True), draw.bits()
    extra = tuple(draw.number(0, max(s, d) - 1) for s, d in zip(window.stride, window.dilation, strict=True))
    weight = draw.weight((shape[-1], outputs // groups, *window.kernel), bits)
    scale = draw.rescale(outputs, 40000.0 if bits == 8 else 3000.0)
    return p.transposed_convolution(
        x,
        weight,
        draw.bias(outputs),
        window,
        extra,
        scale,
        groups=groups,
        zero_point=draw.zero_point(),
        bits=bits,
    )


def _fully_connected(draw: Draw, p: Program) -> int:
    shape = (*draw.shape(draw.number(0, 2)), draw.number(1, 300))
    x, to = p.input("x", shape, **draw.grid()), draw.grid()
    outputs, bits, given = draw.number(1, 40), draw.bits(), p.tensors[x].dtype
    weight = draw.weight((outputs, shape[-1]), bits, given)
    scale = draw.rescale(outputs, (80000.0 if bits == 8 else 5000.0) * _gain(given), to["dtype"])
    return p.fully_connected(x, weight, draw.bias(outputs), scale, bits=bits, **to)


def _pooled(draw: Draw) -> tuple[int, ...]:
    return (*draw.shape(draw.number(1, 3), 9), draw.number(1, 80))


def _max_pool(draw: Draw, p: Program) -> int:
    x = p.input("x", _pooled(draw), **draw.grid())
    return p.max_pool(x, draw.window(*p.tensors[x].shape[:-1], pool=True))


def _average_pool(draw: Draw, p: Program) -> int:
    x, to = p.input("x", _pooled(draw), **draw.grid()), draw.grid()
    window = draw.window(*p.tensors[x].shape[:-1], pool=True)
    scale = draw.rescale(1, 1000.0 * _gain(p.tensors[x].dtype), to["dtype"])
    return p.average_pool(x, window, scale, **to)


def _pair(draw: Draw, p: Program) -> tuple[int, int, float]:
    """Two values, and how much further they reach than two of uint8."""
    alike = draw.number(0, 2) == 0
    a = draw.image() if alike else draw.shape(draw.number(1, 4))
    b = a if alike else draw.broadcastable(a)
    x, y = p.input("x", a, **draw.grid()), p.input("b", b, **draw.grid())
    return x, y, _gain(p.tensors[x].dtype) * _gain(p.tensors[y].dtype)


def _add(draw: Draw, p: Program) -> int:
    a, b, gain = _pair(draw, p)
    to = draw.grid()
    scale = draw.rescale(2, 300.0 * min(gain, 128), to["dtype"])
    scale.shift[1] = scale.shift[0]
    return p.add(a, b, scale, **to)


def _constant(draw: Draw, p: Program) -> int:
    a = p.input("x", draw.shape(draw.number(1, 4), 40), **draw.grid())
    of, to = draw.grid(), draw.grid()
    values = draw.integers(of["dtype"], p.tensors[a].shape).astype(of["dtype"])
    b = p.constant(values, **of)
    gain = _gain(p.tensors[a].dtype) * _gain(of["dtype"])
    return p.multiply(a, b, draw.rescale(1, 20000.0 * gain, to["dtype"]), **to)


def _multiply(draw: Draw, p: Program) -> int:
    a, b, gain = _pair(draw, p)
    to = draw.grid()
    return p.multiply(a, b, draw.rescale(1, 20000.0 * gain, to["dtype"]), **to)


def _matmul(draw: Draw, p: Program) -> int:
    batch, transposed = draw.shape(draw.number(0, 2), 3), bool(draw.number(0, 1))
    rows, terms, columns = draw.number(1, 20), draw.number(1, 600), draw.number(1, 40)
    b_shape = (columns, terms) if transposed else (terms, columns)
    a = p.input("x", (*batch, rows, terms), zero_point=draw.zero_point())
    b = p.input("b", (*batch, *b_shape), zero_point=draw.zero_point())
    to = draw.grid()
    scale = draw.rescale(1, 20000.0 * terms**0.5, to["dtype"])
    return p.matmul(a, b, scale, transpose_b=transposed, **to)


def _requantize(draw: Draw, p: Program) -> int:
    x, to = p.input("x", draw.image(), **draw.grid()), draw.grid()
    by_channel = draw.wide and draw.number(0, 1)
    channels = p.tensors[x].shape[-1] if by_channel else 1
    return p.requantize(x, draw.rescale(channels, 255.0 * _gain(p.tensors[x].dtype), to["dtype"]), **to)


def _lookup(draw: Draw, p: Program) -> int:
    x, dtype = p.input("x", draw.shape(draw.number(1, 6)), **draw.grid()), draw.dtype()
    if p.tensors[x].dtype == "uint8":
        return p.lookup(x, draw.integers(dtype, (256,)).astype(dtype), dtype=dtype)
    low, high = (128 * end for end in RANGES[dtype])
    table = draw.rng.integers(low, high + 1, 513)
    if draw.number(0, 3) == 0:
        table = np.where(draw.rng.random(513) < 0.5, low, high)
    return p.lookup(x, table.astype(np.int32), dtype=dtype)


def _softmax(draw: Draw, p: Program) -> int:
    values = draw.number(1, 300) if draw.number(0, 9) else draw.number(2040, 2060)
    shape = (*draw.shape(draw.number(0, 3), 4), values)
    scale = float(draw.rng.choice([1e-4, 0.02, 0.1, 1.0, 20.0]))
    x = p.input("x", shape, scale=scale, **draw.grid())
    mask = None
    if draw.number(0, 1):
        mask = p.input("mask", draw.broadcastable(shape), zero_point=draw.number(0, 255))
    multiplier, shift = 1 << 30, draw.number(36, 40)  # to a scale of y from 2^-8 to 2^-4
    low, high = draw.clamps()
    if draw.number(0, 5) == 0:
        multiplier, shift = int(draw.rng.choice([0, 1, 2**31 - 1])), draw.number(1, 62)
    return p.softmax(x, mask, rescale(multiplier, shift, low, high), draw.zero_point())


def _layer_norm(draw: Draw, p: Program) -> int:
    shape = (*draw.shape(draw.number(0, 2), 5), draw.number(1, 300))
    x, to = p.input("x", shape, **draw.grid()), draw.grid()
    values, shift = shape[-1], draw.number(15, 25)
    steps = int(_gain(to["dtype"]))
    limit = 1 << draw.number(1, 31) if draw.number(0, 2) == 0 else 64 * steps << (shift - 15)
    gain = draw.rng.integers(-limit, limit, values)
    offset = draw.rng.integers(-100 * steps, 100 * steps, values) << shift
    most = 46 if p.tensors[x].dtype == "uint8" else 60
    epsilon = int(draw.rng.choice([1, values**2, 1 << most]))
    if draw.number(0, 5) == 0:
        shift = draw.number(1, 62)
        offset = draw.rng.integers(-(1 << 55) + 1, 1 << 55, values)
    low, high = draw.clamps(to["dtype"])
    return p.layer_norm(x, gain, offset, epsilon, rescale(1, shift, low, high), **to)


def _embedding(draw: Draw, p: Program) -> int:
    x, to = p.indices("x", draw.shape(draw.number(1, 3))), draw.grid()
    weight = draw.weight((draw.number(1, 50), draw.number(1, 40)))
    channels = weight.shape[1] if draw.wide and draw.number(0, 1) else 1
    return p.embedding(x, weight, draw.rescale(channels, 200.0, to["dtype"]), **to)


def _borders(draw: Draw, p: Program) -> int:
    if draw.number(0, 3) == 0:
        return p.input("x", (*draw.shape(2, 12), 3), **draw.grid())
    rank = draw.number(1, 6)
    return p.input("x", draw.shape(rank), order=draw.order(rank), **draw.grid())


def _transpose(draw: Draw, p: Program) -> int:
    rank = draw.number(1, 6)
    shape = draw.shape(rank) if draw.number(0, 3) else draw.shape(2, 150)
    return p.transpose(p.input("x", shape, **draw.grid()), draw.order(len(shape)))


def _reshape(draw: Draw, p: Program) -> int:
    shape, of = draw.shape(draw.number(1, 6)), draw.grid()
    x = p.input("x", shape, **of)
    if draw.number(0, 1):  # so that what lies there has been written in the arena
        x = p.requantize(x, rescale(1, 1, *RANGES[of["dtype"]]), dtype=of["dtype"])
    y = p.reshape(x, (*sorted(shape)[1:], min(shape)))
    if draw.number(0, 1):
        p.tensors[y] = replace(p.tensors[y], offset=p.tensors[x].offset)
    return y


def _concat(draw: Draw, p: Program) -> int:
    shape = draw.shape(draw.number(1, 4))
    axis, of = draw.number(0, len(shape) - 1), draw.grid()
    parts = [
        p.input(f"x{i}", (*shape[:axis], draw.number(1, 9), *shape[axis + 1 :]), **of)
        for i in range(draw.number(1, 4))
    ]
    return p.concat([*parts, parts[0]] if draw.number(0, 1) else parts, axis)


def _slice(draw: Draw, p: Program) -> int:
    shape = draw.shape(draw.number(1, 5), 9)
    starts = tuple(draw.number(0, n - 1) for n in shape)
    steps = tuple(draw.number(1, 3) for _ in shape)
    most = [(n - 1 - start) // step + 1 for n, start, step in zip(shape, starts, steps, strict=True)]
    x = p.input("x", shape, **draw.grid())
    return p.slice(x, starts, steps, tuple(draw.number(1, m) for m in most))


def _interpolation(draw: Draw, size: int) -> ir.Interpolation:
    count = draw.number(1, 12)
    first, second = draw.rng.integers(0, size, (2, count)).tolist()
    fraction = np.where(draw.rng.random(count) < 0.3, 0, draw.rng.integers(0, 2049, count)).tolist()
    return ir.Interpolation(first=tuple(first), second=tuple(second), fraction=tuple(fraction))


def _resize(draw: Draw, p: Program) -> int:
    shape = draw.image()
    x = p.input("x", shape, zero_point=draw.zero_point())
    rows, columns = _interpolation(draw, shape[0]), _interpolation(draw, shape[1])
    return p.resize(x, rows, columns, draw.rescale(1, 255.0 * 2**22), draw.zero_point())


OPERATORS: dict[str, Callable[[Draw, Program], int]] = {
    "add": _add,
    "average_pool": _average_pool,
    "borders": _borders,
    "concat": _concat,
    "dense": _dense,
    "dense_1d": _dense_1d,
    "dense_3d": _dense_3d,
    "depthwise": _depthwise,
    "constant": _constant,
    "embedding": _embedding,
    "fully_connected": _fully_connected,
    "grouped": _grouped,
    "layer_norm": _layer_norm,
    "lookup": _lookup,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "multiply": _multiply,
    "pointwise": _pointwise,
    "requantize": _requantize,
    "reshape": _reshape,
    "resize": _resize,
    "slice": _slice,
    "softmax": _softmax,
    "transpose": _transpose,
    "transposed_convolution": _transposed_convolution,
}


UINT8_ONLY = ("resize", "transposed_convolution")


def _with_int16(make: Callable[[Draw, Program], int]) -> Callable[[Draw, Program], int]:
    def made(draw: Draw, p: Program) -> int:
        draw.wide = True
        return make(draw, p)

    return made


OPERATORS |= {f"{kind}_16": _with_int16(make) for kind, make in OPERATORS.items() if kind not in UINT8_ONLY}


def one_operator(kind: str, draw: Draw) -> Program:
    """A random plan of one operator between the borders; its output is named "y"."""
    p = Program()
    p.output("y", OPERATORS[kind](draw, p))
    return p


def small_cnn(draw: Draw) -> Program:
    """A small image network: 8 x 8 in, a residual, both pools, ten values out."""
    p = Program()
    x = p.input("image", (8, 8, 3), scale=1 / 255, zero_point=3)
    same = ir.Window(kernel=(3, 3), padding=(1, 1, 1, 1))
    stem = p.convolution(
        x, draw.weight((16, 3, 3, 3)), draw.bias(16), same, draw.rescale(16, 30000.0), zero_point=7
    )
    deep = p.convolution(
        stem, draw.weight((16, 1, 3, 3)), None, same, draw.rescale(16, 20000.0), groups=16, zero_point=9
    )
    wide = p.convolution(
        deep,
        draw.weight((16, 16, 1, 1)),
        draw.bias(16),
        ir.Window(kernel=(1, 1)),
        draw.rescale(16, 60000.0),
        zero_point=128,
    )
    joined = p.add(wide, stem, rescale([1 << 29, 1 << 29], [30, 30]), zero_point=100)
    clipped = p.requantize(joined, rescale(1 << 30, 30, low=90), zero_point=90)
    halved = p.max_pool(clipped, ir.Window(kernel=(2, 2), stride=(2, 2)))
    pooled = p.average_pool(
        halved, ir.Window(kernel=(2, 2), stride=(2, 2)), rescale(1 << 29, 30), zero_point=20
    )
    flat = p.flatten(pooled)
    logits = p.fully_connected(flat, draw.weight((10, 64)), draw.bias(10), draw.rescale(10, 90000.0), 128)
    p.output("logits", logits)
    return p
