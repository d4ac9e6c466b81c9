"""Pruning to a latency budget, measured on this machine's engine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from minilm import Encoder, Layer
from torch import nn

from edgewright.errors import CompressError
from edgewright.progress import Progress
from edgewright.pruning import prune
from edgewright.recipe import Prune, Quantize


def _model() -> nn.Module:
    """Two layers inside that take nearly all the time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4)),
        ).eval()


X = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
HOW = Prune(speedup=2.0, importance="magnitude", round_to=32, samples=5)


def test_a_model_becomes_as_fast_as_asked_and_says_how_sure_it_was(tmp_path: Path) -> None:
    reports: list[Progress] = []
    file = tmp_path / "m.json"
    how = Prune(speedup=2.0, importance="magnitude", round_to=32, samples=5, measurements=str(file))
    small = prune(_model(), how, X, progress=reports.append)
    found = reports[-1].metrics
    assert found["speedup"] >= 1.8  # a noisy machine may end the tries before 2
    assert found["before_ms"] / found["measured_ms"] == found["speedup"]
    assert found["predicted_ms"] == pytest.approx(found["measured_ms"], rel=0.7)
    assert found["cross_validated"] >= 0
    assert [r.step for r in reports] == ["latency"] * 5 + ["prune"]
    widths = [part.out_features for part in small.modules() if isinstance(part, nn.Linear)]
    assert [width % 32 for width in widths] == [0, 0, 4]
    assert small(X).shape == (32, 4)

    again: list[Progress] = []
    prune(_model(), how, X, progress=again.append)
    assert [r.step for r in again] == ["prune"]  # what was measured is not measured anew


def test_nothing_goes_from_a_model_that_is_fast_enough() -> None:
    how = Prune(latency_ms=1000, importance="magnitude", round_to=64, samples=4)
    kept = prune(_model(), how, X)
    assert sum(p.numel() for p in kept.parameters()) == sum(p.numel() for p in _model().parameters())


def test_a_budget_that_cannot_be_met_says_the_best_that_could() -> None:
    how = Prune(latency_ms=1e-5, importance="magnitude", round_to=64, samples=4, max_ratio=0.5)
    with pytest.raises(
        CompressError, match=r"budget of 1e-05 ms cannot be met: .* about [0-9.e-]+ ms, [0-9.]+x"
    ):
        prune(_model(), how, X)


def test_cancelling_ends_the_measuring() -> None:
    class CancelledError(Exception):
        pass

    def cancel(report: Progress) -> None:
        assert (report.step, report.done) == ("latency", 1)
        raise CancelledError

    with pytest.raises(CancelledError):
        prune(_model(), HOW, X, progress=cancel)


@pytest.mark.slow
def test_a_transformer_comes_within_its_budget_by_heads_and_inner_width() -> None:
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(1, 50, (32, 32)))
    inputs = {"ids": ids, "mask": torch.ones_like(ids)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder(layers=2, hidden=128, heads=4, inner=256, vocabulary=50, positions=64).eval()
    reports: list[Progress] = []
    small = prune(
        model,
        Prune(speedup=1.3, heads=0.75, round_to=16, samples=5),
        inputs,
        batches=[(inputs, torch.from_numpy(random.integers(0, 2, 32)))],
        quantize=Quantize(activations="mixed"),
        progress=reports.append,
    )
    assert reports[-1].metrics["speedup"] > 1.2
    layers = [part for part in small.modules() if isinstance(part, Layer)]
    assert sum(layer.heads for layer in layers) < 8
    assert all(layer.query.out_features == 32 * layer.heads for layer in layers)


def test_one_budget_is_enough() -> None:
    with pytest.raises(ValueError, match="speedup: there is a `latency_ms` already"):
        Prune(speedup=2.0, latency_ms=1.0)
    with pytest.raises(ValueError, match=r"speedup: 0\.5 is out of range; it must be above 1, or 0"):
        Prune(speedup=0.5)
