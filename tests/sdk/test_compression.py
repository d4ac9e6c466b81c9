import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgewright import digits
from edgewright.compression import compress, steps_of, take_step
from edgewright.data import Data
from edgewright.errors import CompressError, DataError
from edgewright.progress import Progress
from edgewright.pruning import count_macs
from edgewright.recipe import Distill, Finetune, Prune, Recipe
from edgewright.training import evaluate

X = torch.zeros(1, 1, 8, 8)
ONE_EPOCH = Recipe(name="one", finetune=Finetune(epochs=1))


def _same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_compressed_student_is_smaller_and_nearly_as_right_as_its_teacher(
    compressed: nn.Module, untrained_student: nn.Module, teacher: nn.Module, scans: digits.Digits
) -> None:
    test = [(scans.x_test, scans.y_test)]
    assert evaluate(compressed, test) > evaluate(teacher, test) - 0.04
    assert count_macs(compressed, X) < 0.5 * count_macs(untrained_student, X) < 0.3 * count_macs(teacher, X)
    assert not compressed.training


def test_same_recipe_same_bits_and_another_seed_others(
    untrained_student: nn.Module, teacher: nn.Module, scans: digits.Digits
) -> None:
    recipe = Recipe(name="all", distill=Distill(epochs=1), prune=Prune(), finetune=Finetune(epochs=1))
    first, second, other = (
        compress(untrained_student, replace(recipe, seed=seed), data=scans.data, teacher=teacher)
        for seed in (5, 5, 6)
    )
    assert _same(first, second)
    assert not _same(first, other)


def test_each_step_reports_in_turn_and_nothing_given_changes(
    untrained_student: nn.Module, teacher: nn.Module, scans: digits.Digits
) -> None:
    student, guide = copy.deepcopy(untrained_student), copy.deepcopy(teacher)
    random_state = torch.get_rng_state()
    reports: list[Progress] = []
    recipe = Recipe(name="all", distill=Distill(epochs=1), prune=Prune(steps=2), finetune=Finetune(epochs=1))
    compress(student, recipe, data=scans.data, teacher=guide, progress=reports.append)
    assert list(dict.fromkeys(each.step for each in reports)) == ["distill", "prune", "finetune"]
    ends = {each.step: each.done / each.total for each in reports}
    assert ends == {"distill": 1, "prune": 1, "finetune": 1}
    assert _same(student, untrained_student)
    assert _same(guide, teacher)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_steps_taken_one_by_one_give_the_same_bits(
    untrained_student: nn.Module, teacher: nn.Module, scans: digits.Digits
) -> None:
    recipe = Recipe(
        name="steps", distill=Distill(epochs=1), prune=Prune(round_to=4), finetune=Finetune(epochs=1)
    )
    arrays = scans.data.train.inputs[:200], scans.data.train.labels[:200]  # type: ignore[attr-defined]
    random = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*arrays), batch_size=50, shuffle=True)
    data = Data(train=random, validation=scans.data.validation)
    whole = compress(untrained_student, recipe, data=data, teacher=teacher)
    model = untrained_student
    assert steps_of(recipe) == ("distill", "prune", "finetune")
    for step in steps_of(recipe):
        model = take_step(step, model, recipe, data=data, teacher=teacher)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_fine_tuning_learns_from_a_teacher_that_is_given(
    compressed: nn.Module, teacher: nn.Module, scans: digits.Digits
) -> None:
    alone = compress(compressed, ONE_EPOCH, data=scans.data)
    taught = compress(compressed, ONE_EPOCH, data=scans.data, teacher=teacher)
    assert not _same(alone, taught)


def test_recipe_without_steps_gives_an_equal_copy(compressed: nn.Module, scans: digits.Digits) -> None:
    copied = compress(compressed, Recipe(name="nothing"), data=scans.data)
    assert copied is not compressed
    assert _same(copied, compressed)


def test_exception_from_progress_cancels_at_any_step(
    compressed: nn.Module, teacher: nn.Module, scans: digits.Digits
) -> None:
    class CancelledError(Exception):
        pass

    def cancel_at(step: str) -> None:
        def progress(report: Progress) -> None:
            if report.step == step:
                raise CancelledError

        recipe = Recipe(name="all", distill=Distill(epochs=1), prune=Prune(), finetune=Finetune(epochs=1))
        compress(compressed, recipe, data=scans.data, teacher=teacher, progress=progress)

    for step in ("distill", "prune", "finetune"):
        with pytest.raises(CancelledError):
            cancel_at(step)


def _with_nan(model: nn.Module, name: str) -> nn.Module:
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.state_dict()[name].view(-1)[0] = torch.nan
    return damaged


def test_damaged_weights_are_named(compressed: nn.Module, teacher: nn.Module, scans: digits.Digits) -> None:
    model = _with_nan(compressed, "stem.1.running_mean")
    with pytest.raises(CompressError, match=r"model's weights are damaged: 'stem.1.running_mean' holds NaN"):
        compress(model, ONE_EPOCH, data=scans.data)
    with pytest.raises(CompressError, match=r"teacher's weights are damaged: 'head.weight' holds NaN"):
        compress(compressed, ONE_EPOCH, data=scans.data, teacher=_with_nan(teacher, "head.weight"))


def test_distilling_without_a_teacher_says_what_to_do(
    quick_recipe: Recipe, compressed: nn.Module, scans: digits.Digits
) -> None:
    with pytest.raises(
        CompressError, match=r"'quick' distils, which needs a teacher: give one, or leave out"
    ):
        compress(compressed, quick_recipe, data=scans.data)


IMAGES = np.zeros((4, 1, 8, 8), dtype=np.float32)
LABELS = np.arange(4)
GOOD = [(IMAGES, LABELS)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(train=[], validation=GOOD), "the training data is empty"),
        (Data(train=GOOD, validation=[]), "the validation data is empty"),
        (Data(train=[(IMAGES, LABELS + 9)], validation=GOOD), "labels go from 9 to 12, .* has 10 classes"),
        (Data(train=GOOD, validation=[(IMAGES, LABELS + 9)]), "labels go from 9 to 12, .* has 10 classes"),
        (Data(train=[(IMAGES[:, 0, 0], LABELS)], validation=GOOD), r"training inputs, of shape \(4, 8\)"),
        (Data(train=[(IMAGES * np.nan, LABELS)], validation=GOOD), "training inputs hold NaN"),
    ],
)
def test_bad_data_is_told_apart(data: Data, message: str, compressed: nn.Module) -> None:
    with pytest.raises(DataError, match=message):
        compress(compressed, ONE_EPOCH, data=data)


def test_a_distill_section_of_no_epochs_only_says_how_finetuning_learns(
    untrained_student: nn.Module, teacher: nn.Module, scans: digits.Digits
) -> None:
    recipe = Recipe(name="after", distill=Distill(epochs=0, alpha=1.0), finetune=Finetune(epochs=1))
    assert steps_of(recipe) == ("finetune",)
    plain = replace(recipe, distill=None)
    one, other = (compress(untrained_student, r, data=scans.data, teacher=teacher) for r in (recipe, plain))
    assert not _same(one, other)
