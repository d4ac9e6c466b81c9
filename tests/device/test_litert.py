"""LiteRT runs an artifact's model.tflite."""

from pathlib import Path

import numpy as np
import pytest

from edgewright_device import Artifact, Port, Runner, RunnerError, encode_golden, write_artifact

MODEL = Path(__file__).parents[3] / "shared" / "data" / "mlperf_tiny" / "pretrainedResnet.tflite"


def _port(name: str, *shape: int) -> Port:
    return Port(
        name=name,
        shape=(None, *shape),
        dtype="float32",
        scale=1.0,
        zero_point=0,
        minimum=0.0,
        maximum=255.0,
    )


def _artifact(folder: Path, files: dict[str, bytes], *, classes: int = 10) -> Artifact:
    x, y = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 10), np.float32)
    return write_artifact(
        folder / "resnet8.ew",
        name="resnet8",
        producer="test",
        targets=("x86-64",),
        inputs=(_port("x", 32, 32, 3),),
        outputs=(_port("y", classes),),
        files={
            "weights.safetensors": b"none",
            "model.onnx": b"none",
            "golden.npz": encode_golden({"x": x}, {"y": y}),
            **files,
        },
    )


def test_an_artifact_without_a_tflite_model_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"has no model\.tflite"):
        Runner(_artifact(tmp_path, {}), backend="litert")


def test_a_damaged_tflite_model_is_told_so(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(RunnerError, match=r"model\.tflite: LiteRT cannot load it"):
        Runner(_artifact(tmp_path, {"model.tflite": b"not a flatbuffer at all"}), backend="litert")


@pytest.mark.skipif(not MODEL.exists(), reason=f"needs {MODEL.name} of MLPerf Tiny beside the repository")
def test_a_batch_is_the_samples_one_by_one(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    artifact = _artifact(tmp_path, {"model.tflite": MODEL.read_bytes()})
    runner = Runner(artifact, backend="litert")
    x = np.random.default_rng(0).uniform(0, 255, (5, 32, 32, 3)).astype(np.float32)
    together = runner.run({"x": x})["y"]
    assert together.shape == (5, 10)
    np.testing.assert_allclose(together.sum(axis=1), 1.0, atol=1e-5)  # it ends in a softmax
    for index in range(5):
        assert np.array_equal(together[index], runner.run({"x": x[index : index + 1]})["y"][0])
    assert len({row.tobytes() for row in together}) == 5


@pytest.mark.skipif(not MODEL.exists(), reason=f"needs {MODEL.name} of MLPerf Tiny beside the repository")
def test_a_model_that_does_not_fit_the_manifest_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    artifact = _artifact(tmp_path, {"model.tflite": MODEL.read_bytes()}, classes=11)
    with pytest.raises(RunnerError, match="the manifest says"):
        Runner(artifact, backend="litert")
