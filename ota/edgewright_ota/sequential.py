"""Statistics that may be looked at after every number: confidence sequences by betting.

A confidence sequence is an interval for each sample size, all of which hold the truth at once with the chance
asked for. So one may look at any time, as often as one likes, and stop as soon as the answer is known; an
ordinary 95 % interval that is looked at after each of 1,000 numbers misses the truth far more often than 5 %.

Each bound is a bet against what it excludes. "The mean is at most m" makes `1 + c (x - m) / (m - low)` a fair
or losing factor for each number x, so the product of the factors, and a mixture of such products over several
c, exceeds `1 / alpha` at any time with a chance of `alpha` at most (Ville 1939). Nothing is assumed of the
distribution: no variance, no normality, no tails; and nothing of independence, only that what is claimed of
each number holds given those before it. The mixture is over a fixed set of stakes, so that counts are all
there is to keep. Sources: Howard, Ramdas, McAuliffe, Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic
confidence sequences"; Howard and Ramdas 2022, "Sequential estimation of quantiles with applications to A/B
testing"; Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting".
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

STAKES: npt.NDArray[np.float64] = 0.95 * 1.6 ** -np.arange(16.0)
"""Shares of the stake: geometric, from 0.95 to 0.0008, so that some one suits each size of difference."""
MOST_PLANNED = 1_000_000
STEPS = 60  # halvings; a bound is that exact, and rounded outwards


class MeanSequence:
    """The mean of numbers that take a few values only: failures (0 or 1), points won or lost (-1, 0, 1).

    Args:
        values: All that can come, rising.
        counts: How often each came so far.

    Raises:
        ValueError: Fewer than two values, or not rising; or counts that are none.
    """

    def __init__(self, values: Iterable[float] = (0.0, 1.0), counts: Iterable[int] | None = None) -> None:
        self.values = tuple(float(v) for v in values)
        self.counts = [0] * len(self.values) if counts is None else list(counts)
        if len(self.values) < 2 or any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ValueError(f"values {self.values}: two at least, rising")
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"values {self.values}: must be finite")
        if len(self.counts) != len(self.values) or not all(type(c) is int and c >= 0 for c in self.counts):
            raise ValueError(f"counts {self.counts}: one for each of {len(self.values)} values is needed")

    @property
    def count(self) -> int:
        """How many numbers came."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; nan before the first."""
        total = sum(v * c for v, c in zip(self.values, self.counts, strict=True))
        return total / self.count if self.count else math.nan

    def add(self, value: float, times: int = 1) -> None:
        """Takes a number that came, or several times the same.

        Raises:
            ValueError: It is none of the values, or `times` is negative.
        """
        if value not in self.values or times < 0:
            raise ValueError(f"{value} ({times} times): must be one of {self.values}")
        self.counts[self.values.index(value)] += times

    def log_evidence(self, mean: npt.ArrayLike, *, above: bool) -> npt.NDArray[np.float64]:
        """Natural logarithm of what a bet against a mean has won.

        Args:
            mean: What is betted against, any shape, within the values.
            above: True: that the mean is `mean` at most, so that winning says it is above. False: at least.

        Returns:
            In the shape of `mean`. If the claim is true, it ever reaches `log(1 / alpha)` with a chance of
            `alpha` at most.
        """
        low, high = self.values[0], self.values[-1]
        claimed = np.asarray(mean, np.float64)[..., None]
        reach = (claimed - low) if above else (high - claimed)
        won = np.zeros(np.broadcast_shapes(claimed.shape, STAKES.shape))
        with np.errstate(divide="ignore", invalid="ignore"):
            for value, count in zip(self.values, self.counts, strict=True):
                if count:
                    distance = (value - low) if above else (high - value)
                    # At the end of the range the claim leaves no room: any other value refutes it.
                    gain = np.where(reach > 0, distance / reach, math.inf if distance else 1.0)
                    won += count * np.log1p(STAKES * (gain - 1))
        return _log_mean_exp(won)

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Confidence sequence of the mean: at all times at once, it misses it with a chance of `alpha`."""
        needed = math.log(2 / _chance(alpha))
        low, high = self.values[0], self.values[-1]
        return (
            _edge(lambda m: float(self.log_evidence(m, above=True)) < needed, low, high),
            _edge(lambda m: float(self.log_evidence(m, above=False)) < needed, high, low),
        )

    def to_plain(self) -> dict[str, Any]:
        """What `from_plain` goes on from: lists of numbers, for JSON."""
        return {"values": list(self.values), "counts": list(self.counts)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """Goes on from what `to_plain` gave.

        Raises:
            ValueError: It is something else.
        """
        try:
            return cls(data["values"], data["counts"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the counts of a mean: {error!r}") from None


class MedianSequence:
    """The median of any numbers, by the signs of their distances: exact under outliers and heavy tails.

    It holds wherever each number, given those before it, is above the median with a chance of at most one
    half, and below it too. The numbers may drift and swing in any other way.

    Args:
        values: Those that came so far.

    Raises:
        ValueError: One is not finite.
    """

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.sorted = sorted(float(v) for v in values)
        if not all(map(math.isfinite, self.sorted)):
            raise ValueError("a value is not finite")

    @property
    def count(self) -> int:
        """How many numbers came."""
        return len(self.sorted)

    @property
    def median(self) -> float:
        """Of those that came; nan before the first."""
        n = self.count
        return (self.sorted[n // 2] + self.sorted[(n - 1) // 2]) / 2 if n else math.nan

    def add(self, value: float) -> None:
        """Takes a number that came.

        Raises:
            ValueError: It is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"{value} is not finite")
        insort(self.sorted, float(value))

    def share_above(self, value: float) -> float:
        """Of the numbers, 0..1; nan before the first."""
        return (self.count - bisect_right(self.sorted, value)) / self.count if self.count else math.nan

    def share_below(self, value: float) -> float:
        """Of the numbers, 0..1; nan before the first."""
        return bisect_left(self.sorted, value) / self.count if self.count else math.nan

    def log_evidence(self, value: npt.ArrayLike, *, above: bool) -> npt.NDArray[np.float64]:
        """As `MeanSequence.log_evidence`, about the median."""
        there = np.asarray(value, np.float64)
        if above:
            hits = self.count - np.searchsorted(self.sorted, there, side="right")
        else:
            hits = np.searchsorted(self.sorted, there, side="left")
        return sign_evidence(hits, self.count)

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Confidence sequence of the median: at all times at once, it misses it with a chance of `alpha`."""
        k = least_hits(self.count, _chance(alpha) / 2)
        if k > self.count:
            return -math.inf, math.inf
        return self.sorted[self.count - k], self.sorted[k - 1]

    def to_plain(self) -> dict[str, Any]:
        """What `from_plain` goes on from: a list of numbers, for JSON."""
        return {"values": list(self.sorted)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """Goes on from what `to_plain` gave.

        Raises:
            ValueError: It is something else.
        """
        try:
            return cls(data["values"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the values of a median: {error!r}") from None


def sign_evidence(hits: npt.ArrayLike, count: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Natural logarithm of the evidence that something happens more often than not.

    Args:
        hits: How often it happened, any shape.
        count: Of how many.
    """
    h, n = np.asarray(hits, np.float64)[..., None], np.asarray(count, np.float64)[..., None]
    return _log_mean_exp(h * np.log1p(STAKES) + (n - h) * np.log1p(-STAKES))


