"""What makes a channel, a head or a block worth keeping."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.data import Batch, call
from edgewright.dependencies import Dependencies, Group
from edgewright.depth import without
from edgewright.errors import CompressError, DataError
from edgewright.recipe import Prune
from edgewright.training import check_fit, device_of, evaluating, own_randomness, tensors


def scores_of(
    model: nn.Module, graph: Dependencies, how: Prune, batches: Iterable[Batch] | None
) -> list[Tensor]:
    """Weighs every unit of every group.

    - "taylor": what the loss would lose to first order, the mean over samples of ``|dL/dg|`` where the gate
      g, now 1, multiplies the unit (Molchanov et al. 2019).
    - "hessian": what it would lose to second order, ``(dL/dg)^2 / 2``, with the empirical Fisher information
      for the Hessian (Theis et al. 2018, equation 7).
    - "batch_norm": the scale of batch normalisation (Liu et al. 2017), over the mean of its group.
    - "magnitude": the squared L2 norm of the weights, over the mean of its group.

    Args:
        model: The model of the graph, in eval mode.
        graph: Its groups.
        how: Which importance, and how many batches.
        batches: For "taylor" and "hessian".

    Returns:
        For each group its scores, float32 (units,).

    Raises:
        DataError: There are no batches, or they do not fit the model.
        CompressError: A group is dead, or a score is not a number, or batch normalisation is asked for where
            there is none.
    """
    if how.importance in ("taylor", "hessian"):
        assert batches is not None
        found = _gates(
            model, graph, itertools.islice(batches, how.batches), squared=how.importance == "hessian"
        )
    else:
        found = [_of_weights(graph, group, how.importance) for group in graph.groups]
    for group, scores in zip(graph.groups, found, strict=True):
        if not scores.isfinite().all():
            raise CompressError(
                f"cannot weigh the channels of {group.name!r}: NaN or infinity came up in them"
            )
        if len(scores) > 1 and not scores.any():
            raise CompressError(
                f"{group.name!r} is dead: no channel of it changes the outputs, so there is none to prefer; "
                "repair the layer and train it again, or take it out of the model"
            )
    return found


def _of_weights(graph: Dependencies, group: Group, importance: str) -> Tensor:
    import torch_pruning  # untyped

    if importance == "batch_norm":
        if not graph.norms(group):
            raise CompressError(
                f"{group.name!r} has no batch normalisation, by whose scale to weigh its channels; "
                'choose importance "taylor", "hessian" or "magnitude"'
            )
        weigh = torch_pruning.importance.BNScaleImportance(normalizer=None)
    else:
        weigh = torch_pruning.importance.GroupMagnitudeImportance(normalizer=None)
    scores: Tensor = weigh(graph.whole(group)).view(-1, group.size).sum(1)
    return scores / scores.mean() if scores.any() else scores


def _gates(model: nn.Module, graph: Dependencies, batches: Iterable[Batch], *, squared: bool) -> list[Tensor]:
    """Gradients of the loss by gates on the units, where layers read them, sample by sample."""
    device = device_of(model)
    totals = [torch.zeros(graph.units(group), device=device) for group in graph.groups]
    readers: dict[nn.Module, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for total, group in zip(totals, graph.groups, strict=True):
        for each in graph.consumers(group):
            readers.setdefault(each.layer, []).append((total, each.inputs.to(device), each.units.to(device)))
    seen: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append((layer, inputs[0]))

    hooks = [layer.register_forward_pre_hook(keep) for layer in readers]
    count = 0
    try:
        for batch in batches:
            inputs, labels = tensors(batch, device)
            seen.clear()
            logits = call(model, inputs)
            check_fit(logits, labels)
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
                loss, [x for _, x in seen], allow_unused=True
            )
            for (layer, x), gradient in zip(seen, gradients, strict=True):
                if gradient is None:
                    continue
                axis = x.ndim - 1 if isinstance(layer, nn.Linear) else 1
                products = (x.detach() * gradient).movedim(axis, 1)
                products = products.reshape(*products.shape[:2], -1).sum(2)  # (samples, inputs)
                for total, wanted, units in readers[layer]:
                    gates = products.new_zeros(len(products), len(total))
                    gates.index_add_(1, units, products[:, wanted])
                    total += (gates.square() / 2 if squared else gates.abs()).sum(0)
            count += len(labels)
    finally:
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise DataError("there are no batches to weigh channels by")
    return [(total / count).cpu() for total in totals]


def block_losses(
    model: nn.Module, blocks: Sequence[str], batches: Iterable[Batch], count: int
) -> dict[str, float]:
    """Measures how much the loss, per sample, rises without each block.

    Args:
        model: Holds the blocks.
        blocks: Names of the modules.
        batches: Labelled batches.
        count: How many of them to look at.

    Raises:
        DataError: There are no batches, or they do not fit the model.
        CompressError: The loss is not a number.
    """
    chosen = list(itertools.islice(batches, count))
    whole = _loss(model, chosen)
    risen = {}
    for name in blocks:
        with without(model, name):
            risen[name] = _loss(model, chosen) - whole
    return risen


def _loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    device, total, count = device_of(model), 0.0, 0
    with evaluating(model), torch.no_grad(), own_randomness():
        for batch in batches:
            inputs, labels = tensors(batch, device)
            logits = call(model, inputs)
            check_fit(logits, labels)
            total += float(functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    if count == 0:
        raise DataError("there are no batches to weigh blocks by")
    if not math.isfinite(total):
        raise CompressError("cannot weigh blocks: the loss is not a finite number")
    return total / count
