"""Changes of scale as integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright_kernels.plan import Rescale

REMEDY = "ONNX Runtime can run it: export with backend='onnxruntime'"


def describe(node: onnx.NodeProto) -> str:
    """A node in an error message."""
    return f"operator {node.op_type} (node {node.name or node.output[0]!r})"


def rescale_of(
    node: onnx.NodeProto,
    factors: npt.NDArray[np.float64] | Sequence[float],
    low: int,
    high: int,
    *,
    same_shift: bool = False,
) -> Rescale:
    """`rescale`, its error about this node."""
    try:
        return rescale(factors, low=low, high=high, same_shift=same_shift)
    except ExportError as error:
        raise ExportError(
            f"{describe(node)}: {error}; its output hardly moves on the calibration data: is it enough, and "
            "is the model trained?"
        ) from None


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
