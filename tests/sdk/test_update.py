"""Small updates: few integers differ from the base's, and the outputs stay near the float model's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import numpy_helper

import edgewright as ew
from edgewright.calibrate import Grid
from edgewright.disturbance import divergence
from edgewright.graph import onnx_function
from edgewright.overflow import MOST
from edgewright.progress import Progress
from edgewright.weight_scale import weight_scale
from edgewright_ota.delta import encode_tensors
from sdk.graphs import mlp, normal, rng, saved
from sdk.test_overflow import terms_of, worst

SIZES = {"features": 24, "hidden": 256, "classes": 10}


def net() -> onnx.ModelProto:
    """Two layers; its scores are a few units apart, as those of a trained one."""
    made = mlp(**SIZES)
    for constant in made.graph.initializer:
        if constant.name in {"w2", "b2"}:
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) / 20, constant.name))
    return made


def inputs(count: int, seed: int = 0) -> np.ndarray:
    """Correlated ones: 24 values that 6 numbers decide, nearly."""
    mixing = rng(99).normal(size=(6, SIZES["features"]))
    x: np.ndarray = rng(seed).normal(size=(count, 6)) @ mixing
    return (x + 0.1 * rng(seed + 1).normal(size=x.shape)).astype(np.float32)


def moved(model: onnx.ModelProto, by: float, scaled: float = 1.0) -> onnx.ModelProto:
    """As after more training: each weight a little away, all of the first layer `scaled`."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for number, constant in enumerate(changed.graph.initializer):
        value = numpy_helper.to_array(constant)
        noise = by * float(value.std()) * normal(*value.shape, seed=50 + number)
        value = value * (scaled if constant.name == "w1" else 1) + noise
        constant.CopyFrom(numpy_helper.from_array(value.astype(np.float32), constant.name))
    return changed


def exported(
    model: onnx.ModelProto, folder: Path, name: str, base: ew.Artifact | None = None, **how: Any
) -> ew.Artifact:
    progress = how.pop("progress", None)
    return ew.export(
        saved(model, folder / f"{name}.onnx"),
        target="x86-avx2",
        calibration=inputs(400),
        out=folder / f"{name}.ew",
        base=base,
        quantize=ew.Quantize(**how),
        progress=progress,
    )


def far(model: onnx.ModelProto, artifact: ew.Artifact) -> float:
    x = {"x": inputs(500, seed=7)}
    return divergence(onnx_function(model)(x), ew.Runner(artifact).run(x))


def sent(new: ew.Artifact, base: ew.Artifact) -> int:
    delta = encode_tensors(new.read("weights.safetensors"), base.read("weights.safetensors"))
    assert delta is not None
    return len(delta)


def differing(new: ew.Artifact, base: ew.Artifact) -> float:
    a, b = (safetensors.numpy.load(x.read("weights.safetensors")) for x in (new, base))
    return float(np.mean(np.concatenate([(a[n] != b[n]).reshape(-1) for n in ("w1", "w2")])))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> ew.Artifact:
    return exported(net(), tmp_path_factory.mktemp("base"), "net")


@pytest.mark.parametrize("safe", ["off", "quads"])
@pytest.mark.parametrize("by", [0.01, 0.2])
def test_less_is_sent_and_the_outputs_hold(tmp_path: Path, by: float, safe: Any) -> None:
    base = exported(net(), tmp_path, "base", overflow_safe=safe)
    model = moved(net(), by)
    exact = exported(model, tmp_path, "exact", base, overflow_safe=safe)
    small = exported(model, tmp_path, "small", base, overflow_safe=safe, update="small", update_loss=3e-3)
    assert sent(small, base) < 0.9 * sent(exact, base)
    assert differing(small, base) < differing(exact, base)
    assert far(model, small) < far(model, exact) + 6e-3
    x = {"x": inputs(8, seed=8)}
    native, reference = (ew.Runner(small, backend=b).run(x) for b in ("native", "reference"))
    np.testing.assert_array_equal(native["y"], reference["y"])
    if safe == "quads":
        weights = safetensors.numpy.load(small.read("weights.safetensors"))
        for name in ("w1", "w2"):
            assert worst(terms_of(weights[name]), [(0, 1, 4, 5), (2, 3, 6, 7)]) <= MOST


