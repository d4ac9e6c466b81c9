"""Fake quantization: what is trained lies on the grids of the artifact, and computes what its engine does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

from edgewright.calibrate import Grid, observe
from edgewright.errors import CompressError
from edgewright.fake_quantization import LearnedGrid, on_grid
from edgewright.fake_quantized import FakeQuantized
from edgewright.graph import onnx_function
from edgewright.indices import tabulate
from edgewright.lower import lower
from edgewright.normalform import normalize
from edgewright.quantization import Quantized, activations_to_observe, quantize_graph
from edgewright.recipe import Quantize
from edgewright.weights import byte_ranges
from edgewright_kernels import Engine
from edgewright_kernels.plan import encode
from sdk.graphs import graph, mlp, normal
from sdk.test_lower import GRAPHS, feed_for
from sdk.test_precision import X, encoder


def fake(model: onnx.ModelProto, feed: dict[str, Any], **how: Any) -> FakeQuantized:
    floating = tabulate(normalize(model))
    watched = [v.name for v in (*floating.graph.input, *floating.graph.output)]
    observed = observe(floating, watched + activations_to_observe(floating), feed)
    return FakeQuantized(floating, observed, Quantize(**how))


def outputs(model: FakeQuantized, feed: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        got = model(**{n: torch.from_numpy(v) for n, v in feed.items()})
    found = [got] if isinstance(got, torch.Tensor) else got
    return {n: v.numpy() for n, v in zip(model.outputs, found, strict=True)}


def native(quantized: Quantized, feed: dict[str, Any]) -> dict[str, Any]:
    weights = safetensors.numpy.save(dict(sorted(quantized.weights.items())))
    plan = lower(quantized.model, byte_ranges(weights), len(weights))
    return Engine(encode(plan), weights).run(feed)


def moved(model: FakeQuantized, seed: int = 0) -> FakeQuantized:
    """The model as training might leave it: every parameter somewhere else."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in changed.parameters():
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
            parameter.add_(0.1 * spread.nan_to_num() * torch.randn(parameter.shape, generator=generator))
        changed.range_change.uniform_(-0.2, 0.2, generator=generator)
    return changed


@pytest.mark.parametrize("name", GRAPHS)
def test_an_operator_computes_what_its_quantized_graph_does(name: str) -> None:
    model = fake(GRAPHS[name](), feed_for(GRAPHS[name](), 64, seed=10))
    feed = feed_for(GRAPHS[name](), 8, seed=11)
    for each in (model, moved(model)):
        quantized = each.quantized()
        want = onnx_function(quantized.model)(feed)
        for output, got in outputs(each, feed).items():
            apart = np.abs(got - want[output]) / quantized.grids[output].scale
            assert apart.max() < (3.01 if name.startswith(("LayerNorm", "Softmax")) else 1.01)
            assert np.mean(apart > 0.01) < (0.15 if name.startswith("Resize") else 0.02)


@pytest.mark.parametrize("activations", ["uint8", "mixed", "int16"])
@pytest.mark.parametrize("overflow_safe", ["off", "pairs", "quads"])
def test_a_block_of_a_transformer_computes_what_its_engine_does(activations: str, overflow_safe: str) -> None:
    model = moved(fake(encoder(), X, activations=activations, overflow_safe=overflow_safe))
    quantized = model.quantized()
    got, want = outputs(model, X)["y"], native(quantized, X)["y"]
    apart = np.abs(got - want) / np.ptp(want)
    assert np.median(apart) < 1e-3
    assert apart.max() < 0.05


def test_gradients_go_through_a_grid_and_stop_where_it_ends() -> None:
    grid = Grid.around(-1.0, 2.0)
    ends = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-1.0, 2.0)]
    x = torch.tensor([-3.0, -0.4, 0.0, 1.2, 5.0], requires_grad=True)
    y = on_grid(x, LearnedGrid(low=ends[0], high=ends[1], grid=grid))
    np.testing.assert_allclose(y[::2].detach(), [grid.low, 0, grid.high])
    to_x, to_low, to_high = torch.autograd.grad(y.sum(), [x, *ends])
    assert to_x.tolist() == [0, 1, 1, 1, 0]
    # Clipped values move with the end that clips them; the others by what rounding did to them.
    rounding = float((y - x)[1:4].detach().sum()) / grid.scale / 255
    np.testing.assert_allclose([to_low, to_high], [1 - rounding, 1 + rounding], rtol=1e-3)


