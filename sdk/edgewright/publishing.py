"""Publishing: a verified artifact becomes a signed release."""

from __future__ import annotations

import os
from pathlib import Path

from edgewright.errors import PublishError
from edgewright.verification_report import VerificationReport
from edgewright_device import Artifact, write_report
from edgewright_ota import Release, Repository


def publish(
    artifact: Artifact,
    report: VerificationReport,
    *,
    repository: str | os.PathLike[str],
    version: str,
    rollback_index: int = 0,
) -> Release:
    """Signs an artifact as a release, with a delta against the highest lower version of the same name.

    The report travels with it, as report.json. The repository, and its keys, are made on first use.

    Args:
        artifact: What to publish.
        report: Its passed verification.
        repository: Directory of the TUF repository.
        version: Semantic version that no release of the same name has.
        rollback_index: Devices never go back below the highest index they confirmed.

    Raises:
        PublishError: The report is about another artifact, or a check did not pass.
        ArtifactError: The artifact on disk is no longer whole.
        OtaError: The repository refuses the release; the message says why.
    """
    if report.artifact != artifact.digest:
        raise PublishError(
            f"the report is about {report.name!r} ({report.artifact[:12]}), not about {artifact.path} "
            f"({artifact.digest[:12]}); run `edgewright verify` on this artifact"
        )
    if not report.passed:
        failed = ", ".join(f"{c.name}: {c.verdict}" for c in report.checks if c.verdict != "passed")
        raise PublishError(f"{artifact.path}: verification did not pass ({failed}); it is not published")
    if Artifact.open(artifact.path).digest != artifact.digest:
        raise PublishError(f"{artifact.path}: is no longer what was verified; run `edgewright verify` again")
    write_report(artifact, report.to_json().encode())
    return Repository.open(Path(repository), create=True).publish(
        artifact.path, name=artifact.name, version=version, rollback_index=rollback_index
    )