def test_a_greater_loss_sends_less_and_each_trade_is_told(tmp_path: Path, first: ew.Artifact) -> None:
    model, sizes, seen = moved(net(), 0.1), [], list[Progress]()
    for loss in (1e-4, 0.1):
        seen.clear()
        small = exported(
            model, tmp_path, "small", first, update="small", update_loss=loss, progress=seen.append
        )
        sizes.append(sent(small, first))
        tried = [p.metrics for p in seen if p.step == "trade"]
        assert all(a["bytes"] <= b["bytes"] + 1 for a, b in pairwise(tried))
        assert [(p.done, p.total) for p in seen if p.step == "update"] == [(1, 2), (2, 2)]
    assert sizes[1] < 0.8 * sizes[0]


def test_a_model_that_did_not_change_sends_nothing(tmp_path: Path, first: ew.Artifact) -> None:
    again = exported(net(), tmp_path, "net", first, update="small")
    assert again.read("weights.safetensors") == first.read("weights.safetensors")


def test_a_layer_of_another_shape_is_quantized_by_itself(tmp_path: Path, first: ew.Artifact) -> None:
    other = mlp(features=SIZES["features"], hidden=48, classes=10)
    exact = exported(other, tmp_path, "exact", first)
    small = exported(other, tmp_path, "small", first, update="small")
    assert small.read("weights.safetensors") == exact.read("weights.safetensors")


def test_without_a_base_there_is_nothing_to_be_near_to(tmp_path: Path) -> None:
    with pytest.raises(ew.ExportError, match=r'update = "small" needs `base`'):
        exported(net(), tmp_path, "net", update="small")


def test_scales_follow_a_layer_that_grew_so_that_its_integers_need_not(
    tmp_path: Path, first: ew.Artifact
) -> None:
    model = moved(net(), 0.0, scaled=1.1)
    small = exported(model, tmp_path, "small", first, update="small", update_loss=0.0)
    assert differing(small, first) < 0.05
    assert far(model, small) < 2 * far(net(), first) + 1e-3


def test_a_scale_follows_only_where_integers_would_move() -> None:
    weight = normal(4, 600)
    old = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    integers = np.rint(weight / old[:, None]).astype(np.int8)
    grown = weight * np.array([1, 1.001, 1.1, 0.9], np.float32)[:, None]
    grid = Grid.around(-1, 1)
    scale, kept = weight_scale(grown, np.zeros(4), grid, grid, "off", old, integers)
    np.testing.assert_allclose(scale / old, [1, 1, 1.1, 0.9], rtol=1e-3)
    assert (scale[:2] == old[:2]).all()
    assert kept == 4
    plain, _ = weight_scale(grown, np.zeros(4), grid, grid, "off", old)
    assert (plain[:2] == old[:2]).all()
    assert plain[2] != scale[2]


def test_divergence_is_that_of_classes_or_the_share_of_the_variance() -> None:
    logits = {"y": normal(50, 4)}
    assert divergence(logits, logits) == pytest.approx(0, abs=1e-12)
    assert divergence(logits, {"y": logits["y"] + 7}) == pytest.approx(0, abs=1e-6)
    p = {"y": np.log(np.array([[0.5, 0.5]], np.float32))}
    q = {"y": np.log(np.array([[0.25, 0.75]], np.float32))}
    assert divergence(p, q) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-5)
    image = {"y": normal(5, 3, 8, 8)}
    assert divergence(image, {"y": 1.1 * image["y"]}) == pytest.approx(0.01, rel=0.05)
