"""An ONNX file is verified as ONNX Runtime runs it; what cannot be is refused, and the message says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgewright.errors import VerifyError
from edgewright.exporting import export
from edgewright.recipe import Quantize
from edgewright.subject import of_artifact, of_onnx
from edgewright.verification import verify
from edgewright_device import Artifact
from sdk.graphs import corners_and_more, mlp, saved

X = corners_and_more(8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(mlp(), tmp_path_factory.mktemp("subject") / "mlp.onnx")


@pytest.fixture(scope="module")
def artifact(model: Path) -> Artifact:
    return export(model, target="x86-64", calibration=X, out=model.parent / "mlp.ew")


def test_a_file_and_the_float_model_it_is_agree(model: Path) -> None:
    report = verify(model, reference=model, data=X, cases=400)
    assert report.passed
    assert report.sqnr_db > 100
    assert report.errors is not None
    assert report.errors.conversion_db is None
    assert report.certificate is not None
    assert report.certificate.runtime.startswith("onnxruntime ")


def test_an_artifact_s_own_graph_is_verified_as_a_file(artifact: Artifact, model: Path) -> None:
    report = verify(artifact.path / "model.onnx", reference=model, data=X, cases=400)
    # Its weights are not made for the 16-bit sums that ONNX Runtime has on other CPUs; nothing else is wrong.
    assert [c.name for c in report.checks if c.verdict != "passed"] == ["overflow"]
    assert 20 < report.sqnr_db < 60
    assert report.certificate is None


def test_a_file_of_overflow_safe_weights_is_certified(model: Path, tmp_path: Path) -> None:
    how = Quantize(overflow_safe="pairs")
    safe = export(model, target="x86-64", calibration=X, out=tmp_path / "safe.ew", quantize=how)
    report = verify(safe.path / "model.onnx", reference=model, data=X, cases=400)
    assert report.passed
    assert {f.verdict for f in report.overflow} == {"safe"}
    assert report.certificate is not None


def test_a_path_is_as_good_as_an_open_artifact(artifact: Artifact, model: Path) -> None:
    assert verify(artifact.path, reference=model, data=X, cases=60) == verify(
        artifact, reference=model, data=X, cases=60
    )


def test_a_fixed_batch_is_run_in_pieces(tmp_path: Path) -> None:
    model = mlp()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    del model.graph.value_info[:]
    fixed = saved(model, tmp_path / "fixed.onnx")
    free = saved(mlp(), tmp_path / "free.onnx")
    few = {"x": X[:7]}
    expected = of_onnx(free, few).run(few)
    for name, value in of_onnx(fixed, few).run(few).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_a_reference_of_a_fixed_batch_is_run_in_pieces_too(tmp_path: Path, model: Path) -> None:
    made = mlp()
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del made.graph.value_info[:]
    fixed = saved(made, tmp_path / "fixed.onnx")
    assert verify(model, reference=fixed, data=X, cases=400).sqnr_db > 100


def test_samples_on_another_scale_are_not_like_those_of_calibration(artifact: Artifact, model: Path) -> None:
    report = verify(artifact, reference=model, data=255 * X, cases=60)
    (check,) = (c for c in report.checks if c.name == "samples")
    assert check.verdict == "failed"
    assert check.value > 0.5
    assert "scaled" in check.remedy


def test_the_grid_of_an_output_is_read_from_the_graph(artifact: Artifact) -> None:
    subject = of_onnx(artifact.path / "model.onnx", X)
    assert subject.outputs[0].scale == pytest.approx(artifact.outputs[0].scale)
    assert subject.outputs[0].zero_point == artifact.outputs[0].zero_point
    assert subject.inputs[0].minimum == X.min()


def test_without_data_a_file_is_refused(model: Path) -> None:
    with pytest.raises(VerifyError, match="give real samples"):
        verify(model, reference=model)


def test_data_under_another_name_is_refused(model: Path) -> None:
    with pytest.raises(VerifyError, match=r"data is for inputs \['z'\]"):
        of_onnx(model, {"z": X})


def test_what_onnx_runtime_cannot_run_is_refused(model: Path) -> None:
    with pytest.raises(VerifyError, match="cannot run it on these samples"):
        of_onnx(model, X[:, :5])


def test_a_file_without_its_external_data_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(artifact.read("model.onnx"))
    with pytest.raises(VerifyError, match=r"external data is missing|external data cannot be read"):
        of_onnx(alone, X)


def test_a_port_of_another_type_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT32, [None, 2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])]
    made = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 8
    onnx.save(made, str(tmp_path / "int.onnx"))
    with pytest.raises(VerifyError, match="input 'x' is INT32"):
        of_onnx(tmp_path / "int.onnx", np.zeros((3, 2)))


def test_the_digest_changes_with_a_weight(model: Path, tmp_path: Path) -> None:
    other: Any = onnx.load(str(model))
    weight = other.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight).copy()
    values.reshape(-1)[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(other, str(tmp_path / "other.onnx"))
    assert of_onnx(model, X).digest == of_onnx(model, X).digest != of_onnx(tmp_path / "other.onnx", X).digest


def test_an_artifact_is_run_natively_and_defined_by_the_reference(artifact: Artifact) -> None:
    subject = of_artifact(artifact)
    assert subject.runtime == "native"
    assert (subject.run({"x": X[:9]})["y"] == subject.exact({"x": X[:9]})["y"]).all()
