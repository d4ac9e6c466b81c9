"""An artifact with model.tflite: exported, run, replayed on a device, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from edgewright.errors import ExportError
from edgewright.exporting import export
from edgewright.litert import model as litert_model
from edgewright.litert.model import MODEL, agreement, litert_run
from edgewright.progress import Progress
from edgewright.verification import verify
from edgewright_device import Artifact, Runner, RunnerError, write_artifact
from edgewright_device.health import check
from sdk.graphs import Node, graph, mlp, normal, saved

pytest.importorskip("ai_edge_litert")


class Sentences(nn.Module):
    """Token numbers and a mask to two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.inner, self.out = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keep = mask.unsqueeze(-1).float()
        x = torch.nn.functional.gelu(self.inner(self.words(ids))) * keep
        return self.out(x.mean(1))  # type: ignore[no-any-return]


def tokens(count: int) -> dict[str, Any]:
    random = np.random.default_rng(1)
    mask = (np.arange(12) < random.integers(3, 13, (count, 1))).astype(np.int64)
    return {"ids": random.integers(0, 40, (count, 12)) * mask, "mask": mask}


def digits_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 10),
        ).eval()


@pytest.fixture(scope="module")
def digits_artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[str]]:
    net = digits_net()
    notes: list[str] = []

    def note(report: Progress) -> None:
        notes.extend([report.note] if report.note else [])

    folder = tmp_path_factory.mktemp("litert")
    x = normal(64, 1, 8, 8)
    made = export(net, target="x86-avx2", calibration=x, out=folder / "digits.ew", litert=True, progress=note)
    return made, notes


def test_the_artifact_has_the_file_and_a_device_confirms_it(digits_artifact: tuple[Artifact, Any]) -> None:
    artifact, notes = digits_artifact
    assert MODEL in Artifact.open(artifact.path).files
    found = check(artifact.path, backend="litert")
    assert (found.passed, found.reason) == (True, "")
    assert any(n.startswith("model.tflite: LiteRT's results differ") for n in notes)


def test_litert_takes_images_as_the_manifest_has_them(digits_artifact: tuple[Artifact, Any]) -> None:
    artifact, _ = digits_artifact
    x = {artifact.inputs[0].name: normal(16, 1, 8, 8, seed=5)}
    found = agreement(artifact, x, Runner(artifact).run(x))
    assert (found.samples, found.steps <= 1.01, found.differing < 0.2) == (16, True, True)
    assert found.sqnr_db > 35


def test_the_same_export_without_litert_has_the_same_other_files(
    digits_artifact: tuple[Artifact, Any], tmp_path: Path
) -> None:
    path = saved(mlp(), tmp_path / "m.onnx")
    plain, more = (
        export(
            path, target="x86-avx2", calibration=normal(64, 8), out=tmp_path / name / "m.ew", litert=litert
        )
        for name, litert in (("plain", False), ("more", True))
    )
    assert dict(more.files) == {**plain.files, MODEL: more.files[MODEL]}


def test_token_numbers_stay_int64(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Sentences().eval()
    x = tokens(64)
    made = export(net, target="x86-avx2", calibration=x, out=tmp_path / "words.ew", litert=True)
    assert check(made.path, backend="litert").passed
    got, exact = (Runner(made, backend=b).run(x)["y"] for b in ("litert", "native"))
    assert np.abs(got - exact).max() <= 2.01 * made.outputs[0].scale
    x["ids"][0, 0] = 40
    with pytest.raises(RunnerError, match=r"model\.tflite: LiteRT cannot run it .*out of bounds"):
        Runner(made, backend="litert").run(x)


def test_models_that_have_no_one_program_are_refused(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Gemm", ["x", "w"], "h", {"transB": 1}),
        ("CumSum", ["h", "axis"], "c", {}),
        ("Gemm", ["c", "w"], "y", {"transB": 1}),
    ]
    model = graph(nodes, {"x": (8,)}, {"y": (8,)}, {"w": normal(8, 8), "axis": np.array(1)})
    how: dict[str, Any] = {"target": "x86-avx2", "calibration": normal(64, 8), "litert": True}
    with pytest.raises(ExportError, match=r"has operators that only ONNX Runtime runs"):
        export(saved(model, tmp_path / "m.onnx"), out=tmp_path / "m.ew", **how)
    assert not (tmp_path / "m.ew").exists()


def test_a_missing_package_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_model, "PACKAGE", "no_such_litert")
    with pytest.raises(ExportError, match=r"pip install 'edgewright\[litert\]'"):
        export(tmp_path / "not there.onnx", target="x86-avx2", out=tmp_path / "m.ew", litert=True)


def test_verification_holds_litert_to_the_native_engine_and_the_device_to_what_it_saw(
    digits_artifact: tuple[Artifact, Any],
) -> None:
    artifact, _ = digits_artifact
    found = verify(artifact, reference=digits_net(), cases=60, data=normal(64, 1, 8, 8), max_flip_rate=0.5)
    verdicts = {c.name: c.verdict for c in found.checks}
    assert verdicts["litert"] == "passed"
    assert found.certificate is not None
    assert 0 < found.certificate.bounds["litert"] <= 4


def test_verification_finds_a_model_of_other_weights(
    digits_artifact: tuple[Artifact, Any], tmp_path: Path
) -> None:
    artifact, _ = digits_artifact
    files = {name: artifact.read(name) for name in artifact.files}
    weights = safetensors.numpy.load(files["weights.safetensors"])
    dense = next(w for w in weights.values() if w.shape == (10, 32))
    data = files[MODEL].replace(dense.tobytes(), (-dense).tobytes())
    assert data != files[MODEL]
    broken = write_artifact(
        tmp_path / "digits.ew",
        name=artifact.name,
        producer=artifact.producer,
        targets=artifact.targets,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        files={**files, MODEL: data},
    )
    found = verify(broken, reference=digits_net(), cases=60, data=normal(64, 1, 8, 8), max_flip_rate=0.5)
    (failed,) = (c for c in found.checks if c.verdict != "passed")
    assert (failed.name, failed.verdict) == ("litert", "failed")
    assert "run it on the native engine" in failed.remedy
    assert found.certificate is None


def test_without_litert_verification_says_so(
    digits_artifact: tuple[Artifact, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = digits_artifact

    def missing(*_: Any, **__: Any) -> None:
        raise RunnerError("backend 'litert' is not installed here")

    monkeypatch.setattr(litert_model, "PACKAGE", "no_such_litert")
    monkeypatch.setattr(litert_model, "Runner", missing)
    notes: list[Progress] = []
    assert litert_run(artifact, notes.append) is None
    assert "was not checked: backend 'litert' is not installed here" in notes[0].note


def test_an_artifact_without_the_file_has_nothing_to_check(tmp_path: Path) -> None:
    path = saved(mlp(), tmp_path / "m.onnx")
    made = export(path, target="x86-avx2", calibration=normal(64, 8), out=tmp_path / "m.ew")
    assert litert_run(made, lambda _: None) is None
