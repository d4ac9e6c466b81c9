"""The scale of each output channel of a layer's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.calibrate import LEAST_SCALE, Grid
from edgewright.int4 import best_scale
from edgewright.lower.scales import short_factors
from edgewright.overflow import OverflowSafe, safe_scale

# A base's grid is kept while it still fits: at most this share of its range may be overshot (and is clipped),
# and at least this share must be in use.
BASE_OVERSHOOT = 0.02
BASE_USE = 0.7

# An update's scales follow its channels where integers would else move by so many steps, root mean square.
FOLLOWED_DRIFT = 0.25

# Layers with so few terms to an output spend a good part of their time on the change of scale behind it;
# their weight scales are chosen so that it has a short multiplier.
SHORT_TERMS = 256


def least_scale(bias: npt.NDArray[np.float64], input_scale: float) -> npt.NDArray[np.float64]:
    """The finest steps of weights at which a bias, on the grid of input and weight, fits 32 bits."""
    # The second bound keeps input_scale * scale, the bias's grid, far from underflow.
    return np.maximum(np.abs(bias) / (input_scale * 2.0**29), LEAST_SCALE / min(input_scale, 1.0))


def weight_scale(
    weight: npt.NDArray[Any],
    bias: npt.NDArray[np.float64],
    grid: Grid,
    result: Grid,
    safe: OverflowSafe,
    old: npt.NDArray[np.float32] | None,
    integers: npt.NDArray[np.int8] | None = None,
    *,
    four: bool = False,
) -> tuple[npt.NDArray[np.float32], int]:
    """Chooses one scale per output channel; large enough that bias and accumulator stay within 32 bits.

    Args:
        weight: (O, C) or (O, C, spatial...).
        bias: (O,).
        grid: Of the layer's input.
        result: Of its output.
        safe: Which products must add up within 16 bits.
        old: Scales of the artifact now on the devices, which are kept where they still fit.
        integers: Those on the old scales, of the weight's shape: the scale of a channel that grew or shrank
            as a whole follows it, so that its integers need not.
        four: Whether the weights have 4 bits.

    Returns:
        Scales (O,), and how many of them are old.
    """
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    least = least_scale(bias, grid.scale)
    if four:
        fresh = best_scale(weight, least)
    else:
        fresh = safe_scale(weight, np.maximum(largest / 127, least).astype(np.float32), safe)
    step = result.scale / grid.scale
    if weight[0].size <= SHORT_TERMS and grid.dtype == result.dtype == "uint8":
        fresh = (short_factors(fresh.astype(np.float64) / step) * step).astype(np.float32)
    if old is None or old.shape != fresh.shape:
        return fresh, 0
    if integers is not None and integers.shape == weight.shape:
        old = _followed(weight, old, integers)
        if weight[0].size <= SHORT_TERMS and grid.dtype == result.dtype == "uint8":
            old = (short_factors(old.astype(np.float64) / step) * step).astype(np.float32)
    ratio = fresh / old
    keep = (ratio <= 1 + BASE_OVERSHOOT) & (ratio >= BASE_USE) & (old >= least)
    return np.where(keep, old, fresh).astype(np.float32), int(keep.sum())


def _followed(
    weight: npt.NDArray[Any], old: npt.NDArray[np.float32], integers: npt.NDArray[np.int8]
) -> npt.NDArray[np.float32]:
    """Old scales times what their channels grew by, by least squares; where that moves integers at all."""
    new, before = (x.reshape(len(x), -1).astype(np.float64) for x in (weight, integers))
    power = np.square(before).sum(axis=1)
    factor = (new * before).sum(axis=1) / np.maximum(power, 1) / old
    drift = np.abs(factor - 1) * np.sqrt(power / before.shape[1])  # in steps
    follow = (drift > FOLLOWED_DRIFT) & (factor > 0.5) & (factor < 2)
    return np.where(follow, old * factor, old).astype(np.float32)
