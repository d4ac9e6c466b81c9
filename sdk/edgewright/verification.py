"""Verification: an artifact against the integer reference, exactly, and the float model, by statistics.

The error splits in two: native engine against the numpy definition of the integer program (must be nothing),
and that against the float model (quantization: must be small, and is judged with its uncertainty).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright.cases import Cases, beyond_range, generate
from edgewright.checks import Check, Verdict, at_least, at_most
from edgewright.errors import ExportError, VerifyError
from edgewright.graph import float_function
from edgewright.progress import OnProgress, Progress
from edgewright.statistics import sqnr_db, wilson_interval
from edgewright.verification_report import VerificationReport
from edgewright_device import Artifact, Port, Runner, replay
from edgewright_kernels import cpu_paths

if TYPE_CHECKING:
    from torch import nn

BATCH = 100
BEYOND = 50
# Noise is judged on inputs as the model meets them. Edge cases drive activations out of their calibrated
# ranges, where a float model goes on and an integer one must saturate; they are reported apart.
NATURAL = ("sample", "between", "noise", "shift")
# An artifact whose engine is not exact may differ from its golden outputs by this share of their range.
GOLDEN_TOLERANCE = 0.02

Arrays = dict[str, npt.NDArray[Any]]


def verify(
    artifact: Artifact,
    *,
    reference: nn.Module | str | os.PathLike[str],
    cases: int = 1000,
    data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None = None,
    seed: int = 0,
    max_flip_rate: float = 0.05,
    min_sqnr_db: float = 20.0,
    progress: OnProgress | None = None,
) -> VerificationReport:
    """Compares an artifact with its definition and with the float model it was made from.

    Args:
        artifact: What to verify.
        reference: The float model: a module, or the path of a `.pt2` or `.onnx` file.
        cases: Generated cases, from 20 up.
        data: Real samples that cases grow from: by input name, or one array; the artifact's own golden
            inputs, which are few, if left out.
        seed: Draws the cases.
        max_flip_rate: The share of predictions that may differ from the float model's.
        min_sqnr_db: The least signal to quantization noise ratio on natural cases, in dB.
        progress: Called as the work goes on.

    Raises:
        VerifyError: The reference and the artifact do not fit each other, or the data does not fit.
        ValueError: Too few cases.
    """
    if cases < 20:
        raise ValueError(f"{cases} cases say nothing; ask for 20 at least")
    samples = _samples(artifact, data)
    drawn = generate(artifact.inputs, samples, cases, seed)
    report = progress or (lambda _: None)
    native = artifact.native
    engine = Runner(artifact, backend="native" if native else "onnxruntime")

    expected = _float_outputs(artifact, reference, drawn, report)
    got = _run(engine.run, drawn, "native" if native else "onnxruntime", report)
    checks = [_golden_check(artifact, engine, exact=native)]
    mismatches = 0
    shorter_noise: list[float] = []
    if native:
        slow = Runner(artifact, backend="reference")
        far = beyond_range(artifact.inputs, samples, BEYOND, seed)
        mismatches = _differing(_run(slow.run, drawn, "reference", report), got)
        mismatches += _differing(slow.run(far.inputs), engine.run(far.inputs))
        for length in artifact.lengths.sizes[:-1] if artifact.lengths else ():
            few = _cropped(artifact, drawn, length)
            here = _run(engine.run, few, f"native, length {length}", report)
            mismatches += _differing(_run(slow.run, few, f"reference, length {length}", report), here)
            wanted = _float_outputs(artifact, reference, few, report, length)
            shorter_noise.append(_sqnr_db(wanted, here, np.isin(few.strata, NATURAL)))
        checks.append(
            at_most(
                "bits", "native engine against the numpy reference, differing values", mismatches, 0, "values"
            )
        )
        unfused = _run(Runner(artifact, backend="onnxruntime").run, drawn, "onnxruntime", report)
        agreement = float(np.min([sqnr_db(got[n], unfused[n]) for n in got]))
        checks.append(
            at_least("onnx", "model.onnx in ONNX Runtime against the native engine", agreement, 25.0, "dB")
        )
    noise = min([_sqnr_db(expected, got, np.isin(drawn.strata, NATURAL)), *shorter_noise])
    checks.append(
        at_least("sqnr", "signal to quantization noise against the float model", noise, min_sqnr_db, "dB")
    )
    flips = _flips(expected, got)
    if flips is not None:
        checks.append(_flip_check(flips, cases, max_flip_rate))
    kinds, counts = np.unique(drawn.strata, return_counts=True)
    return VerificationReport(
        artifact=artifact.digest,
        name=artifact.name,
        reference=str(reference) if isinstance(reference, str | os.PathLike) else type(reference).__name__,
        cases=cases,
        strata={str(k): int(c) for k, c in zip(kinds, counts, strict=True)},
        seed=seed,
        bit_mismatches=mismatches,
        prediction_flips=flips,
        sqnr_db=noise,
        stratum_sqnr_db={str(k): _sqnr_db(expected, got, drawn.strata == k) for k in kinds},
        checks=tuple(checks),
        machine={"arch": platform.machine(), "kernels": cpu_paths()[0], "python": platform.python_version()},
    )


def _cropped(artifact: Artifact, cases: Cases, length: int) -> Cases:
    """Some of the cases, with sequences of another length."""
    chosen = np.random.default_rng(length).permutation(len(cases))[:BATCH]
    inputs: Arrays = {}
    for port in artifact.inputs:
        inputs[port.name] = cases.inputs[port.name][chosen]
        if None in port.shape[1:]:
            axis = 1 + port.shape[1:].index(None)
            inputs[port.name] = np.ascontiguousarray(np.take(inputs[port.name], range(length), axis))
    return Cases(inputs=inputs, strata=cases.strata[chosen])


def _sizes(artifact: Artifact, port: Port, length: int | None = None) -> tuple[int, ...]:
    """A port's shape behind the batch; where it is free, with this length, or the largest."""
    if length is None:
        length = artifact.lengths.sizes[-1] if artifact.lengths else 0
    return tuple(length if d is None else d for d in port.shape[1:])


