"""Weights whose products add up within 16 bits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import edgewright as ew
from edgewright.overflow import (
    MOST,
    OverflowSafe,
    fitted,
    is_safe,
    safe_integers,
    safe_scale,
    safety,
)

SHAPES = [(5, 64), (3, 7), (4, 13, 1, 1), (6, 3, 3, 3), (2, 5, 3), (8, 3, 2, 3, 2)]


def draw(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    weight = np.random.default_rng(seed).normal(size=shape)
    scale = (np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127).astype(np.float32)
    return weight, scale


def terms_of(integers: np.ndarray) -> np.ndarray:
    """(O, terms): rows, columns, then depth, then channels."""
    if integers.ndim == 5:
        integers = integers.transpose(0, 3, 4, 2, 1)
    else:
        integers = integers.transpose(0, *range(2, integers.ndim), 1)
    terms = integers.reshape(len(integers), -1).astype(np.int64)
    return np.pad(terms, ((0, 0), (0, -terms.shape[1] % 8)))


def worst(terms: np.ndarray, together: list[tuple[int, ...]]) -> int:
    """The largest sum, in magnitude, of weights of one sign whose products are added."""
    eights = terms.reshape(len(terms), -1, 8)
    sums = [np.maximum(sign * eights[..., list(t)], 0).sum(axis=-1) for t in together for sign in (1, -1)]
    return int(np.max(sums))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("safe", "together"),
    [("pairs", [(0, 1), (2, 3), (4, 5), (6, 7)]), ("quads", [(0, 1, 4, 5), (2, 3, 6, 7)])],
)
def test_products_that_are_added_fit_16_bits(
    shape: tuple[int, ...], safe: OverflowSafe, together: list[tuple[int, ...]]
) -> None:
    weight, scale = draw(shape)
    bent = safe_integers(weight, scale, safe)
    assert bent.shape == weight.shape
    assert worst(terms_of(bent), together) == MOST  # so the bound is also made use of
    best = safe_integers(weight, safe_scale(weight, scale, safe), safe)
    assert worst(terms_of(best), together) <= MOST
    assert np.abs(best).max() <= 127


def test_off_is_plain_rounding() -> None:
    weight, scale = draw((4, 8, 3, 3))
    assert safe_scale(weight, scale, "off") is scale
    expected = np.rint(weight / scale[:, None, None, None])
    np.testing.assert_array_equal(safe_integers(weight, scale, "off"), expected)


def test_integers_that_fit_are_not_touched() -> None:
    weight, scale = draw((4, 64))
    scale *= 8
    np.testing.assert_array_equal(safe_integers(weight, scale, "quads"), safe_integers(weight, scale, "off"))


@pytest.mark.parametrize("seed", range(20))
def test_a_pair_is_bent_to_within_one_step_of_the_nearest_pair_that_fits(seed: int) -> None:
    weight = np.random.default_rng(seed).uniform(30, 127, (1, 2))
    found = safe_integers(weight, np.ones(1, np.float32), "pairs")
    every = np.array([p for p in itertools.product(range(128), repeat=2) if sum(p) <= MOST])
    least = np.sqrt(np.square(every - weight).sum(axis=1).min())
    assert np.sqrt(np.square(found - weight).sum()) <= least + 0.75


@pytest.mark.parametrize(("safe", "loss_db"), [("pairs", 3.5), ("quads", 6.5)])
def test_the_best_scale_costs_few_decibels_of_normal_weights(safe: OverflowSafe, loss_db: float) -> None:
    weight, scale = draw((32, 256))

    def sqnr(kind: OverflowSafe) -> float:
        scales = safe_scale(weight, scale, kind)
        error = weight - safe_integers(weight, scales, kind) * scales[:, None].astype(np.float64)
        return float(10 * np.log10(np.square(weight).sum() / np.square(error).sum()))

    assert sqnr("off") - sqnr(safe) < loss_db
    bent = weight - safe_integers(weight, scale, safe) * scale[:, None].astype(np.float64)
    at_least_scale = 10 * np.log10(np.square(weight).sum() / np.square(bent).sum())
    assert at_least_scale < sqnr(safe) - 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 5, stride=2)
        self.deep = nn.Conv2d(16, 16, 3, groups=16)
        self.last = nn.Linear(16, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.first(x))))
        y: torch.Tensor = self.last(x.mean(dim=(2, 3)))
        return y


def test_export_makes_every_dense_layer_safe_and_stays_close(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    x = np.random.default_rng(0).normal(size=(32, 3, 16, 16)).astype(np.float32)
    quantize = ew.Quantize(overflow_safe="quads")
    artifact = ew.export(model, target="x86-avx2", calibration=x, out=tmp_path / "net.ew", quantize=quantize)
    graph = onnx.load(artifact.path / "model.onnx")
    weights = [
        numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8
    ]
    dense = [w for w in weights if w.ndim >= 2 and w.shape[1] > 1]
    assert len(dense) == 2
    for weight in dense:
        assert worst(terms_of(weight), [(0, 1, 4, 5), (2, 3, 6, 7)]) <= MOST
    deep = next(w for w in weights if w.ndim == 4 and w.shape[1] == 1)
    assert np.abs(deep).max() == 127  # depthwise layers are not bent
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    (found,) = ew.Runner(artifact).run({"x": x}).values()
    assert 10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()) > 25


@pytest.mark.parametrize(("groups", "shape", "safe"), [(1, (8, 1, 3, 3), "pairs"), (4, (4, 1, 3, 3), "off")])
def test_a_single_channel_is_not_taken_for_a_depthwise_convolution(
    groups: int, shape: tuple[int, ...], safe: str
) -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=groups)
    assert safety(node, shape, "pairs") == safe


@pytest.mark.parametrize("safe", ["pairs", "quads"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_bent_before_rounding_is_what_the_integers_stand_for(
    shape: tuple[int, ...], safe: OverflowSafe
) -> None:
    weight, scale = draw(shape)
    steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
    integers = safe_integers(weight, scale, safe)
    assert is_safe(integers, safe)
    assert not is_safe(safe_integers(weight, scale, "off"), safe)
    bent = fitted(steps, safe)
    assert np.abs(integers - bent).max() <= 1.0, "rounded down, where up would not fit"
    assert np.abs(integers - steps).max() > 3.0
    small = steps / 4
    assert np.array_equal(fitted(small, safe), small)
