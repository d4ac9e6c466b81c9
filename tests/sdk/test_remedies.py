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
from edgewright.graph import float_graph, onnx_function, quantizes, read_onnx
from edgewright.layer_findings import measure
from edgewright.narrow_kernels import ONNX_RUNTIME
from edgewright.overflow_risks import overflow_risks
from edgewright.progress import Progress
from edgewright.qdq_edits import fitted, named_as, reduced, unsigned
from edgewright.recipe import Quantize, Recipe
from edgewright.remedies import Remedy, recipe_text
from edgewright.remedy_candidates import file_candidates, recipe_candidates, recipe_of
from edgewright.statistics import sqnr_db
from edgewright.value_matching import grid_values
from edgewright.verification import verify
from edgewright.verification_report import VerificationReport
from edgewright.wiring import initializers
from edgewright_device import Artifact
from sdk import foreign
from sdk.graphs import graph, normal, quantize, saved
from sdk.test_layer_findings import changed

X = foreign.inputs("cnn", 160)


@pytest.fixture(scope="module")
def source(cnn_file: Path) -> Path:
    return cnn_file


@pytest.fixture(scope="module")
def file(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.quantize_static(source, tmp_path_factory.mktemp("q") / "q.onnx", X[:96], "U8U8")


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
    assert remedy.recommended is remedy.attempts[-1]
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
    assert remedy.recommended is remedy.attempts[-1]
    assert [a.passed for a in remedy.attempts] == [False] * 4 + [True]
    assert remedy.attempts[-1].change == "16 bits for r, and weights fitted pair by pair"


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
        healed=tmp_path / "healed.ew",
        progress=seen.append,
    )
    remedy = remedy_of(report)
    assert remedy.recommended is remedy.attempts[-1]
    assert remedy.attempts[-1].change == "8-bit weights"
    assert all(not a.passed for a in remedy.attempts[:-1])
    assert all(a.size_bytes > 0 for a in remedy.attempts)
    assert [p.done for p in seen if p.step == "remedies"][-1] > 0
    recipe = Recipe.from_toml('name = "healed"\n' + remedy.attempts[-1].recipe)
    assert recipe.quantize == Quantize()
    healed = Artifact.open(tmp_path / "healed.ew")
    assert healed.name == "healed"
    assert sum(f.size_bytes for f in healed.files.values()) == remedy.attempts[-1].size_bytes
    assert verify(healed, reference=source, data=X[96:], cases=60, min_sqnr_db=37, max_flip_rate=0.5).passed


