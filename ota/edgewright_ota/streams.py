"""Two releases on a fleet: is the new one worse? Asked after every device, with one chance of a false alarm.

One device, one number: a device that reports often is one device all the same, and its reports resemble one
another. So what it reported is brought to one number first (`device_medians`, or whether it failed at all).

The chance holds where a device's number is fixed once it is counted, all devices had the same exposure before
(so many hours, so many calls), and when a device is counted has nothing to do with its number. It does not
where failing devices report first, or where one release's devices had more time to fail: then many equal
releases are called worse.

Both comparisons bet against "B exceeds A by `d` at most" with the stakes of both streams at once: for each
value m that A may have, a bet that A is below m times a bet that B is above m + d. One of these m is the
truth, where the product is a fair or losing bet, so the least of the products is evidence. After Turner, Ly,
Grünwald 2024, "Generic e-variables for exact sequential k-sample tests"; here the two may grow in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgewright_ota.sequential import MeanSequence, MedianSequence

GRID = 200  # places where A's value may lie; between two of them the lower evidence of both counts
HALVINGS = 24

StreamVerdict = Literal["worse", "not worse", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamComparison:
    """What two streams say of B against A.

    Attributes:
        verdict: "worse": more than the margin; "not worse": surely within it; or "cannot tell" yet.
        difference: Found: a difference of rates, or the ratio of medians less 1.
        interval: Confidence sequence of it.
        margin: What was allowed.
        count_a: Devices heard of A.
        count_b: Of B.
    """

    verdict: StreamVerdict
    difference: float
    interval: tuple[float, float]
    margin: float
    count_a: int
    count_b: int


def compare_rates(
    a: MeanSequence, b: MeanSequence, *, margin: float = 0.0, alpha: float = 0.05
) -> StreamComparison:
    """Compares failure rates, B's less A's.

    Args:
        a: Of the release in use: one 0 or 1 for each device.
        b: Of the new one.
        margin: How much higher B's rate may be, 0..1.
        alpha: Chance that the interval ever misses, over all looks together.

    Raises:
        ValueError: The values differ, or the margin or alpha is out of range.
    """
    if a.values != b.values:
        raise ValueError(f"values {a.values} and {b.values}: must be the same")
    low, high = a.values[0], a.values[-1]
    width = high - low
    if not 0 <= margin < width:
        raise ValueError(f"margin is {margin}; it must be at least 0 and below {width:g}")
    _check(alpha)
    marks = [np.linspace(low, high, GRID + 1)]
    for stream in (a, b):
        if stream.count:  # where the values probably are, the places are close
            near = width / math.sqrt(stream.count) * np.linspace(-3, 3, GRID + 1) ** 3 / 9
            marks.append(np.clip(stream.mean + near, low, high))
    places = np.unique(np.concatenate(marks))
    ends = (-width, width)
    interval = (_lower_end(a, b, places, ends, alpha / 2), -_lower_end(b, a, places, ends, alpha / 2))
    return _judged(b.mean - a.mean, interval, margin, a.count, b.count)


def compare_medians(
    a: MedianSequence, b: MedianSequence, *, margin: float = 0.0, alpha: float = 0.05
) -> StreamComparison:
    """Compares medians of what is above zero, such as latencies, as B's over A's less 1.

    Args:
        a: Of the release in use: the natural logarithm of one number for each device.
        b: Of the new one.
        margin: How much more B's may be: 0.05 is 5 %.
        alpha: Chance that the interval ever misses, over all looks together.

    Raises:
        ValueError: The margin or alpha is out of range.
    """
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin is {margin}; it must be 0 or more")
    _check(alpha)
    if not a.count or not b.count:
        return _judged(math.nan, (-1.0, math.inf), margin, a.count, b.count)
    shares = np.linspace(0, 1, GRID + 1)
    marks = [np.quantile(stream.sorted, shares, method="nearest") for stream in (a, b)]
    places = np.unique(np.concatenate([[-math.inf, math.inf], *marks]))
    width = max(a.sorted[-1], b.sorted[-1]) - min(a.sorted[0], b.sorted[0]) + 1e-9
    ends = (-width, width)
    low, high = (_lower_end(a, b, places, ends, alpha / 2), -_lower_end(b, a, places, ends, alpha / 2))
    interval = (-1.0 if low <= -width else math.expm1(low), math.inf if high >= width else math.expm1(high))
    return _judged(math.expm1(b.median - a.median), interval, margin, a.count, b.count)


def device_medians(reports: Iterable[tuple[str, float]]) -> dict[str, float]:
    """One number for each device of its reports: the median of their natural logarithms.

    Args:
        reports: Device and measurement, above zero, such as milliseconds; a device may come often.

    Raises:
        ValueError: A measurement is not above zero.
    """
    found: dict[str, list[float]] = {}
    for device, value in reports:
        if not 0 < value < math.inf:
            raise ValueError(f"device {device}: {value} is not a measurement above zero")
        found.setdefault(device, []).append(math.log(value))
    return {device: float(np.median(values)) for device, values in found.items()}


def device_failures(reports: Iterable[tuple[str, bool]]) -> dict[str, bool]:
    """One number for each device of its reports: whether any of them was a failure."""
    found: dict[str, bool] = {}
    for device, failed in reports:
        found[device] = found.get(device, False) or failed
    return found


def _check(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 and 1")


def _lower_end(
    a: MeanSequence | MedianSequence,
    b: MeanSequence | MedianSequence,
    places: npt.NDArray[np.float64],
    ends: tuple[float, float],
    alpha: float,
) -> float:
    """The largest difference, B's value less A's, that is surely exceeded; the lower end if none is.

    Args:
        a: One stream.
        b: The other.
        places: Rising; between the first and the last lies any value that A can have.
        ends: Lowest and highest difference looked at.
        alpha: Chance that it ever says too much.
    """
    needed = math.log(1 / alpha)
    a_below = a.log_evidence(places, above=False)

    def surely_more(d: float) -> bool:
        there = np.clip(places + d, places[0], places[-1])
        # A in places[i]..places[i + 1]: A's bet has won as much as at the lower end, B's as at the upper one.
        least = a_below[:-1] + b.log_evidence(there[1:], above=True)
        possible = places[1:] + d >= places[0]  # else B would have to be below all that it can be
        return bool((least[possible] >= needed).all())

    low, high = ends
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if surely_more(middle) else (low, middle)
    return low


def _judged(
    difference: float, interval: tuple[float, float], margin: float, count_a: int, count_b: int
) -> StreamComparison:
    verdict: StreamVerdict = "cannot tell"
    if interval[0] > margin:
        verdict = "worse"
    elif interval[1] <= margin:
        verdict = "not worse"
    return StreamComparison(
        verdict=verdict,
        difference=difference,
        interval=interval,
        margin=margin,
        count_a=count_a,
        count_b=count_b,
    )
