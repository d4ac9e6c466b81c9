"""What depends on what in a model, as groups of channels or of attention heads that go together.

Found by Torch-Pruning's dependency graph (DepGraph, Fang et al. 2023): a residual sum ties its inputs
together, a depthwise convolution follows its input, a batch normalisation its convolution, and the queries,
keys and values of attention each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from edgewright.data import Inputs
from edgewright.errors import CompressError

_WEIGHTED = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A layer that reads a group's channels.

    Attributes:
        layer: A convolution or linear layer.
        inputs: Numbers of its inputs, (n,) int64.
        units: The unit of the group that each of them belongs to, (n,) int64.
    """

    layer: nn.Module
    inputs: torch.Tensor
    units: torch.Tensor


@dataclass(slots=True)
class Heads:
    """Where a module keeps the number of its heads.

    Attributes:
        owner: The module whose attributes they are.
        name: Of the owner.
        counts: Attributes that hold the number of heads.
        widths: Attributes that hold the width of all heads together.
    """

    owner: nn.Module
    name: str
    counts: tuple[str, ...]
    widths: tuple[str, ...]


@dataclass(slots=True)
class Group:
    """Channels, or heads, that can go one by one, each with all that depends on it.

    Attributes:
        name: Of the first layer.
        root: That layer.
        width: Channels it had at first.
        size: Channels of a unit: 1, or those of a head.
        heads: Of attention, or None.
    """

    name: str
    root: nn.Module
    width: int
    size: int = 1
    heads: Heads | None = None

    @property
    def first_units(self) -> int:
        """Units it had at first."""
        return self.width // self.size


