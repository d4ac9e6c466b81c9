"""Training on the grids of integers: what is trained is what the artifact computes, from module to disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgewright import digits
from edgewright.compression import compress
from edgewright.data import Data
from edgewright.errors import DataError, ExportError
from edgewright.exporting import export
from edgewright.fake_quantized import FakeQuantized
from edgewright.graph import TRAINED
from edgewright.models import save_model
from edgewright.progress import Progress
from edgewright.quantization_aware import fake_quantized, train_quantized
from edgewright.recipe import Qat, Quantize, Recipe
from edgewright.training import evaluate
from edgewright_device import Artifact, Runner
from sdk.graphs import normal

QAT = Qat(epochs=2, learning_rate=2e-4)
RECIPE = Recipe(name="qat", qat=QAT)


@pytest.fixture(scope="module")
def trained(compressed: nn.Module, scans: digits.Digits) -> FakeQuantized:
    """The student after training on grids, in eval mode."""
    made = compress(compressed, RECIPE, data=scans.data)
    assert isinstance(made, FakeQuantized)
    return made


@pytest.fixture(scope="module")
def artifact(trained: FakeQuantized, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(trained, target="x86-64", out=tmp_path_factory.mktemp("qat") / "student.ew")


def logits(artifact: Artifact, x: np.ndarray) -> np.ndarray:
    return Runner(artifact, "native").run({artifact.inputs[0].name: x})[artifact.outputs[0].name]


def test_the_engine_gives_the_logits_that_were_trained(
    trained: FakeQuantized, artifact: Artifact, scans: digits.Digits
) -> None:
    with torch.no_grad():
        want = trained(torch.from_numpy(scans.x_test)).numpy()
    got = logits(artifact, scans.x_test)
    steps = np.abs(got - want) / artifact.outputs[0].scale
    # The engine rounds sums of integers where torch rounds sums of floats: a tie may fall to either side.
    assert steps.max() < 1.01
    assert np.mean(steps > 0.5) < 0.03
    assert (got.argmax(1) == want.argmax(1)).all()


def test_it_is_as_right_as_the_float_model(
    trained: FakeQuantized, compressed: nn.Module, scans: digits.Digits
) -> None:
    accuracy = [evaluate(m, scans.data.validation) for m in (trained, compressed)]
    assert accuracy[0] >= accuracy[1] - 0.01


def test_calibration_samples_change_no_integer(
    trained: FakeQuantized, artifact: Artifact, scans: digits.Digits, tmp_path: Path
) -> None:
    other = export(
        trained,
        target="x86-64",
        calibration=0.5 * scans.x_test,
        out=tmp_path / "student.ew",
        quantize=Quantize(calibration="mse", overflow_safe="quads"),
        base=artifact,
    )
    for file in ("weights.safetensors", "model.onnx", "plan.bin"):
        assert other.read(file) == artifact.read(file)


def test_the_file_on_disk_gives_the_same_artifact(
    trained: FakeQuantized, artifact: Artifact, scans: digits.Digits, tmp_path: Path
) -> None:
    path = tmp_path / "student.onnx"
    save_model(trained, (scans.x_test[:1],), path)
    again = export(path, target="x86-64", out=tmp_path / "student.ew")
    assert {f: again.read(f) for f in again.files} == {f: artifact.read(f) for f in artifact.files}
    assert (again.inputs, again.outputs) == (artifact.inputs, artifact.outputs)


@pytest.mark.parametrize("activations", ["mixed", "int16"])
def test_activations_of_16_bits_go_through_a_file_too(
    activations: str, compressed: nn.Module, scans: digits.Digits, tmp_path: Path
) -> None:
    how = Quantize(activations=activations)  # type: ignore[arg-type]
    made = fake_quantized(compressed, scans.data.train, how)
    save_model(made, (scans.x_test[:1],), tmp_path / "m.onnx")
    files = [
        export(m, target="x86-64", out=tmp_path / f"{n}.ew").read("plan.bin")
        for n, m in (("one", made), ("two", tmp_path / "m.onnx"))
    ]
    assert files[0] == files[1]


def test_other_tools_compute_what_was_trained(
    trained: FakeQuantized, scans: digits.Digits, tmp_path: Path
) -> None:
    import onnxruntime

    path = tmp_path / "student.onnx"
    save_model(trained, (scans.x_test[:1],), path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: scans.x_test})
    with torch.no_grad():
        want = trained(torch.from_numpy(scans.x_test)).numpy()
    assert (got.argmax(1) == want.argmax(1)).all()


def test_same_recipe_same_bits_and_cut_off_work_goes_on_to_them(
    trained: FakeQuantized, compressed: nn.Module, scans: digits.Digits, tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.done > progress.total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(compressed, RECIPE, data=scans.data, progress=stop, checkpoint=tmp_path / "kept")
    reports: list[Progress] = []
    again = compress(
        compressed, RECIPE, data=scans.data, progress=reports.append, checkpoint=tmp_path / "kept"
    )
    learning = [r for r in reports if "loss" in r.metrics]
    assert learning[0].done > learning[0].total // 3  # it did not begin again
    want, got = trained.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[n], got[n]) for n in want)


def test_a_file_whose_metadata_does_not_fit_is_refused(
    trained: FakeQuantized, scans: digits.Digits, tmp_path: Path
) -> None:
    path = tmp_path / "student.onnx"
    save_model(trained, (scans.x_test[:1],), path)
    for text in ("{", '{"ranges": {}, "weights": ["nothing"]}', '{"ranges": {"x": [1]}, "weights": []}'):
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {TRAINED: text})
        onnx.save(model, tmp_path / "other.onnx")
        with pytest.raises(ExportError, match="does not fit its graph"):
            export(tmp_path / "other.onnx", target="x86-64", out=tmp_path / "m.ew")


def test_the_ending_of_a_file_says_what_is_in_it(
    trained: FakeQuantized, compressed: nn.Module, scans: digits.Digits, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"name it NAME\.onnx"):
        save_model(trained, (scans.x_test[:1],), tmp_path / "m.pt2")
    with pytest.raises(ExportError, match=r"name it NAME\.pt2"):
        save_model(compressed, (scans.x_test[:1],), tmp_path / "m.onnx")


def test_a_program_on_disk_is_trained_as_well(
    compressed: nn.Module, scans: digits.Digits, tmp_path: Path
) -> None:
    save_model(compressed, (scans.x_test[:2],), tmp_path / "student.pt2")
    made = train_quantized(tmp_path / "student.pt2", scans.data, replace(QAT, epochs=1))
    assert evaluate(made, scans.data.validation) > 0.9


def test_batches_of_several_shapes_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.zeros(4, n, 8), torch.zeros(4, dtype=torch.int64)) for n in (2, 3)]
    with pytest.raises(DataError, match="pad all samples"):
        fake_quantized(model, batches, Quantize())


def test_inputs_by_name_reach_the_arguments_they_are_for() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.a(left) + self.b(right)
            return logits

    x = {"right": normal(64, 6), "left": normal(64, 4, seed=1)}
    data = Data.from_arrays(x, np.arange(64) % 3)
    made = train_quantized(Two().eval(), data, replace(QAT, epochs=1))
    assert made.inputs == ("left", "right")
    assert 0 <= evaluate(made, data.validation) <= 1
