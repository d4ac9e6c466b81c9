"""VerificationReport: what `verify` found, as data that survives JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewright.agreement import ErrorSplit, WorstCase
from edgewright.checks import Check
from edgewright.coverage import Coverage
from edgewright.divergence import Divergence
from edgewright.errors import VerifyError
from edgewright.layer_findings import LayerFinding
from edgewright.overflow_risks import OverflowFinding
from edgewright.plain import from_plain, to_plain
from edgewright.remedies import Remedy
from edgewright.soundness.finding import Finding
from edgewright_device import Certificate

FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationReport:
    """What `verify` found.

    Attributes:
        artifact: Digest of the artifact it is about.
        name: The artifact's name.
        reference: What it was compared with.
        cases: Number of generated cases within the calibrated range.
        strata: How many of each kind.
        seed: Draws the same cases again.
        bit_mismatches: Output values in which the native engine differs from the numpy reference.
        prediction_flips: Samples, as they are, with noise or shifted, that the float model decides otherwise;
            None where the output is not a vector of classes.
        sqnr_db: Signal to quantization noise ratio against the float model on all cases but the edge ones,
            the lowest of the outputs.
        stratum_sqnr_db: The same for each kind of case.
        stratum_flips: Cases decided otherwise, of each kind; empty where the output is not classes.
        checks: Each with its verdict.
        machine: Where it ran.
        errors: Where the difference from the float model comes from.
        worst: Natural cases on which the outputs lie farthest from the float model's, the worst first.
        overflow: For each layer and runtime that adds products in 16 bits, whether any input overflows them.
        coverage: How far the cases moved the model; None where nothing is on a grid.
        layers: What quantization adds at each value, and what has gathered; empty where the float model is a
            module and every check passed, or cannot be compared layer by layer.
        divergences: Where it leaves what is expected, for checks that did not pass.
        remedy: What heals it, or would be tried; None where nothing needs it.
        certificate: What this verification vouches for; None where a check did not pass.
        findings: What is wrong with layers, grids and operators, each with its place.
    """

    artifact: str
    name: str
    reference: str
    cases: int
    strata: Mapping[str, int]
    seed: int
    bit_mismatches: int
    prediction_flips: int | None
    sqnr_db: float
    stratum_sqnr_db: Mapping[str, float]
    checks: tuple[Check, ...]
    machine: Mapping[str, str]
    errors: ErrorSplit | None = None
    worst: tuple[WorstCase, ...] = ()
    stratum_flips: Mapping[str, int] = field(default_factory=dict)
    coverage: Coverage | None = None
    layers: tuple[LayerFinding, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    remedy: Remedy | None = None
    overflow: tuple[OverflowFinding, ...] = ()
    certificate: Certificate | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there were checks, and every one passed."""
        return bool(self.checks) and all(c.verdict == "passed" for c in self.checks)

    def to_json(self) -> str:
        """The report as JSON; a number that is none becomes the text "inf", "-inf" or "nan"."""
        data = {"format": FORMAT, "passed": self.passed, **to_plain(self)}
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> VerificationReport:
        """Reads what `to_json` wrote.

        Raises:
            VerifyError: Not a verification report.
        """
        try:
            data = json.loads(text)
            data.pop("passed")
            if data.pop("format") != FORMAT:
                raise ValueError(f"not format {FORMAT}")
            return from_plain(cls, data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise VerifyError(f"not a verification report: {error}") from None
