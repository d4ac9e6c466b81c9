"""The certificate: what a passed verification vouches for, and how closely each engine must repeat it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from edgewright_device.artifact import Artifact
from edgewright_device.errors import ArtifactError

MOST_STEPS = 255
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Part of a verification report that passed.

    Attributes:
        artifact: Digest of what was verified.
        reference: SHA-256 of the float model it was compared with.
        runtime: The engine that was verified, with its version.
        instruction_set: What that engine used of the CPU.
        cases: Cases it was verified on.
        seed: Draws them again.
        bounds: For each engine: how far an output may lie from its golden one, in steps of that output's
            grid; 0 is bit for bit.
    """

    artifact: str
    reference: str
    runtime: str
    instruction_set: str
    cases: int
    seed: int
    bounds: Mapping[str, int]

    @classmethod
    def of(cls, artifact: Artifact) -> Self | None:
        """The certificate in an artifact's report.json; None where there is no report, or none in it.

        Raises:
            ArtifactError: The report is damaged, about another artifact, or says that a check did not pass.
        """
        report = artifact.report()
        if report is None:
            return None
        where = f"{artifact.path / 'report.json'}"
        if report.get("passed") is not True:
            raise ArtifactError(f"{where}: says that verification did not pass")
        found = report.get("certificate")
        if found is None:
            return None
        try:
            return cls._read(found, artifact.digest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{where}: its certificate is damaged ({error})") from None

    @classmethod
    def _read(cls, data: Mapping[str, Any], digest: str) -> Self:
        if data["artifact"] != digest:
            raise ValueError("it is about another artifact")
        for key in ("artifact", "reference"):
            if not _SHA256.fullmatch(data[key]):
                raise ValueError(f"{key} is no SHA-256")
        bounds = {str(name): steps for name, steps in data["bounds"].items()}
        for name, steps in bounds.items():
            if type(steps) is not int or not 0 <= steps <= MOST_STEPS:
                raise ValueError(f"the bound of {name!r:.40} is not 0 to {MOST_STEPS} steps")
        return cls(
            artifact=data["artifact"],
            reference=data["reference"],
            runtime=str(data["runtime"]),
            instruction_set=str(data["instruction_set"]),
            cases=_count(data["cases"]),
            seed=_count(data["seed"]),
            bounds=bounds,
        )


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a whole number from 0 up")
    return value
