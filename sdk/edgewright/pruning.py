"""Structured pruning: whole channels go, with all that depends on them.

What depends on what is found by Torch-Pruning's dependency graph (DepGraph, Fang et al. 2023): a residual sum
ties its inputs together, a depthwise convolution follows its input, a batch normalisation its convolution.
"""

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.data import Batch, Inputs, call, map_inputs
from edgewright.errors import CompressError, DataError
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Prune
from edgewright.training import check_fit, device_of, evaluating, tensors


def prune(
    model: nn.Module,
    how: Prune,
    example_inputs: Inputs,
    *,
    batches: Iterable[Batch] | None = None,
    progress: OnProgress | None = None,
) -> nn.Module:
    """Removes channels from a copy of a model.

    Every convolution and linear layer loses the same part of its channels, but for the ones that make the
    model's output, and grouped convolutions other than depthwise ones, which stay whole.

    Args:
        model: Any model that Torch-Pruning can trace, without attention. It is not changed.
        how: What to remove.
        example_inputs: Inputs to trace with, (N, ...).
        batches: Training batches; "taylor" weighs channels by them.
        progress: Told after each round, with "parameters" and "macs" of the model.

    Returns:
        The pruned copy, in eval mode. It needs fine-tuning.

    Raises:
        ValueError: "taylor" is asked for without batches.
        DataError: The batches are empty or do not fit the model.
        CompressError: The model cannot be pruned.
    """
    if how.importance == "taylor" and batches is None:
        raise ValueError('importance "taylor" needs `batches`; give them, or choose "magnitude"')
    attention = [name for name, part in model.named_modules() if isinstance(part, nn.MultiheadAttention)]
    if attention:
        raise CompressError(f"cannot prune attention, which the model has in {attention[0]!r}")
    pruned = copy.deepcopy(model).eval()
    trainable = {name: each.requires_grad for name, each in pruned.named_parameters()}
    pruned.requires_grad_(True)
    example = _one(example_inputs, model)
    with torch.no_grad():
        shape_before = call(pruned, example).shape
    graph = _Graph(pruned, example)
    for done in range(1, how.steps + 1):
        if batches is not None and how.importance == "taylor":
            _add_gradients(pruned, itertools.islice(batches, how.batches))
        graph.shrink(how, part=done / how.steps)
        pruned.zero_grad(set_to_none=True)
        _check_output(pruned, example, shape_before)
        if progress is not None:
            metrics = {
                "parameters": float(sum(each.numel() for each in pruned.parameters())),
                "macs": float(count_macs(pruned, example)),
            }
            progress(Progress(step="prune", done=done, total=how.steps, metrics=metrics))
    for name, each in pruned.named_parameters():
        each.requires_grad_(trainable[name])
    return pruned


def count_macs(model: nn.Module, example_inputs: Inputs) -> int:
    """Counts the multiply-accumulates that convolutions and linear layers do for one sample."""
    total = 0

    def count(layer: nn.Module, _inputs: Any, out: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += out[0].numel() * weight[0].numel()

    layers = [part for part in model.modules() if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with evaluating(model), torch.no_grad():
            call(model, _one(example_inputs, model))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _one(inputs: Inputs, model: nn.Module) -> Inputs:
    """The first sample of a batch, where the model is."""
    device = device_of(model)
    return map_inputs(inputs, lambda value: value[:1].to(device))


class _Graph:
    """What depends on what in a model, and how wide each layer was at first."""

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        import torch_pruning  # untyped, and only this needs it

        self.importances = {
            "taylor": torch_pruning.importance.GroupTaylorImportance(normalizer=None),
            "magnitude": torch_pruning.importance.GroupMagnitudeImportance(normalizer=None),
        }
        try:
            self.graph = torch_pruning.DependencyGraph()
            self.graph.build_dependency(model, example_inputs=_traced(example), verbose=False)
            self.roots = [group[0][0].target.module for group in self._free_groups()]
        except Exception as error:  # the tracer raises whatever it stumbles over
            raise CompressError(f"cannot trace what depends on what in this model: {error}") from error
        if not self.roots:
            raise CompressError("there is nothing to prune: no inner convolution or linear layer was found")
        self.widths = [self.graph.get_out_channels(root) for root in self.roots]

    def shrink(self, how: Prune, *, part: float) -> None:
        """Removes the least important channels until `part` of the whole job is done."""
        importance = self.importances[how.importance]
        for root, width in zip(self.roots, self.widths, strict=True):
            now = self.graph.get_out_channels(root)
            remove = now - kept_channels(width, how.ratio * part, how.round_to)
            if remove <= 0:
                continue
            pruning = self.graph.get_pruner_of_module(root).prune_out_channels
            scores = importance(self.graph.get_pruning_group(root, pruning, list(range(now))))
            least = torch.argsort(scores, stable=True)[:remove].tolist()
            self.graph.get_pruning_group(root, pruning, sorted(least)).prune()

    def _free_groups(self) -> list[Any]:
        """Returns the groups of layers that may lose channels: none of them makes the model's output."""
        free = []
        for group in self.graph.get_all_groups():
            members = [dep for dep, _ in group]
            outputs = [dep.target for dep in members if self.graph.is_out_channel_pruning_fn(dep.handler)]
            makes_output = any(not node.outputs for node in outputs)
            if not makes_output and not any(_is_grouped(dep.target.module) for dep in members):
                free.append(group)
        return free


def kept_channels(width: int, ratio: float, round_to: int) -> int:
    """Returns how many of `width` channels stay: the nearest multiple of `round_to`, but not zero."""
    wanted = max(1, round(width * (1 - ratio) / round_to)) * round_to
    return min(width, wanted)


def _is_grouped(module: object) -> bool:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.groups > 1 and not module.groups == module.in_channels == module.out_channels
    return isinstance(module, nn.GroupNorm)


def _add_gradients(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Sums the loss's gradients over some batches; the model stays in eval mode."""
    device = device_of(model)
    count = 0
    for batch in batches:
        inputs, labels = tensors(batch, device)
        logits = call(model, inputs)
        check_fit(logits, labels)
        functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        count += 1
    if count == 0:
        raise DataError("there are no batches to weigh channels by")


def _traced(example: Inputs) -> Any:
    """Inputs in the form in which Torch-Pruning takes them."""
    return (
        dict(example)
        if isinstance(example, Mapping)
        else example
        if isinstance(example, tuple)
        else (example,)
    )


def _check_output(model: nn.Module, example: Inputs, shape: torch.Size) -> None:
    """Runs the pruned model once: what the tracer misread shows here."""
    try:
        with torch.no_grad():
            now = call(model, example).shape
    except RuntimeError as error:
        raise CompressError(
            f"this model does not run once channels are gone (it may reshape by a fixed size): {error}"
        ) from error
    if now != shape:
        raise CompressError(f"pruning changed the output's shape from {tuple(shape)} to {tuple(now)}")
