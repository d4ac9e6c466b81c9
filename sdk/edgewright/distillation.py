"""Distillation: a student learns from a teacher's outputs, and from what it sees on the way."""

import copy
import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.data import Data, Inputs, call
from edgewright.errors import CompressError
from edgewright.progress import OnProgress
from edgewright.recipe import Distill, Training
from edgewright.training import Objective, evaluating, fit


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    how: Distill,
    *,
    training: Training | None = None,
    seed: int = 0,
    step: str = "distill",
    progress: OnProgress | None = None,
) -> nn.Module:
    """Trains a copy of a student towards a teacher.

    The loss is ``alpha T² KL(teacher/T ‖ student/T) + (1 - alpha) cross-entropy`` (Hinton, Vinyals & Dean
    2015), plus `feature_weight` times the difference of the similarities that both see between the samples of
    a batch (Tung & Mori 2019), averaged over the pairs of layers.

    Args:
        student: Takes a batch of inputs, gives logits (N, classes). It is not changed.
        teacher: The same, with the same classes, on the same device. It is used in eval mode and not changed.
        data: What to learn from.
        how: What to compare.
        training: Epochs and rates, where they are not those of `how`.
        seed: As for `train`.
        step: What to call this in the progress reports.
        progress: As for `train`.

    Returns:
        The trained copy, in eval mode.

    Raises:
        DataError: The data is empty or damaged, or does not fit the student.
        CompressError: A layer to compare is not there, the teacher has other classes, or training diverged.
    """
    trained = copy.deepcopy(student)
    with _objective(trained, teacher, how, training or how) as objective:
        fit(trained, data, training or how, seed=seed, step=step, objective=objective, progress=progress)
    return trained


@contextmanager
def _objective(
    student: nn.Module, teacher: nn.Module, how: Distill, training: Training
) -> Iterator[Objective]:
    """Watches the layers to compare, and gives the loss, for as long as it is open."""

    def loss(inputs: Inputs, labels: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            target = call(teacher, inputs)
        if target.shape != logits.shape:
            raise CompressError(
                f"the teacher's output has shape {tuple(target.shape)} and the student's "
                f"{tuple(logits.shape)}; both must have the same classes"
            )
        total = how.alpha * soft_loss(logits, target, how.temperature)
        total = total + (1 - how.alpha) * functional.cross_entropy(
            logits, labels, label_smoothing=training.label_smoothing
        )
        for here, there in how.features:
            weight = how.feature_weight / len(how.features)
            total = total + weight * similarity_loss(seen_student[here], seen_teacher[there])
        return total

    with (
        evaluating(teacher),
        _watched(student, "student", [pair[0] for pair in how.features]) as seen_student,
        _watched(teacher, "teacher", [pair[1] for pair in how.features]) as seen_teacher,
    ):
        yield loss


def soft_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Returns ``T² KL(softmax(target/T) ‖ softmax(logits/T))``, the mean over samples; both (N, classes)."""
    return temperature**2 * functional.kl_div(
        functional.log_softmax(logits / temperature, dim=1),
        functional.log_softmax(target / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns how differently two layers see a batch: the mean square difference of (N, N) similarities.

    Each row of similarities has length 1 (Tung & Mori 2019, equations 2 to 4). The features, (N, ...), may
    differ in all but N.
    """
    return functional.mse_loss(_similarities(student), _similarities(teacher), reduction="sum") / len(student)


def _similarities(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return functional.normalize(rows @ rows.T, dim=1)


@contextmanager
def _watched(model: nn.Module, role: str, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Keeps the latest output of each named layer, for as long as it is open."""
    layers = dict(model.named_modules())
    for name in names:
        if name not in layers:
            close = difflib.get_close_matches(name, list(layers), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CompressError(f"the {role} has no layer {name!r}, which `features` names{hint}")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_layer: nn.Module, _inputs: Any, out: Tensor) -> None:
            seen[name] = out

        return hook

    hooks = [layers[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for each in hooks:
            each.remove()