@pytest.mark.parametrize("wider", [-2.0, 3.0])
def test_a_symmetric_grid_learns_by_its_wider_end(wider: float) -> None:
    grid = Grid.around(min(wider, -1), max(wider, 1), "int16")
    ends = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (min(wider, -1), max(wider, 1))]
    x = torch.tensor([-9.0, 0.1, 9.0], requires_grad=True)
    y = on_grid(x, LearnedGrid(low=ends[0], high=ends[1], grid=grid))
    found = torch.autograd.grad((y * torch.tensor([1.0, 1.0, 3.0])).sum(), ends)
    np.testing.assert_allclose(found, [0, 2] if wider > 0 else [-2, 0], atol=1e-3)


def test_training_moves_weights_and_ranges_and_the_artifact_has_them() -> None:
    feed = {"x": normal(256, 8, seed=9)}
    model = fake(mlp(), feed)
    first = model.quantized()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.from_numpy(feed["x"])).square().mean().backward()
        optimizer.step()
    last = model.quantized()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert all(last.grids[n] != g for n, g in first.grids.items() if n != "x")
    assert not np.array_equal(first.weights["w1"], last.weights["w1"])
    step = last.grids["y"].scale
    apart = np.abs(outputs(model, feed)["y"] - native(last, feed)["y"]) / step
    assert apart.max() < 1.01
    assert np.mean(apart > 0.5) < 0.02


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "mse", "entropy"])
def test_untrained_it_is_what_post_training_quantization_gives(calibration: str) -> None:
    feed = {"x": normal(256, 8, seed=9)}
    model = fake(mlp(), feed, calibration=calibration)
    floating = normalize(mlp())
    names = ["x", "y", *activations_to_observe(floating)]
    want = quantize_graph(floating, observe(floating, names, feed), method=calibration)  # type: ignore[arg-type]
    got = model.quantized()
    assert got.grids == want.grids
    assert got.weights.keys() == want.weights.keys()
    assert all(got.weights[n].tobytes() == want.weights[n].tobytes() for n in want.weights)


def test_overflow_safe_weights_stay_so_in_training() -> None:
    model = moved(fake(mlp(features=20), {"x": normal(64, 20)}, overflow_safe="quads"))
    integers = model.quantized().weights["w1"].astype(int)
    pairs = integers.reshape(len(integers), -1, 2)
    for sign in (1, -1):
        assert np.maximum(sign * pairs, 0).sum(axis=2).max() <= 128


def test_a_copy_is_trained_alone_and_gives_the_same() -> None:
    feed = {"x": normal(4, 8)}
    model = fake(mlp(), feed)
    twin = copy.deepcopy(model)
    before = outputs(model, feed)["y"]
    with torch.no_grad():
        twin.range_change.add_(0.5)
    np.testing.assert_array_equal(outputs(model, feed)["y"], before)
    assert not np.array_equal(outputs(twin, feed)["y"], before)


def test_a_range_that_is_lost_is_told() -> None:
    model = fake(mlp(), {"x": normal(4, 8)})
    with torch.no_grad():
        model.range_change[0] = torch.nan
    with pytest.raises(CompressError, match="diverged"):
        model(torch.zeros(1, 8))


def test_layers_whose_sums_grow_past_32_bits_in_training_are_told() -> None:
    model = fake(
        graph(
            [("MatMul", ["x", "w"], "h", {}), ("Add", ["h", "b"], "y", {})],
            {"x": (2, 640)},
            {"y": (2, 2)},
            {"w": normal(640, 2, scale=0.02), "b": np.zeros(2, np.float32)},
        ),
        {"x": normal(32, 2, 640, seed=1)},
        activations="int16",
    )
    assert model.quantized().narrowed == ()
    with torch.no_grad():
        model.constant("w").fill_(0.02)
    with pytest.raises(CompressError, match="read uint8 now: matmul_h"):
        model.quantized()
