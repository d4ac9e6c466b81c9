"""The health check: exact where exactness is promised, bounded elsewhere, and never an exception."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device.tiny import Y_SCALE, rewrite_golden, samples, tiny_artifact
from edgewright_device import Artifact, Runner, health


def test_good_artifact_passes_and_its_latency_is_measured(tmp_path: Path) -> None:
    tiny_artifact(tmp_path / "good.ew")
    ticks = itertools.count(0.0, 0.004)
    report = health.check(tmp_path / "good.ew", clock=lambda: next(ticks))
    assert report.passed
    assert report.reason == ""
    assert report.vectors == 8
    assert report.latency_ms == pytest.approx(4.0)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_one_bit_of_difference_fails_an_exact_backend(tmp_path: Path, backend: str) -> None:
    artifact = tiny_artifact(tmp_path / "bit.ew")
    inputs, outputs = artifact.golden()
    outputs["y"].view(np.uint32)[3, 2] ^= 1
    rewrite_golden(artifact, inputs, outputs)
    report = health.check(artifact.path, backend=backend)
    assert not report.passed
    assert report.reason == "output 'y': 1 of 40 values do not equal the golden ones bit for bit"


def test_another_backend_may_differ_within_the_bound_and_no_more(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "near.ew")
    assert health.check(artifact.path, backend="onnxruntime").passed
    inputs, outputs = artifact.golden()
    outputs["y"] += np.float32((health.BOUND_STEPS + 1) * Y_SCALE)
    rewrite_golden(artifact, inputs, outputs)
    report = health.check(artifact.path, backend="onnxruntime")
    assert not report.passed
    assert "within 2 steps" in report.reason


def test_the_bound_itself_is_allowed_though_float32_rounds_it_up(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "near.ew")
    inputs, outputs = artifact.golden()
    exact = Runner(artifact, "onnxruntime").run(inputs)["y"]
    outputs["y"] = exact + np.float32(health.BOUND_STEPS * Y_SCALE * (1 + 1e-5))
    rewrite_golden(artifact, inputs, outputs)
    assert health.check(artifact.path, backend="onnxruntime").passed


def test_nan_fails_whatever_the_golden_vectors_say(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "nan.ew")
    inputs, outputs = artifact.golden()
    inputs["x"][0] = np.nan
    outputs["y"][0] = np.nan
    rewrite_golden(artifact, inputs, outputs)
    report = health.check(artifact.path, backend="onnxruntime")
    assert not report.passed
    assert "values are NaN or infinite" in report.reason


def test_a_release_that_is_too_slow_fails_when_there_is_a_limit(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "slow.ew")
    ticks = itertools.count(0.0, 0.020)
    report = health.check(artifact.path, latency_limit_ms=10, clock=lambda: next(ticks))
    assert not report.passed
    assert report.reason == "too slow: 20 ms for one sample, 10 ms are allowed"
    assert report.latency_ms == pytest.approx(20.0)


def lose_a_file(path: Path) -> None:
    (path / "weights.safetensors").unlink()


def flip_a_byte(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def another_input(path: Path) -> None:
    rewrite_golden(Artifact.open(path), {"z": samples(2)}, {"y": samples(2)})


def another_output(path: Path) -> None:
    rewrite_golden(Artifact.open(path), {"x": samples(2)}, {"z": samples(2)})


def another_shape(path: Path) -> None:
    rewrite_golden(Artifact.open(path), {"x": samples(2)}, {"y": samples(2)})


def garbage_for_golden(path: Path) -> None:
    rewrite_golden(Artifact.open(path), {}, {})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shutil.rmtree, "does not exist"),
        (lose_a_file, "missing"),
        (flip_a_byte, "SHA-256"),
        (another_input, r"inputs \['z'\]: this model takes \['x'\]"),
        (another_output, r"the model gives \['y'\], its golden vectors hold \['z'\]"),
        (another_shape, r"output 'y': float32 \(2, 5\), the golden one is float32 \(2, 16\)"),
        (garbage_for_golden, "holds no inputs"),
    ],
)
def test_what_cannot_be_opened_or_run_is_a_failed_check_with_its_reason(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    tiny_artifact(tmp_path / "bad.ew")
    damage(tmp_path / "bad.ew")
    report = health.check(tmp_path / "bad.ew")
    assert not report.passed
    assert re.search(reason, report.reason), report.reason


def test_the_tiny_model_is_a_real_one(tmp_path: Path) -> None:
    """The tests lean on it: its outputs vary, and native, reference and float agree as promised."""
    artifact = tiny_artifact(tmp_path / "tiny.ew")
    x = {"x": samples(50, seed=3)}
    native = Runner(artifact).run(x)["y"]
    assert native.std() > 4 * Y_SCALE
    np.testing.assert_array_equal(native, Runner(artifact, "reference").run(x)["y"])
    np.testing.assert_allclose(native, Runner(artifact, "onnxruntime").run(x)["y"], atol=Y_SCALE)
