"""Test cases for verification: many, of several kinds, all within the range the model was calibrated for.

Random normal inputs turn verdicts round (a healthy model flips most predictions on them), so every case here
starts from a real sample. What lies beyond the range is kept apart: there only exactness is asked for.

Cases are drawn when they are asked for. The seed fixes each by its number, whatever the batches are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.checks import Check, at_most
from edgewright.token_cases import TokenLayout
from edgewright_device import Lengths, Port

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]
Bounds = Mapping[str, tuple[float, float]]

# Share of each kind, in percent. Where nothing is known of the samples' decisions there is no "boundary", and
# where nothing is known of inner values no "inner": the shares go to "sample" and "edge".
STRATA = {"sample": 40, "between": 15, "noise": 15, "shift": 10, "edge": 10, "inner": 5, "boundary": 5}
NOISE = 0.05
FARTHEST = 1.5  # how far "inner" stretches a sample about its mean
MOST_BEYOND = 0.05  # of the samples' values
FAR_BEYOND = 0.1  # of a range
LOOKED_AT = 16  # samples that show on which axes neighbours are alike
CHUNK_VALUES = 1 << 20  # drawn at once

# Batch sizes that a run through all cases begins with: one, two, and odd ones that fill no vector.
FIRST_BATCHES = (1, 2, 3, 7)


class Cases:
    """Inputs for verification, drawn on demand.

    Args:
        strata: The kind of each case, shape (cases,).
        draw: Gives the inputs of the cases of these numbers, by name, of their dtypes, (rows, ...).
        bounds: The range of each input, by name.

    Attributes:
        strata: As given.
        bounds: As given.
    """

    def __init__(
        self, strata: npt.NDArray[np.str_], draw: Callable[[IndexArray], Arrays], bounds: Bounds
    ) -> None:
        self.strata = strata
        self.bounds = bounds
        self._draw = draw

    def __len__(self) -> int:
        return len(self.strata)

    def batch(self, start: int, stop: int) -> Arrays:
        """Inputs of the cases from `start` to before `stop`, by name."""
        return self._draw(np.arange(start, min(stop, len(self))))

    def chunks(self, size: int) -> Iterator[list[Arrays]]:
        """All cases in batches of 1, 2, 3, 7, and then `size`; as many together as are drawn at once."""
        sizes = [n for n in FIRST_BATCHES if n < size]
        ends = np.unique(
            np.minimum([*np.cumsum(sizes), *range(sum(sizes) + size, len(self) + size, size)], len(self))
        )
        most = max(size, CHUNK_VALUES // self.values)
        start = 0
        while start < len(self):
            stop = int(ends[max(0, int(np.searchsorted(ends, start + most, "right")) - 1)])
            drawn = self.batch(start, stop)
            bounds = [0, *(int(e) - start for e in ends if start < e <= stop)]
            yield [{n: v[a:b] for n, v in drawn.items()} for a, b in pairwise(bounds)]
            start = stop

    def chosen(self, rows: IndexArray) -> Cases:
        """The cases of these numbers."""
        draw = self._draw
        return Cases(self.strata[rows], lambda numbers: draw(rows[numbers]), self.bounds)

    @cached_property
    def inputs(self) -> Arrays:
        """All of them at once, by name."""
        size = max(1, CHUNK_VALUES // self.values)
        parts = [self.batch(start, start + size) for start in range(0, max(1, len(self)), size)]
        return {n: np.concatenate([p[n] for p in parts]) if len(parts) > 1 else parts[0][n] for n in parts[0]}

    @cached_property
    def values(self) -> int:
        """Values of one case."""
        return max(1, sum(v.size for v in self.batch(0, 1).values()))

    @classmethod
    def of(cls, inputs: Arrays, strata: npt.NDArray[np.str_], bounds: Bounds) -> Cases:
        """Cases that are there already."""
        return cls(strata, lambda rows: {n: v[rows] for n, v in inputs.items()}, bounds)


def generate(
    ports: Sequence[Port],
    samples: Mapping[str, npt.NDArray[Any]],
    count: int,
    seed: int,
    *,
    scores: npt.NDArray[Any] | None = None,
    drivers: IndexArray | None = None,
) -> Cases:
    """Draws cases of up to seven kinds, each clipped to the range its input was calibrated for.

    sample: as it is; between: a mixture of two samples, of two classes where they are known; noise: a sample
    with uniform noise of up to 5 % of the range; shift: a sample moved by one along an axis on which
    neighbours are alike, or scaled where there is none; edge: a sample stretched until it touches the range,
    cut to its two ends, or a constant; inner: a sample that drives values inside the model to the ends of
    their grids, stretched about its mean; boundary: a sample with a small margin between its two best
    classes, or a mixture where the margin should vanish (the scores between two samples taken as a line). Row
    numbers mean nothing between one another: `TokenLayout` says what becomes of them.

    Args:
        ports: The model's inputs.
        samples: Real inputs by name, shape (samples, ...), at least one.
        count: Number of cases.
        seed: Fixes all of them.
        scores: What the float model gives for the first samples, (scored, classes).
        drivers: Numbers of samples that drive inner values far, each as often as it should be taken.
    """
    return _drawn(ports, samples, _plan(samples, count, seed, scores, drivers), seed)


def beyond_range(
    ports: Sequence[Port], samples: Mapping[str, npt.NDArray[Any]], count: int, seed: int
) -> Cases:
    """Cases that no calibration saw: samples times ten, negated, moved far, infinite, not a number.

    Row numbers (int64) stay as they are: an engine refuses those beyond its tables.
    """
    random = np.random.default_rng(seed)
    available = len(next(iter(samples.values())))
    chosen = random.integers(available, size=count)
    inputs: Arrays = {}
    for port in ports:
        if port.dtype == "int64":
            inputs[port.name] = samples[port.name][chosen]
            continue
        values = samples[port.name][chosen].astype(np.float32, copy=False)
        for index in range(count):
            kind = index % 5
            if kind == 0:
                values[index] *= 10
            elif kind == 1:
                values[index] = -values[index]
            elif kind == 2:
                values[index] += np.float32(1e30)
            else:
                holes = random.random(values[index].shape, dtype=np.float32) < 0.1
                values[index][holes] = np.inf if kind == 3 else np.nan
        inputs[port.name] = values
    return Cases.of(inputs, np.repeat(["beyond"], count), _bounds(ports, samples))


def outside(inputs: Mapping[str, npt.NDArray[Any]], bounds: Bounds) -> npt.NDArray[np.bool_]:
    """Which cases of a batch have a value beyond its input's range, or one that is no number: (cases,)."""
    found = np.zeros(len(next(iter(inputs.values()))), np.bool_)
    for name, values in inputs.items():
        low, high = bounds[name]
        rows = values.reshape(len(values), -1)
        found |= ~((rows.min(axis=1) >= low) & (rows.max(axis=1) <= high))  # NaN is neither
    return found


