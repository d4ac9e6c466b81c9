"""What operators share: a window, the way out of the accumulators, interpolation along one axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Int32Array: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a convolution or a pool looks, along 1 to 3 spatial axes.

    Attributes:
        kernel: One size per axis.
        stride: One per axis; left out, all are 1.
        padding: All the befores, then all the afters; left out, none. For images: (top, left, bottom, right).
        dilation: One per axis; left out, all are 1.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Fills in what was left out.

        Raises:
            ValueError: The parts differ in their number of axes.
        """
        axes = len(self.kernel)
        object.__setattr__(self, "stride", self.stride or (1,) * axes)
        object.__setattr__(self, "padding", self.padding or (0,) * 2 * axes)
        object.__setattr__(self, "dilation", self.dilation or (1,) * axes)
        if (len(self.stride), len(self.padding), len(self.dilation)) != (axes, 2 * axes, axes):
            raise ValueError(
                f"a window over {axes} axes has as many strides and dilations, and twice the padding"
            )

    @property
    def span(self) -> tuple[int, ...]:
        """How far the window reaches along each axis, from its first tap to its last."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def taps(self) -> int:
        """Values under the window, in one channel."""
        return math.prod(self.kernel)

    def output_size(self, *size: int) -> tuple[int, ...]:
        """Spatial sizes of the result for spatial sizes of the input; the floor rule of ONNX and PyTorch."""
        axes = len(self.kernel)
        padded = (n + self.padding[i] + self.padding[axes + i] for i, n in enumerate(size))
        return tuple((n - s) // step + 1 for n, s, step in zip(padded, self.span, self.stride, strict=True))

    def transposed_size(self, extra: tuple[int, ...], *size: int) -> tuple[int, ...]:
        """Spatial sizes that a transposed convolution gives; `extra` is ONNX's `output_padding`."""
        axes = len(self.kernel)
        return tuple(
            self.stride[i] * (n - 1) + extra[i] + self.span[i] - self.padding[i] - self.padding[axes + i]
            for i, n in enumerate(size)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rescale:
    """How accumulators become results: `clamp(requantize(acc, multiplier, shift) + zero_point, low, high)`.

    Attributes:
        multiplier: int32 (C,), >= 0.
        shift: int32 (C,), in 1..62.
        low: Lower clamp; a fused ReLU raises it to the zero point. Within y's dtype, as is the upper clamp.
        high: Upper clamp.
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
class Interpolation:
    """Which two inputs each output takes along one axis: `first` and `second`, at most 2^20 of each.

    They weigh 2048 - `fraction` and `fraction`, in 0..2048.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    fraction: tuple[int, ...]
