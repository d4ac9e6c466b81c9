"""Verification: what will run against its definition, exactly, and against the float model, by statistics.

The error splits in three. Float model against what the integers are defined to give: quantization, which must
be small and is judged with its uncertainty. That against the engine: kernels, which must add nothing. And the
engine against model.onnx: conversion, two tellings of one model. `subject.py` says what runs,
`verification_inputs.py` what it is fed with, `agreement.py` compares; each further check has its own file.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright.agreement import (
    DECIDED,
    NATURAL,
    ErrorSplit,
    accuracy_check,
    decisions,
    differing,
    flip_check,
    flipped,
    lowest_sqnr_db,
    worst_cases,
)
from edgewright.cases import Cases, beyond_range, generate, outside, range_check, swept_lengths
from edgewright.certifying import certify
from edgewright.checks import Check, at_least, at_most
from edgewright.coverage import Watch, cover, coverage_check, far_samples
from edgewright.errors import VerifyError
from edgewright.explaining import Bounds, Trial, explain
from edgewright.graph import onnx_function, read_onnx
from edgewright.litert.model import litert_check, litert_run
from edgewright.metamorphic import relations
from edgewright.operator_probes import probe_checks
from edgewright.overflow_risks import look_for_overflow
from edgewright.profiling import operator_macs
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Quantize
from edgewright.soundness.examining import examine
from edgewright.subject import Arrays, Run, Subject, of_artifact, of_onnx
from edgewright.verification_inputs import Reference, real_samples
from edgewright.verification_report import VerificationReport
from edgewright_device import SYMMETRIC, Artifact, Runner, check_place, replay
from edgewright_kernels import cpu_paths
from edgewright_kernels.plan import decode

if TYPE_CHECKING:
    from torch import nn

BATCH = 100
BATCH_VALUES = 1 << 18  # of inputs that are run at once
BEYOND = 50
PADDED = 8  # cases of each length that is padded
SCORED = 48  # samples that the float model decides beforehand, to find cases between its classes
CLOSE = 100  # cases that are looked at more closely than at the outputs of one engine
# Multiply-accumulates that the numpy reference may take, about a second on one core, and each other engine
# beside the one that will run. Every operator is probed at its extremes besides, see operator_probes.py.
REFERENCE_WORK = 1_000_000_000
CLOSE_WORK = 12_000_000_000
FEWEST = 3
FEWEST_BEYOND = 5  # one of each kind
# What two float32 engines of one QDQ graph, or a QDQ graph and an integer program, must have in common: a
# value midway between two steps may be rounded either way, and that may go on.
AGREEMENT_DB = 25.0
COARSER = "its grids have their zero in the middle: keep sensitive layers in floating point (`keep_float`)"
# An artifact whose engine is not exact may differ from its golden outputs by this share of their range.
GOLDEN_TOLERANCE = 0.02


def verify(
    artifact: Artifact | str | os.PathLike[str],
    *,
    reference: nn.Module | str | os.PathLike[str],
    cases: int = 1000,
    data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None = None,
    seed: int = 0,
    max_flip_rate: float = 0.05,
    min_sqnr_db: float = 20.0,
    labels: npt.ArrayLike | None = None,
    margin: float = 0.01,
    remedies: bool = False,
    calibration: Any = None,
    quantize: Quantize | None = None,
    healed: str | os.PathLike[str] | None = None,
    progress: OnProgress | None = None,
) -> VerificationReport:
    """Compares what will run with its definition and with the float model it was made from.

    Args:
        artifact: What to verify: an artifact, opened or its path; or the path of an `.onnx` file, float or
            QDQ, which is verified as ONNX Runtime runs it on this machine.
        reference: The float model: a module, or the path of a `.pt2` or `.onnx` file.
        cases: Generated cases, from 20 up. All of them go through the float model and the engine; through
            slower definitions as many as the report says.
        data: Real samples that cases grow from: by input name, or one array; an artifact's own golden
            inputs, which are few, if left out. An ONNX file needs them.
        seed: Draws the cases.
        max_flip_rate: The share of predictions that may differ from the float model's.
        min_sqnr_db: The least signal to quantization noise ratio on natural cases, in dB.
        labels: Class numbers of the real samples, (samples,): then accuracy is checked on them.
        margin: Accuracy, 0..1, that may be lost on them.
        remedies: Where a check does not pass, try what may heal it, which takes a while. Else the report
            names what would be tried first.
        calibration: For remedies: samples to choose grids by, as for `export`.
        quantize: For remedies: the recipe that the artifact was exported with, of which one thing is changed;
            told from its integers if left out.
        healed: For remedies: where to write what the recommended one gave, an `.onnx` file or `NAME.ew` as
            what is verified; it is verified like any other. Nothing is written where none passes.
        progress: Called as the work goes on.

    Raises:
        VerifyError: The reference and the artifact do not fit each other, or the data does not fit.
        ArtifactError: The artifact cannot be opened.
        ValueError: Too few cases, remedies without calibration samples, or `healed` is no place for one.
    """
    if cases < 20:
        raise ValueError(f"{cases} cases say nothing; ask for 20 at least")
    if remedies and calibration is None:
        raise ValueError("remedies choose grids by calibration samples; give some (calibration)")
    subject = _subject(artifact, data)
    kept = None if healed is None else _place(Path(healed), subject, remedies)
    samples = real_samples(subject, data)
    report = progress or (lambda _: None)
    floats = Reference(reference, subject)
    scores = _scores(floats, samples, report)
    watch = Watch(subject.graph)
    drivers = far_samples(watch, samples)
    drawn = generate(subject.inputs, samples, cases, seed, scores=scores, drivers=drivers)
    beyond = 0

    def checked(inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        nonlocal beyond
        beyond += int(outside(inputs, drawn.bounds).sum())
        return floats.run(inputs)

    expected, got = _together({"float": checked, subject.runtime: subject.run}, drawn, report)
    close = _spread(drawn, _affordable(subject, CLOSE_WORK, min(CLOSE, len(drawn))), seed)
    at_close = {n: v[close] for n, v in got.items()}
    checks: list[Check] = []
    others: dict[str, Arrays] = {}  # outputs of other engines at the close cases
    mismatches, agreement = 0, None
    shorter_noise: list[float] = []
    if subject.artifact is None:
        looked, exact = close, _run(subject.exact, drawn.chosen(close), "exact", report)
        kernel_db = lowest_sqnr_db(exact, at_close)
        what = "ONNX Runtime's kernels against the graph, operator by operator"
        checks.append(at_least("kernels", what, kernel_db, AGREEMENT_DB, "dB"))
    else:
        checks.append(_golden_check(subject.artifact, subject))
        looked = _spread(drawn, _affordable(subject, REFERENCE_WORK, len(drawn)), seed)
        exact = _run(subject.exact, drawn.chosen(looked), "exact", report)
        kernel_db = lowest_sqnr_db(exact, {n: v[looked] for n, v in got.items()})
    if subject.artifact is not None and subject.runtime == "native":
        far = beyond_range(subject.inputs, samples, min(BEYOND, max(FEWEST_BEYOND, len(looked))), seed)
        mismatches = differing(exact, {n: v[looked] for n, v in got.items()})
        mismatches += differing(subject.exact(far.inputs), subject.run(far.inputs))
        for length in swept_lengths(subject.artifact.lengths):
            assert subject.artifact.lengths is not None
            padded = length not in subject.artifact.lengths.sizes
            few = _cropped(subject, drawn.chosen(looked[: PADDED if padded else BATCH]), length)
            here = _run(subject.run, few, f"native, length {length}", report)
            mismatches += differing(_run(subject.exact, few, f"exact, length {length}", report), here)
            if padded:
                continue
            wanted = _run(partial(floats.run, length=length), few, f"float, length {length}", report)
            shorter_noise.append(lowest_sqnr_db(wanted, here, np.isin(few.strata, NATURAL)))
        what = "native engine against the numpy reference, differing values"
        checks.append(at_most("bits", what, mismatches, 0, "values"))
        onnx = Runner(subject.artifact, backend="onnxruntime")
        others["onnxruntime"] = _run(onnx.run, drawn.chosen(close), "onnxruntime", report)
        agreement = lowest_sqnr_db(at_close, others["onnxruntime"])
        what = "model.onnx in ONNX Runtime against the native engine"
        checks.append(at_least("onnx", what, agreement, AGREEMENT_DB, "dB"))
        checks += probe_checks(subject.artifact, subject.graph, drawn.chosen(close).inputs)
        if SYMMETRIC in subject.artifact.files:
            symmetric = onnx_function(read_onnx(subject.artifact.path / SYMMETRIC))
            others[SYMMETRIC] = _run(symmetric, drawn.chosen(close), SYMMETRIC, report)
            what = f"signal to noise of {SYMMETRIC} against the float model"
            wanted = {n: v[close] for n, v in expected.items()}
            found = lowest_sqnr_db(wanted, others[SYMMETRIC], np.isin(drawn.strata[close], NATURAL))
            checks.append(at_least("symmetric", what, found, min_sqnr_db, "dB", remedy=COARSER))
        if (litert := litert_run(subject.artifact, report)) is not None:
            others["litert"] = _run(litert, drawn.chosen(close), "litert", report)
            checks.append(litert_check(subject.artifact, at_close, others["litert"]))
    sound = examine(subject, floats.model, samples, report)
    checks += sound.checks
    checks.append(range_check(beyond))
    overflow, own = look_for_overflow(subject, samples, seed=seed)
    checks += own
    if (coverage := cover(watch, drawn)) is not None:
        checks.append(coverage_check(coverage))
    checks += relations(subject, floats.run, samples)
    natural = np.isin(drawn.strata, NATURAL)
    noise = min([lowest_sqnr_db(expected, got, natural), *shorter_noise])
    what = "signal to quantization noise against the float model"
    checks.append(at_least("sqnr", what, noise, min_sqnr_db, "dB"))
    flips, decided = flipped(expected, got), np.isin(drawn.strata, DECIDED)
    if flips is not None:
        checks.append(flip_check(int(flips[decided].sum()), int(decided.sum()), max_flip_rate))
    if labels is not None:
        there, here = _on_samples(floats, subject, samples, report)
        checks.append(accuracy_check(there, here, labels, margin))
    bounds = Bounds(
        cases=drawn,
        expected=expected,
        min_sqnr_db=min_sqnr_db,
        max_flip_rate=max_flip_rate,
        least_agreement_db=AGREEMENT_DB,
    )
    errors = ErrorSplit(
        quantization_db=lowest_sqnr_db({n: v[looked] for n, v in expected.items()}, exact),
        kernel_db=kernel_db,
        conversion_db=agreement,
        cases=len(looked),
    )
    trial = Trial(calibration=calibration, quantize=quantize, out=kept) if remedies else None
    why = explain(subject, floats.model, samples, checks, bounds, errors=errors, trial=trial, progress=report)
    checks = list(why.checks)
    certificate = None
    if all(c.verdict == "passed" for c in checks):
        certificate = certify(
            subject, reference=floats.digest(), cases=cases, seed=seed, got=at_close, others=others
        )
    kinds, counts = np.unique(drawn.strata, return_counts=True)
    return VerificationReport(
        artifact=subject.digest,
        name=subject.name,
        reference=floats.name,
        cases=cases,
        strata={str(k): int(c) for k, c in zip(kinds, counts, strict=True)},
        seed=seed,
        bit_mismatches=mismatches,
        prediction_flips=None if flips is None else int(flips[decided].sum()),
        sqnr_db=noise,
        stratum_sqnr_db={str(k): lowest_sqnr_db(expected, got, drawn.strata == k) for k in kinds},
        stratum_flips={} if flips is None else {str(k): int(flips[drawn.strata == k].sum()) for k in kinds},
        checks=tuple(checks),
        machine={"arch": platform.machine(), "kernels": cpu_paths()[0], "python": platform.python_version()},
        errors=errors,
        worst=worst_cases(expected, got, drawn, subject.inputs),
        certificate=certificate,
        coverage=coverage,
        layers=why.layers,
        divergences=why.divergences,
        remedy=why.remedy,
        overflow=overflow,
        findings=sound.findings,
    )


def _subject(
    artifact: Artifact | str | os.PathLike[str], data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None
) -> Subject:
    if isinstance(artifact, Artifact):
        return of_artifact(artifact)
    path = Path(artifact)
    return of_onnx(path, data) if path.suffix == ".onnx" else of_artifact(Artifact.open(path))


def _place(healed: Path, subject: Subject, remedies: bool) -> Path:
    """Where a healed model goes.

    Raises:
        ValueError: No remedy is tried, or it is no place for one.
        ArtifactError: Something else than an artifact is there.
    """
    suffix = ".onnx" if subject.artifact is None else ".ew"
    if not remedies:
        raise ValueError("a healed model comes from remedies; ask for them (remedies)")
    if healed.suffix != suffix or healed.absolute() == subject.path.absolute():
        raise ValueError(f"healed: {healed}; give another place than {subject.path}, NAME{suffix}")
    if subject.artifact is not None:
        check_place(healed, healed.stem)
    return healed


def _scores(floats: Reference, samples: Arrays, report: OnProgress) -> npt.NDArray[Any] | None:
    """What the float model gives for the first samples; None where its outputs are not classes."""
    first = {n: v[:SCORED] for n, v in samples.items()}
    kinds = np.repeat(["sample"], len(next(iter(first.values()))))
    outputs = _run(floats.run, Cases.of(first, kinds, {}), "samples", report)
    return None if decisions(outputs) is None else next(iter(outputs.values()))


def _on_samples(floats: Reference, subject: Subject, samples: Arrays, report: OnProgress) -> list[Arrays]:
    """What the float model and the engine give for the samples themselves."""
    kinds = np.repeat(["sample"], len(next(iter(samples.values()))))
    functions = {"float, samples": floats.run, f"{subject.runtime}, samples": subject.run}
    return _together(functions, Cases.of(samples, kinds, {}), report)


def _spread(cases: Cases, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of so many cases, in order, each kind with its share."""
    order = np.random.default_rng(seed).permutation(len(cases))
    by_kind = order[np.argsort(cases.strata[order], kind="stable")]
    return np.sort(by_kind[np.linspace(0, len(cases) - 1, count).astype(np.int64)])


