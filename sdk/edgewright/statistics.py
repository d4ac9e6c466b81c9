"""The few statistics that verification states its findings with."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054


def sqnr_db(reference: npt.ArrayLike, value: npt.ArrayLike) -> float:
    """Signal to quantization noise ratio in dB: `10 log10(sum(r^2) / sum((r - v)^2))`.

    It is inf when all values are equal, and nan when one is.
    """
    r, v = np.asarray(reference, np.float64), np.asarray(value, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        noise, signal = float(np.sum((r - v) ** 2)), float(np.sum(r**2))
    if noise == 0:
        return math.inf
    if math.isnan(noise) or math.isnan(signal):
        return math.nan
    if math.isinf(noise):
        return -math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def wilson_interval(hits: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Confidence interval of a rate, 95 % by default (Wilson 1927, without continuity correction).

    Raises:
        ValueError: `count` is not positive, or `hits` is not in 0..count.
    """
    if count <= 0 or not 0 <= hits <= count:
        raise ValueError(f"{hits} of {count} is not a rate")
    rate = hits / count
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    # At the ends it is exact; rounding would leave the rate a hair outside.
    return (center - half if hits else 0.0), (center + half if hits < count else 1.0)
