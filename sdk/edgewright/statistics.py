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


def paired_interval(gained: int, lost: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """Confidence interval of the difference of two rates that were found on the same samples.

    It is the score interval of Tango 1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design": it keeps its level where few pairs differ, or none.

    Args:
        gained: Samples that only the second has right.
        lost: Samples that only the first has right.
        count: All samples.
        z: 1.96 for 95 %.

    Returns:
        Lowest and highest `second - first`, in -1..1.

    Raises:
        ValueError: The numbers are not counts of one sample.
    """
    if min(gained, lost) < 0 or count <= 0 or gained + lost > count:
        raise ValueError(f"{gained} gained and {lost} lost of {count} are not counts of one sample")

    def score(difference: float) -> float:
        a = 2 * count
        b = -gained - lost + (2 * count - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # chance of `lost`, given the difference
        variance = count * (2 * q + difference * (1 - difference))
        distance = gained - lost - count * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    found = (gained - lost) / count

    def crossing(end: float, level: float) -> float:
        inside, outside = found, end
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(score(middle)) < level:
                inside = middle
            else:
                outside = middle
        return inside

    return crossing(-1.0, z), crossing(1.0, z)


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided chance of pairs that differ so unevenly, were both rates equal (McNemar 1947, exact)."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << changed))