def _affordable(subject: Subject, work: int, most: int) -> int:
    """How many cases so many multiply-accumulates are enough for, a few at least; all of an ONNX file."""
    if subject.artifact is None:
        return most
    plans = [decode(subject.artifact.read(n)) for n in subject.artifact.files if n.endswith(".bin")]
    one = sum(operator_macs(plan, op) for plan in plans for op in plan.ops)
    return max(min(FEWEST, most), min(most, work // max(1, one)))


def _cropped(subject: Subject, cases: Cases, length: int) -> Cases:
    """The cases, with sequences of another length."""
    inputs: Arrays = {}
    for port in subject.inputs:
        inputs[port.name] = cases.inputs[port.name]
        if None in port.shape[1:]:
            axis = 1 + port.shape[1:].index(None)
            inputs[port.name] = np.ascontiguousarray(np.take(inputs[port.name], range(length), axis))
    return Cases.of(inputs, cases.strata, cases.bounds)


def _run(function: Run, cases: Cases, step: str, report: OnProgress) -> Arrays:
    return _together({step: function}, cases, report)[0]


def _together(functions: Mapping[str, Run], cases: Cases, report: OnProgress) -> list[Arrays]:
    """The outputs of each function, by its step's name, for all cases, which are drawn once."""
    size = max(1, min(BATCH, BATCH_VALUES // cases.values))
    parts: list[list[Arrays]] = [[] for _ in functions]
    done = 0
    for batches in cases.chunks(size):
        done += sum(len(next(iter(b.values()))) for b in batches)
        for (step, function), found in zip(functions.items(), parts, strict=True):
            found += [function(b) for b in batches]
            report(Progress(step=f"verify: {step}", done=done, total=len(cases)))
    return [{name: np.concatenate([p[name] for p in found]) for name in found[0]} for found in parts]


def _golden_check(artifact: Artifact, subject: Subject) -> Check:
    exact = subject.runtime == "native"
    inputs, expected = artifact.golden()
    try:
        got = subject.run(inputs)
        wrong = replay(Runner(artifact)) if artifact.parts and exact else ""
    except ValueError as error:
        raise VerifyError(f"{artifact.path}: its golden vectors do not fit it: {error}") from None
    shapes = {n: (o.shape, o.dtype) for n, o in got.items()}
    if {n: (o.shape, o.dtype) for n, o in expected.items()} != shapes:
        raise VerifyError(f"{artifact.path}: its golden outputs are not what it gives in name or shape")
    if exact and artifact.lengths:
        wrong_values = 0
        for length in artifact.lengths.sizes:
            taken, golden = artifact.golden(length)
            wrong_values += differing(golden, subject.run(taken))
        what = "golden vectors of every length replayed, differing values"
        return at_most("golden", what, wrong_values, 0, "values")
    if exact and artifact.parts:
        what = "golden vectors replayed part by part, parts that differ" + (f": {wrong}" if wrong else "")
        return at_most("golden", what, bool(wrong), 0, "parts")
    if exact:
        return at_most(
            "golden", "golden vectors replayed, differing values", differing(expected, got), 0, "values"
        )
    worst = float(np.max([np.abs(expected[n] - got[n]).max() / (np.ptp(expected[n]) or 1) for n in got]))
    return at_most(
        "golden",
        "golden vectors replayed, largest share of the range",
        worst,
        GOLDEN_TOLERANCE,
        "of the range",
    )
