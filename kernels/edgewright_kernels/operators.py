"""The operators of a program, and what each computes. The conventions are in program.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from edgewright_kernels.parameters import Interpolation, Rescale, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Float32 `x` to integers: `clamp(round_half_even(x / scale) + zero_point)`, its axes then in `order`.

    The order is numpy's: axis i of y is axis `order[i]` of x. An image, (C, H, W) to (H, W, C), has
    (1, 2, 0). NaN becomes the zero point. The division is one IEEE float32 division.
    """

    x: int
    y: int
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantize:
    """Integers `x` to float32 `y`: `transpose(x, order)`, then `float32(x - zero_point) * scale`.

    For an image, (H, W, C) to (C, H, W), `order` is (2, 0, 1).
    """

    x: int
    y: int
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """Convolution along 1 to 3 axes; padding has the value `zero point of x`.

    x is (spatial..., C), y (spatial..., O); `weight` is (O, C / groups, kernel...), signed, of `weight_bits`
    8 or 4 (see `FullyConnected`); `bias` int32 (O,). `groups` divides C and O; with as many groups as
    channels it is a depthwise convolution.
    """

    x: int
    y: int
    weight: int
    weight_bits: int = 8
    bias: int | None = None
    window: Window
    groups: int = 1
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class FullyConnected:
    """`y = x @ weight.T + bias` over the last axis: x is (..., K), y (..., O).

    `weight` is (O, K), signed, of `weight_bits` 8 or 4; `bias` int32 (O,). With 4 bits, two weights share a
    byte, the first in its low half, in two's complement, in -7..7; each row (the weight's first axis) starts
    on a byte, and an unused half is 0.
    """

    x: int
    y: int
    weight: int
    weight_bits: int = 8
    bias: int | None = None
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool:
    """Largest value under the window; padding never wins. `x` and `y` are on the same grid."""

    x: int
    y: int
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePool:
    """Sum of `x - zero point` under the window, rescaled; the multiplier holds 1 / window area.

    Padding counts as zero (`count_include_pad`); without padding there is no difference.
    """

    x: int
    y: int
    window: Window
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """`y = a + b`: `((a - za) * ma + (b - zb) * mb + 2^(s-1)) >> s`, one rounding for both.

    `b` broadcasts to `a`. `rescale.multiplier` is (ma, mb), `rescale.shift` (s, s).
    """

    a: int
    b: int
    y: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantize:
    """`y` is `x` on another scale, clamped: a ReLU, a clip, or a change of scale that could not be fused.

    `rescale` has one multiplier and shift, or one for each channel of the last axis.
    """

    x: int
    y: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Transpose:
    """The axes of `x` in another order, numpy's: axis i of y is axis `order[i]` of x. Same grid."""

    x: int
    y: int
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshape:
    """The elements of `x`, in their row-major order, in another shape. Same grid.

    `y` MAY lie exactly where `x` lies; then nothing is copied, and `x` counts as overwritten.
    """

    x: int
    y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMul:
    """`y = a @ b`, both activations: a is (..., M, K), b (..., K, N), y (..., M, N).

    With `transpose_b`, b is (..., N, K). Leading axes are equal. The accumulator is the sum of
    `(a - za) * (b - zb)` over K, at most 33,025 of them. Both are uint8; y may be int16.
    """

    a: int
    b: int
    y: int
    transpose_b: bool = False
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiply:
    """`y = a * b`: `(a - za) * (b - zb)`, rescaled. `b` broadcasts to `a`."""

    a: int
    b: int
    y: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """`y = table[x]`: any function of one value (GELU, SiLU, Sigmoid, Tanh, HardSwish, ...).

    For uint8 `x`, `table` holds one y for each x, uint8 or int16. For int16 it holds 513 int32 `T`, in
    128ths of a step of y, the zero point included: one for x = -32,768, the others 128 apart. Between two of
    them runs a line::

        i = (x + 32768) >> 7;  f = (x + 32768) & 127
        y = (T[i] * (128 - f) + T[i + 1] * f + 8192) >> 14

    All little-endian. No entry lies outside 128 times the range of y's dtype.
    """

    x: int
    y: int
    table: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax:
    """Softmax over the last axis, at most 65,536 values, of what the mask keeps; others give 0.

    `table[d]` is `exp(-scale of x * d)` times 65,536, rounded, for d in 0..255: `table[0]` is 65,536, and it
    never grows. `mask` broadcasts to `x`; a value equal to its zero point masks. For each row:

        top = max of x, where kept;  e = table[top - x], 0 where masked;  S = sum of e
        r = min(floor(m * 65536 / S), 2^31 - 1);  y = clamp(((e * r + 2^(s-1)) >> s) + zero point, low, high)

    with the one multiplier m and shift s of `rescale`: m / 2^(s - 16) is 1 / scale of y. Where S is 0, y is
    clamp(zero point).

    For int16 `x`, `table` holds two such tables, 512 values: `exp(-scale of x * d)` times 32,768, and
    `exp(-scale of x * 256 * d)` times 65,536. Then `e = (high[d >> 8] * low[d & 255] + 2^14) >> 15`. The mask
    and y are uint8.
    """

    x: int
    mask: int | None = None
    y: int
    table: tuple[int, ...]
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm:
    """`gain * (x - mean) / sqrt(variance + epsilon) + offset` over the last axis, n <= 32,768 values.

    For each row, in 64-bit integers:

        c = x - zx;  A = sum c;  Q = sum c^2;  D = n * Q - A^2 + epsilon
        k = the even number that brings D * 2^k into [2^60, 2^62);  root = floor(sqrt(D * 2^k))
        r = min(floor(2^61 / root), 2^31 - 1);  h = 46 - k / 2
        T = ((n * c - A) * r + 2^(h-1)) >> h, the normalized value times 2^15
        y = clamp(((T * gain + offset + 2^(s-1)) >> s) + zero point, low, high)

    Attributes:
        gain: (n,) int32: gain / scale of y * 2^(s - 15).
        offset: (n,), below 2^55 in magnitude: offset / scale of y * 2^s.
        epsilon: round(n^2 * epsilon / scale of x^2), in 1..2^46; for int16 x, in 1..2^60.
        rescale: Its shift is s; its multiplier is 1, and not used.
    """

    x: int
    y: int
    gain: tuple[int, ...]
    offset: tuple[int, ...]
    epsilon: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat:
    """`inputs`, one behind the other along `axis`. Same grid."""

    y: int
    axis: int
    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Every `steps[i]`-th value from `starts[i]` along each axis; the shape of y says where it ends.

    Same grid. Steps are at least 1.
    """

    x: int
    y: int
    starts: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """An image (H, W, C) in another size; nearest has fractions of 0, bilinear others.

    The accumulator is the sum of `(x - zx) * row weight * column weight` over the four values; the multiplier
    holds 2^-22.
    """

    x: int
    y: int
    rows: Interpolation
    columns: Interpolation
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Rows of a table: x is an int64 input (...,), `weight` int8 (rows, C), y (..., C).

    The accumulator is `weight[x]`; `rescale` has one multiplier and shift, or one for each of the C channels.
    An index outside 0..rows-1 is the caller's ValueError.
    """

    x: int
    y: int
    weight: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class TransposedConvolution:
    """The transpose of a convolution, ONNX's ConvTranspose, along 1 to 3 axes.

    x is (spatial..., C), y (spatial..., O); `weight` is (C, O / groups, kernel...), `weight_bits` and `bias`
    as in Convolution. Each x adds `(x - zx) * weight` to the outputs at
    `position * stride + tap * dilation - padding`. `extra` is ONNX's `output_padding`, per axis less than the
    stride or the dilation.
    """

    x: int
    y: int
    weight: int
    weight_bits: int = 8
    bias: int | None = None
    window: Window
    extra: tuple[int, ...]
    groups: int = 1
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Values that are the same for every sample: y's bytes are those of range `weight`, row-major."""

    y: int
    weight: int


