"""`verify` kills mutants of many kinds, and lets what they were made of pass; `make bench-verify` has all."""

from __future__ import annotations

from pathlib import Path

import defects_elsewhere
import defects_graph
import defects_program
import numpy as np
import pytest
import torch
from defects import DEFECTS, Defect, Subject, UnsuitableError, mutant
from healthy import Healthy
from verify_networks import Recurrent

from edgewright.errors import SdkError
from edgewright.exporting import export
from edgewright.float_onnx import export_onnx
from edgewright.verification import verify
from edgewright_device import Artifact, ArtifactError, RunnerError
from sdk.foreign import float_file, inputs

MODULES = {defects_graph, defects_program, defects_elsewhere}  # each has listed its own
BY_KIND = {d.kind: d for d in DEFECTS}
KINDS = [
    "zero point of DQ",
    "scale of DQ",
    "range clipped",
    "scales permuted",
    "sign of a channel",
    "bias dropped",
    "bias in 8 bits",
    "padding moved",
    "residual dropped",
    "multiplier",
    "clamp",
    "window moved",
    "tail dropped",
    "no rounding",
    "weights of another version",
    "golden vectors of another version",
    "one golden value",
    "report of another artifact",
]


@pytest.fixture(scope="module", params=["cnn", "mlp"])
def healthy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Healthy:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    graph = float_file(name, folder / f"{name}.onnx")
    calibration = {"x": inputs(name, 256)}
    artifact = export(graph, target="x86-avx2", calibration=calibration, out=folder / f"{name}.ew")
    return Healthy(
        name=name,
        artifact=artifact,
        reference=graph,
        graph=graph,
        data={"x": inputs(name, 256, seed=1)},
        labels=None,
        calibration=calibration,
    )


def objections(healthy: Healthy, kind: Defect, folder: Path) -> list[str]:
    made = mutant(Subject(healthy=healthy), kind, 0, folder)
    if made.equivalent:
        pytest.skip(made.equivalent)
    try:
        with made.broken():
            assert isinstance(made.artifact, Artifact)
            made.artifact.report()
            found = verify(made.artifact, reference=healthy.reference, data=healthy.data, cases=200)
    except (SdkError, ArtifactError, RunnerError) as error:
        return [str(error)]
    return [c.name for c in found.checks if c.verdict != "passed"]


def test_what_is_healthy_passes(healthy: Healthy) -> None:
    report = verify(healthy.artifact, reference=healthy.reference, data=healthy.data, cases=1000)
    assert not [c for c in report.checks if c.verdict != "passed"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutant_is_killed(healthy: Healthy, kind: str, tmp_path: Path) -> None:
    try:
        found = objections(healthy, BY_KIND[kind], tmp_path)
    except UnsuitableError:
        pytest.skip(f"{healthy.name} has no place for it")
    assert found


def test_mutants_of_a_model_in_parts_are_killed_and_explained(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Recurrent().eval()
    x = np.random.default_rng(0).random((512, 1, 8, 8), np.float32)
    graph = tmp_path / "recurrent.onnx"
    export_onnx(model, graph, example_inputs=(x[:2],))
    artifact = export(graph, target="x86-avx2", calibration=x[:256], out=tmp_path / "recurrent.ew")
    assert artifact.parts
    subject = Healthy(
        name="recurrent",
        artifact=artifact,
        reference=graph,
        graph=graph,
        data={"x": x[256:]},
        labels=None,
        calibration={"x": x[:256]},
    )
    for kind in ("inputs reversed", "sign of a channel"):
        assert objections(subject, BY_KIND[kind], tmp_path)


def test_kinds_have_names_of_their_own() -> None:
    assert len(BY_KIND) == len(DEFECTS) > 80


def test_a_mutant_is_the_same_each_time(healthy: Healthy, tmp_path: Path) -> None:
    subject = Subject(healthy=healthy)
    first, second = (
        mutant(subject, BY_KIND["older weights"], 3, tmp_path / name).artifact for name in ("a", "b")
    )
    assert isinstance(first, Artifact)
    assert isinstance(second, Artifact)
    assert isinstance(healthy.artifact, Artifact)
    assert first.digest == second.digest != healthy.artifact.digest


def test_what_changes_no_byte_that_runs_is_told(healthy: Healthy, tmp_path: Path) -> None:
    # What calibration saw behind a ReLU starts at 0, where its grid ends: without it the same integers come.
    from defects import GraphChange

    def unchanged(subject: Subject, random: np.random.Generator) -> GraphChange:
        del random
        return GraphChange(model=subject.model)

    kind = Defect(kind="none", where="graph", what="nothing", inject=unchanged)
    assert "byte for byte" in mutant(Subject(healthy=healthy), kind, 0, tmp_path).equivalent