class Dependencies:
    """The groups of a model that may become narrower.

    Left whole are the layers that make the output, grouped convolutions other than depthwise ones, layers
    whose weights another layer shares, the stream that runs through attention, and attention whose number
    of heads is not found.

    Args:
        model: In eval mode; all its parameters require gradients.
        example: Inputs to trace with, (N, ...).

    Raises:
        CompressError: The model cannot be traced.
    """

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        import torch_pruning  # untyped, and only this and importance.py need it

        self._names = {module: name for name, module in model.named_modules()}
        self._model = model
        self._tied = _tied(model)
        self.unrecognised: list[str] = []
        try:
            self._graph = torch_pruning.DependencyGraph()
            self._graph.build_dependency(model, example_inputs=_traced(example), verbose=False)
            groups = list(self._graph.get_all_groups())
        except Exception as error:  # the tracer raises whatever it stumbles over
            raise CompressError(f"cannot trace what depends on what in this model: {error}") from error
        attends = [_attends(group) for group in groups]
        readers = {
            layer
            for group, attention in zip(groups, attends, strict=True)
            if attention
            for layer in self._writers(group)
        }
        self.groups = [
            made
            for group, attention in zip(groups, attends, strict=True)
            if self._may_shrink(group, readers) and (made := self._group(group, attention)) is not None
        ]

    def units(self, group: Group) -> int:
        """How many units a group has now."""
        return int(self._graph.get_out_channels(group.root)) // group.size

    def whole(self, group: Group) -> Any:
        """All of a group as Torch-Pruning's importances take it."""
        return self._pruning(group, range(self.units(group) * group.size))

    def consumers(self, group: Group) -> list[Consumer]:
        """The layers that read a group."""
        found = []
        for item in self.whole(group):
            layer = item.dep.target.module
            if self._reads(item.dep):
                units = torch.tensor(item.root_idxs) // group.size
                found.append(Consumer(layer, torch.tensor(item.idxs), units))
        return found

    def norms(self, group: Group) -> list[nn.Module]:
        """The batch normalisations of a group."""
        return [m for dep, _ in self.whole(group) if _is_batch_norm(m := dep.target.module)]

    def remove(self, group: Group, units: Sequence[int]) -> None:
        """Takes units away, and tells attention how many heads it has left."""
        if not units:
            return
        channels = [u * group.size + i for u in sorted(units) for i in range(group.size)]
        self._pruning(group, channels).prune()
        if group.heads is not None:
            left = self.units(group)
            for name in group.heads.counts:
                setattr(group.heads.owner, name, left)
            for name in group.heads.widths:
                setattr(group.heads.owner, name, left * group.size)

    def _pruning(self, group: Group, channels: Sequence[int]) -> Any:
        function = self._graph.get_pruner_of_module(group.root).prune_out_channels
        return self._graph.get_pruning_group(group.root, function, list(channels))

    def _reads(self, dep: Any) -> bool:
        layer = dep.target.module
        return (
            isinstance(layer, _WEIGHTED)
            and self._graph.is_in_channel_pruning_fn(dep.handler)
            and not self._graph.is_out_channel_pruning_fn(dep.handler)
        )

    def _writers(self, group: Any) -> list[nn.Module]:
        """The layers of a group that lose outputs."""
        return [
            layer
            for dep, _ in group
            if isinstance(layer := dep.target.module, _WEIGHTED)
            and self._graph.is_out_channel_pruning_fn(dep.handler)
        ]

    def _may_shrink(self, group: Any, attention_readers: set[nn.Module]) -> bool:
        members = [dep for dep, _ in group]
        outputs = [d.target for d in members if self._graph.is_out_channel_pruning_fn(d.handler)]
        if any(not node.outputs for node in outputs):
            return False  # it makes the model's output
        modules = [dep.target.module for dep in members]
        if any(_is_grouped(m) or isinstance(m, nn.MultiheadAttention) or m in self._tied for m in modules):
            return False
        readers = [dep.target.module for dep in members if self._reads(dep)]
        return bool(readers) and not attention_readers & set(readers)

    def _group(self, group: Any, attention: bool) -> Group | None:
        root = group[0].dep.target.module
        name, width = self._names[root], int(self._graph.get_out_channels(root))
        if not attention:
            return Group(name, root, width)
        writers = self._writers(group)
        readers = [dep.target.module for dep, _ in group if self._reads(dep)]
        same = len({layer.weight.shape[0] for layer in writers}) == 1  # type: ignore[index]
        if len(writers) == 3 and len(readers) == 1 and same:
            heads = self._heads([self._names[layer] for layer in writers], width)
            if heads is not None:
                count = getattr(heads.owner, heads.counts[0])
                return Group(name, root, width, width // count, heads)
        self.unrecognised.append(name)
        return None

    def _heads(self, names: Sequence[str], width: int) -> Heads | None:
        """Looks for the number of heads in the modules that hold queries, keys and values, inside out."""
        paths = [name.split(".")[:-1] for name in names]
        path = [places[0] for places in takewhile(lambda p: len(set(p)) == 1, zip(*paths, strict=False))]
        while True:
            owner = self._model.get_submodule(".".join(path))
            numbers = {k: v for k, v in vars(owner).items() if type(v) is int and "head" in k and v > 0}
            sizes = {k for k in numbers if any(word in k for word in ("dim", "size", "width"))}
            counts = [k for k in numbers if k not in sizes and width % numbers[k] == 0]
            if len({numbers[k] for k in counts}) == 1:
                widths = tuple(
                    k for k in sizes if numbers[k] == width and width != width // numbers[counts[0]]
                )
                return Heads(owner, ".".join(path), tuple(counts), widths)
            if not path or counts:
                return None
            path = path[:-1]


def _attends(group: Any) -> bool:
    """Whether channels of a group meet a softmax or a scaled dot product before a layer reads them."""
    names = [str(getattr(dep.target.grad_fn, "name", str)()) for dep, _ in group]
    return any("ScaledDotProduct" in name or "Softmax" in name for name in names)


def _is_grouped(module: object) -> bool:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.groups > 1 and not module.groups == module.in_channels == module.out_channels
    return isinstance(module, nn.GroupNorm)


def _is_batch_norm(module: object) -> bool:
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))


def _tied(model: nn.Module) -> set[nn.Module]:
    """The modules that share a parameter with another."""
    holders = [(module, p) for module in model.modules() for p in module.parameters(recurse=False)]
    counts = Counter(id(p) for _, p in holders)
    return {module for module, p in holders if counts[id(p)] > 1}


def _traced(example: Inputs) -> Any:
    """Inputs in the form in which Torch-Pruning takes them."""
    if isinstance(example, Mapping):
        return dict(example)
    return example if isinstance(example, tuple) else (example,)
