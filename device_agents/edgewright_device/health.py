"""The health check: replays an artifact's golden vectors on this device before its release is confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device.artifact import Artifact
from edgewright_device.certificate import Certificate
from edgewright_device.manifest import SYMMETRIC, Part, Port
from edgewright_device.runner import EXACT_BACKENDS, Runner

BOUND_STEPS = 2
"""How far an output of another backend may lie from the golden one, in steps of that output's scale, where no
certificate says it."""
FLOAT_STEPS = 0.01
"""How far float32 may round a difference of outputs up: of int16 values, 2^16 steps of 2^-24 each."""
TIMED_SAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """What a health check found.

    Attributes:
        passed: Whether the release may be confirmed.
        reason: Why not; empty when it passed.
        backend: The engine that was asked.
        provider: ONNX Runtime's provider that ran it, and why others did not; empty on other engines.
        vectors: Golden vectors that were replayed.
        latency_ms: Median time of one sample in milliseconds, or None if it came to no run.
    """

    passed: bool
    reason: str
    backend: str
    provider: str = ""
    vectors: int = 0
    latency_ms: float | None = None


def check(
    path: str | Path,
    *,
    backend: str = "native",
    providers: Sequence[str] = (),
    cache: Path | None = None,
    latency_limit_ms: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> HealthReport:
    """Opens the artifact at `path` and replays its golden vectors.

    Engines that are not exact are held to the steps that the certificate in its report.json gives them, those
    that run symmetric.onnx to the steps it gives that file, or to `BOUND_STEPS` where it says nothing. An
    artifact that cannot be opened or run, or whose report did not pass, is a failed check, not an exception.

    Args:
        path: The artifact's directory.
        backend: The engine that will run it.
        providers: As in `Runner`.
        cache: As in `Runner`.
        latency_limit_ms: Fails a release that is slower; None measures only.
        clock: Seconds, for the latency.
    """
    try:
        artifact = Artifact.open(path)
        certificate = Certificate.of(artifact)
        runner = Runner(artifact, backend, providers=providers, cache=cache)
        form = SYMMETRIC if runner.provider and runner.provider.file == SYMMETRIC else backend
        steps = certificate.bounds.get(form, BOUND_STEPS) if certificate else BOUND_STEPS
        provider = runner.provider.text if runner.provider else ""
        reason = replay(runner, steps=steps)
        inputs, _ = artifact.golden()
        vectors = len(next(iter(inputs.values())))
        latency_ms = _latency_ms(runner, inputs, min(vectors, TIMED_SAMPLES), clock)
    except Exception as error:  # any failure of a release is a finding about the release
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return HealthReport(passed=False, reason=reason, backend=backend)
    if not reason and latency_limit_ms is not None and latency_ms > latency_limit_ms:
        reason = f"too slow: {latency_ms:.3g} ms for one sample, {latency_limit_ms:g} ms are allowed"
    return HealthReport(
        passed=not reason,
        reason=reason,
        backend=backend,
        provider=provider,
        vectors=vectors,
        latency_ms=latency_ms,
    )


def replay(runner: Runner, *, steps: int = BOUND_STEPS) -> str:
    """Runs golden inputs and compares the outputs with the golden ones.

    On the native and reference backends every bit must agree, for each length of sequences; on others each
    value within `steps`. A model in parts is run whole, and must give finite values; then each
    part alone, on the recorded values: a program must give the recorded bits, a part of ONNX Runtime what
    lies within its tolerance.

    Args:
        runner: The artifact, loaded.
        steps: How far an output of an engine that is not exact may lie from the golden one, in steps of its
            grid.

    Returns:
        The first thing that is wrong, or an empty string.

    Raises:
        ArtifactError: The golden vectors are damaged.
        ValueError: They do not fit the model's inputs.
    """
    artifact, exact = runner.artifact, runner.backend in EXACT_BACKENDS
    lengths: tuple[int | None, ...] = (None,)
    if artifact.lengths is not None and exact:
        lengths = artifact.lengths.sizes
    for length in lengths:
        inputs, golden = artifact.golden(length)
        outputs = runner.run(inputs)
        reason = _misshapen(artifact.outputs, outputs, golden)
        if not reason and not (exact and artifact.parts):
            reason = _difference(artifact.outputs, outputs, golden, None if exact else steps)
        if reason:
            return f"length {length}: {reason}" if length else reason
    values = artifact.golden_values()
    return next((r for part, given in runner.run_parts(values) if (r := _wrong(part, given, values))), "")


def _wrong(part: Part, given: Mapping[str, npt.NDArray[Any]], golden: Mapping[str, npt.NDArray[Any]]) -> str:
    """What is wrong with the results of one part."""
    for name, got in given.items():
        want = golden[name]
        if got.shape != want.shape or want.dtype != np.float32:
            return (
                f"{part.file}: value {name!r} has shape {got.shape}, the golden one {want.dtype} {want.shape}"
            )
        if part.native:
            wrong, rule = np.count_nonzero(got.view(np.uint32) != want.view(np.uint32)), "bit for bit"
        else:
            bound = part.tolerance * np.abs(want).max()
            wrong, rule = np.count_nonzero(~(np.abs(got - want) <= bound)), f"within {bound:.3g}"
        if wrong:
            return (
                f"{part.file}: {wrong} of {got.size} values of {name!r} do not equal the golden ones {rule}"
            )
    return ""


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


def _misshapen(
    ports: tuple[Port, ...],
    outputs: Mapping[str, npt.NDArray[Any]],
    golden: Mapping[str, npt.NDArray[Any]],
) -> str:
    """The first output that is not there, of another shape or dtype, or not finite; or an empty string."""
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
    return ""


def _difference(
    ports: tuple[Port, ...],
    outputs: Mapping[str, npt.NDArray[Any]],
    golden: Mapping[str, npt.NDArray[Any]],
    steps: int | None,
) -> str:
    """The first output that is not its golden one, bit for bit or within `steps`; or an empty string."""
    for port in ports:
        got, want = outputs[port.name], golden[port.name]
        if steps is None:
            wrong = np.count_nonzero(got.view(np.uint32) != want.view(np.uint32))
            rule = "bit for bit"
        else:
            wrong = np.count_nonzero(~(np.abs(got - want) <= (steps + FLOAT_STEPS) * port.scale))
            rule = f"within {steps} steps"
        if wrong:
            return f"output {port.name!r}: {wrong} of {got.size} values do not equal the golden ones {rule}"
    return ""
