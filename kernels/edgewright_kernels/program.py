"""The integer program as frozen data: what a plan means.

A program is a straight list of operators (operators.py) over tensors that lie in one arena. It describes ONE
sample: the batch is a loop around it. Weights are not in it; it points at ranges of `weights.safetensors`.
plan.py reads and writes it as `plan.bin`, check.py holds its rules, reference.py runs it.

Conventions
    * Activations are uint8 with a scale and a zero point, or int16 with a scale; weights int8 or int4,
      symmetric, in [-127, 127] or [-7, 7]; biases and accumulators int32. Where the two kinds of activations
      may meet, rules.py says.
    * A tensor has 1 to 6 axes and lies row-major. Where an operator looks at an image, the spatial axes come
      first and the channels last: (W, C), (H, W, C) or (D, H, W, C).
    * "Same grid": x and y share scale and zero point, so no arithmetic is done.
    * `b` broadcasts to `a`: numpy's rule, and the result has the shape of `a`.
    * One requantization rule: `requantize` in reference.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgewright_kernels.operators import Op

ARENA_ALIGNMENT = 64  # bytes

DType: TypeAlias = Literal["float32", "uint8", "int64", "int16"]

_ITEM_BYTES: dict[DType, int] = {"float32": 4, "uint8": 1, "int64": 8, "int16": 2}
# The lowest and the highest integer of what lies inside.
LIMITS: dict[DType, tuple[int, int]] = {"uint8": (0, 255), "int16": (-(1 << 15), (1 << 15) - 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A value of one sample.

    Attributes:
        name: Unique in the plan; inputs and outputs are known by it.
        dtype: uint8 or int16 inside; float32 at the borders, or int64 for an input that holds indices.
        shape: Without the batch.
        scale: `real = scale * (q - zero_point)`; 0.0 at the borders.
        zero_point: In 0..255; 0 at the borders, and of int16.
        offset: Where it lies in the arena, bytes, a multiple of 64; 0 at the borders.
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
    def is_inside(self) -> bool:
        """Whether it lies in the arena, on a grid."""
        return self.dtype in LIMITS

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest integer of a tensor inside."""
        return LIMITS[self.dtype]

    @property
    def size_bytes(self) -> int:
        """Bytes one sample takes."""
        return self.elements * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A stretch of `weights.safetensors`, counted from the start of the file."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An integer program for one sample.

    Attributes:
        tensors: Every value, in the order of its number.
        ranges: Byte ranges of the weights file; operators refer to them by number.
        ops: In the order they run.
        inputs: Tensor numbers, float32 or int64.
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
