"""Compression: distil, prune, fine-tune, train on the grids of integers, as a recipe says."""

import copy
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import overload

import torch
from torch import nn

from edgewright.checking import check_data, check_weights, dead_layers
from edgewright.checkpoint import Checkpoint, opened
from edgewright.data import Data
from edgewright.distillation import distill
from edgewright.errors import CompressError
from edgewright.layers import load_program
from edgewright.lock import Lock
from edgewright.models import onnx_model
from edgewright.progress import OnProgress, Progress, Remaining
from edgewright.pruning import prune
from edgewright.quantization_aware import train_quantized
from edgewright.recipe import Distill, Recipe
from edgewright.training import own_randomness, train


@overload
def compress(
    model: nn.Module,
    recipe: Recipe,
    *,
    data: Data,
    teacher: nn.Module | None = None,
    progress: OnProgress | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
) -> nn.Module: ...


@overload
def compress(
    model: str | os.PathLike[str],
    recipe: Recipe,
    *,
    data: Data,
    teacher: nn.Module | None = None,
    progress: OnProgress | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
) -> nn.Module | Path: ...


def compress(
    model: nn.Module | str | os.PathLike[str],
    recipe: Recipe,
    *,
    data: Data,
    teacher: nn.Module | None = None,
    progress: OnProgress | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
) -> nn.Module | Path:
    """Makes a smaller model, step by step: distil, prune, fine-tune, train with fake quantization.

    Integers come with `export`. After training with fake quantization they are those that were trained on.

    Args:
        model: A classifier: takes a batch of inputs, gives logits (N, classes). A module, which is not
            changed, or the path of a `.pt2` program. Where the recipe distils, this is the student, trained
            or not. Also the path of a float `.onnx` file, if the recipe has nothing but `[quantize]`: for a
            graph of a file cannot be trained.
        recipe: Which steps to take, and how.
        data: What to learn from, and to measure on.
        teacher: A trained model with the same classes. A recipe that distils needs it, and fine-tuning learns
            from it too, if it is given (with `recipe.distill`, or that part's defaults). It is not changed.
        progress: Told a few times in each epoch, with the time that all steps together will still take. An
            exception that it raises cancels the work.
        checkpoint: A folder. Work that was cancelled, or cut off by whatever, goes on from there when the
            same arguments come again, and gives the bits it would have given.

    Returns:
        The compressed copy, in eval mode. The same arguments, threads and machine give the same bits, and the
        global state of torch's random numbers stays as it was. Of an `.onnx` file its path: `export` takes it
        as it takes a module.

    Raises:
        DataError: The data is empty or damaged, or does not fit the model.
        CompressError: The model cannot be read, holds NaN, has no teacher though the recipe distils, is an
            `.onnx` file that would have to be trained, cannot be pruned, training diverged, or the checkpoint
            belongs to other work.
        ExportError: The recipe trains with fake quantization, and the model cannot be traced or quantized.
    """
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if path.suffix == ".onnx":
            check_onnx(path, recipe, data)
            return path
        model = load_program(path)
    if recipe.distill is not None and teacher is None:
        raise CompressError(
            f"recipe {recipe.name!r} distils, which needs a teacher: "
            f"give one, or leave out the recipe's [distill] section"
        )
    check_weights(model, "model")
    if teacher is not None:
        check_weights(teacher, "teacher")
    with own_randomness():
        torch.manual_seed(recipe.seed)  # for a DataLoader that shuffles
        check_data(model, data.train, "training")
        check_data(model, data.validation, "validation")
    kept = opened(checkpoint, lambda: lock_of(model, recipe, data, teacher))
    tell = None if progress is None else Remaining(progress, shares_of(recipe, teacher))
    small = copy.deepcopy(model)
    for step in steps_of(recipe):
        done = kept.load_step(step, model) if kept is not None else None
        if done is not None:
            small = done
            if tell is not None:
                tell(Progress(step=step, done=1, total=1, begun=1, note=f"{step}: was done before"))
            continue
        small = take_step(step, small, recipe, data=data, teacher=teacher, progress=tell, checkpoint=kept)
        if kept is not None:
            kept.save_step(step, small, model)
    if progress is not None:
        for sentence in dead_layers(small, data.validation):
            progress(Progress(step="check", done=1, total=1, note=sentence))
    return small.eval()


def check_onnx(path: Path, recipe: Recipe, data: Data) -> None:
    """Looks whether the post-training part of a recipe, and that alone, can be done with an ONNX file.

    Raises:
        CompressError: The recipe has steps that train, or the file is quantized or no classifier.
        DataError: The file does not take the data.
        ExportError: The file cannot be read.
    """
    from edgewright.graph import float_graph  # slow to import, and only this needs it
    from edgewright.qdq import is_quantized

    if trained := sections_of(recipe):
        raise CompressError(
            f"{path}: an .onnx file cannot be trained or pruned, as the recipe's "
            f"{', '.join(f'[{section}]' for section in trained)} would have it: "
            "give the model as an nn.Module or .pt2, or a recipe with [quantize] alone"
        )
    graph = float_graph(path, slim=False)
    if is_quantized(graph):
        raise CompressError(f"{path}: is quantized already; `export` takes it as it is")
    check_data(onnx_model(path), data.validation, "validation")


def sections_of(recipe: Recipe) -> tuple[str, ...]:
    """The sections of a recipe that change a float model: all that it has but `[quantize]` and `[search]`."""
    known = [each.name for each in fields(recipe) if each.name not in ("name", "seed", "quantize", "search")]
    return tuple(name for name in known if getattr(recipe, name) is not None)


def shares_of(recipe: Recipe, teacher: nn.Module | None = None) -> dict[str, float]:
    """What each step takes beside the others, roughly: passes through the training data, forward or back."""
    passes = 3 if teacher is None else 4
    sections = {step: getattr(recipe, step) for step in steps_of(recipe)}
    return {step: float(passes * getattr(section, "epochs", 0.25)) for step, section in sections.items()}


def lock_of(model: nn.Module | Path, recipe: Recipe, data: Data, teacher: nn.Module | None = None) -> Lock:
    """What `compress` is made from with these arguments; of a path, the file counts.

    Raises:
        DataError: The data cannot be repeated, or is damaged.
    """
    models: dict[str, nn.Module | Path] = {"model": model}
    if teacher is not None:
        models["teacher"] = teacher
    return Lock.of(asdict(recipe), models, data)


def steps_of(recipe: Recipe) -> tuple[str, ...]:
    """The steps of `compress` that a recipe takes, in their order: names of its sections."""
    steps = ("distill", "prune", "finetune", "qat")
    sections = {step: getattr(recipe, step) for step in steps}
    return tuple(s for s, how in sections.items() if how is not None and getattr(how, "epochs", 1) > 0)


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
            example = check_data(model, data.validation, "validation")
            return prune(
                model,
                recipe.prune,
                example,
                batches=data.train,
                quantize=recipe.quantize,
                progress=progress,
            )
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
            how = replace(recipe.distill or Distill(), progressive=None)  # it has begun already
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
        if step == "qat" and recipe.qat is not None:
            return train_quantized(
                model,
                data,
                recipe.qat,
                recipe.quantize,
                seed=recipe.seed,
                progress=progress,
                checkpoint=checkpoint,
            )
    raise ValueError(f"recipe {recipe.name!r} cannot take step {step!r}")
