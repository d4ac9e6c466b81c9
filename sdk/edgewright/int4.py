"""Weights of 4 bits: which can be, their steps, and how they are stored.

Integers lie in [-7, 7]. Two share a byte, the first in the low half: so ONNX stores INT4, and so the integer
program takes them where each output has an even number of terms. Those bytes are kept once, for both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

INT4: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)
MOST = 7
IR_VERSION = 10  # of ONNX, the first with INT4
CLIPPED = np.linspace(1.0, 0.4, 25)  # parts of the largest weight that steps are tried for

Floats = npt.NDArray[np.float64]


def possible(op_type: str, shape: tuple[int, ...]) -> bool:
    """Whether weights (O, C, spatial...) can have 4 bits: not depthwise ones, nor those of odd size."""
    return op_type in {"Conv", "Gemm", "MatMul"} and shape[1] > 1 and math.prod(shape[1:]) % 2 == 0


def best_scale(weight: npt.NDArray[Any], least: Floats) -> npt.NDArray[np.float32]:
    """Scales (O,) of least squared error; the largest weights may be clipped for it.

    Args:
        weight: (O, C) or (O, C, spatial...).
        least: (O,), what each must be at least.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1) / MOST
    best, errors = np.maximum(largest, least), np.full(len(rows), np.inf)
    for part in CLIPPED:
        scale = np.maximum(largest * part, least)
        steps = np.clip(np.rint(rows / scale[:, None]), -MOST, MOST)
        error = np.square(rows - steps * scale[:, None]).sum(axis=1)
        best, errors = np.where(error < errors, scale, best), np.minimum(error, errors)
    result: npt.NDArray[np.float32] = best.astype(np.float32)
    return result


def packed(integers: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Bytes (O, terms / 2) of integers (O, ...)."""
    halves = integers.reshape(len(integers), -1).astype(np.int8).view(np.uint8) & 15
    return np.asarray(halves[:, ::2] | halves[:, 1::2] << 4, np.uint8)


def unpacked(data: npt.NDArray[np.uint8], terms: int) -> npt.NDArray[np.int8]:
    """Integers (O, terms) of the bytes (O, ceil(terms / 2)) that a program has."""
    halves = np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)[:, :terms]
    return (halves.astype(np.int8) ^ 8) - np.int8(8)
