"""Compression: distil, prune, fine-tune, as a recipe says."""

import copy
import os
from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import nn

from edgewright.checkpoint import Checkpoint, opened
from edgewright.data import Batch, Data, Inputs, call, parts
from edgewright.distillation import distill
from edgewright.errors import CompressError, DataError
from edgewright.lock import Lock
from edgewright.progress import OnProgress, Progress
from edgewright.pruning import prune
from edgewright.recipe import Distill, Recipe
from edgewright.training import check_fit, device_of, evaluating, own_randomness, tensors, train


def compress(
    model: nn.Module,
    recipe: Recipe,
    *,
    data: Data,
    teacher: nn.Module | None = None,
    progress: OnProgress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Makes a smaller model, step by step: distil, prune, fine-tune. Quantization comes with `export`.

    Args:
        model: A classifier: takes a batch of inputs, gives logits (N, classes). It is not changed. Where the
            recipe distils, this is the student, trained or not.
        recipe: Which steps to take, and how.
        data: What to learn from, and to measure on.
        teacher: A trained model with the same classes. A recipe that distils needs it, and fine-tuning learns
            from it too, if it is given (with `recipe.distill`, or that part's defaults). It is not changed.
        progress: Told a few times in each epoch. An exception that it raises cancels the work.
        checkpoint: A folder. Work that was cancelled, or cut off by whatever, goes on from there when the
            same arguments come again, and gives the bits it would have given.

    Returns:
        The compressed copy, in eval mode. The same arguments, threads and machine give the same bits, and the
        global state of torch's random numbers stays as it was.

    Raises:
        DataError: The data is empty or damaged, or does not fit the model.
        CompressError: A model holds NaN, has no teacher though the recipe distils, cannot be pruned, training
            diverged, or the checkpoint belongs to other work.
    """
    if recipe.distill is not None and teacher is None:
        raise CompressError(
            f"recipe {recipe.name!r} distils, which needs a teacher: "
            f"give one, or leave out the recipe's [distill] section"
        )
    _check_weights(model, "model")
    if teacher is not None:
        _check_weights(teacher, "teacher")
    with own_randomness():
        torch.manual_seed(recipe.seed)  # for a DataLoader that shuffles
        _check_data(model, data.train, "training")
        _check_data(model, data.validation, "validation")
    kept = opened(checkpoint, lambda: lock_of(model, recipe, data, teacher))
    small = copy.deepcopy(model)
    for step in steps_of(recipe):
        done = kept.load_step(step, model) if kept is not None else None
        if done is not None:
            small = done
            if progress is not None:
                progress(Progress(step=step, done=1, total=1, note=f"{step}: was done before"))
            continue
        small = take_step(step, small, recipe, data=data, teacher=teacher, progress=progress, checkpoint=kept)
        if kept is not None:
            kept.save_step(step, small, model)
    return small.eval()


def lock_of(model: nn.Module, recipe: Recipe, data: Data, teacher: nn.Module | None = None) -> Lock:
    """What `compress` is made from with these arguments.

    Raises:
        DataError: The data cannot be repeated, or is damaged.
    """
    models = {"model": model} if teacher is None else {"model": model, "teacher": teacher}
    return Lock.of(asdict(recipe), models, data)


def steps_of(recipe: Recipe) -> tuple[str, ...]:
    """The steps of `compress` that a recipe takes, in their order: names of its sections."""
    return tuple(step for step in ("distill", "prune", "finetune") if getattr(recipe, step) is not None)


def take_step(
    step: str,
    model: nn.Module,
    recipe: Recipe,
    *,
    data: Data,
    teacher: nn.Module | None = None,
    progress: OnProgress | None = None,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Takes one step of a recipe. Taken one after the other, they give the bits that `compress` gives.

    To add a step, name it in `steps_of` and take it here, reporting under that name; hand `checkpoint` on to
    `fit`. What it must hold for that is written in `checkpoint.py`.

    Args:
        step: One of `steps_of(recipe)`.
        model: What the steps before it made. It is not changed.
        recipe: As for `compress`, as are `data`, `teacher` and `progress`.
        data: See there.
        teacher: See there.
        progress: See there.
        checkpoint: Where an unfinished step keeps how far it is.

    Raises:
        DataError: As for `compress`.
        CompressError: As for `compress`.
    """
    with own_randomness():
        torch.manual_seed(recipe.seed)
        if step == "prune" and recipe.prune is not None:
            example = _check_data(model, data.validation, "validation")
            return prune(model, recipe.prune, example, batches=data.train, progress=progress)
        if step == "distill" and recipe.distill is not None and teacher is not None:
            return distill(
                model,
                teacher,
                data,
                recipe.distill,
                seed=recipe.seed,
                progress=progress,
                checkpoint=checkpoint,
            )
        if step == "finetune" and recipe.finetune is not None and teacher is not None:
            how = recipe.distill or Distill()
            return distill(
                model,
                teacher,
                data,
                how,
                training=recipe.finetune,
                seed=recipe.seed,
                step=step,
                progress=progress,
                checkpoint=checkpoint,
            )
        if step == "finetune" and recipe.finetune is not None:
            return train(
                model,
                data,
                recipe.finetune,
                seed=recipe.seed,
                step=step,
                progress=progress,
                checkpoint=checkpoint,
            )
    raise ValueError(f"recipe {recipe.name!r} cannot take step {step!r}")


def _check_weights(model: nn.Module, role: str) -> None:
    for name, each in model.state_dict().items():
        if each.is_floating_point() and not each.isfinite().all():
            raise CompressError(f"the {role}'s weights are damaged: {name!r} holds NaN or infinity")


def _check_data(model: nn.Module, batches: Iterable[Batch], part: str) -> Inputs:
    """Tries the first batch on the model, and returns its inputs."""
    for batch in batches:
        inputs, labels = tensors(batch, device_of(model))
        try:
            with evaluating(model), torch.no_grad():
                logits = call(model, inputs)
        except (RuntimeError, TypeError) as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in parts(inputs))
            raise DataError(f"the model cannot take the {part} inputs, of shape {shapes}: {error}") from error
        check_fit(logits, labels)
        return inputs
    raise DataError(f"the {part} data is empty")