def _samples(artifact: Artifact, data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None) -> Arrays:
    if data is None:
        given: Mapping[str, npt.ArrayLike] = artifact.golden()[0]
    elif isinstance(data, Mapping):
        given = data
    else:
        given = {artifact.inputs[0].name: data}
    names = {p.name for p in artifact.inputs}
    if given.keys() != names:
        raise VerifyError(f"data is for inputs {sorted(given)}; the artifact takes {sorted(names)}")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinity, and is reported below
            samples = {p.name: _typed(given[p.name], p.dtype) for p in artifact.inputs}
    except (TypeError, ValueError) as error:
        raise VerifyError(f"data must be arrays of numbers ({error})") from None
    for port in artifact.inputs:
        shape = samples[port.name].shape
        needed = f"({', '.join(map(str, ('samples', *_sizes(artifact, port))))})"
        if shape[1:] != _sizes(artifact, port) or not shape[0]:
            raise VerifyError(
                f"data for {port.name!r} has shape {shape}; {needed} is needed, with at least one sample"
            )
        if not np.isfinite(samples[port.name]).all():
            raise VerifyError(f"data for {port.name!r} holds NaN or infinity")
    return samples


def _typed(values: npt.ArrayLike, dtype: str) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if dtype == "int64" and array.dtype.kind not in "biu":
        raise TypeError(f"{array.dtype} where whole numbers are needed")
    return np.asarray(array, dtype)


