"""The integer program as frozen data: what a plan means.

A program is a straight list of operators over tensors that lie in one arena. It describes ONE sample: the
batch is a loop around it. Weights are not in it; it points at byte ranges of `weights.safetensors`. plan.py
reads and writes it as `plan.bin`, check.py holds its rules, reference.py runs it.

Conventions
    * Activations are uint8 with a scale and a zero point; weights int8, symmetric, in [-127, 127]; biases and
      accumulators int32.
    * 3-D activations lie as (H, W, C). Float32 tensors at the borders lie as the model has them, (C, H, W).
      `Quantize`, `Dequantize` and `Flatten` change the order; nothing else does.
    * One requantization rule: `requantize` in reference.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

ARENA_ALIGNMENT = 64  # bytes

DType: TypeAlias = Literal["float32", "uint8"]
Int32Array: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A value of one sample.

    Attributes:
        name: Unique in the plan; inputs and outputs are known by it.
        dtype: float32 at the borders, uint8 inside.
        shape: Without the batch. (H, W, C) or (features,) for uint8; as the model has it for float32.
        scale: `real = scale * (q - zero_point)`; 0.0 for float32.
        zero_point: In 0..255; 0 for float32.
        offset: Where it lies in the arena, bytes, a multiple of 64.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0
    offset: int = 0

    @property
    def elements(self) -> int:
        """Number of elements in one sample."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes one sample takes."""
        return self.elements * (4 if self.dtype == "float32" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A stretch of `weights.safetensors`, counted from the start of the file."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a convolution or a pool looks: (height, width) each; padding is (top, left, bottom, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result, with the floor rule of ONNX and PyTorch."""
        top, left, bottom, right = self.padding
        span_h = self.dilation[0] * (self.kernel[0] - 1) + 1
        span_w = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (
            (height + top + bottom - span_h) // self.stride[0] + 1,
            (width + left + right - span_w) // self.stride[1] + 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale:
    """`(acc * multiplier + 2^(shift-1)) >> shift`, then the output's zero point, then a clamp to [low, high].

    One multiplier and shift per output channel, or one for all.

    Attributes:
        multiplier: int32, shape (channels,) or (1,), not negative.
        shift: int32, the same shape, each in 1..62.
        low: Lower clamp in output integers, 0..255; a fused ReLU is `low = zero point`.
        high: Upper clamp, low..255.
    """

    multiplier: Int32Array
    shift: Int32Array
    low: int = 0
    high: int = 255

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Rescale)
            and (self.low, self.high) == (other.low, other.high)
            and np.array_equal(self.multiplier, other.multiplier)
            and np.array_equal(self.shift, other.shift)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Float32 `x` to uint8 `y`: `clamp(round_half_even(x / scale) + zero_point)`.

    (C, H, W) becomes (H, W, C). NaN becomes the zero point. The division is one IEEE float32 division.
    """

    x: int
    y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantize:
    """uint8 `x` to float32 `y`: `float32(x - zero_point) * scale`; (H, W, C) becomes (C, H, W)."""

    x: int
    y: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2d:
    """2-D convolution; `weight` is int8 OIHW, `bias` int32 (O,); padding has the value `zero point of x`.

    `groups` is 1, or the number of input channels with as many outputs (depthwise).
    """

    x: int
    y: int
    weight: int
    bias: int | None
    window: Window
    groups: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class FullyConnected:
    """`y = x @ weight.T + bias`; `x` is 1-D, `weight` int8 (O, I), `bias` int32 (O,)."""

    x: int
    y: int
    weight: int
    bias: int | None
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool:
    """Largest value under the window; padding never wins. `x` and `y` share scale and zero point."""

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

    `rescale.multiplier` is (ma, mb), `rescale.shift` (s, s).
    """

    a: int
    b: int
    y: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantize:
    """`y` is `x` on another scale, clamped: a ReLU, a clip, or a change of scale that could not be fused."""

    x: int
    y: int
    rescale: Rescale


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten:
    """(H, W, C) to (C * H * W,), in the order (C, H, W), as ONNX and PyTorch flatten."""

    x: int
    y: int


Op: TypeAlias = (
    Quantize | Dequantize | Conv2d | FullyConnected | MaxPool | AveragePool | Add | Requantize | Flatten
)
# The number of a kind is its place in this tuple plus one. Append only.
OP_KINDS: tuple[type[Op], ...] = (
    Quantize,
    Dequantize,
    Conv2d,
    FullyConnected,
    MaxPool,
    AveragePool,
    Add,
    Requantize,
    Flatten,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An integer program for one sample.

    Attributes:
        tensors: Every value, in the order of its number.
        ranges: Byte ranges of the weights file; operators refer to them by number.
        ops: In the order they run.
        inputs: Tensor numbers, float32.
        outputs: Tensor numbers, float32.
        arena_bytes: Size of the one working memory.
        weights_bytes: Exact size of the weights file this plan was made for.
    """

    tensors: tuple[Tensor, ...]
    ranges: tuple[ByteRange, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arena_bytes: int
    weights_bytes: int


def tensor_inputs(op: Op) -> tuple[int, ...]:
    """Numbers of the tensors that `op` reads."""
    return (op.a, op.b) if isinstance(op, Add) else (op.x,)
