"""Publishing: what was verified, and nothing else, becomes a release."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgewright.errors import PublishError
from edgewright.exporting import export
from edgewright.publishing import publish
from edgewright.verification import verify
from edgewright.verification_report import VerificationReport
from edgewright_device import Artifact, ArtifactError
from edgewright_ota import OtaError, Repository
from sdk.graphs import corners_and_more, mlp, saved

X = corners_and_more(8)


@pytest.fixture
def verified(tmp_path: Path) -> tuple[Artifact, VerificationReport]:
    model = saved(mlp(hidden=256, classes=32), tmp_path / "m.onnx")
    artifact = export(model, target="x86-64", calibration=X, out=tmp_path / "m.ew")
    report = verify(artifact, reference=model, data=X, cases=400)
    assert report.passed
    return artifact, report


def test_a_verified_artifact_becomes_a_release_that_carries_its_report(
    verified: tuple[Artifact, VerificationReport], tmp_path: Path
) -> None:
    artifact, report = verified
    release = publish(artifact, report, repository=tmp_path / "repository", version="1.0.0", rollback_index=3)
    assert (release.name, release.version, release.rollback_index) == ("m", "1.0.0", 3)
    assert {f.path for f in release.files} == {*artifact.files, "manifest.json", "report.json"}
    assert [p.base for p in release.packages] == [None]
    assert Repository.open(tmp_path / "repository").releases("m") == (release,)
    assert artifact.report() == json.loads(report.to_json())


def test_the_second_version_has_a_delta_on_the_first(
    verified: tuple[Artifact, VerificationReport], tmp_path: Path
) -> None:
    artifact, report = verified
    publish(artifact, report, repository=tmp_path / "repository", version="1.0.0")
    moved = onnx.load(str(tmp_path / "m.onnx"))
    w1 = onnx.numpy_helper.to_array(moved.graph.initializer[0])
    noise = 1 + 0.003 * np.random.default_rng(0).standard_normal(w1.shape)
    moved.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array((w1 * noise).astype(np.float32), "w1"))
    path = saved(moved, tmp_path / "moved.onnx")
    updated = export(path, target="x86-64", calibration=X, out=tmp_path / "new" / "m.ew", base=artifact)
    found = verify(updated, reference=path, data=X, cases=400)
    release = publish(updated, found, repository=tmp_path / "repository", version="1.1.0")
    sizes = {p.base: p.size_bytes for p in release.packages}
    assert set(sizes) == {None, "1.0.0"}
    assert sizes["1.0.0"] < 0.5 * sizes[None]


def test_a_failed_verification_is_not_published(
    verified: tuple[Artifact, VerificationReport], tmp_path: Path
) -> None:
    artifact, report = verified
    for verdict in ("failed", "cannot tell"):
        checks = (*report.checks[:-1], replace(report.checks[-1], verdict=verdict))
        with pytest.raises(PublishError, match=rf"did not pass \(flips: {verdict}\); it is not published"):
            publish(artifact, replace(report, checks=checks), repository=tmp_path / "repo", version="1.0.0")
    with pytest.raises(PublishError, match="did not pass"):
        publish(artifact, replace(report, checks=()), repository=tmp_path / "repo", version="1.0.0")
    assert not (tmp_path / "repo").exists()
    assert artifact.report() is None


def test_a_report_about_another_artifact_is_not_taken(
    verified: tuple[Artifact, VerificationReport], tmp_path: Path
) -> None:
    artifact, report = verified
    with pytest.raises(PublishError, match=r"the report is about 'other' .*run `edgewright verify` on this"):
        publish(
            artifact,
            replace(report, artifact="0" * 64, name="other"),
            repository=tmp_path / "repo",
            version="1.0.0",
        )
    assert not (tmp_path / "repo").exists()


def test_an_artifact_replaced_after_verification_is_not_published(
    verified: tuple[Artifact, VerificationReport], tmp_path: Path
) -> None:
    artifact, report = verified
    export(tmp_path / "m.onnx", target="x86-64", calibration=X[:50], out=tmp_path / "m.ew")
    with pytest.raises(PublishError, match="is no longer what was verified"):
        publish(artifact, report, repository=tmp_path / "repo", version="1.0.0")
    (artifact.path / "plan.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"plan\.bin"):
        publish(artifact, report, repository=tmp_path / "repo", version="1.0.0")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("version", ["1.0.0", "one", ""])
def test_a_version_that_was_published_or_is_none_is_refused(
    verified: tuple[Artifact, VerificationReport], tmp_path: Path, version: str
) -> None:
    artifact, report = verified
    publish(artifact, report, repository=tmp_path / "repo", version="1.0.0")
    with pytest.raises((OtaError, ValueError)):
        publish(artifact, report, repository=tmp_path / "repo", version=version)
    assert [r.version for r in Repository.open(tmp_path / "repo").releases("m")] == ["1.0.0"]
