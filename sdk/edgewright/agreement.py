"""How well outputs agree: of an engine with the float model, and of two engines with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.cases import Cases
from edgewright.checks import Check
from edgewright.decisions import decisions_of
from edgewright.equivalence import loss_check, rate_check
from edgewright.errors import VerifyError
from edgewright.preview import Preview, preview
from edgewright.statistics import sqnr_db
from edgewright_device import Port

WORST = 8

# Noise and decisions are judged on inputs as a model meets them. "edge" and "inner" drive activations out of
# their calibrated ranges, where a float model goes on and an integer one must saturate; "boundary" looks for
# cases that any noise decides otherwise. They are reported apart.
NATURAL = ("sample", "between", "noise", "shift")
# Decisions are compared where there is a right one; halfway between two samples either will do.
DECIDED = ("sample", "noise", "shift")

Outputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSplit:
    """Where the difference from the float model comes from, as signal to noise ratios in dB.

    Attributes:
        quantization_db: The float model against what the integers are defined to give.
        kernel_db: That against what the engine gives: inf where no bit differs.
        conversion_db: The engine against model.onnx in ONNX Runtime; None of an ONNX file.
        cases: Cases that the slow definition was run on.
    """

    quantization_db: float
    kernel_db: float
    conversion_db: float | None
    cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """A case on which an engine lies far from the float model.

    Attributes:
        case: Its number; the seed and the data draw it again.
        stratum: Its kind.
        error: Largest absolute difference of an output, in parts of the largest output of all cases.
        expected: The float model's decision, or None where outputs are not classes.
        got: The engine's.
        margin: The float model's largest output over the second, in parts of the largest of all; None
            likewise.
        inputs: What went in, by name, for people.
    """

    case: int
    stratum: str
    error: float
    expected: int | None
    got: int | None
    margin: float | None
    inputs: Mapping[str, Preview] = field(default_factory=dict)


def lowest_sqnr_db(expected: Outputs, got: Outputs, chosen: npt.NDArray[np.bool_] | None = None) -> float:
    """The lowest signal to noise ratio of any output, in dB, over the chosen cases."""
    rows = slice(None) if chosen is None else chosen
    return float(np.min([sqnr_db(expected[n][rows], got[n][rows]) for n in got]))


def differing(expected: Outputs, got: Outputs) -> int:
    """Number of float32 values that differ in any bit."""
    return sum(
        int(np.count_nonzero(expected[n].view(np.uint32) != np.ascontiguousarray(got[n]).view(np.uint32)))
        for n in expected
    )


def decisions(outputs: Outputs) -> npt.NDArray[np.int64] | None:
    """The class of each case, or None where the output is not one vector of classes."""
    return decisions_of(list(outputs.values()))


def flipped(expected: Outputs, got: Outputs) -> npt.NDArray[np.bool_] | None:
    """Which cases are decided otherwise, (cases,); None where outputs are not classes."""
    there, here = decisions(expected), decisions(got)
    return None if there is None or here is None else there != here


def flip_check(flips: int, cases: int, bound: float) -> Check:
    """Whether the rate of changed decisions is `bound` at most, with 97.5 % confidence."""
    return rate_check(
        "flips",
        "predictions that differ from the float model's",
        flips,
        cases,
        bound,
        unit="of the cases",
        remedy="give the sensitive layers 16 bits (`edgewright sensitivity`), or calibrate anew",
    )


def accuracy_check(expected: Outputs, got: Outputs, labels: npt.ArrayLike, margin: float) -> Check:
    """Whether less than `margin` of accuracy, 0..1, was lost on labelled samples, with 97.5 % confidence.

    Args:
        expected: What the float model gives for them.
        got: What the engine gives.
        labels: Class numbers, (samples,).
        margin: 0..1; the check is in points.

    Raises:
        VerifyError: The outputs are not classes, or the labels are not class numbers of the samples.
        ValueError: The margin is not in 0..1.
    """
    there, here, right = decisions(expected), decisions(got), np.asarray(labels)
    if there is None or here is None:
        raise VerifyError("labels are for classifiers: one output, (samples, classes)")
    if right.shape != there.shape or right.dtype.kind not in "iu":
        raise VerifyError(
            f"labels of shape {right.shape}, {right.dtype}: {len(there)} class numbers are needed"
        )
    classes = next(iter(expected.values())).shape[1]
    if right.size and not 0 <= right.min() <= right.max() < classes:
        raise VerifyError(f"labels are {right.min()} to {right.max()}; classes are 0 to {classes - 1}")
    gained, lost = ((here == right) & (there != right), (there == right) & (here != right))
    return loss_check(
        "accuracy",
        "accuracy that is lost against the float model's",
        int(gained.sum()),
        int(lost.sum()),
        len(right),
        margin,
        remedy="give the sensitive layers 16 bits (`edgewright sensitivity`), or train with `[qat]`",
    )


def worst_cases(
    expected: Outputs, got: Outputs, cases: Cases, ports: Sequence[Port], count: int = WORST
) -> tuple[WorstCase, ...]:
    """Natural cases with the largest errors, the worst first, and what went in at these ports."""
    natural = np.flatnonzero(np.isin(cases.strata, NATURAL))
    errors = np.zeros(len(cases))
    for name in got:
        off = np.abs(got[name].astype(np.float64) - expected[name]).reshape(len(cases), -1).max(axis=1)
        errors = np.maximum(errors, off / (float(np.abs(expected[name]).max()) or 1.0))
    errors[~np.isfinite(errors)] = np.inf
    order = natural[np.argsort(-errors[natural], kind="stable")[:count]]
    shown = cases.chosen(order)
    there, here = decisions(expected), decisions(got)
    margins = None if there is None else _margins(next(iter(expected.values())))
    return tuple(
        WorstCase(
            case=int(i),
            stratum=str(cases.strata[i]),
            error=float(errors[i]),
            expected=None if there is None else int(there[i]),
            got=None if here is None else int(here[i]),
            margin=None if margins is None else float(margins[i]),
            inputs={p.name: preview(shown.inputs[p.name][k], p) for p in ports},
        )
        for k, i in enumerate(order)
    )


def _margins(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    top = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:]
    margins: npt.NDArray[np.float64] = (top[:, 1] - top[:, 0]) / (float(np.abs(logits).max()) or 1.0)
    return margins
