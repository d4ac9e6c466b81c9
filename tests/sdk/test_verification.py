"""Verification: a healthy artifact passes, and each way of being wrong fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

from edgewright.cases import STRATA
from edgewright.checks import Check
from edgewright.errors import VerifyError
from edgewright.exporting import export
from edgewright.graph import float_function
from edgewright.progress import Progress
from edgewright.verification import verify
from edgewright.verification_report import VerificationReport
from edgewright_device import Artifact, Runner, encode_golden, write_artifact
from sdk.graphs import corners_and_more, graph, mlp, normal, saved

# All corners too: the cases go there, and what calibration never saw is clipped.
X = corners_and_more(8)
CASES = 400
RELATIONS = ("batch", "order", "repeat", "threads")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(mlp(), tmp_path_factory.mktemp("model") / "mlp.onnx")


@pytest.fixture(scope="module")
def healthy(model: Path) -> Artifact:
    return export(model, target="x86-64", calibration=X, out=model.parent / "mlp.ew")


@pytest.fixture(scope="module")
def report(healthy: Artifact, model: Path) -> VerificationReport:
    return verify(healthy, reference=model, data=X, cases=CASES)


def rewritten(artifact: Artifact, out: Path, **files: bytes) -> Artifact:
    """A copy with other files, its manifest true to them: damage that no digest shows."""
    return write_artifact(
        out,
        name=artifact.name,
        producer=artifact.producer,
        targets=artifact.targets,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        files={n: artifact.read(n) for n in artifact.files}
        | {n.replace("__", "."): d for n, d in files.items()},
    )


def reweighted(artifact: Artifact, out: Path, change: Callable[[dict[str, Any]], None]) -> Artifact:
    weights = safetensors.numpy.load(artifact.read("weights.safetensors"))
    change(weights)
    return rewritten(
        artifact, out, weights__safetensors=safetensors.numpy.save(dict(sorted(weights.items())))
    )


def regilded(artifact: Artifact, out: Path) -> Artifact:
    """A copy whose golden outputs are what it gives, as a faulty exporter would have written them."""
    inputs, _ = artifact.golden()
    return rewritten(artifact, out, golden__npz=encode_golden(inputs, Runner(artifact).run(inputs)))


def verdicts(report: VerificationReport) -> dict[str, str]:
    return {c.name: c.verdict for c in report.checks}


def test_a_healthy_artifact_passes_every_check(
    report: VerificationReport, healthy: Artifact, model: Path
) -> None:
    assert report.passed
    assert set(verdicts(report).values()) == {"passed"}
    checked = {"golden", "bits", "onnx", "range", "coverage", *RELATIONS, "sqnr", "flips"}
    assert checked <= set(verdicts(report))
    assert {"files", "program", "grids", "weights", "operators"} <= set(verdicts(report))
    assert report.findings == ()
    assert report.bit_mismatches == 0
    assert report.artifact == healthy.digest
    assert report.reference == str(model)
    assert 20 < report.sqnr_db < math.inf
    assert report.cases == sum(report.strata.values()) == CASES
    assert set(report.strata) == set(STRATA)
    assert report.coverage is not None
    assert report.coverage.cases == 64
    assert set(report.stratum_flips) == set(report.strata)


def test_a_module_and_its_file_are_the_same_reference(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    artifact = export(net, target="x86-64", calibration=X, out=tmp_path / "net.ew")
    found = verify(artifact, reference=net, data={"input": X}, cases=200)
    assert found.reference == "Sequential"
    assert verdicts(found)["bits"] == verdicts(found)["golden"] == "passed"
    assert found.sqnr_db > 25


def test_the_seed_fixes_the_report_and_another_draws_other_cases(
    report: VerificationReport, healthy: Artifact, model: Path
) -> None:
    assert verify(healthy, reference=model, data=X, cases=CASES) == report
    assert verify(healthy, reference=model, data=X, cases=CASES, seed=1).sqnr_db != report.sqnr_db


def test_without_data_the_golden_inputs_serve(healthy: Artifact, model: Path) -> None:
    found = verify(healthy, reference=model, cases=100)
    assert verdicts(found)["bits"] == verdicts(found)["sqnr"] == "passed"


def test_progress_ends_where_it_said(healthy: Artifact, model: Path) -> None:
    seen: list[Progress] = []
    verify(healthy, reference=model, data=X, cases=130, progress=seen.append)
    steps = ("samples", "float", "native", "exact", "onnxruntime", "examine", "layers")
    assert {p.step for p in seen} == {f"verify: {s}" for s in steps}
    assert sum(p.done == p.total for p in seen) == len(steps)
    assert {p.total for p in seen if p.step in ("verify: float", "verify: native")} == {130}


# Injected defects


def flip_a_bit(weights: dict[str, Any]) -> None:
    weights["w2"].view(np.uint8)[1, 0] ^= 64


def swap_channels(weights: dict[str, Any]) -> None:
    for name in ("w2", "b2"):
        weights[name][[0, 1]] = weights[name][[1, 0]]


def zero_a_bias(weights: dict[str, Any]) -> None:
    weights["b2"][:] = 0


@pytest.mark.parametrize("defect", [flip_a_bit, swap_channels, zero_a_bias])
def test_changed_weights_fail_though_engine_and_reference_agree(
    healthy: Artifact, model: Path, tmp_path: Path, defect: Callable[[dict[str, Any]], None]
) -> None:
    broken = reweighted(healthy, tmp_path / "mlp.ew", defect)
    found = verify(broken, reference=model, data=X, cases=CASES)
    assert not found.passed
    assert verdicts(found)["bits"] == "passed"
    assert verdicts(found)["golden"] == "failed"


@pytest.mark.parametrize("defect", [swap_channels, zero_a_bias])
def test_a_wrong_model_with_golden_vectors_of_its_own_fails_against_the_float_model(
    healthy: Artifact, model: Path, tmp_path: Path, defect: Callable[[dict[str, Any]], None]
) -> None:
    broken = regilded(reweighted(healthy, tmp_path / "a.ew", defect), tmp_path / "b.ew")
    found = verify(broken, reference=model, data=X, cases=CASES)
    assert verdicts(found)["golden"] == verdicts(found)["bits"] == "passed"
    assert verdicts(found)["sqnr"] == verdicts(found)["flips"] == "failed"


@pytest.mark.parametrize("constant", ["x_scale", "r_scale"])
def test_a_wrong_grid_in_model_onnx_fails_the_comparison_of_engines(
    healthy: Artifact, model: Path, tmp_path: Path, constant: str
) -> None:
    graph_ = onnx.load_from_string(healthy.read("model.onnx"))
    (tensor,) = (i for i in graph_.graph.initializer if i.name == constant)
    value = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value * np.float32(1.3)), constant))
    broken = rewritten(healthy, tmp_path / "mlp.ew", model__onnx=graph_.SerializeToString())
    found = verify(broken, reference=model, data=X, cases=100)
    assert verdicts(found)["onnx"] == "failed"
    assert not found.passed


def test_one_wrong_golden_value_fails(healthy: Artifact, model: Path, tmp_path: Path) -> None:
    inputs, outputs = healthy.golden()
    outputs["y"].view(np.uint32)[5, 2] ^= 1
    broken = rewritten(healthy, tmp_path / "mlp.ew", golden__npz=encode_golden(inputs, outputs))
    found = verify(broken, reference=model, data=X, cases=100)
    assert verdicts(found)["golden"] == "failed"
    assert found.checks[0].value == 1


def test_an_engine_that_is_not_exact_fails(
    healthy: Artifact, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Runner.run

    def off_by_one_bit(self: Runner, inputs: Any) -> Any:
        outputs = run(self, inputs)
        if self.backend == "native" and len(outputs["y"]) > 8:
            outputs["y"].view(np.uint32)[7, 1] ^= 1
        return outputs

    monkeypatch.setattr(Runner, "run", off_by_one_bit)
    found = verify(healthy, reference=model, data=X, cases=200)
    assert verdicts(found)["bits"] == "failed"
    assert found.bit_mismatches == 3  # two batches within the range, one beyond it


def test_golden_vectors_of_another_model_cannot_be_compared(
    healthy: Artifact, model: Path, tmp_path: Path
) -> None:
    inputs, outputs = healthy.golden()
    for i, o in (
        ({"z": inputs["x"]}, outputs),
        (inputs, {"z": outputs["y"]}),
        (inputs, {"y": outputs["y"][:3]}),
    ):
        broken = rewritten(healthy, tmp_path / "mlp.ew", golden__npz=encode_golden(i, o))
        with pytest.raises(VerifyError, match="golden"):
            verify(broken, reference=model, data=X, cases=50)


# References that do not fit


class Odd(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        y = x[:, :4]
        results: dict[str, Callable[[], Any]] = {
            "raises": lambda: dict[int, Tensor]()[0],
            "two outputs": lambda: (y, y),
            "one result": lambda: y[:1],
            "text": lambda: "y",
            "classes": lambda: x[:, :3],
        }
        return results[self.how]()


@pytest.mark.parametrize("how", ["raises", "two outputs", "one result", "text", "classes"])
def test_a_reference_that_does_not_fit_cannot_be_compared(healthy: Artifact, how: str) -> None:
    with pytest.raises(VerifyError, match=r"the reference (does not take|has 2 outputs|gives)"):
        verify(healthy, reference=Odd(how), data=X, cases=150)


@pytest.mark.parametrize("other", [{"features": 9}, {"classes": 5}])
def test_a_file_of_another_architecture_cannot_be_compared(
    healthy: Artifact, tmp_path: Path, other: dict[str, int]
) -> None:
    path = saved(mlp(**other), tmp_path / "other.onnx")
    with pytest.raises(VerifyError, match="the reference"):
        verify(healthy, reference=path, data=X, cases=50)


def test_a_reference_that_is_missing_is_named(healthy: Artifact, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"the reference cannot be run: .*none\.pt2: there is no such file"):
        verify(healthy, reference=tmp_path / "none.pt2", data=X, cases=50)


def test_a_reference_that_gives_nan_in_any_output_fails(tmp_path: Path) -> None:
    nodes: list[Any] = [
        ("Gemm", ["x", "w"], "a", {"transB": 1}),
        ("Gemm", ["x", "v"], "b", {"transB": 1}),
    ]
    constants = {"w": normal(4, 8), "v": normal(4, 8, seed=1)}
    path = saved(graph(nodes, {"x": (8,)}, {"a": (4,), "b": (4,)}, constants), tmp_path / "two.onnx")
    artifact = export(path, target="x86-64", calibration=X, out=tmp_path / "two.ew")
    assert verify(artifact, reference=path, data=X, cases=50).prediction_flips is None
    constants["v"][0, 0] = np.nan
    broken = saved(graph(nodes, {"x": (8,)}, {"a": (4,), "b": (4,)}, constants), tmp_path / "nan.onnx")
    found = verify(artifact, reference=broken, data=X, cases=50)
    assert verdicts(found)["sqnr"] == "failed"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"z": X}, r"data is for inputs \['z'\]; .*mlp\.ew takes \['x'\]"),
        (X[:, :7], r"data for 'x' has shape \(456, 7\); \(samples, 8\) is needed"),
        (X[:0], r"data for 'x' has shape \(0, 8\)"),
        (np.where(X > 0.99, np.nan, X), "data for 'x' holds NaN"),
        (np.float32(1), r"data for 'x' has shape \(\)"),
        (X.astype(np.float64) * 1e300, "data for 'x' holds NaN or infinity"),
        (np.array([["a"] * 8]), "data must be arrays of numbers"),
        ({"x": object()}, "data must be arrays of numbers"),
    ],
)
def test_data_that_does_not_fit_is_named(healthy: Artifact, model: Path, data: Any, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(healthy, reference=model, data=data, cases=50)


# Verdicts


def test_too_few_cases_to_tell_are_no_pass(healthy: Artifact, model: Path) -> None:
    found = verify(healthy, reference=model, data=X, cases=20, max_flip_rate=0.05)
    assert verdicts(found)["flips"] == "cannot tell"
    assert not found.passed
    (flips,) = (c for c in found.checks if c.name == "flips")
    assert flips.interval is not None
    assert flips.interval[0] <= flips.bound < flips.interval[1]


def test_labels_show_that_accuracy_is_kept_or_how_many_more_would(healthy: Artifact, model: Path) -> None:
    x = np.clip(normal(3000, 8, seed=5), -1, 1)
    (logits,) = float_function(model)([x])
    close = np.sort(logits, axis=1)
    clear = close[:, -1] - close[:, -2] > 0.1 * np.ptp(logits)  # what rounding does not decide
    x, right = x[clear], logits[clear].argmax(1)
    kept = verify(healthy, reference=model, data=x, labels=right, margin=0.05, cases=CASES)
    assert verdicts(kept)["accuracy"] == "passed"
    few = verify(healthy, reference=model, data=x[:20], labels=right[:20], margin=0.05, cases=CASES)
    assert verdicts(few)["accuracy"] == "cannot tell"
    assert not few.passed
    assert "more are needed" in next(c.remedy for c in few.checks if c.name == "accuracy")
    with pytest.raises(VerifyError, match="20 class numbers are needed"):
        verify(healthy, reference=model, data=x[:20], labels=right[:19], cases=CASES)


def test_less_than_twenty_cases_are_refused(healthy: Artifact, model: Path) -> None:
    with pytest.raises(ValueError, match="19 cases say nothing"):
        verify(healthy, reference=model, cases=19)


def test_bounds_are_the_callers(healthy: Artifact, model: Path) -> None:
    assert verdicts(verify(healthy, reference=model, data=X, cases=50, min_sqnr_db=90))["sqnr"] == "failed"


def test_no_checks_are_no_pass(report: VerificationReport) -> None:
    assert not replace(report, checks=()).passed


def test_an_artifact_without_a_program_is_judged_by_onnxruntime(model: Path, tmp_path: Path) -> None:
    made = export(model, target="x86-64", calibration=X, out=tmp_path / "mlp.ew", backend="onnxruntime")
    found = verify(made, reference=model, data=X, cases=CASES)
    assert found.passed
    assert {"golden", "range", "coverage", *RELATIONS, "sqnr", "flips"} <= set(verdicts(found))
    assert not {"bits", "onnx", "program"} & set(verdicts(found))
    inputs, outputs = made.golden()
    outputs["y"] += np.float32(0.1) * np.ptp(outputs["y"])
    broken = rewritten(made, tmp_path / "b.ew", golden__npz=encode_golden(inputs, outputs))
    assert verdicts(verify(broken, reference=model, data=X, cases=100))["golden"] == "failed"


# JSON


def check(value: float) -> Check:
    return Check(name="n", what="w", verdict="failed", value=value, interval=None, bound=1.0, unit="dB")


def test_a_report_survives_json(report: VerificationReport) -> None:
    text = report.to_json()
    assert VerificationReport.from_json(text) == report
    assert json.loads(text)["passed"] is True
    assert text == VerificationReport.from_json(text).to_json()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_numbers_survive_plain_json(report: VerificationReport, value: float) -> None:
    extreme = replace(report, sqnr_db=value, checks=(check(value),))
    text = extreme.to_json()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(text, parse_constant=refuse)
    assert VerificationReport.from_json(text) == extreme


def test_a_number_that_is_none_survives_json(report: VerificationReport) -> None:
    back = VerificationReport.from_json(replace(report, checks=(check(math.nan),)).to_json())
    assert math.isnan(back.checks[0].value)
    assert not back.passed


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format=1),
        lambda d: d.pop("checks"),
        lambda d: d.pop("passed"),
        lambda d: d.update(extra=1),
        lambda d: d["checks"][0].pop("verdict"),
        lambda d: d["checks"][0].update(value="much"),
        lambda d: d.update(sqnr_db=None),
    ],
)
def test_what_is_no_report_is_refused(report: VerificationReport, change: Callable[[Any], object]) -> None:
    data = json.loads(report.to_json())
    change(data)
    with pytest.raises(VerifyError, match="not a verification report"):
        VerificationReport.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_json_is_no_report(text: str) -> None:
    with pytest.raises(VerifyError, match="not a verification report"):
        VerificationReport.from_json(text)


def test_a_report_cannot_be_talked_into_passing(report: VerificationReport) -> None:
    data = json.loads(report.to_json())
    data["checks"][0]["verdict"] = "failed"
    assert data["passed"] is True
    assert not VerificationReport.from_json(json.dumps(data)).passed
