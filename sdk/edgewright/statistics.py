"""The few statistics that verification states its findings with."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054
_NORMAL = NormalDist()


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

    found = (gained - lost) / count

    def crossing(end: float, level: float) -> float:
        inside, outside = found, end
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(paired_score(gained, lost, count, middle)) < level:
                inside = middle
            else:
                outside = middle
        return inside

    return crossing(-1.0, z), crossing(1.0, z)


def paired_score(gained: int, lost: int, count: int, difference: float) -> float:
    """How many standard errors the difference that was found lies above another one (Tango 1998).

    Args:
        gained: Samples that only the second has right.
        lost: Samples that only the first has right.
        count: All samples.
        difference: The other one, `second - first`, -1..1.
    """
    variance = count * _null_variance(gained / count, lost / count, difference)
    distance = gained - lost - count * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _null_variance(gained: float, lost: float, difference: float) -> float:
    """Of one sample's difference, given the shares found and that the true difference is `difference`."""
    b = -gained - lost + (2 - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    q = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4  # chance of `lost`, most likely one
    return 2 * q + difference * (1 - difference)


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided chance of pairs that differ so unevenly, were both rates equal (McNemar 1947, exact)."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << changed))


def equivalence_p(gained: int, lost: int, count: int, margin: float) -> float:
    """Chance of a difference so near none, were the true one `margin` or more either way (TOST).

    Two one-sided score tests, the worse of them (Schuirmann 1987; Tango 1998 for pairs). Below 0.05 the two
    are equivalent within the margin, just when the 90 % interval lies within it.

    Raises:
        ValueError: The margin is not in 0..1, or the numbers are not counts of one sample.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin is {margin}; it must be between 0 and 1")
    if min(gained, lost) < 0 or count <= 0 or gained + lost > count:
        raise ValueError(f"{gained} gained and {lost} lost of {count} are not counts of one sample")
    above_low = paired_score(gained, lost, count, -margin)
    below_high = -paired_score(gained, lost, count, margin)
    return 1 - _NORMAL.cdf(min(above_low, below_high))


def cases_for_rate(hits: int, count: int, bound: float, *, power: float = 0.8, z: float = Z_95) -> int | None:
    """How many cases in all it takes to tell on which side of a bound a rate is.

    The rate is taken to be the one found so far (with half a hit more, of one case more, so that none found
    is not taken for none there). Then the score interval of so many cases (Wilson) lies on one side of the
    bound with the chance `power` (Fleiss, Levin, Paik 2003, section 2.5).

    Args:
        hits: Found so far.
        count: Cases so far.
        bound: 0..1.
        power: 0..1.
        z: Of the interval: 1.96 for 95 %.

    Returns:
        None where the rate found is the bound, so that no number would do.

    Raises:
        ValueError: The numbers are not a rate, a bound, or a power.
    """
    if count <= 0 or not 0 <= hits <= count or not 0 < bound < 1 or not 0 < power < 1:
        raise ValueError(f"{hits} of {count} against {bound} with power {power} cannot be planned")
    rate = (hits + 0.5) / (count + 1)
    spread = z * math.sqrt(bound * (1 - bound)) + _NORMAL.inv_cdf(power) * math.sqrt(rate * (1 - rate))
    return _squared(spread / abs(bound - rate)) if rate != bound else None


def cases_for_difference(
    gained: int, lost: int, count: int, margin: float, *, power: float = 0.8, z: float = Z_95
) -> int | None:
    """How many labelled cases in all it takes to tell whether less than `margin` of accuracy was lost.

    Accuracy and the share of cases that only one has right are taken to be as found so far, with half a case
    more each way (Nam 1997, "Establishing equivalence of two treatments and sample size requirements in
    matched-pairs design").

    Args:
        gained: Samples that only the second has right, so far.
        lost: Samples that only the first has right.
        count: All samples so far.
        margin: 0..1.
        power: 0..1.
        z: Of the interval: 1.96 for 95 %.

    Returns:
        None where the loss found is the margin, so that no number would do.

    Raises:
        ValueError: The numbers are not counts of one sample, a margin, or a power.
    """
    if (
        min(gained, lost) < 0
        or count <= 0
        or gained + lost > count
        or not 0 < margin < 1
        or not 0 < power < 1
    ):
        raise ValueError(f"{gained} gained and {lost} lost of {count}, margin {margin}: cannot be planned")
    more, less = (gained + 0.5) / (count + 1), (lost + 0.5) / (count + 1)
    distance = margin + more - less
    here = math.sqrt(max(more + less - (more - less) ** 2, 0.0))
    spread = z * math.sqrt(_null_variance(more, less, -margin)) + _NORMAL.inv_cdf(power) * here
    return _squared(spread / abs(distance)) if distance else None


def _squared(x: float) -> int | None:
    return math.ceil(x * x) if x < 1e5 else None
