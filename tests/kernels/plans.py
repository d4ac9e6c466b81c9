"""Builds small plans and random operators for the tests of the integer engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgewright_kernels import plan as ir

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


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

    def value(self, shape: tuple[int, ...], scale: float = 1.0, zero_point: int = 0) -> int:
        tensor = ir.Tensor(
            name=f"t{len(self.tensors)}",
            dtype="uint8",
            shape=shape,
            scale=float(np.float32(scale)),
            zero_point=zero_point,
            offset=self.arena,
        )
        self.arena += -(-tensor.size_bytes // ir.ARENA_ALIGNMENT) * ir.ARENA_ALIGNMENT
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def bytes(self, data: bytes) -> int:
        self.ranges.append(ir.ByteRange(offset=len(self.weights), size=len(data)))
        self.weights += data
        return len(self.ranges) - 1

    def input(self, name: str, shape: tuple[int, ...], scale: float = 1.0, zero_point: int = 0) -> int:
        """A float32 input with the shape of the uint8 tensor it becomes; gives that tensor."""
        moved = (shape[2], *shape[:2]) if len(shape) == 3 else shape
        self.tensors.append(ir.Tensor(name=name, dtype="float32", shape=moved))
        self.inputs.append(len(self.tensors) - 1)
        y = self.value(shape, scale, zero_point)
        self.ops.append(ir.Quantize(x=self.inputs[-1], y=y))
        return y

    def output(self, name: str, x: int) -> None:
        shape = self.tensors[x].shape
        moved = (shape[2], *shape[:2]) if len(shape) == 3 else shape
        self.tensors.append(ir.Tensor(name=name, dtype="float32", shape=moved))
        self.outputs.append(len(self.tensors) - 1)
        self.ops.append(ir.Dequantize(x=x, y=self.outputs[-1]))

    def conv2d(
        self,
        x: int,
        weight: Int8Array,
        bias: Int32Array | None,
        window: ir.Window,
        rescale: ir.Rescale,
        *,
        groups: int = 1,
        zero_point: int = 0,
    ) -> int:
        size = window.output_size(*self.tensors[x].shape[:2])
        y = self.value((*size, len(weight)), zero_point=zero_point)
        self.ops.append(
            ir.Conv2d(
                x=x,
                y=y,
                weight=self.bytes(weight.tobytes()),
                bias=None if bias is None else self.bytes(bias.astype("<i4").tobytes()),
                window=window,
                groups=groups,
                rescale=rescale,
            )
        )
        return y

    def fully_connected(
        self, x: int, weight: Int8Array, bias: Int32Array | None, rescale: ir.Rescale, zero_point: int = 0
    ) -> int:
        y = self.value((len(weight),), zero_point=zero_point)
        self.ops.append(
            ir.FullyConnected(
                x=x,
                y=y,
                weight=self.bytes(weight.tobytes()),
                bias=None if bias is None else self.bytes(bias.astype("<i4").tobytes()),
                rescale=rescale,
            )
        )
        return y

    def average_pool(self, x: int, window: ir.Window, rescale: ir.Rescale, zero_point: int = 0) -> int:
        height, width, channels = self.tensors[x].shape
        y = self.value((*window.output_size(height, width), channels), zero_point=zero_point)
        self.ops.append(ir.AveragePool(x=x, y=y, window=window, rescale=rescale))
        return y

    def max_pool(self, x: int, window: ir.Window) -> int:
        t = self.tensors[x]
        y = self.value((*window.output_size(*t.shape[:2]), t.shape[2]), t.scale, t.zero_point)
        self.ops.append(ir.MaxPool(x=x, y=y, window=window))
        return y

    def add(self, a: int, b: int, rescale: ir.Rescale, zero_point: int = 0) -> int:
        y = self.value(self.tensors[a].shape, zero_point=zero_point)
        self.ops.append(ir.Add(a=a, b=b, y=y, rescale=rescale))
        return y

    def requantize(self, x: int, rescale: ir.Rescale, zero_point: int = 0) -> int:
        y = self.value(self.tensors[x].shape, zero_point=zero_point)
        self.ops.append(ir.Requantize(x=x, y=y, rescale=rescale))
        return y

    def flatten(self, x: int) -> int:
        t = self.tensors[x]
        y = self.value((t.elements,), t.scale, t.zero_point)
        self.ops.append(ir.Flatten(x=x, y=y))
        return y


def rescale(multiplier: int | list[int], shift: int | list[int], low: int = 0, high: int = 255) -> ir.Rescale:
    m, s = np.atleast_1d(np.array(multiplier, np.int32)), np.atleast_1d(np.array(shift, np.int32))
    return ir.Rescale(multiplier=m, shift=s, low=low, high=high)


class Draw:
    """Random parts of a plan, with the extremes drawn often."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def zero_point(self) -> int:
        return int(self.rng.choice([0, 255, *self.rng.integers(0, 256, 3)]))

    def weight(self, shape: tuple[int, ...]) -> Int8Array:
        w = self.rng.integers(-127, 128, shape).astype(np.int8)
        kind = self.number(0, 5)
        if kind == 0:
            w = np.where(self.rng.random(shape) < 0.5, 127, -127).astype(np.int8)
        if kind == 1:
            w[...] = self.rng.choice([-127, 127])
        return w

    def bias(self, outputs: int) -> Int32Array | None:
        if self.rng.random() < 0.25:
            return None
        limit = 10 ** self.number(1, 8)
        return self.rng.integers(-limit, limit, outputs).astype(np.int32)

    def clamps(self) -> tuple[int, int]:
        if self.rng.random() < 0.7:
            return 0, 255
        low, high = sorted((self.number(0, 255), self.number(0, 255)))
        return low, high

    def rescale(self, channels: int, spread: float) -> ir.Rescale:
        """Mostly factors that spread `spread` over the 8 bits; now and then the ends of the format."""
        multiplier = self.rng.integers(1 << 30, (1 << 31) - 1, channels)
        exponent = np.log2(255 / spread) + self.rng.uniform(-2, 2, channels)
        shift = np.clip(np.round(30.5 - exponent), 1, 62).astype(np.int64)
        wild = self.rng.random(channels) < 0.15
        multiplier = np.where(wild, self.rng.choice([0, 1, (1 << 31) - 1, 12345], channels), multiplier)
        shift = np.where(wild, self.rng.choice([1, 2, 31, 32, 33, 61, 62], channels), shift)
        low, high = self.clamps()
        return ir.Rescale(
            multiplier=multiplier.astype(np.int32), shift=shift.astype(np.int32), low=low, high=high
        )

    def window(self, height: int, width: int, *, pool: bool) -> ir.Window:
        while True:
            kernel = self.number(1, 5), self.number(1, 5)
            dilation = self.number(1, 2), self.number(1, 2)
            span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
            most = [s - 1 if pool else s + 1 for s in span]
            window = ir.Window(
                kernel=kernel,
                stride=(self.number(1, 3), self.number(1, 3)),
                padding=(
                    self.number(0, most[0]),
                    self.number(0, most[1]),
                    self.number(0, most[0]),
                    self.number(0, most[1]),
                ),
                dilation=dilation,
            )
            fits = min(window.output_size(height, width)) >= 1
            if fits and not (pool and (dilation[0] > height or dilation[1] > width)):
                return window

    def image(self, channels: int | None = None) -> tuple[int, int, int]:
        return self.number(1, 9), self.number(1, 9), channels or self.number(1, 40)

    def uint8(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        q = self.rng.integers(0, 256, shape).astype(np.uint8)
        kind = self.number(0, 5)
        if kind == 0:
            q = np.where(self.rng.random(shape) < 0.5, 255, 0).astype(np.uint8)
        if kind == 1:
            q[...] = self.rng.choice([0, 255])
        return q

    def inputs(self, plan: ir.Plan, batch: int) -> dict[str, Float32Array]:
        """float32 values that the plan's Quantize turns into chosen integers."""
        found: dict[str, Float32Array] = {}
        for op in plan.ops:
            if isinstance(op, ir.Quantize):
                x, y = plan.tensors[op.x], plan.tensors[op.y]
                q = self.uint8((batch, *x.shape)).astype(np.float32)
                found[x.name] = (q - np.float32(y.zero_point)) * np.float32(y.scale)
        return found


def _dense(draw: Draw, p: Program) -> int:
    x = p.input("x", draw.image(), zero_point=draw.zero_point())
    height, width, channels = p.tensors[x].shape
    window = draw.window(height, width, pool=False)
    outputs = draw.number(1, 40)
    weight = draw.weight((outputs, channels, *window.kernel))
    scale = draw.rescale(outputs, 40000.0)
    return p.conv2d(x, weight, draw.bias(outputs), window, scale, zero_point=draw.zero_point())


def _pointwise(draw: Draw, p: Program) -> int:
    x = p.input("x", draw.image(), zero_point=draw.zero_point())
    channels, outputs = p.tensors[x].shape[2], draw.number(1, 40)
    weight, scale = draw.weight((outputs, channels, 1, 1)), draw.rescale(outputs, 40000.0)
    stride = draw.number(1, 2)
    window = ir.Window(kernel=(1, 1), stride=(stride, stride))
    return p.conv2d(x, weight, draw.bias(outputs), window, scale, zero_point=draw.zero_point())


def _depthwise(draw: Draw, p: Program) -> int:
    x = p.input("x", draw.image(), zero_point=draw.zero_point())
    height, width, channels = p.tensors[x].shape
    window = draw.window(height, width, pool=False)
    weight, scale = draw.weight((channels, 1, *window.kernel)), draw.rescale(channels, 30000.0)
    return p.conv2d(
        x, weight, draw.bias(channels), window, scale, groups=channels, zero_point=draw.zero_point()
    )


def _fully_connected(draw: Draw, p: Program) -> int:
    x = p.input("x", (draw.number(1, 300),), zero_point=draw.zero_point())
    outputs = draw.number(1, 40)
    weight, scale = draw.weight((outputs, p.tensors[x].shape[0])), draw.rescale(outputs, 80000.0)
    return p.fully_connected(x, weight, draw.bias(outputs), scale, zero_point=draw.zero_point())


def _max_pool(draw: Draw, p: Program) -> int:
    x = p.input("x", draw.image(draw.number(1, 80)), zero_point=draw.zero_point())
    return p.max_pool(x, draw.window(*p.tensors[x].shape[:2], pool=True))


def _average_pool(draw: Draw, p: Program) -> int:
    x = p.input("x", draw.image(draw.number(1, 80)), zero_point=draw.zero_point())
    window = draw.window(*p.tensors[x].shape[:2], pool=True)
    return p.average_pool(x, window, draw.rescale(1, 1000.0), zero_point=draw.zero_point())


def _add(draw: Draw, p: Program) -> int:
    shape = draw.image()
    a = p.input("x", shape, zero_point=draw.zero_point())
    b = p.input("b", shape, zero_point=draw.zero_point())
    scale = draw.rescale(2, 300.0)
    scale.shift[1] = scale.shift[0]
    return p.add(a, b, scale, zero_point=draw.zero_point())


def _requantize(draw: Draw, p: Program) -> int:
    x = p.input("x", draw.image(), zero_point=draw.zero_point())
    return p.requantize(x, draw.rescale(1, 255.0), zero_point=draw.zero_point())


def _flatten(draw: Draw, p: Program) -> int:
    shape = draw.image() if draw.number(0, 1) else (draw.number(1, 300),)
    return p.flatten(p.input("x", shape, zero_point=draw.zero_point()))


OPERATORS: dict[str, Callable[[Draw, Program], int]] = {
    "add": _add,
    "average_pool": _average_pool,
    "dense": _dense,
    "depthwise": _depthwise,
    "flatten": _flatten,
    "fully_connected": _fully_connected,
    "max_pool": _max_pool,
    "pointwise": _pointwise,
    "requantize": _requantize,
}


def one_operator(kind: str, draw: Draw) -> Program:
    """A random plan of one operator between the borders; its output is named "y"."""
    p = Program()
    p.output("y", OPERATORS[kind](draw, p))
    return p


def small_cnn(draw: Draw) -> Program:
    """Every operator once: 8 x 8 in, a residual, both pools, ten values out."""
    p = Program()
    x = p.input("image", (8, 8, 3), scale=1 / 255, zero_point=3)
    same = ir.Window(kernel=(3, 3), padding=(1, 1, 1, 1))
    stem = p.conv2d(
        x, draw.weight((16, 3, 3, 3)), draw.bias(16), same, draw.rescale(16, 30000.0), zero_point=7
    )
    deep = p.conv2d(
        stem, draw.weight((16, 1, 3, 3)), None, same, draw.rescale(16, 20000.0), groups=16, zero_point=9
    )
    wide = p.conv2d(
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
