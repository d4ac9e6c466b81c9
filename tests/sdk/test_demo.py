"""The demo, once, as its user runs it; every other test here reads what that run left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgewright.demo import run_demo
from edgewright.errors import DemoError
from edgewright.verification_report import VerificationReport
from edgewright_device import Artifact

EDGEWRIGHT = Path(sys.executable).with_name("edgewright")
KEYS = {
    "accuracy": {"teacher", "student", "pruned", "int8_native", "int8_onnxruntime"},
    "size_bytes": {"fp32", "teacher_fp32", "artifact"},
    "latency_ms": {"fp32_onnxruntime", "teacher_fp32_onnxruntime", "int8_onnxruntime", "int8_native"},
    "verify": {"cases", "bit_mismatches", "prediction_flips", "sqnr_db"},
    "ota": {"full_bytes", "delta_bytes", "saving"},
    "update": {"accuracy_before", "accuracy_after"},
    "rollback": {"from", "to", "reason"},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def finished(out: Path) -> subprocess.CompletedProcess[str]:
    command = [str(p) for p in (EDGEWRIGHT, "demo", "--out", out, "--json", out.with_suffix(".json"))]
    plain = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=plain, check=False)


@pytest.fixture(scope="module")
def result(finished: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    assert finished.returncode == 0, finished.stderr
    loaded: dict[str, Any] = json.loads(out.with_suffix(".json").read_text("utf-8"))
    return loaded


def test_the_json_has_the_keys_that_are_documented(result: dict[str, Any]) -> None:
    found = {k: set(v) for k, v in result.items() if isinstance(v, Mapping)}
    assert found == KEYS
    assert result.keys() - KEYS.keys() == {"seconds"}


def test_accuracy_survives_the_trip(result: dict[str, Any]) -> None:
    accuracy = result["accuracy"]
    assert accuracy["teacher"] > 0.95
    assert accuracy["student"] > accuracy["teacher"] - 0.03
    assert accuracy["int8_native"] > accuracy["pruned"] - 0.02
    assert result["update"]["accuracy_after"] > result["update"]["accuracy_before"] + 0.1


def test_native_engine_and_reference_agree_to_the_bit(result: dict[str, Any], out: Path) -> None:
    assert result["verify"]["cases"] == 1000
    assert result["verify"]["bit_mismatches"] == 0
    report = VerificationReport.from_json((out / "report.json").read_text("utf-8"))
    assert report.passed
    assert report.prediction_flips == result["verify"]["prediction_flips"]


def test_the_sizes_are_those_on_disk(result: dict[str, Any], out: Path) -> None:
    assert Artifact.open(out / "digits.ew").size_bytes == result["size_bytes"]["artifact"]
    assert (out / "pruned.onnx").stat().st_size == result["size_bytes"]["fp32"]
    ota = result["ota"]
    assert ota["saving"] == pytest.approx(1 - ota["delta_bytes"] / ota["full_bytes"], abs=1e-4)
    assert 0.2 < ota["saving"] < 1


def test_the_device_went_back_by_itself_and_said_why(result: dict[str, Any], out: Path) -> None:
    assert result["rollback"]["from"] == "1.2.0"
    assert result["rollback"]["to"] == "1.1.0"
    assert "golden" in result["rollback"]["reason"]
    assert (
        Artifact.open(out / "device/state/slots/b").digest == Artifact.open(out / "update/digits.ew").digest
    )


def test_private_keys_and_tokens_are_the_owners_alone(result: dict[str, Any], out: Path) -> None:
    secrets = [*(out / "repository" / "keys").iterdir(), out / "device" / "token"]
    assert len(secrets) > 1
    assert [p for p in secrets if p.stat().st_mode & 0o077] == []


def test_the_steps_and_the_table_are_shown(
    result: dict[str, Any], finished: subprocess.CompletedProcess[str]
) -> None:
    for said in ("train a teacher", "the device refuses it", "Edgewright native", "1.2.0 → 1.1.0"):
        assert said in finished.stdout


def test_no_process_is_left(result: dict[str, Any], out: Path) -> None:
    commands = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert [c for c in commands if os.fsencode(out) in c] == []


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", "utf-8")
    with pytest.raises(DemoError, match="holds something else than an earlier demo"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text("utf-8") == "years of work"
