"""Calibration: grids hold zero and what was seen; outliers go when asked; nonsense is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgewright.calibrate import BATCH, Grid, Observed, observe
from edgewright.errors import ExportError
from sdk.graphs import mlp, normal

finite = st.floats(-(2.0**100), 2.0**100, width=32)


@given(finite, finite)
@example(0.0, 0.0)
@example(5.0, 6.0)
@example(-6.0, -5.0)
@example(0.0, 1e-45)
@example(-1e-38, 0.0)
def test_every_grid_holds_zero_exactly_and_the_range_to_half_a_step(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    grid = Grid.around(low, high)
    assert 0 <= grid.zero_point <= 255
    assert grid.scale == float(np.float32(grid.scale)) > 0
    assert grid.low <= 0 <= grid.high
    assert grid.low <= low + 0.501 * grid.scale
    assert grid.high >= high - 0.501 * grid.scale
    if high - low > 1e-20:
        assert grid.high - grid.low <= (max(high, 0) - min(low, 0)) * 1.001


def test_a_value_that_is_always_zero_gets_a_plain_grid() -> None:
    assert Grid.around(0.0, 0.0) == Grid(scale=float(np.float32(1 / 255)), zero_point=0)


def seen(values: Any) -> Observed:
    values = np.asarray(values, np.float32)
    low, high = float(values.min()), float(values.max())
    return Observed(minimum=low, maximum=high, counts=np.histogram(values, 2048, (low, high))[0])


# What 255 steps over 20 units cost 200,000 values is more than what it costs to clip the one that lies there.
LONELY = np.append(normal(200_000), np.float32(20))


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_an_outlier_is_clipped_by_percentile_and_by_error_not_by_minmax(method: Any) -> None:
    outlier = seen(LONELY)
    assert outlier.grid("minmax", 99.9).high > 19.9
    clipped = outlier.grid(method, 99.9)
    assert clipped.high < (16 if method == "mse" else 10)
    assert clipped.low < -2


def test_percentile_keeps_its_share() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 100_000)
    grid = seen(values).grid("percentile", 90.0)
    inside = np.mean((values >= grid.low) & (values <= grid.high))
    assert inside == pytest.approx(0.9, abs=0.01)
    assert seen(values).grid("percentile", 100.0).high == pytest.approx(1.0, abs=0.01)


def test_least_error_has_no_more_error_than_minmax() -> None:
    values = LONELY.astype(np.float64)
    observed = seen(values)

    def error(grid: Grid) -> float:
        steps = np.clip(np.rint(values / grid.scale) + grid.zero_point, 0, 255) - grid.zero_point
        return float(np.sum((steps * grid.scale - values) ** 2))

    assert error(observed.grid("mse", 0)) < 0.9 * error(observed.grid("minmax", 0))


def test_entropy_clips_the_side_that_has_the_outliers_and_keeps_the_other() -> None:
    bulk = np.random.default_rng(0).uniform(-2, 2, 100_000)
    right, left = seen(np.append(bulk, 30.0)), seen(np.append(bulk, -30.0))
    for grid, near, far in (
        (right.grid("entropy", 0), "low", "high"),
        (left.grid("entropy", 0), "high", "low"),
    ):
        assert abs(getattr(grid, near)) == pytest.approx(2, abs=0.1)
        assert abs(getattr(grid, far)) < 8


def test_entropy_clips_nothing_of_an_even_distribution() -> None:
    values = np.random.default_rng(0).uniform(-1, 3, 200_000)
    grid = seen(values).grid("entropy", 0)
    assert grid.low < -0.97
    assert grid.high > 2.95


def test_entropy_is_not_misled_by_the_zeros_of_relu() -> None:
    values = np.maximum(normal(200_000), 0).astype(np.float64)
    grid = seen(values).grid("entropy", 0)
    assert grid.zero_point == 0
    assert 2.5 < grid.high <= values.max() + 0.01
    error = np.mean((np.clip(np.rint(values / grid.scale), 0, 255) * grid.scale - values) ** 2)
    assert 10 * np.log10(np.mean(values**2) / error) > 40


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_has_a_grid_by_every_method(method: Any, value: float) -> None:
    constant = Observed(minimum=value, maximum=value, counts=np.zeros(2048, np.int64))
    grid = constant.grid(method, 99.9)
    assert grid.low <= value <= grid.high or abs(value) - max(-grid.low, grid.high) < grid.scale


def test_ranges_and_histograms_are_those_of_all_batches() -> None:
    x = normal(BATCH * 2 + 7, 8)
    x[0, 0], x[-1, -1] = -50, 60
    calls: list[tuple[int, int]] = []
    found = observe(mlp(), ["x", "h", "r", "y"], {"x": x}, lambda done, total: calls.append((done, total)))
    assert (found["x"].minimum, found["x"].maximum) == (-50, 60)
    np.testing.assert_array_equal(found["x"].counts, np.histogram(x, 2048, (-50, 60))[0])
    assert found["r"].minimum == 0
    assert found["r"].maximum == found["h"].maximum
    assert all(o.counts.sum() == len(x) * n for o, n in zip(found.values(), (8, 16, 16, 4), strict=True))
    assert calls[-1] == (2 * len(x), 2 * len(x))
    assert [d for d, _ in calls] == sorted(d for d, _ in calls)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_the_value(value: float) -> None:
    x = normal(BATCH + 1, 8)
    x[-1, 3] = value
    with pytest.raises(ExportError, match="value 'x' is NaN or infinite on the calibration data"):
        observe(mlp(), ["x", "y"], {"x": x})
    model = mlp()
    weights = normal(4, 16)
    weights[0, 0] = value
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(weights, "w2"))
    with pytest.raises(ExportError, match="value 'y' is NaN or infinite"):
        observe(model, ["x", "y"], {"x": normal(4, 8) + 5})


def test_no_samples_are_refused() -> None:
    with pytest.raises(ExportError, match="calibration data is empty"):
        observe(mlp(), ["x"], {"x": normal(0, 8)})


@pytest.mark.parametrize("width", [1e-7, 1e-44])
def test_a_range_narrower_than_float32_can_cut_is_observed(width: float) -> None:
    base = 1.0 if width > 1e-20 else 0.0
    x = np.full((4, 8), base, np.float32)
    x[0] += np.float32(width)
    found = observe(mlp(), ["x"], {"x": x})["x"]
    assert found.counts.sum() == 32
    assert found.maximum > found.minimum
