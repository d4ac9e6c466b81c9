"""Changes of scale as integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import ExportError
from edgewright_kernels.plan import Rescale

# A factor this near to a multiple of 2^-15 is taken for just that: the float32 scales that it was made of
# tell no more. Engines have a faster way for such short multipliers.
SHORT_SHIFT = 15
SHORT_TOLERANCE = 2.0**-22
LEAST_SHORT = 8

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
    is below 2^-31; a factor below 1 that is within 2^-22 of a multiple of 2^-15 becomes that. With
    `same_shift` all factors share the shift of the largest.

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
    if same_shift:
        shift = np.full_like(shift, shift.min())
        multiplier = np.rint(np.ldexp(values, shift))
    else:
        exact = np.ldexp(values, SHORT_SHIFT)
        near = np.rint(exact)
        short = (near < 2**SHORT_SHIFT) & (np.abs(exact - near) <= near * SHORT_TOLERANCE)
        multiplier, shift = np.where(short, near, multiplier), np.where(short, SHORT_SHIFT, shift)
    return Rescale(multiplier=multiplier.astype(np.int32), shift=shift.astype(np.int32), low=low, high=high)


def short_factors(factors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The least factors with short multipliers, 8 or more, that are not below these; 1 and more stay.

    A layer whose weight scales are raised by so little loses next to nothing: its results are rounded to
    whole steps anyway, and with a multiplier of 8 the rounding of 256 weights moves one by less than a tenth.
    """
    whole = np.maximum(np.ceil(np.ldexp(factors, SHORT_SHIFT) * (1 - SHORT_TOLERANCE)), LEAST_SHORT)
    return np.where(whole < 2**SHORT_SHIFT, np.ldexp(whole, -SHORT_SHIFT), factors)
