import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgewright import digits
from edgewright.data import Batches
from edgewright.distillation import distill, soft_loss
from edgewright.errors import CompressError
from edgewright.layer_losses import similarity_loss
from edgewright.recipe import Distill, Finetune, LayerLoss, Training
from edgewright.training import train


def _validation(scans: digits.Digits) -> torch.Tensor:
    assert isinstance(scans.data.validation, Batches)
    assert isinstance(scans.data.validation.inputs, torch.Tensor)
    return scans.data.validation.inputs


def _distance(student: nn.Module, teacher: nn.Module, scans: digits.Digits) -> float:
    """Kullback-Leibler divergence from the teacher's outputs, at temperature 4."""
    x_NCHW = _validation(scans)
    with torch.no_grad():
        return float(soft_loss(student.eval()(x_NCHW), teacher(x_NCHW), 4.0))


def test_distillation_brings_the_student_closer_than_labels_do(
    scans: digits.Digits, teacher: nn.Module, untrained_student: nn.Module
) -> None:
    student = copy.deepcopy(untrained_student)
    distilled = distill(student, teacher, scans.data, Distill(epochs=4, learning_rate=4e-3, alpha=1))
    labelled = train(student, scans.data, Training(epochs=4, learning_rate=4e-3))
    distance = _distance(distilled, teacher, scans)
    assert distance < 0.6 * _distance(labelled, teacher, scans)
    assert distance < 0.2 * _distance(student, teacher, scans)
    assert not distilled.training


def test_feature_loss_brings_the_layers_closer(
    scans: digits.Digits, teacher: nn.Module, untrained_student: nn.Module
) -> None:
    def distance(how: Distill) -> float:
        student = distill(untrained_student, teacher, scans.data, how)
        seen: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _layer, _inputs, out: seen.append(out))
            for layer in (student.get_submodule("residual"), teacher.get_submodule("residual2"))
        ]
        with torch.no_grad():
            student(_validation(scans))
            teacher(_validation(scans))
        for hook in hooks:
            hook.remove()
        return float(similarity_loss(seen[0], seen[1]))

    plain = Distill(epochs=2, learning_rate=4e-3)
    layers = (LayerLoss(student="residual", teacher="residual2", loss="similarity", weight=20),)
    guided = Distill(epochs=2, learning_rate=4e-3, layers=layers)
    assert distance(guided) < 0.8 * distance(plain)


def test_teacher_and_student_stay_as_they_were(
    scans: digits.Digits, teacher: nn.Module, untrained_student: nn.Module
) -> None:
    guide, student = copy.deepcopy(teacher).train(), copy.deepcopy(untrained_student)
    how = Distill(epochs=1, layers=(LayerLoss(student="residual", teacher="residual2"),))
    distilled = distill(student, guide, scans.data, how)
    assert guide.training
    assert not guide.get_submodule("residual2")._forward_hooks
    assert not distilled.get_submodule("residual")._forward_hooks
    for mine, original in ((guide, teacher), (student, untrained_student)):
        pairs = zip(mine.state_dict().values(), original.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert all(each.grad is None for each in guide.parameters())


def test_other_epochs_and_rates_can_be_given(
    scans: digits.Digits, teacher: nn.Module, untrained_student: nn.Module
) -> None:
    steps: list[int] = []
    distill(
        untrained_student,
        teacher,
        scans.data,
        Distill(epochs=9),
        training=Finetune(epochs=1),
        progress=lambda report: steps.append(report.total),
    )
    assert set(steps) == {len(list(scans.data.train))}


def test_soft_loss_is_the_scaled_divergence() -> None:
    random = np.random.default_rng(0)
    logits, target = random.normal(size=(2, 5, 4)) * 3

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x)
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    p, q = softmax(target / 2.5), softmax(logits / 2.5)
    expected = 2.5**2 * (p * np.log(p / q)).sum(axis=1).mean()
    assert float(soft_loss(torch.from_numpy(logits), torch.from_numpy(target), 2.5)) == pytest.approx(
        expected
    )


def test_layer_that_is_not_there_is_named(
    scans: digits.Digits, teacher: nn.Module, untrained_student: nn.Module
) -> None:
    how = Distill(layers=(LayerLoss(student="residual", teacher="residual3"),))
    with pytest.raises(
        CompressError, match=r"the teacher has no layer 'residual3'.*did you mean 'residual[12]'"
    ):
        distill(untrained_student, teacher, scans.data, how)
    how = Distill(layers=(LayerLoss(student="steam", teacher="stem"),))
    with pytest.raises(CompressError, match=r"the student has no layer 'steam'.*did you mean 'stem'"):
        distill(untrained_student, teacher, scans.data, how)


def test_teacher_of_other_classes_is_refused(scans: digits.Digits, untrained_student: nn.Module) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    with pytest.raises(
        CompressError, match=r"teacher's output has shape \(64, 12\) and the student's \(64, 10\)"
    ):
        distill(untrained_student, teacher, scans.data, Distill())