Op: TypeAlias = (
    Quantize
    | Dequantize
    | Convolution
    | FullyConnected
    | MaxPool
    | AveragePool
    | Add
    | Requantize
    | Transpose
    | Reshape
    | MatMul
    | Multiply
    | Lookup
    | Softmax
    | LayerNorm
    | Concat
    | Slice
    | Resize
    | Embedding
    | TransposedConvolution
    | Constant
)
# The number of a kind is its place in this tuple plus one. Append only.
OP_KINDS: tuple[type[Op], ...] = (
    Quantize,
    Dequantize,
    Convolution,
    FullyConnected,
    MaxPool,
    AveragePool,
    Add,
    Requantize,
    Transpose,
    Reshape,
    MatMul,
    Multiply,
    Lookup,
    Softmax,
    LayerNorm,
    Concat,
    Slice,
    Resize,
    Embedding,
    TransposedConvolution,
    Constant,
)


def tensor_inputs(op: Op) -> tuple[int, ...]:
    """Numbers of the tensors that `op` reads."""
    match op:
        case Add() | MatMul() | Multiply():
            return (op.a, op.b)
        case Softmax(mask=int(mask)):
            return (op.x, mask)
        case Concat():
            return op.inputs
        case Constant():
            return ()
    return (op.x,)
