"""The runner: the caller's mistakes are named, and every exact backend gives the same bits."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from device.tiny import Y_SCALE, samples, tiny_artifact
from edgewright_device import Artifact, ArtifactError, Runner, RunnerError, write_artifact

BACKENDS = ("native", "onnxruntime", "reference")  # those that any artifact of the exporter runs on


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_artifact(tmp_path_factory.mktemp("runner") / "tiny.ew")


def changed(artifact: Artifact, out: Path, files: dict[str, bytes | None], **fields: Any) -> Artifact:
    """A copy with other files (None leaves one out) or other fields of the manifest."""
    kept = {n: artifact.read(n) for n in artifact.files}
    return write_artifact(
        out,
        **{
            "name": artifact.name,
            "producer": artifact.producer,
            "targets": artifact.targets,
            "inputs": artifact.inputs,
            "outputs": artifact.outputs,
            **fields,
        },
        files={n: d for n, d in {**kept, **files}.items() if d is not None},
    )


def test_native_and_reference_give_the_same_bits_and_onnxruntime_is_near(tiny: Artifact) -> None:
    x = {"x": samples(64, seed=5)}
    native, reference, onnxruntime = (
        Runner(tiny, backend=b).run(x)["y"] for b in ("native", "reference", "onnxruntime")
    )
    assert native.dtype == np.float32
    assert native.shape == (64, 5)
    assert native.std() > Y_SCALE
    assert native.tobytes() == reference.tobytes()
    np.testing.assert_allclose(native, onnxruntime, atol=1.01 * Y_SCALE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-45, -0.0])
def test_native_equals_reference_on_values_no_sensor_gives(tiny: Artifact, value: float) -> None:
    x = samples(3)
    x[1, ::2] = value
    native, reference = (Runner(tiny, backend=b).run({"x": x})["y"] for b in ("native", "reference"))
    assert native.tobytes() == reference.tobytes()
    assert np.isfinite(native).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_samples(tiny: Artifact, backend: str) -> None:
    runner = Runner(tiny, backend)
    x = samples(9)
    together = runner.run({"x": x})["y"]
    alone = np.concatenate([runner.run({"x": row[None]})["y"] for row in x])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_of_any_memory_layout_are_taken_and_left_alone(tiny: Artifact, backend: str) -> None:
    runner, x = Runner(tiny, backend), samples(8)
    want = runner.run({"x": x})["y"]
    strided = np.asfortranarray(np.repeat(x, 2, axis=0))[::2]
    strided.flags.writeable = False
    np.testing.assert_array_equal(runner.run({"x": strided})["y"], want)
    np.testing.assert_array_equal(strided, x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"inputs \[\]: this model takes \['x'\]"),
        ({"z": samples(1)}, r"inputs \['z'\]: this model takes \['x'\]"),
        ({"x": samples(1), "z": samples(1)}, r"inputs \['x', 'z'\]: this model takes \['x'\]"),
        ({"x": samples(1).astype(np.float64)}, "input 'x': dtype float64, float32 is needed"),
        ({"x": samples(1).astype(np.int8)}, "input 'x': dtype int8, float32 is needed"),
        ({"x": [[0.0] * 16]}, "input 'x': dtype float64"),
        ({"x": samples(1)[0]}, r"input 'x': shape \(16,\), \(N, 16\) with N >= 1"),
        ({"x": samples(1)[:, :15]}, r"input 'x': shape \(1, 15\), \(N, 16\)"),
        ({"x": samples(1)[None]}, r"input 'x': shape \(1, 1, 16\), \(N, 16\)"),
        ({"x": samples(0)}, r"input 'x': shape \(0, 16\), \(N, 16\) with N >= 1"),
        ({"x": np.float32(0)}, r"input 'x': shape \(\), \(N, 16\)"),
    ],
)
def test_a_wrong_input_is_named_with_what_is_needed(
    tiny: Artifact, backend: str, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Runner(tiny, backend).run(inputs)


def test_inputs_of_different_batch_sizes_are_refused(tiny: Artifact) -> None:
    runner = Runner(tiny)
    runner._samples["z"] = runner._samples["x"]
    with pytest.raises(ValueError, match=r"differ in batch size: \{'x': 2, 'z': 3\}"):
        runner.run({"x": samples(2), "z": samples(3)})


def test_unknown_backends_and_no_threads_are_refused(tiny: Artifact) -> None:
    with pytest.raises(ValueError, match="backend 'nativ': choose one of native, onnxruntime"):
        Runner(tiny, backend="nativ")
    with pytest.raises(ValueError, match="0 threads"):
        Runner(tiny, backend="onnxruntime", threads=0)


def test_backend_that_is_not_installed_is_named_with_the_remedy(
    tiny: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RunnerError, match="pip install onnxruntime, or use 'native'"):
        Runner(tiny, backend="onnxruntime")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_artifact_without_a_program_names_the_backend_that_runs_it(
    tiny: Artifact, tmp_path: Path, backend: str
) -> None:
    without = changed(tiny, tmp_path / "a.ew", {"plan.bin": None})
    with pytest.raises(RunnerError, match=rf"the {backend} backend cannot run it; use backend 'onnxruntime'"):
        Runner(without, backend)
    assert Runner(without, "onnxruntime").run({"x": samples(2)})["y"].shape == (2, 5)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("damage", ["no plan", "cut", "other weights", "no weights", "weight of -128"])
def test_a_program_that_cannot_run_is_a_runner_error_when_it_is_loaded(
    tiny: Artifact, tmp_path: Path, backend: str, damage: str
) -> None:
    plan, weights = tiny.read("plan.bin"), tiny.read("weights.safetensors")
    files = {
        "no plan": {"plan.bin": b"not a plan"},
        "cut": {"plan.bin": plan[:-1]},
        "other weights": {"weights.safetensors": weights + b"\0"},
        "no weights": {"weights.safetensors": b""},
        "weight of -128": {"weights.safetensors": weights[:-80] + b"\x80" * 80},
    }[damage]
    broken = changed(tiny, tmp_path / "a.ew", dict(files))
    with pytest.raises(RunnerError, match=str(tmp_path)):
        Runner(broken, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_program_with_other_ports_than_the_manifest_is_refused(
    tiny: Artifact, tmp_path: Path, backend: str
) -> None:
    renamed = changed(tiny, tmp_path / "a.ew", {}, inputs=(replace(tiny.inputs[0], name="z"),))
    with pytest.raises(RunnerError, match="its inputs are"):
        Runner(renamed, backend)
    renamed = changed(tiny, tmp_path / "a.ew", {}, outputs=(replace(tiny.outputs[0], name="z"),))
    with pytest.raises(RunnerError, match="its outputs are"):
        Runner(renamed, backend)


def test_a_model_onnx_that_is_damaged_or_cannot_run_is_a_runner_error(tiny: Artifact, tmp_path: Path) -> None:
    broken = changed(tiny, tmp_path / "a.ew", {"model.onnx": b"\x00"})
    with pytest.raises(RunnerError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        Runner(broken, "onnxruntime")
    model = onnx.load_from_string(tiny.read("model.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("Identity", ["x"], ["y"]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    other = changed(tiny, tmp_path / "b.ew", {"model.onnx": model.SerializeToString()})
    with pytest.raises(RunnerError, match=r"model\.onnx: ONNX Runtime cannot run it"):
        Runner(other, "onnxruntime").run({"x": samples(1)})


def test_a_program_changed_after_opening_is_not_loaded(tiny: Artifact, tmp_path: Path) -> None:
    copy = changed(tiny, tmp_path / "a.ew", {})
    plan = copy.path / "plan.bin"
    plan.write_bytes(plan.read_bytes()[::-1])
    with pytest.raises(ArtifactError, match="changed since"):
        Runner(copy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_runner_serves_many_threads(tiny: Artifact, backend: str) -> None:
    runner = Runner(tiny, backend)
    batches = [samples(1 + i % 7, seed=i) for i in range(40)]
    want = [runner.run({"x": x})["y"] for x in batches]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: runner.run({"x": x})["y"], batches))
    for one, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_of_the_native_engine_change_no_bit(tiny: Artifact) -> None:
    x = {"x": samples(16)}
    one, four = (Runner(tiny, threads=n).run(x)["y"].tobytes() for n in (1, 4))
    assert one == four
    with pytest.raises(ValueError, match="65 threads: 1 to 64 are allowed"):
        Runner(tiny, threads=65)


def test_threads_of_onnxruntime_change_no_result(tiny: Artifact) -> None:
    x = {"x": samples(16)}
    one, two = (Runner(tiny, "onnxruntime", threads=n).run(x)["y"] for n in (1, 2))
    np.testing.assert_array_equal(one, two)
