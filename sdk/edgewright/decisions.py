"""Whether two classifiers decide alike, and how often each is right, on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.errors import VerifyError
from edgewright.statistics import mcnemar_p, paired_interval, wilson_interval

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How often each of two is right, on the same samples.

    Attributes:
        a: Share of samples, 0..1, on which A is right.
        b: And B.
        gained: Samples that only B has right.
        lost: Samples that only A has right.
        difference: `b - a`.
        interval: 95 % confidence interval of the difference, for pairs (Tango 1998).
        p_value: That a difference like this comes by chance (McNemar 1947, exact).
    """

    a: float
    b: float
    gained: int
    lost: int
    difference: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionComparison:
    """Decisions of two classifiers.

    Attributes:
        samples: How many were asked.
        flips: On how many the two decide differently.
        flip_interval: 95 % confidence interval of that share (Wilson 1927).
        accuracy: Against the labels, where there are any.
        agreement: Against the reference's decisions, where there is one.
    """

    samples: int
    flips: int
    flip_interval: tuple[float, float]
    accuracy: Score | None
    agreement: Score | None


def decisions_of(outputs: Sequence[npt.NDArray[Any]]) -> Classes | None:
    """The class of each sample; None where the output is not one array (samples, classes)."""
    if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[1] < 2:
        return None
    return np.asarray(outputs[0].argmax(axis=1), np.int64)


def compare_decisions(
    a: Classes, b: Classes, *, labels: npt.NDArray[Any] | None, reference: Classes | None
) -> DecisionComparison:
    """Compares decisions on the same samples.

    Args:
        a: Class numbers, (samples,).
        b: The same of the other.
        labels: What is right, (samples,).
        reference: What the reference decides, (samples,).

    Raises:
        VerifyError: They are not of the same samples.
    """
    for what, there in (("B", b), ("labels", labels), ("reference", reference)):
        if there is not None and there.shape != a.shape:
            raise VerifyError(f"{what}: {len(there)} decisions for {len(a)} samples")
    flips = int(np.count_nonzero(a != b))
    return DecisionComparison(
        samples=len(a),
        flips=flips,
        flip_interval=wilson_interval(flips, len(a)),
        accuracy=None if labels is None else _score(a == labels, b == labels),
        agreement=None if reference is None else _score(a == reference, b == reference),
    )


def _score(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Score:
    gained, lost = int(np.count_nonzero(b & ~a)), int(np.count_nonzero(a & ~b))
    return Score(
        a=float(a.mean()),
        b=float(b.mean()),
        gained=gained,
        lost=lost,
        difference=(gained - lost) / len(a),
        interval=paired_interval(gained, lost, len(a)),
        p_value=mcnemar_p(gained, lost),
    )
