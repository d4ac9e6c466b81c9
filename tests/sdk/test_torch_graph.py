"""A graph in torch: each operator computes what ONNX Runtime does, and gradients reach what is trained."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from minilm import Encoder, minilm
from sst2 import DATA, sentences, tokens
from torch import nn

from edgewright import digits
from edgewright.errors import CompressError
from edgewright.graph import float_graph, onnx_function
from edgewright.indices import tabulate
from edgewright.lower import NATIVE_OPERATORS
from edgewright.normalform import normalize
from edgewright.torch_graph import TorchGraph, trainable
from edgewright.torch_operators import OPERATORS
from edgewright.wiring import Wiring
from sdk.graphs import graph, mlp, normal
from sdk.test_lower import GRAPHS, feed_for


def tensors(feed: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(v) for n, v in feed.items()}


def apart(model: onnx.ModelProto, feed: dict[str, Any]) -> float:
    """The largest difference to ONNX Runtime, relative to the largest output."""
    want = onnx_function(model)(feed)
    with torch.no_grad():
        got = TorchGraph(model)(**tensors(feed))
    outputs = [got] if isinstance(got, torch.Tensor) else got
    return max(
        float(np.abs(g.numpy() - w).max() / np.abs(w).max())
        for g, w in zip(outputs, want.values(), strict=True)
    )


def test_every_native_operator_is_here() -> None:
    assert set(NATIVE_OPERATORS) <= set(OPERATORS)


@pytest.mark.parametrize("name", GRAPHS)
def test_an_operator_computes_what_onnx_runtime_does(name: str) -> None:
    model = tabulate(normalize(GRAPHS[name]()))
    # Resize takes shares of 1 / 2048, as the engine does.
    assert apart(model, feed_for(model, 5, seed=1)) < (1e-3 if name.startswith("Resize") else 2e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "strides": [2, 2]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    ],
)
def test_average_pools_that_the_engine_lacks_are_right_too(given: dict[str, Any]) -> None:
    model = graph([("AveragePool", ["x"], "y", given)], {"x": (3, 7, 7)}, {"y": (3, None, None)})
    assert apart(model, {"x": normal(2, 3, 7, 7)}) < 1e-5


def test_operators_that_compute_sizes_and_masks_are_right() -> None:
    model = graph(
        [
            ("Shape", ["x"], "shape", {}),
            ("Gather", ["shape", "first"], "n", {"axis": 0}),
            ("Concat", ["n", "inner"], "wanted", {"axis": 0}),
            ("Expand", ["token", "wanted"], "tokens", {}),
            ("Concat", ["tokens", "x"], "joined", {"axis": 1}),
            ("Greater", ["joined", "zero"], "positive", {}),
            ("Not", ["positive"], "negative", {}),
            ("Cast", ["negative"], "share", {"to": onnx.TensorProto.FLOAT}),
            ("Mul", ["joined", "share"], "kept", {}),
            ("ReduceSum", ["kept", "axes"], "sums", {"keepdims": 0}),
            ("Unsqueeze", ["sums", "axes"], "y", {}),
        ],
        {"x": (3, 4)},
        {"y": (1, 4)},
        {
            "first": np.array([0]),
            "inner": np.array([1, 4]),
            "token": normal(1, 1, 4),
            "zero": np.float32(0),
            "axes": np.array([1]),
        },
    )
    assert apart(model, {"x": normal(6, 3, 4, seed=2)}) < 1e-6


@pytest.mark.parametrize("batch", [1, 7])
def test_a_network_is_the_same_at_any_batch_size(batch: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = digits.Student().eval()
    x = torch.from_numpy(normal(batch, 1, 8, 8))
    same = TorchGraph(float_graph(module, [x]))
    with torch.no_grad():
        torch.testing.assert_close(same(x), module(x), rtol=1e-4, atol=1e-5)


def test_an_encoder_is_the_same_with_tokens_and_mask_and_gradients_reach_all_its_weights() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Encoder(layers=2, hidden=24, heads=3, inner=48, vocabulary=50, positions=16).eval()
    feed = {"ids": np.arange(24).reshape(3, 8) * 7 % 50, "mask": np.tri(3, 8, 4, dtype=np.int64)}
    same = TorchGraph(tabulate(float_graph(module, list(feed.values()))))
    got = same(**tensors(feed))
    torch.testing.assert_close(got, module(**tensors(feed)), rtol=1e-4, atol=1e-5)
    got.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in same.parameters())
    trained = {n.removeprefix("constants/") for n in same.state_dict()}
    assert trained >= {"words/weight", "norm/weight", "layers/0/up/bias", "head/weight"}
    assert not {n for n in trained if "table" in n or "far" in n}


def test_gradients_are_those_of_the_module() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.from_numpy(normal(5, 1, 8, 8))
    same = TorchGraph(float_graph(module, [x]))
    for each in (module, same):
        each(x).logsumexp(1).sum().backward()
    want = sorted(float(p.grad.norm()) for p in module.parameters() if p.grad is not None)
    got = sorted(float(p.grad.norm()) for p in same.parameters() if p.grad is not None)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_a_copy_is_trained_without_the_original() -> None:
    first = TorchGraph(mlp())
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    assert second.graph is first.graph
    np.testing.assert_allclose(first.constants()["w1"] + 1, second.constants()["w1"])


def test_numbers_inside_functions_and_masks_are_not_trained() -> None:
    model = graph(
        [
            ("MatMul", ["x", "w"], "h", {}),
            ("Add", ["h", "b"], "s", {}),
            ("Add", ["s", "mask"], "m", {}),
            ("Mul", ["m", "half"], "y", {}),
        ],
        {"x": (3, 4)},
        {"y": (3, 3)},
        {"w": normal(4, 3), "b": normal(3), "mask": np.triu(normal(3, 3)), "half": np.float32(0.5)},
    )
    assert trainable(Wiring(model)) == ["w", "b"]


def test_an_operator_that_is_not_here_is_named() -> None:
    model = graph(
        [("InstanceNormalization", ["x", "g", "g"], "y", {})],
        {"x": (2, 3, 3)},
        {"y": (2, 3, 3)},
        {"g": np.ones(2, np.float32)},
    )
    with pytest.raises(CompressError, match=r"InstanceNormalization \(node 'instancenormalization_y'\)"):
        TorchGraph(model)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match="takes x"):
        TorchGraph(mlp())(torch.zeros(1, 8), torch.zeros(1, 8))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the model and data in {DATA}")
@pytest.mark.slow
def test_minilm_is_the_same() -> None:
    feed = tokens(sentences("dev")[0][:8], 32)
    module = minilm()
    same = TorchGraph(tabulate(float_graph(module, list(feed.values()))))
    with torch.no_grad():
        torch.testing.assert_close(same(**tensors(feed)), module(**tensors(feed)), rtol=1e-3, atol=1e-4)