@pytest.fixture(scope="module")
def overflowing(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int8 weights whose products leave 16 bits, and nothing else that is wrong."""
    path = tmp_path_factory.mktemp("s8s8") / "q.onnx"
    symmetric = {"ActivationSymmetric": True}
    return foreign.quantize_static(source, path, X[:96], "S8S8", per_channel=True, extra_options=symmetric)


def test_overflow_is_healed_by_what_costs_least_and_the_healed_file_passes(
    overflowing: Path, source: Path, tmp_path: Path
) -> None:
    healed = tmp_path / "healed.onnx"
    report = verified(overflowing, source, remedies=True, calibration=X[:96], healed=healed)
    assert "overflow" in {c.name for c in report.checks if c.verdict != "passed"}
    remedy = remedy_of(report)
    assert [a.change for a in remedy.attempts] == [
        "weights fitted pair by pair (as overflow_safe)",
        "weights of 7 bits (as reduce_range)",
        "U8U8: the same numbers in uint8, a slower kernel",
    ]
    assert all(a.passed for a in remedy.attempts)
    assert {c.name for c in remedy.attempts[0].checks} == {"sqnr", "flips", "kernels", "overflow"}
    noise = [next(c.value for c in a.checks if c.name == "sqnr") for a in remedy.attempts]
    assert remedy.chosen == int(np.argmax(noise[:2]))  # neither costs time; the third does
    said = {c.name: c.remedy for c in report.checks}["overflow"]
    assert f"tried, and it passes: {remedy.attempts[remedy.chosen].change}" in said
    assert VerificationReport.from_json(report.to_json()) == report
    again = verified(healed, source)
    assert again.passed, [c for c in again.checks if c.verdict != "passed"]
    assert again.remedy is None


def test_overflow_untried_says_what_would_be_tried(overflowing: Path, source: Path) -> None:
    report = verified(overflowing, source)
    said = {c.name: c.remedy for c in report.checks}["overflow"]
    assert "x64quantprecision" in said
    assert "to try first: weights fitted pair by pair" in said
    assert len(remedy_of(report).untried) == 4


def test_every_edit_against_overflow_gives_a_file_that_is_proven_safe(
    overflowing: Path, source: Path
) -> None:
    qdq, floats = read_onnx(overflowing), float_graph(source)
    before = {f.verdict for f in overflow_risks(qdq, kernels=[ONNX_RUNTIME])}
    assert "at risk" in before
    wanted = onnx_function(floats)({"x": X[96:]})["y"]
    found = file_candidates(qdq, floats, (), {"x": X[:96]}, narrow=True, model=source)
    assert [c.compared for c in found] == [True, True, True, False]
    for candidate in found:
        assert candidate.edit is not None
        made = candidate.edit()
        verdicts = {f.verdict for f in overflow_risks(made, kernels=[ONNX_RUNTIME])}
        assert "at risk" not in verdicts, candidate.change
        assert sqnr_db(wanted, onnx_function(made)({"x": X[96:]})["y"]) > 25, candidate.change


def test_fitting_changes_only_layers_that_can_overflow(overflowing: Path) -> None:
    once = fitted(read_onnx(overflowing))
    assert "x" in {i.name for i in once.graph.input}
    twice = fitted(once)
    there, here = (
        {n: t for n, t in initializers(m).items() if t.dtype == np.int8 and t.size > 1} for m in (once, twice)
    )
    assert there.keys() == here.keys()
    assert all(np.array_equal(there[n], here[n]) for n in there)


def test_weights_of_one_scale_are_fitted_too(source: Path, tmp_path: Path) -> None:
    path = foreign.quantize_static(source, tmp_path / "q.onnx", X[:96], "U8S8", per_channel=False)
    made = fitted(read_onnx(path))
    assert "at risk" not in {f.verdict for f in overflow_risks(made, kernels=[ONNX_RUNTIME])}
    assert (
        sqnr_db(
            onnx_function(float_graph(source))({"x": X[:32]})["y"], onnx_function(made)({"x": X[:32]})["y"]
        )
        > 25
    )


def test_a_place_that_is_none_for_a_healed_model_is_refused(overflowing: Path, source: Path) -> None:
    heal: dict[str, Any] = {"remedies": True, "calibration": X[:96]}
    with pytest.raises(ValueError, match="another place"):
        verified(overflowing, source, healed="healed.ew", **heal)
    with pytest.raises(ValueError, match="another place"):
        verified(overflowing, source, healed=overflowing, **heal)
    with pytest.raises(ValueError, match="ask for them"):
        verified(overflowing, source, healed="healed.onnx")


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
    heal += ["--json", str(tmp_path / "found.json"), "--healed", str(tmp_path / "healed.onnx")]
    ran = CliRunner().invoke(app, [*asked, "--cases", "300", *heal])
    assert ran.exit_code == 1, ran.output
    told = json.loads((tmp_path / "found.json").read_text("utf-8"))["remedy"]
    assert [c["verdict"] for c in told["attempts"][0]["checks"] if c["name"] == "sqnr"] == ["passed"]
    assert told["chosen"] == 0
    assert "remedies tried" in ran.output
    assert "Recommended: recalibrate relu_3: range by minmax" in ran.output
    assert quantizes(read_onnx(tmp_path / "healed.onnx"))
    assert told["attempts"][0]["change"] == "recalibrate relu_3: range by minmax"
    alone = CliRunner().invoke(app, [*asked, "--remedies"])
    assert alone.exit_code == 2
    assert "go together" in alone.output
    untried = CliRunner().invoke(app, [*asked, "--healed", str(tmp_path / "other.onnx")])
    assert untried.exit_code == 2
    assert "needs --remedies" in untried.output


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


def test_a_graph_takes_the_names_of_another(file: Path, source: Path) -> None:
    other = read_onnx(file)
    other.graph.input[0].name, other.graph.output[0].name = "relu_3", "logits"
    made = named_as(read_onnx(source), other)
    exact = onnx_function(read_onnx(source))({"x": X[:4]})["y"]
    np.testing.assert_array_equal(onnx_function(made)({"relu_3": X[:4]})["logits"], exact)


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
