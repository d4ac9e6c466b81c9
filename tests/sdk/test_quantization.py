"""Quantization: weights symmetric per channel, biases that fit, a valid graph, and a base that is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from edgewright.calibrate import observe
from edgewright.errors import ExportError
from edgewright.normalform import normalize
from edgewright.quantization import BaseGrids, Quantized, activations_to_observe, quantize_graph
from edgewright.statistics import sqnr_db
from edgewright.wiring import initializers
from sdk.graphs import graph, lowered, mlp, normal, quantize

X = {"x": normal(256, 8, seed=9)}


def with_constant(model: onnx.ModelProto, name: str, value: Any) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for constant in changed.graph.initializer:
        if constant.name == name:
            constant.CopyFrom(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    return changed


def test_weights_are_symmetric_integers_with_a_scale_for_each_channel() -> None:
    weights = normal(16, 8) * np.logspace(-0.5, 0.5, 16, dtype=np.float32)[:, None]
    quantized = quantize(with_constant(mlp(), "w1", weights), X)
    integers, scale = quantized.weights["w1"], quantized.weights["w1.scale"]
    assert integers.dtype == np.int8
    assert scale.dtype == np.float32
    assert scale.shape == (16,)
    largest = np.abs(integers.astype(int)).max(axis=1)
    assert (largest >= 100).all()  # 127 but for a scale with a short multiplier
    assert largest.max() == 127
    np.testing.assert_allclose(integers * scale[:, None], weights, atol=0.501 * scale.max(), rtol=1e-2)
    assert (np.abs(integers * scale[:, None] - weights) <= 0.501 * scale[:, None]).all()
    assert sorted(quantized.weights) == [
        *("b1", "b1.scale", "b2", "b2.scale"),
        *("w1", "w1.scale", "w2", "w2.scale"),
    ]


def test_layers_of_few_terms_have_scales_with_short_multipliers() -> None:
    quantized = quantize(mlp(), X)
    (result,) = [n.output[0] for n in mlp().graph.node if n.op_type == "Relu"]
    step = quantized.grids["x"].scale / quantized.grids[result].scale
    whole = quantized.weights["w1.scale"].astype(np.float64) * step * 2**15
    assert (whole >= 7.99).all()
    np.testing.assert_allclose(whole, np.rint(whole), rtol=2**-22)


def test_biases_lie_on_the_grid_of_input_and_weight() -> None:
    quantized = quantize(mlp(), X)
    grid = quantized.grids["x"].scale * quantized.weights["w1.scale"]
    np.testing.assert_allclose(quantized.weights["b1.scale"], grid, rtol=1e-6)
    assert quantized.weights["b1"].dtype == np.int32
    np.testing.assert_allclose(
        quantized.weights["b1"] * grid, initializers(mlp())["b1"], atol=0.51 * float(grid.max())
    )


def test_the_graph_is_valid_and_every_integer_operator_stands_between_its_grids() -> None:
    quantized = quantize(mlp(), X)
    onnx.checker.check_model(quantized.model, full_check=True)
    kinds = [n.op_type for n in quantized.model.graph.node]
    assert kinds.count("QuantizeLinear") == 3  # x, the ReLU's result, y; none between Gemm and ReLU
    assert set(quantized.grids) == {"x", "r", "y"}
    assert quantized.grids["r"].zero_point == 0
    assert quantized.kept_grids == 0
    assert [o.name for o in quantized.model.graph.output] == ["y"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["w2", "b2"])
def test_a_weight_that_is_no_number_names_its_layer(name: str, value: float) -> None:
    model = normalize(mlp())
    observed = observe(model, ["x", "y", *activations_to_observe(model)], X)
    broken = initializers(model)[name].copy()
    broken.flat[0] = value
    with pytest.raises(
        ExportError, match=r"layer 'gemm_y': its weights hold NaN or infinity; train it again"
    ):
        quantize_graph(with_constant(model, name, broken), observed)


def test_a_graph_with_nothing_to_quantize_is_refused() -> None:
    model = graph([("Relu", ["x"], "y", {})], {"x": (4,)}, {"y": (4,)})
    with pytest.raises(ExportError, match="nothing to quantize"):
        quantize(model, {"x": normal(8, 4)})


@pytest.mark.parametrize("bias", [1e4, -1e6, 1e9])
def test_a_bias_far_larger_than_the_weights_does_not_overflow(bias: float) -> None:
    biases = normal(4, seed=3)
    biases[1] = bias
    model = with_constant(mlp(), "b2", biases)
    result = lowered(model, X)
    assert np.abs(result.quantized.weights["b2"].astype(np.int64)).max() <= 2**29 + 1
    feed = {"x": normal(32, 8, seed=10)}
    got, want = result.native(feed)["y"], result.floats(feed)["y"]
    step = result.quantized.grids["y"].scale
    assert np.abs(got[:, 1] - bias).max() <= 1.01 * step + 1e-6 * abs(bias)
    assert np.abs(got - want).max() <= 1.5 * step + 1e-6 * abs(bias)


@pytest.mark.parametrize("dead", ["w1", "w2", "both"])
def test_dead_layers_and_channels_stay_dead_and_harm_nobody(dead: str) -> None:
    model = mlp()
    if dead in {"w1", "both"}:
        model = with_constant(model, "w1", np.zeros((16, 8)))
        model = with_constant(model, "b1", np.full(16, -1.0))
    if dead in {"w2", "both"}:
        weights = initializers(model)["w2"].copy()
        weights[2] = 0
        model = with_constant(with_constant(model, "w2", weights), "b2", [1, 2, 0, 3])
    result = lowered(model, X)
    feed = {"x": normal(32, 8, seed=10)}
    got, want = result.native(feed)["y"], result.floats(feed)["y"]
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= 0.05 * max(float(np.ptp(want)), 1.0)
    if dead == "w2":
        assert (got[:, 2] == 0).all()
        assert sqnr_db(want, got) > 25


def test_operators_in_a_form_that_is_not_integer_stay_in_float() -> None:
    model = graph(
        [("Gemm", ["x", "w"], "h", {"alpha": 0.5, "transB": 1}), ("Gemm", ["h", "v"], "y", {"transB": 1})],
        {"x": (8,)},
        {"y": (4,)},
        {"w": normal(6, 8), "v": normal(4, 6)},
    )
    quantized = quantize(model, X)
    assert set(quantized.weights) == {"v", "v.scale"}
    assert "w" in initializers(quantized.model)


def test_an_operator_without_integers_stays_in_float_between_its_neighbours() -> None:
    model = graph(
        [
            ("Gemm", ["x", "w"], "h", {"transB": 1}),
            ("Softmax", ["h"], "s", {"axis": 1}),
            ("Gemm", ["s", "v"], "y", {"transB": 1}),
        ],
        {"x": (8,)},
        {"y": (4,)},
        {"w": normal(6, 8), "v": normal(4, 6)},
    )
    assert set(quantize(model, X).grids) == {"x", "h", "s", "y"}


def test_one_weight_of_two_layers_is_quantized_for_each() -> None:
    model = graph(
        [("Gemm", ["x", "w", "b"], "h", {"transB": 1}), ("Gemm", ["h", "w", "b"], "y", {"transB": 1})],
        {"x": (8,)},
        {"y": (8,)},
        {"w": normal(8, 8), "b": normal(8)},
    )
    result = lowered(model, X)
    feed = {"x": normal(32, 8, seed=10)}
    assert sqnr_db(result.floats(feed)["y"], result.native(feed)["y"]) > 25


# A base


@pytest.fixture(scope="module")
def first() -> Quantized:
    return quantize(mlp(), X)


def base_of(quantized: Quantized) -> BaseGrids:
    scales = {n.removesuffix(".scale"): w for n, w in quantized.weights.items() if n.endswith(".scale")}
    return BaseGrids(activations=quantized.grids, weights=scales)


def test_a_model_that_hardly_moved_keeps_every_grid_and_nearly_every_integer(first: Quantized) -> None:
    rng = np.random.default_rng(0)
    w1 = initializers(mlp())["w1"]
    moved = with_constant(mlp(), "w1", w1 * (1 + 0.002 * rng.standard_normal(w1.shape)))
    again = quantize(moved, X, base=base_of(first))
    assert again.grids == first.grids
    np.testing.assert_array_equal(again.weights["w1.scale"], first.weights["w1.scale"])
    assert again.kept_grids == 3 + 16 + 4
    changed = np.mean(again.weights["w1"] != first.weights["w1"])
    assert changed < np.mean(quantize(moved, X).weights["w1"] != first.weights["w1"]) + 0.01
    assert changed < 0.2
    np.testing.assert_array_equal(again.weights["w2"], first.weights["w2"])


@pytest.mark.parametrize(("factor", "kept"), [(1.01, True), (1.2, False), (0.8, True), (0.5, False)])
def test_grids_are_replaced_when_the_range_overshoots_or_is_little_used(
    first: Quantized, factor: float, kept: bool
) -> None:
    fresh = quantize(mlp(), {"x": X["x"] * np.float32(factor)}, base=base_of(first))
    assert (fresh.grids["x"] == first.grids["x"]) is kept


@pytest.mark.parametrize(("factor", "kept"), [(1.01, True), (1.2, False), (0.8, True), (0.5, False)])
def test_weight_scales_are_replaced_channel_by_channel(first: Quantized, factor: float, kept: bool) -> None:
    weights = initializers(mlp())["w1"].copy()
    weights[5] *= factor
    fresh = quantize(with_constant(mlp(), "w1", weights), X, base=base_of(first)).weights["w1.scale"]
    old = first.weights["w1.scale"]
    assert bool(fresh[5] == old[5]) is kept
    np.testing.assert_array_equal(np.delete(fresh, 5), np.delete(old, 5))


def test_a_base_of_another_architecture_is_ignored(first: Quantized) -> None:
    base = replace(base_of(first), activations={})
    wide, fresh = quantize(mlp(hidden=24, classes=7), X, base=base), quantize(mlp(hidden=24, classes=7), X)
    assert wide.kept_grids == 0
    assert wide.model.SerializeToString() == fresh.model.SerializeToString()
