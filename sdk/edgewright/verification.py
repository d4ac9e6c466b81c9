"""Verification: what will run against its definition, exactly, and against the float model, by statistics.

The error splits in three. Float model against what the integers are defined to give: quantization, which must
be small and is judged with its uncertainty. That against the engine: kernels, which must add nothing. And the
engine against model.onnx: conversion, two tellings of one model. `subject.py` says what runs,
`verification_inputs.py` and `case_run.py` what it is fed with, `engine_checks.py` and `agreement.py` compare;
each further check has its own file.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright.agreement import DECIDED, accuracy_check, flip_check, flipped, lowest_sqnr_db, worst_cases
from edgewright.case_run import CaseRun
from edgewright.cases import range_check, samples_check
from edgewright.certifying import certify
from edgewright.checks import Check, at_least
from edgewright.coverage import cover, coverage_check
from edgewright.engine_checks import AGREEMENT_DB, Engines, compare_engines
from edgewright.explaining import Bounds, Trial, explain
from edgewright.metamorphic import relations
from edgewright.overflow_risks import look_for_overflow
from edgewright.progress import OnProgress
from edgewright.recipe import Quantize
from edgewright.soundness.examining import examine
from edgewright.subject import Subject, of_artifact, of_onnx
from edgewright.verification_inputs import Reference, real_samples
from edgewright.verification_report import VerificationReport
from edgewright_device import Artifact, Certificate, check_place
from edgewright_kernels import cpu_paths

if TYPE_CHECKING:
    from torch import nn


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
    run = CaseRun.of(subject, floats, samples, cases=cases, seed=seed, report=report)
    engines = compare_engines(run, min_sqnr_db)
    sound = examine(subject, floats.model, samples, report)
    overflow, own = look_for_overflow(subject, samples, seed=seed)
    coverage = cover(run.watch, run.cases)
    checks = [*engines.checks, *sound.checks, samples_check(subject.inputs, samples)]
    checks += [range_check(run.beyond), *own]
    checks += [coverage_check(coverage)] if coverage else []
    checks += relations(subject, floats.run, samples)
    noise = min([lowest_sqnr_db(run.expected, run.got, run.natural), *engines.shorter_db])
    what = "signal to quantization noise against the float model"
    checks.append(at_least("sqnr", what, noise, min_sqnr_db, "dB"))
    flips, decided = flipped(run.expected, run.got), np.isin(run.cases.strata, DECIDED)
    if flips is not None:
        checks.append(flip_check(int(flips[decided].sum()), int(decided.sum()), max_flip_rate))
    if labels is not None:
        there, here = run.on_samples()
        checks.append(accuracy_check(there, here, labels, margin))
    bounds = Bounds(
        cases=run.cases,
        expected=run.expected,
        min_sqnr_db=min_sqnr_db,
        max_flip_rate=max_flip_rate,
        least_agreement_db=AGREEMENT_DB,
    )
    trial = Trial(calibration=calibration, quantize=quantize, out=kept) if remedies else None
    why = explain(
        subject, floats.model, samples, checks, bounds, errors=engines.errors, trial=trial, progress=report
    )
    kinds, counts = np.unique(run.cases.strata, return_counts=True)
    of_kind = {str(k): run.cases.strata == k for k in kinds}
    return VerificationReport(
        artifact=subject.digest,
        name=subject.name,
        reference=floats.name,
        cases=cases,
        strata={str(k): int(c) for k, c in zip(kinds, counts, strict=True)},
        seed=seed,
        bit_mismatches=engines.mismatches,
        prediction_flips=None if flips is None else int(flips[decided].sum()),
        sqnr_db=noise,
        stratum_sqnr_db={k: lowest_sqnr_db(run.expected, run.got, rows) for k, rows in of_kind.items()},
        stratum_flips={} if flips is None else {k: int(flips[rows].sum()) for k, rows in of_kind.items()},
        checks=why.checks,
        machine={"arch": platform.machine(), "kernels": cpu_paths()[0], "python": platform.python_version()},
        errors=engines.errors,
        worst=worst_cases(run.expected, run.got, run.cases, subject.inputs),
        certificate=_certificate(run, engines, why.checks),
        coverage=coverage,
        layers=why.layers,
        divergences=why.divergences,
        remedy=why.remedy,
        overflow=overflow,
        findings=sound.findings,
    )


def _certificate(run: CaseRun, engines: Engines, checks: Sequence[Check]) -> Certificate | None:
    """What the verification vouches for, if every check passed."""
    if any(c.verdict != "passed" for c in checks):
        return None
    return certify(
        run.subject,
        reference=run.floats.digest(),
        cases=len(run.cases),
        seed=run.seed,
        got=run.got_at(engines.close),
        others=engines.others,
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