def _float_outputs(
    artifact: Artifact,
    reference: nn.Module | str | os.PathLike[str],
    cases: Cases,
    report: OnProgress,
    length: int | None = None,
) -> Arrays:
    """The float model's outputs, under the artifact's names, which the two list in the same order."""
    source = Path(reference) if isinstance(reference, str | os.PathLike) else reference
    try:
        function = float_function(source)
    except ExportError as error:
        raise VerifyError(f"the reference cannot be run: {error}") from error
    names = [p.name for p in artifact.inputs]

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        results = function([inputs[n] for n in names])
        if len(results) != len(artifact.outputs):
            raise VerifyError(
                f"the reference has {len(results)} outputs, the artifact {len(artifact.outputs)}"
            )
        return {p.name: r for p, r in zip(artifact.outputs, results, strict=True)}

    try:
        outputs = _run(run, cases, "float", report)
    except VerifyError:
        raise
    except Exception as error:  # a model may raise anything
        raise VerifyError(f"the reference does not take this artifact's inputs: {error}") from error
    for port in artifact.outputs:
        if len(outputs[port.name]) != len(cases):
            raise VerifyError(
                f"the reference gives {len(outputs[port.name])} results for {len(cases)} cases "
                f"({port.name!r}); the first dimension must be the batch"
            )
        if outputs[port.name].shape[1:] != _sizes(artifact, port, length):
            raise VerifyError(
                f"the reference gives {outputs[port.name].shape[1:]} where the artifact gives "
                f"{_sizes(artifact, port, length)} ({port.name!r}); is it the model that this artifact is of?"
            )
    return outputs


def _run(
    function: Callable[[Mapping[str, npt.NDArray[Any]]], Arrays], cases: Cases, step: str, report: OnProgress
) -> Arrays:
    parts: list[Arrays] = []
    for start in range(0, len(cases), BATCH):
        parts.append(function({n: v[start : start + BATCH] for n, v in cases.inputs.items()}))
        report(Progress(step=f"verify: {step}", done=min(start + BATCH, len(cases)), total=len(cases)))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _golden_check(artifact: Artifact, engine: Runner, *, exact: bool) -> Check:
    inputs, expected = artifact.golden()
    try:
        got = engine.run(inputs)
        wrong = replay(engine) if artifact.parts and exact else ""
    except ValueError as error:
        raise VerifyError(f"{artifact.path}: its golden vectors do not fit it: {error}") from None
    shapes = {n: (o.shape, o.dtype) for n, o in got.items()}
    if {n: (o.shape, o.dtype) for n, o in expected.items()} != shapes:
        raise VerifyError(f"{artifact.path}: its golden outputs are not what it gives in name or shape")
    if exact and artifact.lengths:
        wrong_values = 0
        for length in artifact.lengths.sizes:
            taken, golden = artifact.golden(length)
            wrong_values += _differing(golden, engine.run(taken))
        what = "golden vectors of every length replayed, differing values"
        return at_most("golden", what, wrong_values, 0, "values")
    if exact and artifact.parts:
        what = "golden vectors replayed part by part, parts that differ" + (f": {wrong}" if wrong else "")
        return at_most("golden", what, bool(wrong), 0, "parts")
    if exact:
        return at_most(
            "golden", "golden vectors replayed, differing values", _differing(expected, got), 0, "values"
        )
    worst = float(np.max([np.abs(expected[n] - got[n]).max() / (np.ptp(expected[n]) or 1) for n in got]))
    return at_most(
        "golden",
        "golden vectors replayed, largest share of the range",
        worst,
        GOLDEN_TOLERANCE,
        "of the range",
    )


def _flip_check(flips: int, cases: int, bound: float) -> Check:
    low, high = wilson_interval(flips, cases)
    verdict: Verdict = "passed" if high <= bound else "failed" if low > bound else "cannot tell"
    return Check(
        name="flips",
        what="predictions that differ from the float model's",
        verdict=verdict,
        value=flips / cases,
        interval=(low, high),
        bound=bound,
        unit="of the cases",
    )


def _differing(expected: Mapping[str, npt.NDArray[Any]], got: Mapping[str, npt.NDArray[Any]]) -> int:
    """Number of values that differ in any bit."""
    return sum(
        int(np.count_nonzero(expected[n].view(np.uint32) != np.ascontiguousarray(got[n]).view(np.uint32)))
        for n in expected
    )


def _sqnr_db(expected: Arrays, got: Arrays, chosen: npt.NDArray[np.bool_]) -> float:
    """The lowest ratio of any output, over the chosen cases."""
    return float(np.min([sqnr_db(expected[n][chosen], got[n][chosen]) for n in got]))


def _flips(expected: Arrays, got: Arrays) -> int | None:
    name = next(iter(expected))
    if len(expected) != 1 or expected[name].ndim != 2 or expected[name].shape[1] < 2:
        return None
    return int(np.count_nonzero(expected[name].argmax(1) != got[name].argmax(1)))
