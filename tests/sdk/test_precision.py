"""Activations of 16 bits from the graph to the bits: which values they are, and what they gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgewright.quantization import narrow_name
from edgewright.statistics import sqnr_db
from edgewright_kernels import plan as ir
from sdk.graphs import Lowered, Node, graph, lowered, normal, quantize, rng

LENGTH, WIDTH = 6, 16


def encoder(bias: float = 0.0) -> onnx.ModelProto:
    """One block of a transformer of one head, its norms behind the sums, and a stream with outliers."""
    parameters: dict[str, Any] = {
        **{n: normal(WIDTH, WIDTH, seed=i, scale=0.3) for i, n in enumerate(("wq", "wk", "wv", "wo"))},
        "up": normal(WIDTH, 32, seed=5, scale=0.3),
        "down": normal(32, WIDTH, seed=6, scale=0.3),
        "bias": np.full(32, bias, np.float32),
        "gain": np.ones(WIDTH, np.float32),
        "offset": np.zeros(WIDTH, np.float32),
        "half": np.array(0.25, np.float32),
    }
    parameters["down"][:, 3] *= 60  # the outlier
    nodes: list[Node] = [
        ("MatMul", ["x", "wq"], "q", {}),
        ("MatMul", ["x", "wk"], "k", {}),
        ("MatMul", ["x", "wv"], "v", {}),
        ("Transpose", ["k"], "kt", {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "kt"], "scores", {}),
        ("Mul", ["scores", "half"], "scaled", {}),
        ("Softmax", ["scaled"], "shares", {"axis": -1}),
        ("MatMul", ["shares", "v"], "mixed", {}),
        ("MatMul", ["mixed", "wo"], "o", {}),
        ("Add", ["x", "o"], "sum", {}),
        ("LayerNormalization", ["sum", "gain", "offset"], "norm", {}),
        ("MatMul", ["norm", "up"], "u", {}),
        ("Add", ["u", "bias"], "ub", {}),
        ("Relu", ["ub"], "r", {}),
        ("MatMul", ["r", "down"], "d", {}),
        ("Add", ["norm", "d"], "stream", {}),
        ("LayerNormalization", ["stream", "gain", "offset"], "y", {}),
    ]
    shape = (LENGTH, WIDTH)
    return graph(nodes, {"x": shape}, {"y": shape}, parameters)


X = {"x": normal(64, LENGTH, WIDTH, seed=3)}


def made(activations: str, model: onnx.ModelProto | None = None) -> Lowered:
    return lowered(model or encoder(), X, activations=activations)


def dtypes(of: Lowered) -> dict[str, str]:
    return {t.name.removesuffix("_quantized"): t.dtype for t in of.plan.tensors if t.is_inside}


def test_uint8_is_what_it_was() -> None:
    of = made("uint8")
    assert set(dtypes(of).values()) == {"uint8"}
    assert ir.encode(of.plan)[8] == 2


def test_mixed_has_int16_where_sums_norms_and_softmax_read() -> None:
    found = dtypes(made("mixed"))
    assert {n for n, d in found.items() if d == "int16"} == {
        *("x", "o", "sum", "norm", "d", "stream", "y", "scaled"),
    }
    assert {n for n in found if n.endswith("_to_uint8")} == {"x_to_uint8", "norm_to_uint8"}
    assert all(found[n] == "uint8" for n in ("q", "k", "v", "shares", "mixed", "r"))


def test_int16_is_everywhere_but_where_the_engine_has_uint8_alone() -> None:
    found = dtypes(made("int16"))
    narrow = {n for n, d in found.items() if d == "uint8"}
    assert {n.split("~")[0] for n in narrow} == {"q", "k", "v", "shares"}


@pytest.mark.parametrize("activations", ["uint8", "mixed", "int16"])
def test_a_block_gives_the_same_bits_natively_and_nearly_those_of_onnx_runtime(activations: str) -> None:
    of = made(activations)
    feed = {"x": X["x"][:16]}
    native, unfused = of.native(feed)["y"], of.unfused(feed)["y"]
    floats = of.floats(feed)["y"]
    assert sqnr_db(floats, native) > sqnr_db(floats, unfused) - 3
    opset = next(o.version for o in of.quantized.model.opset_import if o.domain == "")
    assert opset >= (20 if activations == "uint8" else 21)
    onnx.checker.check_model(of.quantized.model, full_check=True)


def test_more_bits_are_nearer_to_the_float_model() -> None:
    feed = {"x": X["x"][:32]}
    of = {a: made(a) for a in ("uint8", "mixed", "int16")}
    floats = of["uint8"].floats(feed)["y"]
    error = {a: sqnr_db(floats, m.native(feed)["y"]) for a, m in of.items()}
    assert error["mixed"] > error["uint8"] + 6
    assert error["int16"] > error["mixed"] + 1.5


def test_a_layer_whose_sums_could_leave_32_bits_reads_uint8_and_says_so() -> None:
    model = graph(
        [("MatMul", ["x", "w"], "h", {}), ("Add", ["h", "b"], "y", {})],
        {"x": (2048,)},
        {"y": (2,)},
        {"w": np.full((2048, 2), 0.01, np.float32), "b": np.zeros(2, np.float32)},
    )
    samples = {"x": normal(32, 2048, seed=1)}
    of = lowered(model, samples, activations="int16")
    assert of.quantized.narrowed == ("matmul_h",)
    assert dtypes(of)["x_to_uint8"] == "uint8"
    assert sqnr_db(of.floats(samples)["y"], of.native(samples)["y"]) > 30
    assert lowered(model, samples).quantized.narrowed == ()


@pytest.mark.parametrize("function", ["Sigmoid", "Tanh", "Gelu", "HardSwish", "Relu", "Elu", "Softplus"])
def test_functions_of_int16_are_right(function: str) -> None:
    model = graph(
        [("Gemm", ["x", "w"], "h", {"transB": 1}), (function, ["h"], "y", {})],
        {"x": (8,)},
        {"y": (8,)},
        {"w": normal(8, 8, seed=2)},
    )
    samples = {"x": normal(256, 8, seed=1)}
    of = lowered(model, samples, activations="int16")
    assert "uint8" not in set(dtypes(of).values())
    assert sqnr_db(of.floats(samples)["y"], of.native(samples)["y"]) > 38


def test_images_of_int16_are_right() -> None:
    model = graph(
        [
            ("Conv", ["x", "w"], "c", {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c"], "r", {}),
            ("Conv", ["r", "deep"], "d", {"pads": [1, 1, 1, 1], "group": 6}),
            ("Sub", ["r", "d"], "s", {}),
            ("MaxPool", ["s"], "m", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Concat", ["m", "m"], "t", {"axis": 1}),
            ("GlobalAveragePool", ["t"], "g", {}),
            ("Flatten", ["g"], "y", {}),
        ],
        {"x": (3, 8, 8)},
        {"y": (12,)},
        {"w": normal(6, 3, 3, 3, seed=1), "deep": normal(6, 1, 3, 3, seed=2)},
    )
    samples = {"x": rng(4).uniform(-1, 1, (64, 3, 8, 8)).astype(np.float32)}
    error = {}
    for activations in ("uint8", "mixed", "int16"):
        of = lowered(model, samples, activations=activations)
        error[activations] = sqnr_db(of.floats(samples)["y"], of.native(samples)["y"])
    assert error["int16"] > error["uint8"] + 4
    assert error["mixed"] > error["uint8"] - 1


def test_a_resized_value_goes_through_uint8() -> None:
    model = graph(
        [
            ("Conv", ["x", "w"], "c", {}),
            ("Resize", ["c", "", "twice"], "big", {"mode": "nearest"}),
            ("Conv", ["big", "v"], "y", {}),
        ],
        {"x": (3, 4, 4)},
        {"y": (2, 8, 8)},
        {
            "w": normal(4, 3, 1, 1),
            "v": normal(2, 4, 1, 1, seed=1),
            "twice": np.array([1, 1, 2, 2], np.float32),
        },
    )
    samples = {"x": normal(32, 3, 4, 4, seed=2)}
    of = lowered(model, samples, activations="int16")
    assert sqnr_db(of.floats(samples)["y"], of.native(samples)["y"]) > 28


def test_what_a_layer_reads_may_have_been_moved_since_it_was_int16() -> None:
    model = graph(
        [
            ("Add", ["x", "b"], "s", {}),
            ("LayerNormalization", ["s", "g"], "n", {}),
            ("Reshape", ["s", "flat"], "f", {}),
            ("Reshape", ["n", "flat"], "e", {}),
            ("Gemm", ["f", "w"], "p", {"transB": 1}),
            ("Gemm", ["e", "w"], "q", {"transB": 1}),
            ("Add", ["p", "q"], "y", {}),
        ],
        {"x": (3, 4)},
        {"y": (5,)},
        {
            "b": normal(3, 4),
            "g": np.ones(4, np.float32),
            "flat": np.array([-1, 12]),
            "w": normal(5, 12, seed=1),
        },
    )
    made = quantize(model, {"x": normal(64, 3, 4)}, activations="mixed")
    assert made.grids["f"].dtype == "int16"
    assert made.grids[narrow_name("f")].dtype == "uint8"
