"""One training loop, for teachers, students and pruned models alike."""

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.checkpoint import Checkpoint, opened
from edgewright.data import Batch, Data, Inputs, call, map_inputs, parts
from edgewright.errors import CompressError, DataError
from edgewright.lock import Lock
from edgewright.position import Position
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Training

REPORTS_PER_EPOCH = 4

Objective = Callable[[Inputs, Tensor, Tensor], Tensor]
"""Takes inputs, labels (N,) and the model's logits (N, classes); gives the loss, a scalar."""


def train(
    model: nn.Module,
    data: Data,
    how: Training,
    *,
    seed: int = 0,
    step: str = "train",
    progress: OnProgress | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Trains a copy of a classifier.

    Args:
        model: Takes a batch of inputs, gives logits (N, classes). It is not changed.
        data: What to learn from.
        how: Epochs and rates.
        seed: Fixes order, augmentation and dropout. The same seed, threads and machine give the same bits.
        step: What to call this in the progress reports.
        progress: Told a few times in each epoch; "accuracy" is measured on the validation data.
        checkpoint: A folder. Work that was cut off goes on from there, to the same bits.

    Returns:
        The trained copy, in eval mode.

    Raises:
        DataError: The data is empty or damaged, or does not fit the model.
        CompressError: The training diverged, or the checkpoint belongs to other work.
    """
    kept = opened(checkpoint, lambda: Lock.of({step: asdict(how), "seed": seed}, {"model": model}, data))
    trained = copy.deepcopy(model)
    fit(trained, data, how, seed=seed, step=step, progress=progress, checkpoint=kept)
    return trained


def fit(
    model: nn.Module,
    data: Data,
    how: Training,
    *,
    seed: int,
    step: str,
    objective: Objective | None = None,
    progress: OnProgress | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Trains a model where it is, towards any objective, and leaves it in eval mode. See `train`.

    An objective that is a module with parameters learns along with the model.

    With a checkpoint it goes on where this step was cut off. So what is learned must be in parameters and
    buffers of the model or of the objective, and all else must follow from the arguments.
    """
    if objective is None:
        objective = _label_objective(how.label_smoothing)
    batches_per_epoch = count_batches(data.train)
    total = how.epochs * batches_per_epoch
    report_every = math.ceil(batches_per_epoch / REPORTS_PER_EPOCH)
    device = device_of(model)
    learning = nn.ModuleList([model, objective] if isinstance(objective, nn.Module) else [model])
    optimizer = _optimizer(learning, how)
    with own_randomness():
        torch.manual_seed(seed)
        position = Position(learning, optimizer, torch.Generator().manual_seed(seed), checkpoint, step)
        position.resume()
        if position.done == total and progress is not None:
            note = f"{step}: was done before"
            progress(Progress(step=step, done=total, total=total, begun=total, note=note))
        for epoch in range(position.done // batches_per_epoch + 1, how.epochs + 1):
            model.train()
            for batch in position.rest(data.train, batches_per_epoch):
                rate = _rate_at(how, position.done, total)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                inputs, labels = tensors(batch, device)
                logits = call(model, inputs)
                check_fit(logits, labels)
                loss = objective(inputs, labels, logits)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                position.count(loss)
                if not position.losses[0].isfinite():
                    raise _diverged(step, epoch, how, inputs)
                last = position.done == epoch * batches_per_epoch
                if not last and position.done % batches_per_epoch % report_every:
                    continue
                metrics = {"epoch": float(epoch), "loss": position.mean_loss()}
                if progress is not None and last:
                    metrics["accuracy"] = evaluate(model, data.validation)
                with position.kept(finished=position.done == total):
                    if progress is not None:
                        progress(
                            Progress(
                                step=step,
                                done=position.done,
                                total=total,
                                begun=position.begun,
                                metrics=metrics,
                            )
                        )
    model.eval()


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Measures accuracy, 0..1, in eval mode; the model's own mode and the random state come back afterwards.

    Raises:
        DataError: There are no batches, or they do not fit the model.
    """
    right = count = 0
    device = device_of(model)
    with evaluating(model), torch.no_grad(), own_randomness():
        for batch in batches:
            inputs, labels = tensors(batch, device)
            logits = call(model, inputs)
            check_fit(logits, labels)
            right += int((logits.argmax(dim=1) == labels).sum())
            count += len(labels)
    if count == 0:
        raise DataError("there is no data to measure on: the batches are empty")
    return right / count


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model, and all in it, into eval mode for a while."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def own_randomness() -> Iterator[None]:
    """Lets torch draw random numbers for a while, and then puts its state back as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def device_of(model: nn.Module) -> torch.device:
    """Returns where a model's parameters are; the CPU if it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def tensors(batch: Batch, device: torch.device) -> tuple[Inputs, Tensor]:
    """Returns a batch as tensors, floating inputs as float32 and labels as int64.

    Raises:
        DataError: It is no pair of inputs and labels.
    """
    try:
        given, labels = batch
        inputs, labels = _inputs(given), torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"each batch must be a pair (inputs, labels) of arrays: {error}") from error
    counts = sorted({len(part) for part in parts(inputs)})
    if labels.is_floating_point() or labels.ndim != 1 or counts != [len(labels)]:
        raise DataError(
            f"labels must be one whole number per sample: got {labels.dtype} of shape {tuple(labels.shape)} "
            f"for {' and '.join(map(str, counts))} samples"
        )
    return map_inputs(
        inputs, lambda x: (x.float() if x.is_floating_point() else x).to(device)
    ), labels.long().to(device)


def _inputs(given: Any) -> Inputs:
    if isinstance(given, Mapping):
        return {str(name): torch.as_tensor(value) for name, value in given.items()}
    if isinstance(given, tuple | list) and given and all(hasattr(value, "shape") for value in given):
        return tuple(torch.as_tensor(value) for value in given)
    return torch.as_tensor(given)


def check_fit(logits: Tensor, labels: Tensor) -> None:
    """Checks that labels are class numbers of a model's output.

    Raises:
        DataError: The output is not (N, classes), or a label is none of those classes.
    """
    if logits.ndim != 2 or len(logits) != len(labels):
        raise DataError(
            f"the model gives an output of shape {tuple(logits.shape)} for {len(labels)} samples; "
            f"a classifier's is (samples, classes)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"labels go from {low} to {high}, but the model's output has {logits.shape[1]} classes, "
            f"0 to {logits.shape[1] - 1}"
        )


def _label_objective(smoothing: float) -> Objective:
    def loss(inputs: Inputs, labels: Tensor, logits: Tensor) -> Tensor:  # noqa: ARG001
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    return loss


def count_batches(batches: Iterable[Batch]) -> int:
    """Counts the batches of one pass, by going through them where there is no other way.

    Raises:
        DataError: There are none.
    """
    count = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    if count == 0:
        raise DataError("the training data is empty")
    return count


def _optimizer(model: nn.Module, how: Training) -> torch.optim.Optimizer:
    trainable = [each for each in model.parameters() if each.requires_grad]
    if not trainable:
        raise CompressError("the model has no parameters to train (requires_grad is False for all)")
    matrices = [each for each in trainable if each.ndim >= 2]
    vectors = [each for each in trainable if each.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": how.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=how.learning_rate,
        fused=True,
    )


def _rate_at(how: Training, done: int, total: int) -> float:
    """Returns the learning rate: a straight line up, then half a cosine down (Loshchilov & Hutter 2017)."""
    warm = how.warmup * total
    if done < warm:
        return how.learning_rate * (done + 1) / (warm + 1)
    return how.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warm) / (total - warm)))


def _diverged(step: str, epoch: int, how: Training, inputs: Inputs) -> Exception:
    if not all(part.isfinite().all() for part in parts(inputs)):
        return DataError(f"the training inputs hold NaN or infinity (met in epoch {epoch} of {step})")
    return CompressError(
        f"{step} diverged in epoch {epoch}: the loss is no longer a finite number; "
        f"lower its learning_rate (now {how.learning_rate:g})"
    )
