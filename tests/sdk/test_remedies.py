"""Remedies: what is broken in one way is healed by what heals that way, and by nothing dearer."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from edgewright.cli import app
from edgewright.divergence import Divergence, quantization_divergence
from edgewright.errors import VerifyError
from edgewright.exporting import export
from edgewright.graph import float_graph, onnx_function, read_onnx
from edgewright.layer_findings import measure
from edgewright.progress import Progress
from edgewright.qdq_edits import reduced, unsigned
from edgewright.recipe import Quantize, Recipe
from edgewright.remedies import Remedy, recipe_candidates, recipe_of, recipe_text
from edgewright.statistics import sqnr_db
from edgewright.value_matching import grid_values
from edgewright.verification import verify
from edgewright.verification_report import VerificationReport
from sdk import foreign
from sdk.graphs import graph, normal, quantize, saved
from sdk.test_layer_findings import changed

X = foreign.inputs("cnn", 160)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.float_file("cnn", tmp_path_factory.mktemp("cnn") / "cnn.onnx")


@pytest.fixture(scope="module")
def file(source: Path) -> Path:
    return foreign.quantize_static(source, source.parent / "q.onnx", X[:96], "U8U8")


def verified(path: Path, source: Path, **how: Any) -> VerificationReport:
    return verify(path, reference=source, data=X[96:], cases=60, max_flip_rate=0.5, **how)


def remedy_of(report: VerificationReport) -> Remedy:
    assert report.remedy is not None
    return report.remedy


def test_a_healthy_file_needs_no_remedy(file: Path, source: Path) -> None:
    report = verified(file, source, remedies=True, calibration=X[:96])
    assert report.remedy is None
    assert report.divergences == ()
    assert len(report.layers) > 8


def test_a_clipped_range_is_healed_by_calibrating_it_again(file: Path, source: Path, tmp_path: Path) -> None:
    broken = saved(changed(onnx.load(file), "relu_3_scale", lambda s: s / 12), tmp_path / "clipped.onnx")
    untold = verified(broken, source)
    assert {c.name: c.verdict for c in untold.checks}["sqnr"] == "failed"
    assert [(d.value, d.cause) for d in untold.divergences] == [("relu_3", "saturates")]
    assert remedy_of(untold).untried[0] == "recalibrate relu_3: range by minmax"
    assert not remedy_of(untold).attempts
    said = {c.name: c.remedy for c in untold.checks}["sqnr"]
    assert "second.depthwise" in said
    assert "range is too small" in said

    told = verified(broken, source, remedies=True, calibration=X[:96])
    remedy = remedy_of(told)
    assert remedy.healed
    assert [a.change for a in remedy.attempts] == ["recalibrate relu_3: range by minmax"]
    values = {c.name: c.value for c in remedy.attempts[0].checks}
    assert values["sqnr"] > 25 > 20 > {c.name: c.value for c in remedy.before.checks}["sqnr"]
    assert VerificationReport.from_json(told.to_json()) == told


def test_steps_too_coarse_for_eight_bits_are_healed_by_sixteen(tmp_path: Path) -> None:
    # One channel, which matters little, is a thousand times larger than the others: 8 bits cannot have both.
    width = np.ones(8, np.float32)
    width[3] = 1000
    second = normal(8, 8)
    second[:, 3] = 0
    model = graph(
        [
            ("Gemm", ["x", "w", "b"], "h", {"transB": 1}),
            ("Relu", ["h"], "r", {}),
            ("Gemm", ["r", "v", "b"], "y", {"transB": 1}),
        ],
        {"x": (8,)},
        {"y": (8,)},
        {
            "w": np.diag(width),
            "v": second,
            "b": np.zeros(8, np.float32),
        },
    )
    samples = normal(400, 8)
    source = saved(model, tmp_path / "float.onnx")
    broken = saved(quantize(model, {"x": samples[:200]}).model, tmp_path / "q.onnx")
    report = verify(
        broken,
        reference=source,
        data=samples[200:],
        cases=60,
        max_flip_rate=0.9,
        remedies=True,
        calibration=samples[:200],
    )
    assert [(d.value, d.cause) for d in report.divergences] == [("r", "too coarse")]
    remedy = remedy_of(report)
    assert remedy.healed
    assert [a.passed for a in remedy.attempts] == [False] * 4 + [True]
    assert remedy.attempts[-1].change == "16 bits for r"


def test_an_artifact_is_exported_again_until_it_passes(source: Path, tmp_path: Path) -> None:
    artifact = export(
        source,
        target="x86-64",
        calibration=X[:96],
        out=tmp_path / "int4.ew",
        quantize=Quantize(weights="int4"),
    )
    seen: list[Progress] = []
    report = verify(
        artifact,
        reference=source,
        data=X[96:],
        cases=60,
        min_sqnr_db=37,
        max_flip_rate=0.5,
        remedies=True,
        calibration=X[:96],
        progress=seen.append,
    )
    remedy = remedy_of(report)
    assert remedy.healed
    assert remedy.attempts[-1].change == "8-bit weights"
    assert all(not a.passed for a in remedy.attempts[:-1])
    assert all(a.size_bytes > 0 for a in remedy.attempts)
    assert [p.done for p in seen if p.step == "remedies"][-1] > 0
    recipe = Recipe.from_toml('name = "healed"\n' + remedy.attempts[-1].recipe)
    assert recipe.quantize == Quantize()


def test_a_trial_can_be_cancelled(file: Path, source: Path, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == "remedies":
            raise StopError

    broken = saved(changed(onnx.load(file), "relu_3_scale", lambda s: s / 12), tmp_path / "clipped.onnx")
    with pytest.raises(StopError):
        verified(broken, source, remedies=True, calibration=X[:96], progress=stop)


def test_remedies_without_calibration_are_refused(file: Path, source: Path) -> None:
    with pytest.raises(ValueError, match="give some"):
        verified(file, source, remedies=True)


def test_the_command_prints_what_it_tried(file: Path, source: Path, tmp_path: Path) -> None:
    broken = saved(changed(onnx.load(file), "relu_3_scale", lambda s: s / 12), tmp_path / "clipped.onnx")
    np.savez(tmp_path / "calibration.npz", x=X[:96])
    np.savez(tmp_path / "data.npz", x=X[96:])
    asked = ["verify", str(broken), "--reference", str(source), "--data", str(tmp_path / "data.npz")]
    heal = ["--remedies", "--calibration", str(tmp_path / "calibration.npz")]
    heal += ["--json", str(tmp_path / "found.json")]
    ran = CliRunner().invoke(app, [*asked, "--cases", "60", *heal])
    assert ran.exit_code == 1, ran.output
    told = json.loads((tmp_path / "found.json").read_text("utf-8"))["remedy"]
    assert [c["verdict"] for c in told["attempts"][0]["checks"] if c["name"] == "sqnr"] == ["passed"]
    assert "remedies tried" in ran.output
    assert told["attempts"][0]["change"] == "recalibrate relu_3: range by minmax"
    alone = CliRunner().invoke(app, [*asked, "--remedies"])
    assert alone.exit_code == 2
    assert "go together" in alone.output


def test_calibration_that_does_not_fit_is_refused(file: Path, source: Path, tmp_path: Path) -> None:
    broken = saved(changed(onnx.load(file), "relu_3_scale", lambda s: s / 12), tmp_path / "clipped.onnx")
    with pytest.raises(VerifyError, match="calibration"):
        verified(broken, source, remedies=True, calibration=X[:96, :1])


def test_unsigned_weights_are_the_same_numbers(source: Path, tmp_path: Path) -> None:
    path = foreign.quantize_static(source, tmp_path / "s8.onnx", X[:96], "S8S8", per_channel=True)
    before = read_onnx(path)
    after = unsigned(before)
    kinds = {i.data_type for i in after.graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds
    assert onnx.TensorProto.INT8 not in kinds
    np.testing.assert_array_equal(
        onnx_function(before)({"x": X[:8]})["y"], onnx_function(after)({"x": X[:8]})["y"]
    )


def test_reduced_weights_are_near_and_cannot_overflow(source: Path, tmp_path: Path) -> None:
    path = foreign.quantize_static(source, tmp_path / "s8.onnx", X[:96], "U8S8", per_channel=True)
    after = reduced(read_onnx(path))
    weights = [onnx.numpy_helper.to_array(i) for i in after.graph.initializer]
    assert max(np.abs(w.astype(np.int16)).max() for w in weights if w.dtype == np.int8 and w.size > 1) == 64
    exact = onnx_function(float_graph(source))({"x": X[:32]})["y"]
    assert sqnr_db(exact, onnx_function(after)({"x": X[:32]})["y"]) > 28


def test_what_costs_nothing_is_tried_before_what_does() -> None:
    found = recipe_candidates(
        Quantize(weights="auto"),
        Divergence(
            kind="quantization",
            layer="head",
            operator="Gemm",
            value="y",
            input_db=30,
            own_db=15,
            share=1,
            cause="weights",
            because="",
        ),
        min_sqnr_db=20,
        floats_allowed=True,
    )
    recipes = [c.quantize for c in found]
    assert recipes[0] == Quantize(weights="auto", rounding="gptq")
    assert recipes.index(Quantize()) < recipes.index(Quantize(weights="auto", activations="int16"))
    assert Quantize(weights="auto", keep_float=("head",)) in recipes
    assert len(set(recipes)) == len(recipes)


def test_the_recipe_of_a_graph_is_told_by_its_integers(source: Path) -> None:
    floats = float_graph(source)
    assert recipe_of(quantize(floats, {"x": X}).model) == Quantize()
    wide = quantize(floats, {"x": X}, activations="int16").model
    assert recipe_of(wide) == Quantize(activations="mixed")


def test_a_recipe_says_what_differs_and_reads_back() -> None:
    for quantize_ in (Quantize(calibration="mse", keep_float=("head",)), replace(Quantize(), weights="int4")):
        text = recipe_text(quantize_)
        assert Recipe.from_toml(f'name = "x"\n{text}').quantize == quantize_
        assert len(tomllib.loads(text)["quantize"]) <= 2


def test_every_value_of_the_file_is_matched(file: Path, source: Path) -> None:
    floats = float_graph(source)
    assert all(v.expected for v in grid_values(onnx.load(file), floats))
    measured = measure(onnx.load(file), floats, {"x": X})
    assert quantization_divergence(measured, floats, min_sqnr_db=20) is None
