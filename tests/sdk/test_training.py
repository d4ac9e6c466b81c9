import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edgewright.data import Batch, Data
from edgewright.errors import CompressError, DataError
from edgewright.progress import Progress
from edgewright.recipe import Training
from edgewright.training import evaluate, train

HOW = Training(epochs=3, learning_rate=0.02)


def _points(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Points around three centres, one per class."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 3
    centres = np.array([[0, 3], [3, -2], [-3, -2]])
    return (centres[labels] + random.normal(size=(count, 2))).astype(np.float32), labels


@pytest.fixture
def points() -> Data:
    return Data.from_arrays(*_points(), batch_size=16)


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def _loaders() -> Data:
    x, y = (torch.from_numpy(each) for each in _points())
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    return Data(train=loader, validation=loader)


def _same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_learns(model: nn.Module, points: Data) -> None:
    before = evaluate(model, points.validation)
    trained = train(model, points, HOW)
    assert before < 0.9 < evaluate(trained, points.validation)
    assert not trained.training


def test_same_seed_same_bits_and_another_seed_others(model: nn.Module, points: Data) -> None:
    first = train(model, points, HOW, seed=1)
    assert _same(first, train(model, points, HOW, seed=1))
    assert not _same(first, train(model, points, HOW, seed=2))


def test_same_seed_same_bits_with_a_shuffling_loader(model: nn.Module) -> None:
    data = _loaders()
    first = train(model, data, HOW, seed=1)
    assert _same(first, train(model, data, HOW, seed=1))
    assert not _same(first, train(model, data, HOW, seed=2))


def test_given_model_and_global_random_state_stay(model: nn.Module, points: Data) -> None:
    weights = {name: each.clone() for name, each in model.state_dict().items()}
    model.train()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    train(model, points, HOW)
    assert all(torch.equal(each, weights[name]) for name, each in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)  # noqa: NPY002


def test_progress_comes_a_few_times_each_epoch_and_ends_with_the_accuracy(
    model: nn.Module, points: Data
) -> None:
    reports: list[Progress] = []
    trained = train(model, points, HOW, step="teach", progress=reports.append)
    assert [each.done for each in reports] == sorted({each.done for each in reports})
    assert {(each.step, each.total) for each in reports} == {("teach", 30)}
    assert 2 * HOW.epochs <= len(reports) <= 5 * HOW.epochs
    assert reports[-1].done == 30
    assert reports[-1].metrics["accuracy"] == evaluate(trained, points.validation)
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"]
    assert sum("accuracy" in each.metrics for each in reports) == HOW.epochs


def test_watching_does_not_change_the_result(model: nn.Module) -> None:
    data = _loaders()
    watched = train(model, data, HOW, progress=lambda _report: None)
    assert _same(watched, train(model, data, HOW))


class _CancelledError(Exception):
    pass


def test_exception_from_progress_cancels(model: nn.Module, points: Data) -> None:
    reports: list[Progress] = []

    def cancel(report: Progress) -> None:
        reports.append(report)
        raise _CancelledError

    with pytest.raises(_CancelledError):
        train(model, points, HOW, progress=cancel)
    assert len(reports) == 1


def test_learning_rate_rises_then_falls_to_zero(model: nn.Module, points: Data) -> None:
    """With a rate of zero at the end, the last steps move the weights far less than the middle ones."""
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(nn.utils.parameters_to_vector(self.parameters()).detach().clone())
            out: Tensor = self.inner(x)
            return out

    train(Watched(), points, replace(HOW, epochs=6, warmup=0.3))
    steps = [float((after - before).norm()) for before, after in itertools.pairwise(seen)]
    start, middle, end = steps[0], max(steps[15:30]), max(steps[-4:])
    assert start < middle / 4
    assert end < middle / 4


def test_label_smoothing_keeps_the_model_less_certain(model: nn.Module, points: Data) -> None:
    def certainty(smoothing: float) -> float:
        trained = train(model, points, replace(HOW, epochs=10, label_smoothing=smoothing))
        inputs = torch.cat([torch.as_tensor(batch[0]) for batch in points.validation])
        with torch.no_grad():
            return float(trained(inputs).softmax(1).amax(1).mean())

    assert certainty(0.4) < certainty(0.0) - 0.1


def test_frozen_parameters_stay(model: nn.Module, points: Data) -> None:
    first = model.get_submodule("0")
    first.requires_grad_(False)
    trained = train(model, points, HOW)
    assert _same(first, trained.get_submodule("0"))
    assert not _same(model.get_submodule("3"), trained.get_submodule("3"))
    with pytest.raises(CompressError, match="no parameters to train"):
        train(model.requires_grad_(False), points, HOW)


def test_evaluate_counts_what_is_right_and_restores_each_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3))
    model.train()
    model[1].eval()
    logits = np.eye(3, dtype=np.float32)
    batches = [(logits, np.array([0, 1, 0])), (logits[:1], np.array([0]))]
    assert evaluate(model, batches) == 0.75
    assert [each.training for each in model.modules()] == [True, True, False]


class _Stream:
    """Batches without a length."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def test_batches_without_a_length_do(model: nn.Module) -> None:
    x, y = _points()
    stream = _Stream(lambda: ((x[start : start + 20], y[start : start + 20]) for start in range(0, 200, 20)))
    reports: list[Progress] = []
    train(model, Data(train=stream, validation=stream), HOW, progress=reports.append)
    assert (reports[-1].done, reports[-1].total) == (30, 30)
    assert reports[-1].metrics["accuracy"] > 0.9


X, Y = _points(16)
NAN = np.full_like(X, math.nan)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"training data is empty"),
        ([(X, Y + 1)], r"labels go from 1 to 3, but the model's output has 3 classes, 0 to 2"),
        ([(X, Y - 1)], r"labels go from -1 to 1"),
        ([(X, Y[:3])], r"got torch.int64 of shape \(3,\) for 16 samples"),
        ([(X, Y.astype(np.float32))], r"labels must be one whole number per sample: got torch.float32"),
        ([(X, Y, Y)], r"each batch must be a pair"),
        ([X], r"each batch must be a pair"),
        ([(NAN, Y)], r"training inputs hold NaN or infinity \(met in epoch 1"),
    ],
)
def test_bad_data_is_told_apart(batches: list[Batch], message: str, model: nn.Module) -> None:
    with pytest.raises(DataError, match=message):
        train(model, Data(train=batches, validation=[(X, Y)]), HOW)


def test_empty_validation_data_is_named(model: nn.Module) -> None:
    with pytest.raises(DataError, match="no data to measure on"):
        evaluate(model, [])


def test_output_that_is_no_classification_is_named(points: Data) -> None:
    with pytest.raises(DataError, match=r"output of shape \(16, 2, 1\) for 16 samples"):
        train(nn.Sequential(nn.Linear(2, 2), nn.Unflatten(1, (2, 1))), points, HOW)


def test_divergence_names_the_learning_rate(model: nn.Module, points: Data) -> None:
    with pytest.raises(
        CompressError, match=r"train diverged in epoch \d+: .*lower its learning_rate \(now 1e\+30\)"
    ):
        train(model, points, Training(epochs=5, learning_rate=1e30))
