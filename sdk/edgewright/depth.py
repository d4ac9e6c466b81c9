"""Depth: whole residual blocks that can go, because what enters them can go on without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgewright.data import Inputs, call

# Nodes of autograd's graph that end the path of the residual: it passes through no weights.
_WEIGHING = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "ScaledDotProduct", "Embedding")


class Skip(nn.Module):
    """Stands where a block was: gives its first input on, whatever else it is given."""

    def forward(self, x: Tensor, *_more: Any, **_named: Any) -> Tensor:
        """Returns `x`, of any shape."""
        return x


def residual_blocks(model: nn.Module, example: Inputs) -> list[str]:
    """Names the blocks that can be removed, in the order of the model.

    They are the innermost elements of an `nn.Sequential` or `nn.ModuleList` that have layers inside, that run
    once, that give one tensor of the shape and dtype of their first input, and in which a path from the one
    to the other meets no weights (He et al. 2016). A block into which other code looks, as
    `nn.TransformerEncoder` does into its first layer, is not among them.

    Args:
        model: In eval mode.
        example: Inputs, (N, ...).
    """
    rows = [m for m in model.modules() if isinstance(m, (nn.Sequential, nn.ModuleList))]
    elements = {part for row in rows for part in row if list(part.children())}
    names = [name for name, part in model.named_modules() if part in elements and name]
    inner = [n for n in names if not any(other.startswith(f"{n}.") for other in names)]
    found: dict[str, list[bool]] = {name: [] for name in inner}

    def watch(name: str) -> Any:
        def hook(_part: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
            first = inputs[0] if inputs else None
            found[name].append(
                isinstance(first, Tensor)
                and isinstance(out, Tensor)
                and first.shape == out.shape
                and first.dtype == out.dtype
                and _has_plain_path(out, first)
            )

        return hook

    def mark(_part: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            return (inputs[0].detach().requires_grad_().clone(), *inputs[1:])  # a node to be met again
        return None

    hooks = []
    for name in inner:
        part = model.get_submodule(name)
        hooks += [part.register_forward_pre_hook(mark), part.register_forward_hook(watch(name))]
    try:
        with torch.enable_grad():
            call(model, example)
    finally:
        for each in hooks:
            each.remove()
    return [name for name in inner if found[name] == [True] and _runs_without(model, name, example)]


def _runs_without(model: nn.Module, name: str, example: Inputs) -> bool:
    with without(model, name), torch.no_grad():
        try:
            call(model, example)
        except AttributeError:  # of the block, that something else reads
            return False
    return True


def _has_plain_path(out: Tensor, first: Tensor) -> bool:
    """Whether a path of autograd's graph leads from `out` to `first` past no weights."""
    goal, start = first.grad_fn, out.grad_fn
    stack, seen = [start], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node == goal:
            return True
        if not node.name().startswith(_WEIGHING):
            stack.extend(following for following, _ in node.next_functions)
    return False


@contextmanager
def without(model: nn.Module, name: str) -> Iterator[None]:
    """Takes a block out of a model for a while."""
    block = model.get_submodule(name)
    model.set_submodule(name, Skip())
    try:
        yield
    finally:
        model.set_submodule(name, block)


def remove_block(model: nn.Module, name: str) -> None:
    """Takes a block out of a model for good."""
    model.set_submodule(name, Skip())
