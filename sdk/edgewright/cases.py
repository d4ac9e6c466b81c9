"""Test cases for verification: many, of several kinds, all within the range the model was calibrated for.

Random normal inputs turn verdicts round (a healthy model flips most predictions on them), so every case here
starts from a real sample. What lies beyond the range is kept apart: there only exactness is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device import Port

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

# Share of each kind, in percent.
STRATA = {"sample": 40, "between": 20, "noise": 20, "shift": 10, "edge": 10}
NOISE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """Inputs for verification.

    Attributes:
        inputs: By input name, of its dtype, shape (cases, ...).
        strata: The kind of each case, shape (cases,).
    """

    inputs: Mapping[str, npt.NDArray[Any]]
    strata: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.strata)


def generate(ports: Sequence[Port], samples: Mapping[str, npt.NDArray[Any]], count: int, seed: int) -> Cases:
    """Draws cases of five kinds, each clipped to the range its input was calibrated for.

    sample: as it is; between: a mixture of two samples; noise: a sample with uniform noise of up to 5 % of
    the range; shift: a sample moved by one along one axis, or scaled where there is only one; edge: a sample
    stretched until it touches the range, cut to its two ends, or a constant. Row numbers (int64) mean nothing
    between one another: there, between is the front of one sample and the end of another, noise takes 5 % of
    the numbers from another sample, and edge is one number throughout.

    Args:
        ports: The model's inputs.
        samples: Real inputs by name, shape (samples, ...), at least one.
        count: Number of cases.
        seed: Fixes all of them.
    """
    random = np.random.default_rng(seed)
    available = len(next(iter(samples.values())))
    sizes = [count * share // 100 for share in STRATA.values()]
    sizes[0] += count - sum(sizes)
    strata = np.repeat(list(STRATA), sizes)
    first, second = random.integers(available, size=(2, count))
    # As they are, samples are used in turn: none twice before each was used once.
    first[: sizes[0]] = np.resize(random.permutation(available), sizes[0])
    whole = any(p.dtype == "int64" for p in ports)
    cuts = random.random(count) if whole else np.zeros(count)  # one for all inputs, which belong together
    inputs: dict[str, npt.NDArray[Any]] = {}
    for port in ports:
        other = samples[port.name][second]
        if port.dtype == "int64":
            inputs[port.name] = _rows(port, samples[port.name][first], other, strata, cuts, random)
            continue
        values = samples[port.name][first].astype(np.float32, copy=True)
        for index, stratum in enumerate(strata):
            if stratum == "between":
                part = random.random(dtype=np.float32)
                values[index] = part * values[index] + (1 - part) * other[index]
            elif stratum == "noise":
                width = NOISE * (port.maximum - port.minimum)
                values[index] += random.uniform(-width, width, values[index].shape).astype(np.float32)
            elif stratum == "shift":
                values[index] = _shift(values[index], random)
            elif stratum == "edge":
                values[index] = _edge(values[index], port, random)
        inputs[port.name] = np.clip(values, np.float32(port.minimum), np.float32(port.maximum))
    return Cases(inputs=inputs, strata=strata)


def _rows(
    port: Port,
    values: IndexArray,
    other: IndexArray,
    strata: npt.NDArray[np.str_],
    cuts: npt.NDArray[np.float64],
    random: np.random.Generator,
) -> IndexArray:
    for index, stratum in enumerate(strata):
        if stratum == "between":
            cut = int(cuts[index] * values.shape[-1])
            values[index, ..., cut:] = other[index, ..., cut:]
        elif stratum == "noise":
            taken = random.random(values[index].shape) < NOISE
            values[index][taken] = other[index][taken]
        elif stratum == "shift":
            values[index] = np.roll(values[index], int(random.choice([-1, 1])), axis=-1)
        elif stratum == "edge":
            values[index] = random.integers(int(port.minimum), int(port.maximum), endpoint=True)
    return values


def beyond_range(
    ports: Sequence[Port], samples: Mapping[str, npt.NDArray[Any]], count: int, seed: int
) -> Cases:
    """Cases that no calibration saw: samples times ten, negated, moved far, infinite, not a number.

    Row numbers (int64) stay as they are: an engine refuses those beyond its tables.
    """
    random = np.random.default_rng(seed)
    available = len(next(iter(samples.values())))
    chosen = random.integers(available, size=count)
    inputs: dict[str, npt.NDArray[Any]] = {}
    for port in ports:
        if port.dtype == "int64":
            inputs[port.name] = samples[port.name][chosen]
            continue
        values = samples[port.name][chosen].astype(np.float32, copy=True)
        for index in range(count):
            kind = index % 5
            if kind == 0:
                values[index] *= 10
            elif kind == 1:
                values[index] = -values[index]
            elif kind == 2:
                values[index] += np.float32(1e30)
            else:
                holes = random.random(values[index].shape) < 0.1
                values[index][holes] = np.inf if kind == 3 else np.nan
        inputs[port.name] = values
    return Cases(inputs=inputs, strata=np.repeat(["beyond"], count))


def _shift(value: FloatArray, random: np.random.Generator) -> FloatArray:
    if value.ndim < 2:
        return (value * random.uniform(0.8, 1.0)).astype(np.float32)
    axis = int(random.integers(1, value.ndim)) if value.ndim > 2 else int(random.integers(value.ndim))
    return np.roll(value, int(random.choice([-1, 1])), axis=axis)


def _edge(value: FloatArray, port: Port, random: np.random.Generator) -> FloatArray:
    kind = int(random.integers(4))
    low, high = np.float32(port.minimum), np.float32(port.maximum)
    if kind == 0:  # stretched to the whole range
        span = float(value.max() - value.min()) or 1.0
        stretched: FloatArray = (value - value.min()) / np.float32(span) * (high - low) + low
        return stretched
    if kind == 1:  # only the two ends
        ends: FloatArray = np.where(value > value.mean(), high, low).astype(np.float32)
        return ends
    constant = random.choice([low, high]) if kind == 2 else random.uniform(low, high)
    filled: FloatArray = np.full(value.shape, constant, np.float32)
    return filled