def samples_check(ports: Sequence[Port], samples: Mapping[str, npt.NDArray[Any]]) -> Check:
    """Whether samples are like those of calibration: cases are clipped to its range, samples are not.

    Some lie beyond the range, as calibration has not seen all, or has clipped the rarest on purpose. One
    value in twenty that is a tenth of the range beyond it is another matter: pixels of 0 to 255 for a model
    of 0 to 1.
    """
    far = total = 0
    for port in (p for p in ports if p.dtype == "float32"):
        room = FAR_BEYOND * (port.maximum - port.minimum)
        values = samples[port.name]
        far += int(((values < port.minimum - room) | (values > port.maximum + room)).sum())
        total += values.size
    return at_most(
        "samples",
        "values of the samples far beyond the calibrated range of their input",
        far / max(1, total),
        MOST_BEYOND,
        "of the values",
        remedy="give samples that are scaled and ordered as those of calibration were",
    )


def range_check(beyond: int) -> Check:
    """That no case left the range its input was calibrated for: a verdict on others would mean nothing."""
    what = "cases beyond the calibrated range of an input"
    return at_most("range", what, beyond, 0, "cases", remedy="give real samples that are finite")


def swept_lengths(lengths: Lengths | None) -> tuple[int, ...]:
    """Lengths of sequences to try beside the largest, ascending.

    Each that has a program; where a mask hides padding also one, and the longest that is padded to each.
    """
    if lengths is None:
        return ()
    sizes = set(lengths.sizes)
    if lengths.mask is not None:
        sizes |= {1, *(s - 1 for s in lengths.sizes)}
    return tuple(sorted(s for s in sizes if 0 < s < lengths.sizes[-1]))


# What is drawn beforehand: all that a case depends on, but for its noise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """For each case: its kind, the samples it is made of, and random numbers; all of shape (cases,)."""

    strata: npt.NDArray[np.str_]
    first: IndexArray
    second: IndexArray
    part: FloatArray  # of the first, in a mixture
    sort: IndexArray  # of an edge, 0..3
    place: npt.NDArray[np.float64]  # 0..1: an axis, a constant, a factor
    up: npt.NDArray[np.bool_]