@lru_cache(maxsize=1 << 16)
def least_hits(count: int, alpha: float) -> int:
    """How often of `count` something must happen to say that it happens more often than not; or `count + 1`.

    Said whenever it is so, it is wrong with a chance of `alpha` at most, over all counts together.
    """
    needed = math.log(1 / alpha)
    low, high = count // 2, count + 1
    while low + 1 < high:
        middle = (low + high) // 2
        if float(sign_evidence(middle, count)) >= needed:
            high = middle
        else:
            low = middle
    return high


def count_needed(share: float, alpha: float) -> int | None:
    """How many numbers it takes to say that something happens more often than not, if `share` of them do.

    Returns:
        None where it would take more than a million, or never come to it.
    """

    def enough(count: int) -> bool:
        return share * count >= least_hits(count, alpha)

    if not share > 0.5 or not enough(MOST_PLANNED):
        return None
    low, high = 0, MOST_PLANNED
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _log_mean_exp(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the last axis; inf stays inf."""
    most = np.max(x, axis=-1, keepdims=True)
    safe = np.where(np.isfinite(most), most, 0.0)
    with np.errstate(over="ignore", divide="ignore"):
        return np.asarray(np.squeeze(safe, -1) + np.log(np.mean(np.exp(x - safe), axis=-1)))


def _chance(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 and 1")
    return alpha


def _edge(stands: Callable[[float], bool], outside: float, inside: float) -> float:
    """The end of what stands, seen from `outside`, on its outer side; `outside` if that stands itself."""
    if stands(outside):
        return outside
    for _ in range(STEPS):
        middle = (outside + inside) / 2
        if stands(middle):
            inside = middle
        else:
            outside = middle
    return outside
