"""Why a verification came out as it did: layer by layer, the first node that diverges, and what heals it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from edgewright.agreement import DECIDED, NATURAL, ErrorSplit, flip_check, flipped, lowest_sqnr_db
from edgewright.cases import Cases
from edgewright.checks import Check, at_least, at_most
from edgewright.divergence import (
    Divergence,
    Run,
    conversion_divergence,
    kernel_divergence,
    quantization_divergence,
)
from edgewright.errors import ExportError, VerifyError
from edgewright.graph import float_graph, quantizes
from edgewright.indices import tabulate
from edgewright.layer_findings import LayerFinding, Measured, measure
from edgewright.narrow_kernels import ONNX_RUNTIME
from edgewright.normalform import normalize
from edgewright.overflow_risks import overflow_check, overflow_risks
from edgewright.profiling import operator_macs
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Quantize
from edgewright.remedies import Attempt, Remedy, Tried, recipe_text, size_of, takes_floats, try_remedies
from edgewright.remedy_candidates import (
    ANY_TARGET,
    Candidate,
    file_candidates,
    recipe_candidates,
    recipe_of,
)
from edgewright.samples import calibration_samples
from edgewright.subject import Arrays, Subject
from edgewright.value_matching import grid_values
from edgewright.wiring import value_shapes
from edgewright_device import TargetError
from edgewright_kernels import reference
from edgewright_kernels.plan import decode

if TYPE_CHECKING:
    from torch import nn

BATCH = 100
LOOKED = 64  # real samples on which engines are compared value by value
LEAST_DB = 10.0  # where a healthy model has more, names that match may still mean other values
REFERENCE_WORK = 500_000_000  # multiply-accumulates that the numpy reference may take: half a second
HALF_DB = 10 * np.log10(2)
HEALABLE = frozenset({"sqnr", "flips", "kernels", "overflow"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is known of where a model's error comes from.

    Attributes:
        layers: Each value that is on a grid, in order; empty where the float model cannot be compared so.
        divergences: One of each kind that a check found at most.
        remedy: What heals it; None where nothing failed that a remedy is known for.
        checks: As given, those that did not pass with the remedy in them.
    """

    layers: tuple[LayerFinding, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    remedy: Remedy | None = None
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is held against what.

    Attributes:
        cases: Those of the verification.
        expected: The float model's outputs for them.
        min_sqnr_db, max_flip_rate: As `verify` has them.
        least_agreement_db: Of an engine and the definition of its integers.
    """

    cases: Cases
    expected: Arrays
    min_sqnr_db: float
    max_flip_rate: float
    least_agreement_db: float

    def judged(self, tried: Tried) -> list[Check]:
        """The checks that a remedy must pass."""
        run, exact = tried.run, tried.exact
        got = dict(zip(self.expected, _outputs(run, self.cases).values(), strict=True))
        natural = np.isin(self.cases.strata, NATURAL)
        what = "signal to quantization noise against the float model"
        noise = lowest_sqnr_db(self.expected, got, natural)
        checks = [at_least("sqnr", what, noise, self.min_sqnr_db, "dB")]
        flips = flipped(self.expected, got)
        if flips is not None:
            decided = np.isin(self.cases.strata, DECIDED)
            checks.append(flip_check(int(flips[decided].sum()), int(decided.sum()), self.max_flip_rate))
        if exact is not None:
            few = self.cases.chosen(np.arange(0, len(self.cases), max(1, len(self.cases) // BATCH)))
            here, there = _outputs(run, few), _outputs(exact, few)
            what = "ONNX Runtime's kernels against the graph, operator by operator"
            checks.append(
                at_least("kernels", what, lowest_sqnr_db(there, here), self.least_agreement_db, "dB")
            )
        if isinstance(tried.made, onnx.ModelProto):
            overflow = overflow_check(overflow_risks(tried.made, kernels=[ONNX_RUNTIME]))
            what = "layers whose 16-bit sums can overflow: none adds in 16 bits"
            checks.append(overflow or at_most("overflow", what, 0, 0, "layers"))
        return checks


@dataclass(frozen=True, kw_only=True)
class Trial:
    """That remedies are to be tried.

    Attributes:
        calibration: Samples to choose grids by, as for `export`.
        quantize: The recipe that the artifact was made by; told from its integers if None.
        out: Where to write what the recommended one gave; nowhere if None.
    """

    calibration: Any
    quantize: Quantize | None = None
    out: Path | None = None


def explain(
    subject: Subject,
    model: nn.Module | Path,
    samples: Mapping[str, Any],
    checks: Sequence[Check],
    bounds: Bounds,
    *,
    errors: ErrorSplit,
    trial: Trial | None = None,
    progress: OnProgress,
) -> Explanation:
    """Looks into a model that was verified.

    Args:
        subject: What was verified.
        model: The float model. A module is traced only where a check did not pass.
        samples: Real samples by the subject's input names.
        checks: What was found.
        bounds: What a remedy must reach.
        errors: Where the difference from the float model comes from.
        trial: Try remedies, which takes a while; else they are only named.
        progress: Called as the work goes on.

    Raises:
        VerifyError: Calibration samples do not fit an ONNX file.
    """
    open_ = {c.name for c in checks if c.verdict != "passed"}
    if not quantizes(subject.graph) or (subject.artifact is not None and subject.artifact.lengths):
        return Explanation(checks=tuple(checks))
    few = {n: v[:LOOKED] for n, v in samples.items()}
    floats, measured = _measured(subject, model, few, traced=bool(open_ & HEALABLE))
    progress(Progress(step="verify: layers", done=1, total=1))
    found: list[Divergence | None] = []
    of_kernels = _kernels_add_most(errors, checks)
    differs = subject.artifact is None and errors.kernel_db < np.inf
    if differs and (of_kernels or open_ & {"kernels", "overflow"}):
        found.append(kernel_divergence(subject.graph, few))
    if floats is not None and measured is not None and open_ & {"sqnr", "flips"}:
        anyway = "flips" in open_ and not of_kernels
        found.append(quantization_divergence(measured, floats, min_sqnr_db=bounds.min_sqnr_db, anyway=anyway))
    if "onnx" in open_ and subject.artifact is not None and "plan.bin" in subject.artifact.files:
        plan = decode(subject.artifact.read("plan.bin"))
        work = sum(operator_macs(plan, op) for op in plan.ops)
        traced = {n: v[: max(1, REFERENCE_WORK // max(1, work))] for n, v in few.items()}
        trace = reference.trace(plan, subject.artifact.read("weights.safetensors"), traced)
        found.append(conversion_divergence(subject.graph, traced, trace))
    divergences = tuple(d for d in found if d is not None)
    remedy = None
    if open_ & HEALABLE:
        remedy = _remedy(subject, model, floats, few, divergences, checks, bounds, trial, progress)
    return Explanation(
        layers=measured.findings if measured is not None else (),
        divergences=divergences,
        remedy=remedy,
        checks=tuple(_with_remedy(c, divergences, remedy) for c in checks),
    )


def _kernels_add_most(errors: ErrorSplit, checks: Sequence[Check]) -> bool:
    """Whether at least half of the noise is an engine's own: to round otherwise is less than to round."""
    whole = next((c.value for c in checks if c.name == "sqnr"), np.inf)
    return bool(errors.kernel_db <= whole + HALF_DB)


def reference_graph(model: nn.Module | Path, subject: Subject, samples: Mapping[str, Any]) -> onnx.ModelProto:
    """The float model as a graph whose names are those of the QDQ graph, as far as one can be had.

    Raises:
        ExportError: It cannot be read or traced.
    """
    if isinstance(model, Path):
        raw = float_graph(model, slim=False)
    else:
        raw = float_graph(model, [samples[p.name][:2] for p in subject.inputs], slim=False)
    values = grid_values(subject.graph, raw)
    if sum(bool(v.expected) for v in values) >= 0.9 * len(values):
        return raw
    return tabulate(normalize(raw))


def _measured(
    subject: Subject, model: nn.Module | Path, samples: Mapping[str, Any], *, traced: bool
) -> tuple[onnx.ModelProto | None, Measured | None]:
    """The float model's graph, and each value against it; None where that cannot be."""
    file = isinstance(model, Path) and model.suffix == ".onnx"
    if not (file or traced) or _is_fixed(subject.graph):
        return None, None
    try:
        floats = reference_graph(model, subject, samples)
        if quantizes(floats) or _is_fixed(floats) or len(floats.graph.input) < len(samples):
            return None, None
        measured = measure(subject.graph, floats, samples)
        if measured.findings and min(f.local_db for f in measured.findings) < LEAST_DB:
            other = tabulate(normalize(floats))
            again = measure(subject.graph, other, samples)
            if len(again.findings) >= len(measured.findings):
                floats, measured = other, again
    except (ExportError, ValueError):
        return None, None  # a float model of another form: verification itself does without
    return floats, measured


def _is_fixed(graph: onnx.ModelProto) -> bool:
    """Whether a graph takes one batch size alone."""
    return value_shapes(graph)[graph.graph.input[0].name][0] is not None


def _remedy(
    subject: Subject,
    model: nn.Module | Path,
    floats: onnx.ModelProto | None,
    samples: Mapping[str, Any],
    divergences: tuple[Divergence, ...],
    checks: Sequence[Check],
    bounds: Bounds,
    trial: Trial | None,
    progress: OnProgress,
) -> Remedy:
    mine = tuple(c for c in checks if c.name in HEALABLE)
    target = ANY_TARGET
    candidates: list[Candidate]
    if subject.artifact is not None:
        base = (
            trial.quantize if trial is not None and trial.quantize is not None else recipe_of(subject.graph)
        )
        if subject.artifact.targets:
            target = subject.artifact.targets[0]
        try:
            floats_allowed = takes_floats(target)
        except TargetError:
            target = ANY_TARGET
            floats_allowed = takes_floats(target)
        cause = next((d for d in divergences if d.kind == "quantization"), None)
        candidates = recipe_candidates(
            base, cause, min_sqnr_db=bounds.min_sqnr_db, floats_allowed=floats_allowed
        )
        before = Attempt(
            change="as it is", recipe=recipe_text(base), size_bytes=size_of(subject.artifact), checks=mine
        )
    else:
        given: Any = samples if trial is None else trial.calibration
        try:
            calibration = (
                {} if floats is None else calibration_samples(_renamed(given, subject, floats), floats)
            )
        except ExportError as error:
            raise VerifyError(str(error)) from error
        narrow = any(c.name == "overflow" and c.verdict != "passed" for c in mine)
        candidates = file_candidates(
            subject.graph,
            floats,
            divergences,
            calibration,
            narrow=narrow or any(d.kind == "kernel" for d in divergences),
            model=model,
        )
        before = Attempt(change="as it is", recipe="", size_bytes=subject.graph.ByteSize(), checks=mine)
    if trial is None:
        return Remedy(before=before, untried=tuple(c.change for c in candidates))
    return try_remedies(
        candidates,
        before,
        bounds.judged,
        model=model,
        calibration=trial.calibration,
        target=target,
        out=trial.out,
        report=progress,
    )


def _renamed(given: Any, subject: Subject, floats: onnx.ModelProto) -> Any:
    """Samples under the float graph's names of the inputs."""
    if not isinstance(given, Mapping):
        return given
    names = {p.name: v.name for p, v in zip(subject.inputs, floats.graph.input, strict=False)}
    return {names.get(n, n): v for n, v in given.items()}


def _with_remedy(check: Check, divergences: Sequence[Divergence], remedy: Remedy | None) -> Check:
    """A check that did not pass says where and why, and what to do."""
    kinds = {
        "sqnr": ("quantization", "kernel"),
        "flips": ("quantization", "kernel"),
        "kernels": ("kernel",),
        "onnx": ("conversion",),
        "overflow": (),
    }
    if check.verdict == "passed" or check.name not in kinds:
        return check
    causes = sorted(
        (d for d in divergences if d.kind in kinds[check.name]), key=lambda d: kinds[check.name].index(d.kind)
    )
    said = [f"{d.layer} ({d.operator or 'input'}): {d.because}" for d in causes[:1]]
    if causes and causes[0].kind != kinds[check.name][0]:
        said = [f"it comes from the kernels ({causes[0].layer})"]
    if check.name in HEALABLE and remedy is not None:
        if remedy.recommended is not None:
            said.append(f"tried, and it passes: {remedy.recommended.change}")
        else:
            said += [check.remedy] if check.name == "overflow" and check.remedy else []
            if remedy.attempts:
                said.append(f"none of {len(remedy.attempts)} remedies that were tried is enough")
            elif remedy.untried:
                said.append(f"to try first: {remedy.untried[0]} (verify with remedies tries them)")
    return replace(check, remedy="; ".join(said)) if said else check


def _outputs(run: Run, cases: Cases) -> Arrays:
    parts = [run(cases.batch(start, start + BATCH)) for start in range(0, len(cases), BATCH)]
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
