"""A certificate holds engines to its bounds, and no damaged or foreign one is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.tiny import Y_SCALE, rewrite_golden, tiny_artifact
from edgewright_device import Artifact, ArtifactError, Certificate, health, write_report

GOOD = "0" * 64


def certified(artifact: Artifact, /, **changes: Any) -> Artifact:
    certificate = {
        "artifact": artifact.digest,
        "reference": GOOD,
        "runtime": "native 1",
        "instruction_set": "avx2",
        "cases": 1000,
        "seed": 0,
        "bounds": {"native": 0, "reference": 0, "onnxruntime": 3},
    }
    report = {"artifact": artifact.digest, "passed": True, "certificate": certificate | changes}
    write_report(artifact, json.dumps(report).encode())
    return Artifact.open(artifact.path)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "tiny.ew")


def shift_golden(artifact: Artifact, steps: int) -> Artifact:
    inputs, outputs = artifact.golden()
    outputs["y"] += np.float32(steps * Y_SCALE)
    rewrite_golden(artifact, inputs, outputs)
    return Artifact.open(artifact.path)


def test_an_engine_is_held_to_the_certificate_s_bound(artifact: Artifact) -> None:
    shifted = shift_golden(artifact, 2)  # and ONNX Runtime rounds some values to the step beside
    assert not health.check(shifted.path, backend="onnxruntime").passed
    within = certified(shifted)
    assert health.check(within.path, backend="onnxruntime").passed
    beyond = certified(shift_golden(within, 2))
    report = health.check(beyond.path, backend="onnxruntime")
    assert not report.passed
    assert "within 3 steps" in report.reason


def test_an_engine_that_the_certificate_does_not_name_has_the_format_s_bound(artifact: Artifact) -> None:
    found = certified(shift_golden(artifact, 3), bounds={"native": 0})
    report = health.check(found.path, backend="onnxruntime")
    assert not report.passed
    assert "within 2 steps" in report.reason


def test_no_certificate_loosens_an_exact_engine(artifact: Artifact) -> None:
    found = certified(shift_golden(artifact, 1), bounds={"native": 200})
    report = health.check(found.path, backend="native")
    assert not report.passed
    assert "bit for bit" in report.reason


def test_what_was_written_is_read_back(artifact: Artifact) -> None:
    found = Certificate.of(certified(artifact))
    assert found is not None
    assert found.bounds["onnxruntime"] == 3
    assert found.reference == GOOD


def test_without_a_report_there_is_none(artifact: Artifact) -> None:
    assert Certificate.of(artifact) is None


def test_a_report_that_did_not_pass_fails_the_release(artifact: Artifact) -> None:
    write_report(artifact, json.dumps({"artifact": artifact.digest, "passed": False}).encode())
    report = health.check(artifact.path)
    assert not report.passed
    assert "says that verification did not pass" in report.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"artifact": GOOD},
        {"reference": "none"},
        {"bounds": {"onnxruntime": 256}},
        {"bounds": {"onnxruntime": -1}},
        {"bounds": {"onnxruntime": 1.5}},
        {"bounds": {"onnxruntime": True}},
        {"bounds": [1]},
        {"cases": "many"},
        {"cases": "12"},
        {"seed": float("inf")},
        {"seed": -5},
        {"cases": True},
    ],
)
def test_a_damaged_certificate_is_refused(artifact: Artifact, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="its certificate is damaged"):
        Certificate.of(certified(artifact, **changes))
