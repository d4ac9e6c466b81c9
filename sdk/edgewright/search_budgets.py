"""Budgets: what a compressed model may cost, and what it does cost, with an interval.

A latency is measured beside that of an unchanging baseline, call by call in turn, so that a busy machine
slows both alike; what counts is the ratio, times the baseline's fastest call on the undisturbed machine.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from edgewright.latency import measure
from edgewright_device import Artifact, Runner

Quantity = Literal["latency", "size"]
Verdict = Literal["holds", "cannot tell", "fails"]

UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "size": {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "KiB": 1024, "MiB": 1024**2},
}
"""How many ms or bytes each unit is."""

SMALLEST_SAMPLE = 6
"""So many values are needed before their smallest and largest hold the median with 95 % confidence."""
BLOCKS = (6, 12, 24)
"""Ratios of a latency are taken until the budget is decided, at most so many."""
BLOCK_MS = 25.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that one quantity of an artifact may be.

    Attributes:
        quantity: "latency" of one call with one sample, or "size" of all files.
        limit: In ms or bytes; where `relative`, a part of what the model costs in INT8 before any other step.
        relative: Whether it is.
    """

    quantity: Quantity
    limit: float
    relative: bool = False

    def __post_init__(self) -> None:
        if self.quantity not in UNITS:
            raise ValueError(f"a budget is for latency or size, not {self.quantity!r}")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"{self.quantity}: a budget must be above 0, not {self.limit:g}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "latency=5ms", "size=200kB" or "latency=60%".

        Raises:
            ValueError: It is none of these.
        """
        found = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.]+(?:e-?\d+)?)\s*([^\s\d]+)\s*", text)
        if found is None:
            raise ValueError(f"{text!r} is not a budget; write latency=5ms, size=200kB or latency=60%")
        quantity, number, unit = found.groups()
        if quantity not in UNITS:
            raise ValueError(f"{text!r}: a budget is for latency or size, not {quantity!r}")
        if unit != "%" and unit not in UNITS[quantity]:
            raise ValueError(
                f"{text!r}: {unit!r} is no unit of {quantity}; use {', '.join(UNITS[quantity])}, or % of the "
                "model before any other step than INT8"
            )
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"{text!r}: {number!r} is not a number") from None
        kind: Quantity = "latency" if quantity == "latency" else "size"
        if unit == "%":
            return cls(quantity=kind, limit=value / 100, relative=True)
        return cls(quantity=kind, limit=value * UNITS[quantity][unit])

    def limit_for(self, baseline: float) -> float:
        """The limit in ms or bytes, given what the baseline costs."""
        return self.limit * baseline if self.relative else self.limit

    def __str__(self) -> str:
        if self.relative:
            return f"{self.quantity}={100 * self.limit:g}%"
        return f"{self.quantity}={self.limit!r}{'ms' if self.quantity == 'latency' else 'B'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an artifact costs: ms or bytes.

    Attributes:
        value: The best estimate.
        low: With `high`, the 95 % interval; both are `value` where nothing is uncertain.
        high: See there.
    """

    value: float
    low: float
    high: float

    def within(self, limit: float) -> Verdict:
        """Whether the whole interval, or none of it, is at most the limit."""
        return "holds" if self.high <= limit else "fails" if self.low > limit else "cannot tell"


def shown(quantity: Quantity, value: float) -> str:
    """A latency in ms, or a size in bytes, for people."""
    if quantity == "size":
        return f"{value / 1e6:.4g} MB" if value >= 1e6 else f"{value / 1e3:.4g} kB"
    return f"{value:.4g} ms" if value >= 0.1 else f"{1e3 * value:.4g} µs"


def size_of(artifact: Artifact) -> Cost:
    """The bytes of all files of an artifact."""
    size = float(artifact.size_bytes)
    return Cost(value=size, low=size, high=size)


def one_call(artifact: Artifact, feed: Mapping[str, Any]) -> Callable[[], object]:
    """One call of an artifact in the native engine, or in ONNX Runtime where it has no integer program."""
    runner = Runner(artifact, backend="native" if artifact.native else "onnxruntime")
    return lambda: runner.run(feed)


def fastest_ms(call: Callable[[], object]) -> float:
    """The fastest of many calls, ms: what the machine does when nothing disturbs it."""
    rounds = _rounds(call, BLOCK_MS * BLOCKS[-1])
    return measure({"call": call}, rounds=rounds, warmup=3)["call"].min_ms


def latency_beside(
    baseline: Callable[[], object],
    baseline_ms: float,
    call: Callable[[], object],
    limit_ms: float | None,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Cost:
    """Times a call beside a baseline, until the limit is decided or patience ends.

    Args:
        baseline: What to compare with.
        baseline_ms: Its `fastest_ms`.
        call: What to time.
        limit_ms: More ratios are taken while the interval holds it.
        clock: Nanoseconds, never running back.
    """
    rounds = _rounds(lambda: (baseline(), call()), BLOCK_MS, clock)
    ratios: list[float] = []
    cost = Cost(value=math.nan, low=math.nan, high=math.nan)
    for blocks in BLOCKS:
        while len(ratios) < blocks:
            times = measure({"baseline": baseline, "call": call}, rounds=rounds, warmup=1, clock=clock)
            ratios.append(times["call"].min_ms / times["baseline"].min_ms)
        low, high = median_interval(ratios)
        middle = statistics.median(ratios)
        cost = Cost(value=middle * baseline_ms, low=low * baseline_ms, high=high * baseline_ms)
        if limit_ms is None or cost.within(limit_ms) != "cannot tell":
            break
    return cost


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the median, whatever the distribution (by the sign test).

    Raises:
        ValueError: There are fewer than six values.
    """
    count = len(values)
    if count < SMALLEST_SAMPLE:
        raise ValueError(f"{count} values cannot bound a median with 95 % confidence; six can")
    outside, cut = 2 * 0.5**count, 0  # the chance that the median is beyond the ends
    while True:
        further = outside + 2 * math.comb(count, cut + 1) * 0.5**count
        if further > 0.05:
            break
        outside, cut = further, cut + 1
    ordered = sorted(values)
    return ordered[cut], ordered[count - 1 - cut]


def _rounds(
    call: Callable[[], object], wanted_ms: float, clock: Callable[[], int] = time.perf_counter_ns
) -> int:
    once = measure({"call": call}, rounds=3, warmup=2, clock=clock)["call"].min_ms
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, math.ceil(wanted_ms / max(once, 1e-6))))
