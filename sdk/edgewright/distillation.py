"""Distillation: a student learns from a teacher's outputs, and from what it sees on the way."""

import copy
import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.checkpoint import Checkpoint, opened
from edgewright.data import Data, Inputs, call, parts
from edgewright.errors import CompressError, DataError
from edgewright.layer_losses import Compared
from edgewright.lock import Lock
from edgewright.progress import OnProgress
from edgewright.progressive import Help, inherit
from edgewright.recipe import Distill, LayerLoss, Training
from edgewright.training import count_batches, device_of, evaluating, fit, own_randomness, tensors


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
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Trains a copy of a student towards a teacher.

    The loss is ``alpha T² KL(teacher/T ‖ student/T) + (1 - alpha) cross-entropy`` (Hinton, Vinyals & Dean
    2015), plus that of each pair of layers in `how.layers`. Projections between layers learn along with the
    student, and are then thrown away. With `how.progressive`, help is strong at first and ends before the
    training does.

    Args:
        student: Takes a batch of inputs, gives logits (N, classes). It is not changed.
        teacher: The same, with the same classes, on the same device. It is used in eval mode and not changed.
        data: What to learn from.
        how: What to compare.
        training: Epochs and rates, where they are not those of `how`.
        seed: As for `train`.
        step: What to call this in the progress reports.
        progress: As for `train`.
        checkpoint: As for `train`.

    Returns:
        The trained copy, in eval mode.

    Raises:
        DataError: The data is empty or damaged, or does not fit the student.
        CompressError: A layer to compare is not there or of another form, the teacher has other classes, or
            training diverged.
    """
    training = training or how
    settings = {step: asdict(how), "training": asdict(training), "seed": seed}
    models = {"model": student, "teacher": teacher}
    kept = opened(checkpoint, lambda: Lock.of(settings, models, data))
    trained = copy.deepcopy(student)
    if how.progressive is not None and how.progressive.inherit:
        inherit(trained, teacher)
    with own_randomness():
        torch.manual_seed(seed)  # for the projections
        example = _first(data, device_of(trained)) if how.layers else ()
        total = training.epochs * count_batches(data.train)
        loss = DistillLoss(trained, teacher, how, training.label_smoothing, example, total)
    with loss:
        fit(
            trained,
            data,
            training,
            seed=seed,
            step=step,
            objective=loss,
            progress=progress,
            checkpoint=kept,
        )
    return trained


def _first(data: Data, device: torch.device) -> Inputs:
    for batch in data.train:
        return tensors(batch, device)[0]
    raise DataError("the training data is empty")


class DistillLoss(nn.Module):
    """The loss of a student that learns from a teacher, and what that loss itself learns (projections).

    It is open for a while: `with` it, the layers to compare are watched, and the teacher is in eval mode.

    Args:
        student: The model that trains.
        teacher: The model to learn from.
        how: What to compare.
        label_smoothing: Of the labels' part of the loss.
        example: Inputs of a batch, which show what the layers give; used if layers are compared.
        total: Steps of the whole training; used if help falls.

    Raises:
        CompressError: A layer is not there, or layers cannot be compared as asked.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        how: Distill,
        label_smoothing: float,
        example: Inputs,
        total: int,
    ) -> None:
        super().__init__()
        self.how = how
        self.label_smoothing = label_smoothing
        self._models = student, teacher  # in a tuple: neither is a part of the loss
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
        self._open = ExitStack()
        self.help = None if how.progressive is None else Help(how.progressive, total)
        self.layers = nn.ModuleList()
        if how.layers:
            with self, evaluating(student), torch.no_grad():
                call(student, example)
                call(teacher, example)
                self.layers.extend(Compared(each, *self._outputs(each)) for each in how.layers)
            self.layers.to(device_of(student))

    def __enter__(self) -> Self:
        student, teacher = self._models
        with ExitStack() as stack:
            stack.enter_context(evaluating(teacher))
            stack.enter_context(
                _watched(student, "student", [x.student for x in self.how.layers], self._seen[0])
            )
            stack.enter_context(
                _watched(teacher, "teacher", [x.teacher for x in self.how.layers], self._seen[1])
            )
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._open.close()

    def forward(self, inputs: Inputs, labels: Tensor, logits: Tensor) -> Tensor:
        """Returns the loss of a batch that the student has just been run on."""
        how = self.how
        help_share = 1.0 if self.help is None else self.help()
        by_labels = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if help_share == 0:
            return by_labels
        with torch.no_grad():
            target = call(self._models[1], inputs)
        if target.shape != logits.shape:
            raise CompressError(
                f"the teacher's output has shape {tuple(target.shape)} and the student's "
                f"{tuple(logits.shape)}; both must have the same classes"
            )
        temperature = how.temperature if self.help is None else 1 + (how.temperature - 1) * help_share
        total = how.alpha * soft_loss(logits, target, temperature) + (1 - how.alpha) * by_labels
        mask = self._mask(inputs)
        for layers, compared in zip(how.layers, self.layers, strict=True):
            total = total + help_share * compared(*self._outputs(layers), mask)
        return total

    def _outputs(self, layers: LayerLoss) -> tuple[Tensor, Tensor]:
        student, teacher = self._seen
        return student[layers.student], teacher[layers.teacher]

    def _mask(self, inputs: Inputs) -> Tensor | None:
        name = self.how.mask
        if not name:
            return None
        student = self._models[0]
        known = list(inputs) if isinstance(inputs, Mapping) else list(signature(student.forward).parameters)
        if name not in known or (isinstance(inputs, tuple) and known.index(name) >= len(inputs)):
            raise CompressError(
                f"the student takes no input {name!r}, which `mask` names; known: {', '.join(known)}"
            )
        return inputs[name] if isinstance(inputs, Mapping) else parts(inputs)[known.index(name)]


def soft_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Returns ``T² KL(softmax(target/T) ‖ softmax(logits/T))``, the mean over samples; both (N, classes)."""
    return temperature**2 * functional.kl_div(
        functional.log_softmax(logits / temperature, dim=1),
        functional.log_softmax(target / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


@contextmanager
def _watched(model: nn.Module, role: str, names: list[str], seen: dict[str, Tensor]) -> Iterator[None]:
    """Keeps the latest output of each named layer in `seen`, for as long as it is open."""
    layers = dict(model.named_modules())
    for name in names:
        if name not in layers:
            close = difflib.get_close_matches(name, list(layers), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CompressError(f"the {role} has no layer {name!r}, which [[distill.layers]] names{hint}")

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_layer: nn.Module, _inputs: Any, out: Any) -> None:
            first = out[0] if isinstance(out, tuple) and out else out
            if not isinstance(first, Tensor):
                raise CompressError(
                    f"the {role}'s layer {name!r} gives a {type(first).__name__}, not a tensor"
                )
            seen[name] = first

        return hook

    hooks = [layers[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
        seen.clear()
