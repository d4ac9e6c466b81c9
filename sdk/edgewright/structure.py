"""What a step made of a model, as tensors and JSON: no pickle, so a file of it is safe to read.

A step may change parameters and buffers in value and shape, remove layers, put one of `KINDS` in the place of
another, and set plain attributes (as pruning sets `out_channels`). What it does beyond that cannot be told,
and `described` notices, for it rebuilds the model and compares.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgewright.attention import Attention
from edgewright.depth import Skip

PLAIN = (bool, int, float, str, type(None))
KINDS: Mapping[str, Callable[[Any], nn.Module]] = {
    "Identity": lambda _: nn.Identity(),
    "Skip": lambda _: Skip(),
    "Attention": Attention,
}
"""What steps put in the place of a layer, by the name of its class: how it is made of that layer."""


def described(model: nn.Module, original: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tells a model by what differs from the one it was made from.

    Returns:
        Its parameters and buffers by name, and a table for JSON; None where that does not tell all.
    """
    kinds = {}
    given = dict(original.named_modules(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        if name in given and type(module) is not type(given[name]):
            kinds[name] = type(module).__name__
    try:
        before = dict(_with_kinds(original, kinds).named_modules(remove_duplicate=False))
        attributes = {}
        for name, module in model.named_modules(remove_duplicate=False):
            now, then = plain_attributes(module), plain_attributes(before[name])
            attributes[name] = {k: v for k, v in now.items() if k not in then or then[k] != v}
        tensors = {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}
        tensors |= {n: b.detach().clone() for n, b in model.named_buffers(remove_duplicate=False)}
        frozen = [n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad]
        table = {"modules": attributes, "kinds": kinds, "frozen": frozen}
        again = rebuilt(original, tensors, table)
    except (KeyError, AttributeError, TypeError):
        return None
    return (tensors, table) if _alike(model, again) else None


def rebuilt(original: nn.Module, tensors: Mapping[str, Tensor], table: Mapping[str, Any]) -> nn.Module:
    """Makes the model that `described` told, in eval mode; the original stays as it is.

    Raises:
        KeyError, AttributeError, TypeError: It was told of another original.
    """
    model = _with_kinds(original, table["kinds"])
    device = next((p.device for p in original.parameters()), torch.device("cpu"))
    for name, _ in list(model.named_modules(remove_duplicate=False)):
        holder, _, own = name.rpartition(".")
        if name and name not in table["modules"] and holder in table["modules"]:
            delattr(model.get_submodule(holder), own)
    made: dict[int, nn.Parameter] = {}  # tensors that two layers share stay shared
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in table["modules"][name].items():
            was = getattr(module, key, None)
            setattr(
                module, key, tuple(value) if isinstance(was, tuple) and isinstance(value, list) else value
            )
        prefix = f"{name}." if name else ""
        for own, parameter in list(module._parameters.items()):  # noqa: SLF001 - also those that are None
            full = prefix + own
            if full not in tensors:
                module.register_parameter(own, None)
            elif parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(
                        tensors[full].to(device), requires_grad=full not in table["frozen"]
                    )
                setattr(module, own, made[id(parameter)])
        for own in list(module._buffers):  # noqa: SLF001 - also those that are None
            full = prefix + own
            setattr(module, own, tensors[full].to(device) if full in tensors else None)
    return model.eval()


def _with_kinds(original: nn.Module, kinds: Mapping[str, str]) -> nn.Module:
    """A copy in which some layers are of another kind, made of what was there."""
    model = copy.deepcopy(original)
    for name, kind in kinds.items():
        holder, _, own = name.rpartition(".")
        setattr(model.get_submodule(holder), own, KINDS[kind](model.get_submodule(name)))
    return model


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of one module that are numbers, texts, or lists of them; as JSON has them."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, PLAIN):
            found[name] = value
        elif isinstance(value, list | tuple) and all(isinstance(v, PLAIN) for v in value):
            found[name] = list(value)
    return found


def _alike(one: nn.Module, two: nn.Module) -> bool:
    """Whether two modules have the same layers, attributes, parameters and buffers."""

    def layers(model: nn.Module) -> dict[str, Any]:
        return {n: (type(m), plain_attributes(m)) for n, m in model.named_modules(remove_duplicate=False)}

    def values(model: nn.Module) -> dict[str, Tensor]:
        both = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        return dict(both)

    def frozen(model: nn.Module) -> list[bool]:
        return [p.requires_grad for p in model.parameters()]

    here, there = values(one), values(two)
    return (
        layers(one) == layers(two)
        and here.keys() == there.keys()
        and frozen(one) == frozen(two)
        and all(torch.equal(value, there[name]) for name, value in here.items())
    )
