"""Narrow kernels: 8-bit kernels of other runtimes that add products in fewer bits than the sum may need.

Which two products meet in 16 bits was found by experiment, with weights that are zero but for two, for
every two (ONNX Runtime 1.32.0, OpenVINO 2026.4.1, with AVX2 and with AVX-512 without VNNI), and agrees with
what the projects say. OpenVINO has several kernels for convolutions with groups or of one channel, chosen by
more than the instruction set; any two terms of an output are expected to meet there.

    * vpmaddubsw adds two products u8 x s8 and saturates at 16 bits (Intel's Software Developer's Manual,
      volume 2B). ONNX Runtime turns int8 activations of QDQ graphs into uint8 by adding 128, so s8s8 is u8s8
      to it, with most values above 128 (its documentation, "Quantize ONNX models", recommends reduce_range or
      U8U8; pull request 12088 has x64quantprecision). With VNNI, vpdpbusd adds in 32 bits.
    * oneDNN says the same of itself ("Nuances of int8 computations"); OpenVINO's CPU plugin runs on it.
    * Without dot products, ONNX Runtime's ARM kernels added two products s8 x s8 by smull and smlal, which
      wraps where both are -128 x -128 (issue 31573, mended by pull request 32057 in August 2026). TensorFlow
      Lite keeps weights within [-127, 127] (its quantization specification), of which no two products wrap.

Exact everywhere, by the same experiments or by their source: uint8 weights, depthwise convolutions, products
of two activations, WebAssembly in ONNX Runtime, XNNPACK, and Edgewright's own engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Meeting = Literal["neighbours", "neighbours of a position", "eight apart"]

LOW, HIGH = -(2**15), 2**15 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How one runtime multiplies 8-bit matrices and convolutions, where it adds two products in 16 bits.

    Attributes:
        runtime: Its name.
        name: The kernel, as its project calls it.
        instruction_sets: Where it is chosen.
        signed: Whether activations are multiplied as int8; else as uint8.
        wraps: Whether a sum beyond 16 bits wraps; else it saturates.
        meeting: Which terms of an output meet, in the order (kernel positions, channels): 2i and 2i + 1; the
            same counted anew at each position of a kernel; or of every sixteen i and i + 8.
        varies: Whether convolutions with groups or of one channel have other kernels, in which others meet.
        needs_output_grid: Whether a convolution of which the result is not quantized stays in floating point.
    """

    runtime: str
    name: str
    instruction_sets: tuple[str, ...]
    signed: bool
    wraps: bool
    meeting: Meeting
    varies: bool
    needs_output_grid: bool


ONNX_RUNTIME = Kernel(
    runtime="ONNX Runtime",
    name="MLAS u8s8 (vpmaddubsw)",
    instruction_sets=("AVX2", "AVX-512 without VNNI", "SSE4.1 on Windows"),
    signed=False,
    wraps=False,
    meeting="neighbours",
    varies=False,
    needs_output_grid=True,
)
OPENVINO = Kernel(
    runtime="OpenVINO",
    name="oneDNN u8s8 (vpmaddubsw)",
    instruction_sets=("SSE4.1", "AVX2", "AVX-512 without VNNI"),
    signed=False,
    wraps=False,
    meeting="neighbours of a position",
    varies=True,
    needs_output_grid=False,
)
ONNX_RUNTIME_ARM = Kernel(
    runtime="ONNX Runtime before pull request 32057",
    name="MLAS s8s8 (smull, smlal)",
    instruction_sets=("Armv8.0 NEON without dot products",),
    signed=True,
    wraps=True,
    meeting="eight apart",
    varies=False,
    needs_output_grid=True,
)
KERNELS = (ONNX_RUNTIME, OPENVINO, ONNX_RUNTIME_ARM)


def met(kernel: Kernel, shape: tuple[int, ...], groups: int) -> Integers:
    """Which terms of an output meet in 16 bits, (pairs, 2).

    Args:
        kernel: Of whom it is asked.
        shape: Of the weight, (O, C) or (O, C, positions...), C of one group.
        groups: Of the convolution.

    Returns:
        Numbers of terms as the weight lies in memory; the number of terms stands for none.
    """
    channels, positions = shape[1], math.prod(shape[2:])
    terms = channels * positions
    order = np.arange(terms).reshape(channels, positions).T
    if kernel.meeting == "neighbours of a position" and groups == 1:
        return _filled(order, 2, terms).reshape(-1, 2)
    line = _filled(order.reshape(1, -1), 16, terms)
    if kernel.meeting == "eight apart":
        line = line.reshape(-1, 2, 8).swapaxes(1, 2)
    pairs = line.reshape(-1, 2)
    return pairs[(pairs < terms).any(axis=1)]


def narrowed(kernel: Kernel, sums: Integers) -> Integers:
    """Sums of two products as the kernel keeps them."""
    if kernel.wraps:
        return (sums - LOW) % (HIGH - LOW + 1) + LOW
    return np.clip(sums, LOW, HIGH)


def _filled(rows: Integers, multiple: int, filler: int) -> Integers:
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % multiple)), constant_values=filler)
