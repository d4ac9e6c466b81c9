"""Cases, run: through the float model and the engine that is verified, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.agreement import NATURAL, decisions
from edgewright.cases import Cases, generate, outside
from edgewright.coverage import Watch, far_samples
from edgewright.progress import OnProgress, Progress
from edgewright.subject import Arrays, Run, Subject
from edgewright.verification_inputs import Reference

BATCH = 100
BATCH_VALUES = 1 << 18  # of inputs that are run at once
SCORED = 48  # samples that the float model decides beforehand, to find cases between its classes


@dataclass(frozen=True, kw_only=True)  # no slots: what is asked for often is kept
class CaseRun:
    """What all cases gave.

    Attributes:
        subject: What is verified.
        floats: What it is compared with.
        samples: Real samples by input name.
        seed: Drew the cases.
        report: Called as work goes on.
        cases: All of them.
        expected: The float model's outputs for them, by name.
        got: The engine's.
        beyond: Cases that lie beyond the calibrated range of an input, which none may.
        watch: The graph's values on grids.
    """

    subject: Subject
    floats: Reference
    samples: Arrays
    seed: int
    report: OnProgress
    cases: Cases
    expected: Arrays
    got: Arrays
    beyond: int
    watch: Watch

    @classmethod
    def of(
        cls,
        subject: Subject,
        floats: Reference,
        samples: Arrays,
        *,
        cases: int,
        seed: int,
        report: OnProgress,
    ) -> CaseRun:
        """Draws cases from samples, and runs them.

        Raises:
            VerifyError: The float model does not take them, or gives something else than the subject.
        """
        watch = Watch(subject.graph)
        scores, drivers = _scores(floats, samples, report), far_samples(watch, samples)
        drawn = generate(subject.inputs, samples, cases, seed, scores=scores, drivers=drivers)
        beyond = 0

        def checked(inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
            nonlocal beyond
            beyond += int(outside(inputs, drawn.bounds).sum())
            return floats.run(inputs)

        expected, got = run_together({"float": checked, subject.runtime: subject.run}, drawn, report)
        return cls(
            subject=subject,
            floats=floats,
            samples=samples,
            seed=seed,
            report=report,
            cases=drawn,
            expected=expected,
            got=got,
            beyond=beyond,
            watch=watch,
        )

    @cached_property
    def natural(self) -> npt.NDArray[np.bool_]:
        """Which cases are as the model meets them, (cases,)."""
        return np.isin(self.cases.strata, NATURAL)

    def spread(self, count: int) -> npt.NDArray[np.int64]:
        """Numbers of so many cases, in order, each kind with its share."""
        order = np.random.default_rng(self.seed).permutation(len(self.cases))
        by_kind = order[np.argsort(self.cases.strata[order], kind="stable")]
        return np.sort(by_kind[np.linspace(0, len(self.cases) - 1, count).astype(np.int64)])

    def run(self, function: Run, step: str, rows: npt.NDArray[np.int64]) -> Arrays:
        """Outputs of another function for some of the cases."""
        return run_cases(function, self.cases.chosen(rows), step, self.report)

    def got_at(self, rows: npt.NDArray[np.int64]) -> Arrays:
        """The engine's outputs for some of the cases."""
        return {n: v[rows] for n, v in self.got.items()}

    def expected_at(self, rows: npt.NDArray[np.int64]) -> Arrays:
        """The float model's outputs for some of the cases."""
        return {n: v[rows] for n, v in self.expected.items()}

    def on_samples(self) -> tuple[Arrays, Arrays]:
        """What the float model and the engine give for the samples themselves."""
        kinds = np.repeat(["sample"], len(next(iter(self.samples.values()))))
        functions = {
            "float, samples": self.floats.run,
            f"{self.subject.runtime}, samples": self.subject.run,
        }
        there, here = run_together(functions, Cases.of(self.samples, kinds, {}), self.report)
        return there, here


def run_cases(function: Run, cases: Cases, step: str, report: OnProgress) -> Arrays:
    """Outputs of a function, by name, for all cases."""
    return run_together({step: function}, cases, report)[0]


def run_together(functions: Mapping[str, Run], cases: Cases, report: OnProgress) -> list[Arrays]:
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


def _scores(floats: Reference, samples: Arrays, report: OnProgress) -> npt.NDArray[Any] | None:
    """What the float model gives for the first samples; None where its outputs are not classes."""
    first = {n: v[:SCORED] for n, v in samples.items()}
    kinds = np.repeat(["sample"], len(next(iter(first.values()))))
    outputs = run_cases(floats.run, Cases.of(first, kinds, {}), "samples", report)
    return None if decisions(outputs) is None else next(iter(outputs.values()))