def _plan(
    samples: Mapping[str, npt.NDArray[Any]],
    count: int,
    seed: int,
    scores: npt.NDArray[Any] | None,
    drivers: IndexArray | None,
) -> _Plan:
    random = np.random.default_rng(seed)
    available = len(next(iter(samples.values())))
    sizes = {kind: count * share // 100 for kind, share in STRATA.items()}
    if scores is None or len(np.unique(scores.argmax(1))) < 2:
        scores, sizes["boundary"] = None, 0
    if drivers is None or not len(drivers):
        sizes["edge"] += sizes["inner"]
        sizes["inner"] = 0
    sizes["sample"] += count - sum(sizes.values())
    strata = np.repeat(list(sizes), list(sizes.values()))
    first, second = random.integers(available, size=(2, count))
    part = random.random(count, dtype=np.float32)
    # As they are, samples are used in turn: none twice before each was used once.
    first[: sizes["sample"]] = np.resize(random.permutation(available), sizes["sample"])
    if scores is not None:
        between = np.flatnonzero(strata == "between")
        first[between], second[between] = _of_two_classes(scores, len(between), random)
        edge = np.flatnonzero(strata == "boundary")
        first[edge], second[edge], part[edge] = _at_the_boundary(scores, len(edge), random)
    if drivers is not None:
        inner = np.flatnonzero(strata == "inner")
        first[inner] = np.resize(drivers, len(inner))
    return _Plan(
        strata=strata,
        first=first,
        second=second,
        part=part,
        sort=random.integers(4, size=count),
        place=random.random(count),
        up=random.random(count) < 0.5,
    )


def _of_two_classes(
    scores: npt.NDArray[Any], count: int, random: np.random.Generator
) -> tuple[IndexArray, IndexArray]:
    """Pairs of samples that are decided differently."""
    classes = scores.argmax(1)
    first = random.integers(len(classes), size=count)
    second = np.array([random.choice(np.flatnonzero(classes != classes[i])) for i in first], np.int64)
    return first, second.reshape(count)


def _at_the_boundary(
    scores: npt.NDArray[Any], count: int, random: np.random.Generator
) -> tuple[IndexArray, IndexArray, FloatArray]:
    """Two samples, and the part of the first, for cases at which two classes should be near one another.

    Half are the samples of the smallest margins, each once; the others are mixtures. With p and q the classes
    of the two, and m and n by how much each prefers its own of them, a line of scores crosses at m / (m + n).
    """
    top = np.partition(scores.astype(np.float64), -2, axis=1)[:, -2:]
    narrow = np.argsort(top[:, 1] - top[:, 0], kind="stable")[: min(count // 2, max(1, len(scores) // 4))]
    first, second = _of_two_classes(scores, count, random)
    p, q = scores.argmax(1)[first], scores.argmax(1)[second]
    m = scores[first, p].astype(np.float64) - scores[first, q]
    n = scores[second, q].astype(np.float64) - scores[second, p]
    total = m + n
    kept = 1 - np.divide(m, total, out=np.full(count, 0.5), where=total > 0)
    first[: len(narrow)], kept[: len(narrow)] = narrow, 1.0
    return first, second, kept.astype(np.float32)


# Drawing


def _bounds(ports: Sequence[Port], samples: Mapping[str, npt.NDArray[Any]]) -> Bounds:
    """The calibrated range of each input; of row numbers also what samples have, as a table has it too."""
    bounds: dict[str, tuple[float, float]] = {}
    for port in ports:
        low, high = float(np.float32(port.minimum)), float(np.float32(port.maximum))
        if port.dtype == "int64":
            low = min(port.minimum, float(samples[port.name].min()))
            high = max(port.maximum, float(samples[port.name].max()))
        bounds[port.name] = low, high
    return bounds


def _drawn(ports: Sequence[Port], samples: Mapping[str, npt.NDArray[Any]], plan: _Plan, seed: int) -> Cases:
    bounds = _bounds(ports, samples)
    layout = TokenLayout.of(ports, samples)
    axes = {p.name: _smooth_axes(samples[p.name]) for p in ports if p.name not in layout.names}

    def draw(rows: IndexArray) -> Arrays:
        found: Arrays = {}
        for place, port in enumerate(ports):
            values = samples[port.name]
            found[port.name] = values[plan.first[rows]]
            if port.name not in layout.names:
                found[port.name] = found[port.name].astype(np.float32, copy=False)
                _change(
                    found[port.name], values, rows, plan, bounds[port.name], axes[port.name], (seed, place)
                )
        if layout.names:
            for index, row in enumerate(rows):
                layout.change(
                    {n: found[n][index] for n in layout.names},
                    {n: samples[n][plan.second[row]] for n in layout.names},
                    kind=str(plan.strata[row]),
                    part=float(plan.part[row]),
                    sort=int(plan.sort[row]),
                    place=float(plan.place[row]),
                    up=bool(plan.up[row]),
                    bounds=bounds,
                    seed=(seed, int(row)),
                )
        return found

    return Cases(plan.strata, draw, bounds)


def _change(
    values: FloatArray,
    samples: npt.NDArray[Any],
    rows: IndexArray,
    plan: _Plan,
    bounds: tuple[float, float],
    axes: tuple[int, ...],
    seed: tuple[int, int],
) -> None:
    """Makes cases of samples, in place, clipped to their range."""
    low, high = np.float32(bounds[0]), np.float32(bounds[1])
    kinds = plan.strata[rows]
    ones = (1,) * (values.ndim - 1)
    mixed = np.flatnonzero((kinds == "between") | (kinds == "boundary"))
    if mixed.size:
        part = plan.part[rows[mixed]].reshape(-1, *ones)
        other = samples[plan.second[rows[mixed]]].astype(np.float32, copy=False)
        values[mixed] = part * values[mixed] + (1 - part) * other
    for index in np.flatnonzero(kinds == "noise"):
        # Half of the width is 5 % of the range; each case has a stream of its own.
        random = np.random.default_rng((*seed, int(rows[index])))
        wave = random.random(values[index].shape, dtype=np.float32)
        wave -= np.float32(0.5)
        wave *= np.float32(2 * NOISE * (bounds[1] - bounds[0]))
        values[index] += wave
    for index in np.flatnonzero(kinds == "shift"):
        place, up = float(plan.place[rows[index]]), bool(plan.up[rows[index]])
        values[index] = _shift(values[index], axes, place, up)
    for index in np.flatnonzero(kinds == "edge"):
        place, sort = float(plan.place[rows[index]]), int(plan.sort[rows[index]])
        values[index] = _edge(values[index], low, high, place, sort, bool(plan.up[rows[index]]))
    for index in np.flatnonzero(kinds == "inner"):
        factor = np.float32(1 + (FARTHEST - 1) * plan.place[rows[index]])
        mean = values[index].mean(dtype=np.float64).astype(np.float32)
        values[index] = mean + factor * (values[index] - mean)
    np.clip(values, low, high, out=values)


def _smooth_axes(samples: npt.NDArray[Any]) -> tuple[int, ...]:
    """Axes along which neighbours are alike: of an image rows and columns, of a spectrum perhaps only time.

    Those on which neighbours correlate by more than a half; moved along another, it is no sample any more.
    """
    some = samples[:LOOKED_AT].astype(np.float32, copy=False)
    variance = float(some.var(dtype=np.float64))
    found = []
    for axis in range(1, some.ndim):
        if some.shape[axis] > 2 and variance > 0:
            change = float(np.mean(np.square(np.diff(some, axis=axis)), dtype=np.float64))
            if change < variance:  # it is 2 (1 - correlation) times the variance
                found.append(axis - 1)
    return tuple(found)


def _shift(value: FloatArray, axes: tuple[int, ...], place: float, up: bool) -> FloatArray:
    if not axes:
        return (value * np.float32(0.8 + 0.2 * place)).astype(np.float32)
    axis = axes[int(place * len(axes))]
    last = value.shape[axis] - 1
    # The border is seen twice; what would come in from the other side was never beside it.
    moved: FloatArray = np.take(value, np.clip(np.arange(last + 1) + (-1 if up else 1), 0, last), axis)
    return moved


def _edge(
    value: FloatArray, low: np.float32, high: np.float32, place: float, sort: int, up: bool
) -> FloatArray:
    if sort == 0:  # stretched to the whole range
        least = value.min()
        span = float(value.max() - least) or 1.0
        stretched: FloatArray = (value - least) / np.float32(span) * (high - low) + low
        return stretched
    if sort == 1:  # only the two ends
        ends: FloatArray = np.where(value > value.mean(), high, low).astype(np.float32)
        return ends
    constant = (high if up else low) if sort == 2 else low + np.float32(place) * (high - low)
    return np.full(value.shape, constant, np.float32)
