"""Equalization and smoothing: the function stays, ranges become even, and integers lose less."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgewright.equalization import equalized
from edgewright.graph import onnx_function
from edgewright.indices import tabulate
from edgewright.normalform import normalize
from edgewright.progress import Progress
from edgewright.seams import seams, with_biases
from edgewright.smoothing import smoothed, smoothings
from edgewright.statistics import sqnr_db
from edgewright.wiring import Wiring, initializers
from sdk.graphs import Node, graph, lowered, mlp, normal
from sdk.test_precision import X as TOKENS
from sdk.test_precision import encoder

X = {"x": normal(128, 8, seed=9)}
IMAGES = {"x": normal(64, 3, 8, 8, seed=4)}


def uneven(model: onnx.ModelProto, name: str, factor: Any, axis: int = 0) -> onnx.ModelProto:
    """The graph with channels of a weight multiplied."""
    for constant in model.graph.initializer:
        if constant.name == name:
            value = onnx.numpy_helper.to_array(constant)
            shape = [1] * value.ndim
            shape[axis] = -1
            changed = (value * np.reshape(factor, shape)).astype(np.float32)
            constant.CopyFrom(onnx.numpy_helper.from_array(changed, name))
    return model


def images(depthwise: bool = True) -> onnx.ModelProto:
    nodes: list[Node] = [("Conv", ["x", "w1", "b1"], "c", {"pads": [1] * 4}), ("Relu", ["c"], "r", {})]
    at = "r"
    if depthwise:
        nodes += [
            ("Conv", ["r", "deep", "b2"], "d", {"pads": [1] * 4, "group": 6}),
            ("Relu", ["d"], "dr", {}),
        ]
        at = "dr"
    nodes += [
        ("Conv", [at, "w2"], "e", {}),
        ("Relu", ["e"], "er", {}),
        ("MaxPool", ["er"], "m", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", ["m"], "f", {}),
        ("Gemm", ["f", "w3"], "y", {"transB": 1}),
    ]
    parameters = {
        "w1": normal(6, 3, 3, 3, seed=1),
        "b1": normal(6, seed=2),
        "deep": normal(6, 1, 3, 3, seed=3),
        "b2": normal(6, seed=4),
        "w2": normal(5, 6, 1, 1, seed=5),
        "w3": normal(4, 80, seed=6, scale=0.2),
    }
    model = graph(nodes, {"x": (3, 8, 8)}, {"y": (4,)}, parameters)
    return uneven(model, "w1", np.logspace(-2, 1, 6))


def same(before: onnx.ModelProto, after: onnx.ModelProto, feed: Any, db: float = 100.0) -> None:
    (one,), (other,) = onnx_function(before)(feed).values(), onnx_function(after)(feed).values()
    assert sqnr_db(one, other) > db


def ignore(_: Progress) -> None:
    pass


def test_seams_run_through_relu_depthwise_layers_pools_and_flattening() -> None:
    found = seams(Wiring(normalize(images())))
    assert [(s.before.op_type, s.after[0].op_type, s.channels, s.repeat) for s in found] == [
        ("Conv", "Conv", 6, 1),
        ("Conv", "Conv", 6, 1),
        ("Conv", "Gemm", 5, 16),
    ]


def test_equalized_layers_compute_the_same_and_have_even_weights() -> None:
    model = normalize(images())
    made, count = equalized(model)
    assert count == 3
    same(model, made, IMAGES)
    weights = initializers(made)
    rows = np.abs(weights["w1"].reshape(6, -1)).max(axis=1)
    deep = np.abs(weights["deep"].reshape(6, -1)).max(axis=1)
    columns = np.abs(weights["w2"][:, :, 0, 0]).max(axis=0)
    np.testing.assert_allclose(rows, deep, rtol=0.01)
    np.testing.assert_allclose(deep, columns, rtol=0.01)


def test_equalization_saves_channels_that_one_grid_would_round_away() -> None:
    model = uneven(mlp(), "w1", np.logspace(-2, 1, 16))
    model = uneven(model, "b1", np.logspace(-2, 1, 16))
    model = uneven(model, "w2", np.logspace(2, -1, 16), axis=1)
    floats = onnx_function(model)(X)["y"]
    before = sqnr_db(floats, lowered(model, X).native(X)["y"])
    after = sqnr_db(floats, lowered(equalized(normalize(model))[0], X).native(X)["y"])
    assert after > before + 10


def test_a_dead_channel_stays_as_it_is() -> None:
    dead = np.ones(16)
    dead[3] = 0
    model = normalize(uneven(mlp(), "w1", dead))
    made, _ = equalized(model)
    assert np.isfinite(initializers(made)["w1"]).all()
    same(model, made, X)


def test_weights_that_two_layers_share_are_no_seam() -> None:
    model = graph(
        [
            ("Gemm", ["x", "w", "b"], "h", {"transB": 1}),
            ("Relu", ["h"], "r", {}),
            ("Gemm", ["r", "w", "b"], "y", {"transB": 1}),
        ],
        {"x": (8,)},
        {"y": (8,)},
        {"w": normal(8, 8), "b": normal(8, seed=1)},
    )
    assert seams(Wiring(normalize(model))) == []


def test_what_another_node_reads_is_no_seam_between_layers() -> None:
    model = graph(
        [
            ("Gemm", ["x", "w"], "h", {"transB": 1}),
            ("Gemm", ["h", "v"], "g", {"transB": 1}),
            ("Add", ["h", "g"], "y", {}),
        ],
        {"x": (8,)},
        {"y": (8,)},
        {"w": normal(8, 8), "v": normal(8, 8, seed=1)},
    )
    assert seams(Wiring(normalize(model))) == []


def outliers() -> onnx.ModelProto:
    """A block whose norms give two channels a hundred times larger than the others, and far from 0."""
    gain, offset = np.ones(16, np.float32), np.zeros(16, np.float32)
    gain[[2, 7]], offset[[2, 7]] = 30, 90
    model = encoder()
    for constant in model.graph.initializer:
        if constant.name in {"gain", "offset"}:
            value = gain if constant.name == "gain" else offset
            constant.CopyFrom(onnx.numpy_helper.from_array(value, constant.name))
        elif constant.name == "up":
            value = onnx.numpy_helper.to_array(constant).copy()
            value[[2, 7]] /= 30
            constant.CopyFrom(onnx.numpy_helper.from_array(value, "up"))
    return model


@pytest.mark.parametrize("alpha", [0.5, None])
def test_smoothing_keeps_the_function_and_saves_what_outliers_round_away(alpha: float | None) -> None:
    model = tabulate(normalize(outliers()))
    decided = smoothings(model, TOKENS, alpha, ignore)
    assert "norm" in decided
    made = smoothed(model, decided)
    same(model, made, TOKENS)
    floats = onnx_function(model)(TOKENS)["y"]
    before = sqnr_db(floats, lowered(model, TOKENS, activations="mixed").native(TOKENS)["y"])
    after = sqnr_db(floats, lowered(made, TOKENS, activations="mixed").native(TOKENS)["y"])
    assert after > before + 3


def test_a_norm_that_a_sum_reads_too_is_kept_for_it() -> None:
    model = tabulate(normalize(outliers()))
    made = smoothed(model, smoothings(model, TOKENS, 0.5, ignore))
    norms = [n for n in made.graph.node if n.op_type == "LayerNormalization"]
    assert len(norms) == 3
    (total,) = (n for n in made.graph.node if n.output[0] == "stream")
    assert "norm" in total.input


def test_a_search_leaves_alone_what_would_not_gain() -> None:
    nodes: list[Node] = [
        ("LayerNormalization", ["x", "gain", "offset"], "norm", {}),
        ("MatMul", ["norm", "w"], "h", {}),
        ("Add", ["h", "norm"], "y", {}),
    ]
    parameters = {
        "gain": np.ones(16, np.float32),
        "offset": np.zeros(16, np.float32),
        "w": np.where(normal(16, 16) > 0, 0.1, -0.1).astype(np.float32),
    }
    model = normalize(graph(nodes, {"x": (6, 16)}, {"y": (6, 16)}, parameters))
    even = [np.roll(sign * TOKENS["x"][:8], k, axis=2) for sign in (1, -1) for k in range(16)]
    samples = {"x": np.concatenate(even)}  # of all channels the same
    assert smoothings(model, samples, None, ignore) == {}


def test_attention_passes_a_factor_from_its_values_to_its_output() -> None:
    width, heads = 16, 4
    nodes: list[Node] = [("MatMul", ["x", f"w{n}"], n, {}) for n in "qkv"]
    for n, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [("Reshape", [n, "split"], f"{n}s", {}), ("Transpose", [f"{n}s"], f"{n}t", {"perm": order})]
    nodes += [
        ("MatMul", ["qt", "kt"], "scores", {}),
        ("Softmax", ["scores"], "shares", {"axis": -1}),
        ("MatMul", ["shares", "vt"], "mixed", {}),
        ("Transpose", ["mixed"], "turned", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["turned", "join"], "joined", {}),
        ("MatMul", ["joined", "wo"], "y", {}),
    ]
    parameters: dict[str, Any] = {
        f"w{n}": normal(width, width, seed=i, scale=0.3) for i, n in enumerate("qkvo")
    }
    parameters["wv"][:, [1, 9]] *= 40
    parameters["wo"][[1, 9]] /= 40
    shapes = {"split": np.array([-1, 6, heads, 4]), "join": np.array([-1, 6, width])}
    model = normalize(graph(nodes, {"x": (6, width)}, {"y": (6, width)}, {**parameters, **shapes}))
    assert [s.before.output[0] for s in seams(Wiring(model))] == ["v"]
    made = smoothed(model, smoothings(model, TOKENS, 0.5, ignore))
    same(model, made, TOKENS)
    floats = onnx_function(model)(TOKENS)["y"]
    before, after = (sqnr_db(floats, lowered(m, TOKENS).native(TOKENS)["y"]) for m in (model, made))
    assert after > before + 10


def test_every_layer_can_be_given_a_bias() -> None:
    model = normalize(images())
    wiring = Wiring(model)
    with_biases(wiring)
    made = wiring.model()
    onnx.checker.check_model(made)
    same(model, made, IMAGES)
    assert all(len(n.input) == 3 for n in made.graph.node if n.op_type in {"Conv", "Gemm"})
