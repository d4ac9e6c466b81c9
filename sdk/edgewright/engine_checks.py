"""The engine that is verified, against the definition of its integers and other forms of the same model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from edgewright.agreement import NATURAL, ErrorSplit, differing, lowest_sqnr_db
from edgewright.case_run import BATCH, CaseRun, run_cases
from edgewright.cases import Cases, beyond_range, swept_lengths
from edgewright.checks import Check, at_least, at_most
from edgewright.errors import VerifyError
from edgewright.graph import onnx_function, read_onnx
from edgewright.litert.model import litert_check, litert_run
from edgewright.operator_probes import probe_checks
from edgewright.profiling import operator_macs
from edgewright.subject import Arrays, Subject
from edgewright_device import SYMMETRIC, Artifact, Runner, replay
from edgewright_kernels.plan import decode

BEYOND = 50
PADDED = 8  # cases of each length that is padded
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


@dataclass(frozen=True, kw_only=True)
class Engines:
    """What engines say of one another.

    Attributes:
        checks: What must hold.
        errors: The split of the error.
        close: Numbers of the cases that all other engines ran.
        others: Their outputs for these, by engine or file.
        mismatches: Values in which the native engine differs from the numpy reference.
        shorter_db: Signal to noise against the float model for each shorter length of sequences.
    """

    checks: list[Check]
    errors: ErrorSplit
    close: npt.NDArray[np.int64]
    others: dict[str, Arrays] = field(default_factory=dict)
    mismatches: int = 0
    shorter_db: list[float] = field(default_factory=list)


def compare_engines(run: CaseRun, min_sqnr_db: float) -> Engines:
    """Holds the engine to the definition, and the other forms of the model to the engine.

    Args:
        run: All cases, run.
        min_sqnr_db: What a form with grids of its own must keep against the float model.
    """
    artifact = run.subject.artifact
    close = run.spread(_affordable(run.subject, CLOSE_WORK, min(CLOSE, len(run.cases))))
    if artifact is None:
        exact = run.run(run.subject.exact, "exact", close)
        errors = _split(run, close, exact)
        what = "ONNX Runtime's kernels against the graph, operator by operator"
        check = at_least("kernels", what, errors.kernel_db, AGREEMENT_DB, "dB")
        return Engines(checks=[check], errors=errors, close=close)
    golden = _golden_check(artifact, run.subject)
    if run.subject.runtime != "native":
        exact = run.run(run.subject.exact, "exact", close)
        return Engines(checks=[golden], errors=_split(run, close, exact), close=close)
    looked = run.spread(_affordable(run.subject, REFERENCE_WORK, len(run.cases)))
    exact = run.run(run.subject.exact, "exact", looked)
    mismatches, shorter_db = _bits(run, looked, exact)
    what = "native engine against the numpy reference, differing values"
    checks = [golden, at_most("bits", what, mismatches, 0, "values")]
    others = {"onnxruntime": run.run(Runner(artifact, backend="onnxruntime").run, "onnxruntime", close)}
    agreement = lowest_sqnr_db(run.got_at(close), others["onnxruntime"])
    what = "model.onnx in ONNX Runtime against the native engine"
    checks.append(at_least("onnx", what, agreement, AGREEMENT_DB, "dB"))
    checks += probe_checks(artifact, run.subject.graph, run.cases.chosen(close).inputs)
    if SYMMETRIC in artifact.files:
        others[SYMMETRIC] = run.run(onnx_function(read_onnx(artifact.path / SYMMETRIC)), SYMMETRIC, close)
        what = f"signal to noise of {SYMMETRIC} against the float model"
        found = lowest_sqnr_db(run.expected_at(close), others[SYMMETRIC], run.natural[close])
        checks.append(at_least("symmetric", what, found, min_sqnr_db, "dB", remedy=COARSER))
    if (litert := litert_run(artifact, run.report)) is not None:
        others["litert"] = run.run(litert, "litert", close)
        checks.append(litert_check(artifact, run.got_at(close), others["litert"]))
    return Engines(
        checks=checks,
        errors=_split(run, looked, exact, agreement),
        close=close,
        others=others,
        mismatches=mismatches,
        shorter_db=shorter_db,
    )


def _split(
    run: CaseRun, rows: npt.NDArray[np.int64], exact: Arrays, conversion_db: float | None = None
) -> ErrorSplit:
    return ErrorSplit(
        quantization_db=lowest_sqnr_db(run.expected_at(rows), exact),
        kernel_db=lowest_sqnr_db(exact, run.got_at(rows)),
        conversion_db=conversion_db,
        cases=len(rows),
    )


def _bits(run: CaseRun, looked: npt.NDArray[np.int64], exact: Arrays) -> tuple[int, list[float]]:
    """Values in which the engine differs from the reference; signal to noise of shorter lengths, in dB."""
    subject = run.subject
    far = beyond_range(subject.inputs, run.samples, min(BEYOND, max(FEWEST_BEYOND, len(looked))), run.seed)
    mismatches = differing(exact, run.got_at(looked))
    mismatches += differing(subject.exact(far.inputs), subject.run(far.inputs))
    shorter_db: list[float] = []
    lengths = subject.artifact.lengths if subject.artifact else None
    for length in swept_lengths(lengths):
        padded = lengths is None or length not in lengths.sizes
        few = _cropped(subject, run.cases.chosen(looked[: PADDED if padded else BATCH]), length)
        here = run_cases(subject.run, few, f"native, length {length}", run.report)
        mismatches += differing(run_cases(subject.exact, few, f"exact, length {length}", run.report), here)
        if not padded:
            floats = partial(run.floats.run, length=length)
            wanted = run_cases(floats, few, f"float, length {length}", run.report)
            shorter_db.append(lowest_sqnr_db(wanted, here, np.isin(few.strata, NATURAL)))
    return mismatches, shorter_db


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
