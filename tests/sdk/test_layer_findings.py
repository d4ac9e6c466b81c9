"""Per-layer findings: a damaged layer is the one that stands out, a healthy model has none that does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgewright.exporting import export
from edgewright.graph import float_graph, read_onnx
from edgewright.layer_findings import LayerFinding, layer_findings
from edgewright.plain import from_plain, to_plain
from edgewright.recipe import Quantize
from sdk import foreign
from sdk.graphs import FloatArray, graph, normal, quantize

X = foreign.inputs("cnn", 96)


@pytest.fixture(scope="module")
def source(cnn_file: Path) -> Path:
    return cnn_file


@pytest.fixture(scope="module")
def floats(source: Path) -> onnx.ModelProto:
    return float_graph(source)


@pytest.fixture(scope="module")
def qdq(floats: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(floats, {"x": X}).model


def changed(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> onnx.ModelProto:
    """A copy with another constant."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name == name:
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), name))
            return made
    raise KeyError(name)


def constants(model: onnx.ModelProto) -> list[str]:
    """Names of the integers in a graph."""
    return [n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"]


def by_value(findings: tuple[LayerFinding, ...]) -> dict[str, LayerFinding]:
    return {f.value: f for f in findings}


def test_no_layer_of_a_healthy_model_stands_out(qdq: onnx.ModelProto, floats: onnx.ModelProto) -> None:
    found = layer_findings(qdq, floats, {"x": X})
    assert found[0].value == "x"
    assert [f.layer for f in found if f.operator == "Conv"] == [
        "stem",
        "first.depthwise",
        "first.pointwise",
        "second.depthwise",
        "second.pointwise",
        "last",
    ]
    assert min(f.local_db for f in found) > 30
    assert max(f.below + f.above + f.clipped for f in found) < 0.01
    assert not any(f.scaled for f in found)
    assert {f.weight_bits for f in found if f.operator in {"Conv", "Gemm"}} == {8}
    assert {f.cases for f in found} == {64}


def test_noise_gathers_but_local_noise_does_not(qdq: onnx.ModelProto, floats: onnx.ModelProto) -> None:
    for finding in layer_findings(qdq, floats, {"x": X}):
        assert finding.accumulated_db <= finding.local_db + 0.5


def test_a_range_that_is_too_small_is_found_where_it_is(
    qdq: onnx.ModelProto, floats: onnx.ModelProto
) -> None:
    broken = changed(qdq, "relu_3_scale", lambda s: s / 6)
    found = by_value(layer_findings(broken, floats, {"x": X}))
    worst = min(found.values(), key=lambda f: f.local_db)
    assert worst.value == "relu_3"
    assert worst.layer == "second.depthwise"
    assert worst.above > 0.02
    assert worst.clipped > 0.9
    assert all(f.local_db > 30 for f in found.values() if f is not worst)
    assert found["getitem_12"].accumulated_db < 20 < found["getitem_12"].local_db


def test_an_outlier_makes_the_steps_too_coarse() -> None:
    rare = normal(400, 8)
    rare[::40, 3] = 60
    model = graph(
        [("Gemm", ["x", "w", "b"], "h", {"transB": 1}), ("Gemm", ["h", "v", "b"], "y", {"transB": 1})],
        {"x": (8,)},
        {"y": (8,)},
        {"w": np.eye(8, dtype=np.float32), "v": normal(8, 8), "b": np.zeros(8, np.float32)},
    )
    few = {"x": np.delete(rare, np.s_[::40], axis=0)}
    worst = by_value(layer_findings(quantize(model, {"x": rare}).model, model, few))["x"]
    assert worst.local_db < 25
    assert worst.rounded > 0.8
    assert worst.clipped == 0


def test_a_wrong_weight_is_neither_clipping_nor_rounding(
    qdq: onnx.ModelProto, floats: onnx.ModelProto
) -> None:
    name = next(
        n.input[0] for n in qdq.graph.node if n.op_type == "DequantizeLinear" and "last" in n.input[0]
    )
    found = by_value(layer_findings(changed(qdq, name, np.negative), floats, {"x": X}))
    worst = min(found.values(), key=lambda f: f.local_db)
    assert worst.layer == "last"
    assert worst.clipped + worst.rounded < 0.1


def test_equalized_channels_are_compared_in_their_own_scale(source: Path, tmp_path: Path) -> None:
    made = export(
        source, target="x86-64", calibration=X, out=tmp_path / "cnn.ew", quantize=Quantize(equalize=True)
    )
    found = layer_findings(read_onnx(made.path / "model.onnx"), float_graph(source), {"x": X})
    assert any(f.scaled for f in found)
    assert min(f.local_db for f in found) > 30


def test_a_wrong_scale_of_one_channel_is_not_taken_for_equalization(
    qdq: onnx.ModelProto, floats: onnx.ModelProto
) -> None:
    def larger(scale: FloatArray) -> FloatArray:
        scale = scale.copy()
        scale[2] *= 2
        return scale

    name = next(
        n.input[1] for n in qdq.graph.node if n.op_type == "DequantizeLinear" and "stem" in n.input[0]
    )
    found = layer_findings(changed(qdq, name, larger), floats, {"x": X})
    assert not any(f.scaled for f in found)
    assert min(found, key=lambda f: f.local_db).layer == "stem"


def test_files_of_other_quantizers_are_read(source: Path, tmp_path: Path, floats: onnx.ModelProto) -> None:
    model = onnx.load(foreign.quantize_static(source, tmp_path / "q.onnx", X, "U8S8"))
    found = layer_findings(model, floats, {"x": X})
    assert {"stem", "first.pointwise", "head"} <= {f.layer for f in found}
    assert min(f.local_db for f in found) > 30


def test_a_file_with_names_of_its_own_is_read_in_order(qdq: onnx.ModelProto, floats: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(qdq)
    known = {o: f"v{i}" for i, n in enumerate(other.graph.node) for o in n.output}
    for node in other.graph.node:
        node.name = f"of_{node.name}"
        node.input[:] = [known.get(n, n) for n in node.input]
        node.output[:] = [known[n] for n in node.output]
    for value in other.graph.output:
        value.name = known[value.name]
    found = layer_findings(changed(other, "relu_3_scale", lambda s: s / 6), floats, {"x": X})
    assert len(found) >= 7
    assert min(found, key=lambda f: f.local_db).value == "relu_3"


def test_findings_survive_json(qdq: onnx.ModelProto, floats: onnx.ModelProto) -> None:
    found = layer_findings(qdq, floats, {"x": X[:3]})
    assert {f.cases for f in found} == {3}
    assert tuple(from_plain(LayerFinding, to_plain(f)) for f in found) == found
