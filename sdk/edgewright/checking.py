"""What `compress` is given, looked at before any work: weights, data, and layers that do nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgewright.data import Batch, Batches, Inputs, call, parts
from edgewright.errors import CompressError, DataError
from edgewright.training import check_fit, device_of, evaluating, own_randomness, tensors

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU)
DEAD_BATCHES = 4


def check_weights(model: nn.Module, role: str) -> None:
    """Looks for values that are no numbers.

    Raises:
        CompressError: A parameter or buffer holds NaN or infinity.
    """
    for name, each in model.state_dict().items():
        if each.is_floating_point() and not each.isfinite().all():
            raise CompressError(f"the {role}'s weights are damaged: {name!r} holds NaN or infinity")


def check_data(model: nn.Module, batches: Iterable[Batch], part: str) -> Inputs:
    """Tries the first batch on the model, and looks at all labels that are in memory.

    Returns:
        The inputs of the first batch.

    Raises:
        DataError: There is no batch, or the model cannot take it, or labels are no classes of its output.
        CompressError: The model gives NaN or infinity.
    """
    for batch in batches:
        inputs, labels = tensors(batch, device_of(model))
        try:
            with evaluating(model), torch.no_grad():
                logits = call(model, inputs)
        except (RuntimeError, TypeError, IndexError) as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in parts(inputs))
            raise DataError(f"the model cannot take the {part} inputs, of shape {shapes}: {error}") from error
        check_fit(logits, labels)
        if isinstance(batches, Batches):
            check_fit(logits[:1].expand(len(batches.labels), -1), batches.labels)
        if not logits.isfinite().all() and all(x.isfinite().all() for x in parts(inputs)):
            raise CompressError(
                f"the model's output holds NaN or infinity for the {part} data, though its weights are "
                "finite: a layer overflows or divides by zero"
            )
        return inputs
    raise DataError(f"the {part} data is empty")


def dead_layers(model: nn.Module, batches: Iterable[Batch]) -> tuple[str, ...]:
    """Names the layers that do nothing: their weights, or all that they give for some batches, are zero.

    Args:
        model: Is run in eval mode.
        batches: The first four are looked at.

    Returns:
        Sentences for people, one for each layer.
    """
    alive: dict[str, bool] = {}
    kinds = (*LAYERS, *NORMS, *ACTIVATIONS)
    layers = {name: part for name, part in model.named_modules() if isinstance(part, kinds)}
    hooks = [part.register_forward_hook(_watch(name, alive)) for name, part in layers.items()]
    device = device_of(model)
    try:
        with evaluating(model), torch.no_grad(), own_randomness():
            for batch in itertools.islice(batches, DEAD_BATCHES):
                call(model, tensors(batch, device)[0])
    finally:
        for hook in hooks:
            hook.remove()
    return _sentences(layers, alive)


def _watch(name: str, alive: dict[str, bool]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_layer: nn.Module, _inputs: Any, out: Any) -> None:
        alive[name] = alive.get(name, False) or (isinstance(out, Tensor) and bool(out.any()))

    return hook


def _sentences(layers: Mapping[str, nn.Module], alive: dict[str, bool]) -> tuple[str, ...]:
    zero = [
        name
        for name, part in layers.items()
        if isinstance(part, LAYERS) and part.weight.numel() and not part.weight.any()
    ]
    silent = [name for name, seen in alive.items() if not seen and name not in zero]
    return (
        *(f"layer {name!r} is dead: all of its weights are zero" for name in zero),
        *(f"layer {name!r} is dead: it gives only zeros for the validation data" for name in silent),
    )
