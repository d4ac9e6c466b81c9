"""The range whose 256 steps keep most of a value's distribution: calibration by relative entropy.

Migacz 2017, "8-bit Inference with TensorRT" (GTC), which looks for one threshold of a symmetric grid. Here
the grid is affine, so its two ends are looked for in turn: what lies far out on one side moves that end
alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEVELS = 256
CANDIDATES = 128  # places tried for an end
ROUNDS = 3
FLOOR = 1e-4  # of the mass: what a level that lost all of its own is taken to hold

Histogram = npt.NDArray[np.int64]


def entropy_range(counts: Histogram, low: float, high: float) -> tuple[float, float]:
    """Chooses the ends of a grid.

    Args:
        counts: Of equal bins over [low, high].
        low: The smallest value seen.
        high: The largest, above `low`.

    Returns:
        The ends; 0 lies between them, or is one of them.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    smooth = _without_spike(counts, edges)
    zero = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(counts) - 1))
    step = max(1, len(counts) // CANDIDATES)
    lows, highs = range(0, zero + 1, step), range(len(counts), zero, -step)
    first, last = 0, len(counts)
    for _ in range(ROUNDS):
        before = first, last
        last = min(
            (e for e in highs if e - first >= LEVELS or e == len(counts)),
            key=lambda e: _divergence(smooth, edges, first, e),
        )
        first = min(
            (s for s in lows if last - s >= LEVELS or s == 0),
            key=lambda s: _divergence(smooth, edges, s, last),
        )
        if before == (first, last):
            break
    return min(float(edges[first]), 0.0), max(float(edges[last]), 0.0)


def _without_spike(counts: Histogram, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The histogram without what is exactly 0: half of what ReLU gives, and on every grid without error."""
    smooth = counts.astype(np.float64)
    if edges[0] <= 0.0 <= edges[-1]:
        at = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(counts) - 1))
        beside = smooth[max(at - 1, 0) : at + 2]
        smooth[at] = min(smooth[at], (beside.sum() - smooth[at]) / max(len(beside) - 1, 1))
    return smooth


def _divergence(
    counts: npt.NDArray[np.float64], edges: npt.NDArray[np.float64], first: int, last: int
) -> float:
    """KL(P || Q) of bins first..last: P holds what is clipped in its outermost bins, Q is P on the grid."""
    p = counts[first:last].copy()
    inside = p.sum()
    if not inside:
        return float("inf")
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    low, high = min(edges[first], 0.0), max(edges[last], 0.0)
    centers = (edges[first:last] + edges[first + 1 : last + 1]) / 2
    levels = np.rint((centers - low) * ((LEVELS - 1) / (high - low))).astype(np.int64)
    held = p > 0
    mass = np.bincount(levels, counts[first:last], LEVELS)
    shared = np.bincount(levels, held, LEVELS)
    q = np.where(held, mass[levels] / np.maximum(shared[levels], 1), 0.0) / inside
    p /= p.sum()
    q = (1 - FLOOR) * q + FLOOR * held / held.sum()
    return float(np.sum(p[held] * np.log(p[held] / q[held])))
