"""Coverage: what the cases have moved is seen, and what they have not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgewright.cases import Cases, generate
from edgewright.coverage import Coverage, Watch, cover, coverage_check, far_samples
from edgewright.exporting import export
from edgewright.plain import from_plain, to_plain
from edgewright_device import Artifact
from sdk.graphs import graph, mlp, normal, saved

HUNDRED = np.uint8(100)


def qdq(zero: Any = HUNDRED, *, scale: float = 0.01) -> onnx.ModelProto:
    """x on a grid, and the same behind a convolution of one tap whose third channel is dead."""
    nodes: list[Any] = [
        ("QuantizeLinear", ["x", "scale", "zero"], "xq", {}),
        ("DequantizeLinear", ["xq", "scale", "zero"], "xd", {}),
        ("Conv", ["xd", "w"], "c", {}),
        ("Relu", ["c"], "r", {}),
        ("QuantizeLinear", ["r", "scale", "none"], "rq", {}),
        ("DequantizeLinear", ["rq", "scale", "none"], "y", {}),
    ]
    weight = np.eye(3, dtype=np.float32)[:, :, None, None]
    weight[2] = 0
    none = (
        np.zeros((), zero.dtype) if zero.dtype.kind == "u" else np.array(np.iinfo(zero.dtype).min, zero.dtype)
    )
    constants = {"scale": np.array(scale, np.float32), "zero": np.array(zero), "none": none, "w": weight}
    made = graph(nodes, {"x": (3, 4, 4)}, {"y": (3, 4, 4)}, constants)
    made.opset_import[0].version = 21  # grids of 16 bits
    return made


def cases(values: npt.NDArray[np.float32]) -> Cases:
    return Cases.of({"x": values}, np.repeat(["sample"], len(values)), {})


def covered(values: npt.NDArray[np.float32], model: onnx.ModelProto | None = None) -> Coverage:
    found = cover(Watch(model or qdq()), cases(values))
    assert found is not None
    return found


def test_levels_ends_and_dead_channels_are_counted() -> None:
    x = np.zeros((4, 3, 4, 4), np.float32)
    x[0, 0, 0, 0], x[1, 1, 1, 1], x[2, 2, 2, 2] = 9, -9, 0.5
    found = covered(x)
    assert (found.cases, found.values, found.channels, found.idle) == (4, 2, 6, 2)
    by_name = {v.name: v for v in found.least}
    first, second = by_name["x"], by_name["r"]
    assert first.levels == 4 / 256  # 0, 100, 150, 255
    assert first.span == 1.0
    assert first.low == first.high == 1 / x.size
    assert (first.channels, first.idle) == (3, 0)
    assert second.levels == 2 / 256
    assert second.low == 0.0  # it is where a ReLU ends, no saturation
    assert second.high == 0.0
    assert second.idle == 2  # one that is always below zero, and one with weights of zero
    assert found.saturated[0].high == 1 / x.size
    assert found.sparse == 2


@pytest.mark.parametrize("zero", [np.int8(3), np.uint16(7), np.int16(0), np.uint8(0)])
def test_grids_of_every_type_are_watched(zero: Any) -> None:
    step = 0.01 if zero.dtype.itemsize == 1 else 0.0001
    found = covered(normal(8, 3, 4, 4), qdq(zero, scale=step))
    assert found.values == 2
    assert 0.02 < found.median_levels <= 1
    assert found.least[0].span <= 1


def test_what_is_seen_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(30, 3, 4, 4)
    whole = covered(x)
    monkeypatch.setattr("edgewright.coverage.BATCH_VALUES", 1)
    assert covered(x) == whole


def test_a_large_model_is_watched_on_fewer_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewright.coverage.WATCHED_VALUES", 500)
    assert covered(normal(30, 3, 4, 4)).cases == 500 // 96


def test_a_graph_of_a_fixed_batch_is_watched() -> None:
    model = qdq()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    assert covered(normal(12, 3, 4, 4), model).cases == 10


def test_coverage_survives_json() -> None:
    found = covered(normal(8, 3, 4, 4))
    assert from_plain(Coverage, to_plain(found)) == found


def test_samples_that_reach_an_end_are_found() -> None:
    x = normal(20, 3, 4, 4, scale=0.1)
    x[13, 0, 1, 1] = 1.2
    x[6, 1, 2, 2] = -0.9
    found = far_samples(Watch(qdq()), {"x": x})
    assert {13, 6} <= set(found.tolist())
    assert len(found) <= 4
    same = np.tile(x[:1], (5, 1, 1, 1))
    assert far_samples(Watch(qdq()), {"x": same}).size == 0


# A verdict needs cases like what the model was calibrated for


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("mlp")
    source = saved(mlp(), folder / "mlp.onnx")
    return export(source, target="x86-64", calibration=normal(300, 8), out=folder / "mlp.ew")


def verdict(artifact: Artifact, samples: npt.NDArray[np.float32]) -> str:
    model = onnx.load(artifact.path / "model.onnx")
    drawn = generate(artifact.inputs, {"x": samples}, 200, 0)
    found = cover(Watch(model), drawn)
    assert found is not None
    check = coverage_check(found)
    assert bool(check.remedy) == (check.verdict != "passed")
    return check.verdict


@pytest.mark.parametrize("count", [8, 20, 300])
def test_samples_like_those_of_calibration_are_enough(artifact: Artifact, count: int) -> None:
    assert verdict(artifact, normal(count, 8, seed=5)) == "passed"


@pytest.mark.parametrize("change", [lambda x: x / 255, lambda x: x[:1] * 0])
def test_nothing_can_be_told_from_samples_prepared_in_another_way(artifact: Artifact, change: Any) -> None:
    assert verdict(artifact, change(normal(50, 8, seed=5))) == "cannot tell"


def test_a_float_graph_has_nothing_to_watch() -> None:
    watch = Watch(mlp())
    assert cover(watch, cases(normal(8, 8))) is None
    assert not far_samples(watch, {"x": normal(8, 8)}).size


def test_a_value_whose_first_axis_is_not_the_batch_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[Any] = [
        ("Transpose", ["x"], "t", {"perm": [1, 0, 2]}),
        ("QuantizeLinear", ["t", "scale", "zero"], "tq", {}),
        ("DequantizeLinear", ["tq", "scale", "zero"], "td", {}),
        ("Transpose", ["td"], "y", {"perm": [1, 0, 2]}),
    ]
    constants = {"scale": np.array(0.02, np.float32), "zero": HUNDRED}
    watch = Watch(graph(nodes, {"x": (6, 4)}, {"y": (6, 4)}, constants))
    monkeypatch.setattr("edgewright.coverage.BATCH_VALUES", 100)
    x = normal(10, 6, 4)
    assert far_samples(watch, {"x": x}).size == 0
    found = cover(watch, cases(x))
    assert found is not None
    assert found.median_span > 0.5
