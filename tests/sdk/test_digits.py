from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgewright import digits
from edgewright.compression import compress
from edgewright.data import Batches
from edgewright.recipe import Recipe
from edgewright.training import evaluate, train


def _arrays(batches: object) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(batches, Batches)
    assert isinstance(batches.inputs, torch.Tensor)
    return batches.inputs.numpy(), batches.labels.numpy()


def _rows(x: np.ndarray) -> set[bytes]:
    return {each.tobytes() for each in x}


def test_split_keeps_test_scans_unseen_and_classes_in_proportion(scans: digits.Digits) -> None:
    parts = [_arrays(scans.data.train), _arrays(scans.data.validation), (scans.x_test, scans.y_test)]
    assert [len(labels) for _, labels in parts] == [1137, 300, 360]
    assert len(set.union(*(_rows(x) for x, _ in parts))) == 1797
    for x, y in parts:
        assert x.shape[1:] == (1, 8, 8)
        assert (x.min(), x.max()) == (0, 1)
        counts = np.bincount(y, minlength=10)
        assert counts == pytest.approx(len(y) / 10, rel=0.06)


def test_split_follows_its_seed(scans: digits.Digits) -> None:
    assert np.array_equal(digits.load(0).x_test, scans.x_test)
    assert not np.array_equal(digits.load(1).x_test, scans.x_test)


def test_networks_are_as_small_as_they_say() -> None:
    sizes = [sum(each.numel() for each in model().parameters()) for model in (digits.Teacher, digits.Student)]
    assert sizes == [pytest.approx(279_000, abs=500), pytest.approx(52_000, abs=500)]


def test_networks_keep_to_layers_that_become_integers() -> None:
    allowed = (
        nn.Conv2d,
        nn.Linear,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
    )
    for model in (digits.Teacher(), digits.Student()):
        leaves = [layer for layer in model.modules() if not list(layer.children())]
        assert all(isinstance(layer, allowed) for layer in leaves)


def test_shift_hurts_and_adapting_mends(
    compressed: nn.Module, scans: digits.Digits, shifted_scans: digits.Digits
) -> None:
    assert np.array_equal(shifted_scans.y_test, scans.y_test)
    test = [(shifted_scans.x_test, shifted_scans.y_test)]
    before = evaluate(compressed, test)
    adapted = train(compressed, shifted_scans.data, digits.ADAPTING)
    assert before < evaluate(compressed, [(scans.x_test, scans.y_test)]) - 0.02
    assert evaluate(adapted, test) > before + 0.02


def test_shift_has_grey_paper_and_stays_in_range(shifted_scans: digits.Digits) -> None:
    x = shifted_scans.x_test
    assert 0 <= x.min() < x.max() <= 1
    assert np.median(x[:, :, :, 0]) == pytest.approx(digits.PAPER, abs=0.02)


def test_jitter_moves_a_little_and_keeps_the_paper(shifted_scans: digits.Digits) -> None:
    x = torch.from_numpy(shifted_scans.x_test)
    change = digits.jitter(0.1, 0.5, fill=digits.PAPER)
    moved = change(x, torch.Generator().manual_seed(0))
    assert torch.equal(moved, change(x, torch.Generator().manual_seed(0)))
    assert not torch.equal(moved, change(x, torch.Generator().manual_seed(1)))
    assert 0.01 < float((moved - x).abs().mean()) < 0.1
    assert float(moved[:, :, 0, 0].median()) == pytest.approx(digits.PAPER, abs=0.03)
    torch.testing.assert_close(digits.jitter(0, 0)(x, torch.Generator()), x)


def test_recipe_takes_every_step() -> None:
    recipe = digits.recipe(seed=3)
    assert recipe.seed == 3
    assert None not in (recipe.distill, recipe.prune, recipe.finetune)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.slow
def test_full_recipe_reaches_its_accuracies() -> None:
    """Over five seeds: one test scan is 0.28 points, so that the cost of pruning shows in the mean alone."""
    lost = []
    for seed in range(5):
        scans = digits.load(seed)
        test = [(scans.x_test, scans.y_test)]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            untrained, student = digits.Teacher(), digits.Student()
        recipe = digits.recipe(seed)
        teacher = train(untrained, scans.data, digits.TEACHING, seed=seed)
        only_distilled = replace(recipe, prune=None, finetune=None)
        distilled = compress(student, only_distilled, data=scans.data, teacher=teacher)
        pruned = compress(distilled, replace(recipe, distill=None), data=scans.data, teacher=teacher)
        assert evaluate(teacher, test) >= 0.985
        assert evaluate(distilled, test) >= 0.98
        lost.append(evaluate(distilled, test) - evaluate(pruned, test))
    assert np.mean(lost) <= 0.01
