"""Calibration: which real interval the integers of each activation stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.entropy import entropy_range
from edgewright.errors import ExportError
from edgewright.graph import onnx_function
from edgewright.wiring import Wiring

BINS = 2048
BATCH = 64
MOST_BYTES = 256 << 20  # of values watched at a time; a large model gets smaller batches
LEAST_SCALE = 2.0**-100  # far above the smallest normal float32

Method = Literal["minmax", "percentile", "mse", "entropy"]
Integers = Literal["uint8", "int16"]

_LIMITS: dict[Integers, tuple[int, int]] = {"uint8": (0, 255), "int16": (-(1 << 15), (1 << 15) - 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A grid: `real = scale * (q - zero_point)`, affine with q of uint8, or symmetric with q of int16.

    Attributes:
        scale: A positive float32 value.
        zero_point: In 0..255, 0 for int16; 0.0 lies exactly on it.
        dtype: Of q.
    """

    scale: float
    zero_point: int
    dtype: Integers = "uint8"

    @classmethod
    def around(cls, low: float, high: float, dtype: Integers = "uint8") -> Grid:
        """The finest grid that holds [low, high] and 0; for a value that is always 0, that of [0, 1]."""
        low, high = min(low, 0.0), max(high, 0.0)
        if high - low < 255.0 * LEAST_SCALE:
            low, high = 0.0, 1.0
        if dtype == "int16":
            most = max(-low, high, 32767.0 * LEAST_SCALE)
            return cls(scale=float(np.float32(most / 32767.0)), zero_point=0, dtype=dtype)
        scale = float(np.float32((high - low) / 255.0))
        return cls(scale=scale, zero_point=int(np.clip(round(-low / scale), 0, 255)))

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return _LIMITS[self.dtype]

    @property
    def low(self) -> float:
        """The smallest real value on the grid."""
        return self.scale * (self.limits[0] - self.zero_point)

    @property
    def high(self) -> float:
        """The largest real value on the grid."""
        return self.scale * (self.limits[1] - self.zero_point)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What calibration saw of one value: its range, and a histogram of 2,048 equal bins over that range."""

    minimum: float
    maximum: float
    counts: npt.NDArray[np.int64]

    def grid(self, method: Method, percentile: float, dtype: Integers = "uint8") -> Grid:
        """The grid by min-max, by percentile of the histogram, by least squared error, or by least entropy.

        For int16 always by min-max: it has steps enough, and nothing need be clipped.

        Raises:
            ValueError: It was observed without a histogram, and the method needs one.
        """
        if method == "minmax" or self.minimum == self.maximum or dtype == "int16":
            return Grid.around(self.minimum, self.maximum, dtype)
        if not self.counts.any():
            raise ValueError(f"{method!r} needs histograms")
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            edges = np.linspace(self.minimum, self.maximum, BINS + 1)
            outside = (1 - percentile / 100) / 2
            low = edges[int(np.searchsorted(share, outside, side="right"))]
            high = edges[min(int(np.searchsorted(share, 1 - outside, side="left")) + 1, BINS)]
            return Grid.around(float(low), float(high))
        if method == "entropy":
            return Grid.around(*entropy_range(self.counts, self.minimum, self.maximum))
        shrunk = [Grid.around(self.minimum * f, self.maximum * f) for f in np.linspace(0.3, 1.0, 71)]
        return min(shrunk, key=self._squared_error)

    def _squared_error(self, grid: Grid) -> float:
        edges = np.linspace(self.minimum, self.maximum, BINS + 1)
        centers = (edges[:-1] + edges[1:]) / 2
        steps = np.clip(np.rint(centers / grid.scale) + grid.zero_point, 0, 255) - grid.zero_point
        return float(np.sum(self.counts * (steps * grid.scale - centers) ** 2))


def observe(
    model: onnx.ModelProto,
    names: Iterable[str],
    samples: Mapping[str, npt.NDArray[Any]],
    progress: Callable[[int, int], None] | None = None,
    *,
    histograms: bool = True,
) -> dict[str, Observed]:
    """Runs the float graph on samples, in two passes: ranges, then histograms.

    Args:
        model: A float graph.
        names: Values to observe, inputs of the graph among them; those of float32 only.
        samples: The graph's inputs by name, shape (samples, ...).
        progress: Called with (samples done, samples in all passes).
        histograms: Whether to make the second pass; grids by min-max do without.

    Raises:
        ExportError: The samples are empty, or a value is NaN or infinite on them.
    """
    wanted = [n for n in dict.fromkeys(names) if n not in samples or samples[n].dtype == np.float32]
    count = len(next(iter(samples.values())))
    if count == 0:
        raise ExportError("calibration data is empty; give at least one sample, better some hundred")
    computed = [n for n in wanted if n not in samples]
    run = onnx_function(model, computed)
    batch = _batch(model, wanted)
    passes = 2 if histograms else 1

    def batches() -> Iterator[dict[str, npt.NDArray[Any]]]:
        for start in range(0, count, batch):
            feed = {n: v[start : start + batch] for n, v in samples.items()}
            yield {n: feed[n] for n in wanted if n in feed} | (run(feed) if computed else {})

    done = 0
    ranges: dict[str, tuple[float, float]] = {}
    for values in batches():
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise ExportError(f"value {name!r} is NaN or infinite on the calibration data")
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
        done += 1
        if progress:
            progress(min(done * batch, count), passes * count)
    counts = {name: np.zeros(BINS, np.int64) for name in wanted}
    for values in batches() if histograms else ():
        for name, value in values.items():
            low, high = ranges[name]
            if high > low:
                # In float64: the bins of a narrow range would fall together in float32.
                counts[name] += np.histogram(value.astype(np.float64), BINS, (low, high))[0]
        done += 1
        if progress:
            progress(min(done * batch, 2 * count), 2 * count)
    return {n: Observed(minimum=ranges[n][0], maximum=ranges[n][1], counts=counts[n]) for n in wanted}


def _batch(model: onnx.ModelProto, names: Iterable[str]) -> int:
    """Samples to run at a time, so that the values watched fit the memory meant for them."""
    shapes = Wiring(model).infer(1)[0]
    one = sum(4 * math.prod(shapes.get(n, ())) for n in names)
    return max(1, min(BATCH, MOST_BYTES // max(one, 1)))
