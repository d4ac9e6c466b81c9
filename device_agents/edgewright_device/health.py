"""The health check: replays an artifact's golden vectors on this device before its release is confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Artifact, Port
from edgewright_device.runner import Runner

EXACT_BACKENDS = frozenset({"native", "reference"})
BOUND_STEPS = 2
"""How far an output of another backend may lie from the golden one, in steps of that output's scale."""
TIMED_SAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """What a health check found.

    Attributes:
        passed: Whether the release may be confirmed.
        reason: Why not; empty when it passed.
        backend: The engine that was asked.
        vectors: Golden vectors that were replayed.
        latency_ms: Median time of one sample in milliseconds, or None if it came to no run.
    """

    passed: bool
    reason: str
    backend: str
    vectors: int = 0
    latency_ms: float | None = None


def check(
    path: str | Path,
    *,
    backend: str = "native",
    latency_limit_ms: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> HealthReport:
    """Opens the artifact at `path`, runs its golden inputs and compares the outputs with the golden ones.

    On the native and reference backends every bit must agree; on others each value within `BOUND_STEPS`
    steps. An artifact that cannot be opened or run is a failed check, not an exception.

    Args:
        path: The artifact's directory.
        backend: The engine that will run it.
        latency_limit_ms: Fails a release that is slower; None measures only.
        clock: Seconds, for the latency.
    """
    try:
        artifact = Artifact.open(path)
        runner = Runner(artifact, backend)
        inputs, golden = artifact.golden()
        outputs = runner.run(inputs)
        vectors = len(next(iter(inputs.values())))
        latency_ms = _latency_ms(runner, inputs, min(vectors, TIMED_SAMPLES), clock)
    except Exception as error:  # any failure of a release is a finding about the release
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return HealthReport(passed=False, reason=reason, backend=backend)
    reason = _difference(artifact.outputs, outputs, golden, exact=backend in EXACT_BACKENDS)
    if not reason and latency_limit_ms is not None and latency_ms > latency_limit_ms:
        reason = f"too slow: {latency_ms:.3g} ms for one sample, {latency_limit_ms:g} ms are allowed"
    return HealthReport(
        passed=not reason, reason=reason, backend=backend, vectors=vectors, latency_ms=latency_ms
    )


def _latency_ms(
    runner: Runner, inputs: Mapping[str, npt.NDArray[Any]], samples: int, clock: Callable[[], float]
) -> float:
    times: list[float] = []
    for i in range(samples):
        sample = {name: array[i : i + 1] for name, array in inputs.items()}
        start = clock()
        runner.run(sample)
        times.append(clock() - start)
    return 1000 * median(times)


def _difference(
    ports: tuple[Port, ...],
    outputs: Mapping[str, npt.NDArray[Any]],
    golden: Mapping[str, npt.NDArray[Any]],
    *,
    exact: bool,
) -> str:
    """The first thing wrong with `outputs`, or an empty string."""
    if {p.name for p in ports} != outputs.keys() or outputs.keys() != golden.keys():
        return f"the model gives {sorted(outputs)}, its golden vectors hold {sorted(golden)}"
    for port in ports:
        got, want = outputs[port.name], golden[port.name]
        if got.shape != want.shape or got.dtype != np.float32 or want.dtype != np.float32:
            return (
                f"output {port.name!r}: {got.dtype} {got.shape}, the golden one is {want.dtype} {want.shape}"
            )
        if not np.isfinite(got).all():
            return f"output {port.name!r}: {np.count_nonzero(~np.isfinite(got))} values are NaN or infinite"
        if exact:
            wrong = np.count_nonzero(got.view(np.uint32) != want.view(np.uint32))
            rule = "bit for bit"
        else:
            wrong = np.count_nonzero(~(np.abs(got - want) <= BOUND_STEPS * port.scale))
            rule = f"within {BOUND_STEPS} steps"
        if wrong:
            return f"output {port.name!r}: {wrong} of {got.size} values do not equal the golden ones {rule}"
    return ""
