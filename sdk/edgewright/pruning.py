"""Structured pruning: whole channels, heads and blocks go, with all that depends on them."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgewright.attention import Replaced
from edgewright.data import Batch, Inputs, call, map_inputs
from edgewright.dependencies import Dependencies, Group
from edgewright.depth import remove_block, residual_blocks
from edgewright.errors import CompressError
from edgewright.importance import block_losses, scores_of
from edgewright.latency_budget import Stopwatch, cannot_be_met, choose, latency_model, offered
from edgewright.latency_model import LatencyModel
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Prune, Quantize
from edgewright.training import device_of, evaluating

TRIES = 4  # to come within a budget, as measured: a prediction is some percent off


def prune(
    model: nn.Module,
    how: Prune,
    example_inputs: Inputs,
    *,
    batches: Iterable[Batch] | None = None,
    quantize: Quantize | None = None,
    progress: OnProgress | None = None,
) -> nn.Module:
    """Removes channels, heads of attention and residual blocks from a copy of a model.

    Left whole are the layers that make the model's output, grouped convolutions other than depthwise ones,
    layers that share their weights, and the stream that runs through attention. Attention is
    `nn.MultiheadAttention`, or written out with a linear layer each for queries, keys and values, in a module
    that keeps its number of heads in an attribute, such as `num_heads`, which is rewritten. That the model
    then computes what it did with those heads silenced is tried on the spot.

    Args:
        model: Any model that Torch-Pruning can trace. It is not changed.
        how: What to remove.
        example_inputs: Inputs to trace with, (N, ...).
        batches: Training batches; "taylor" and "hessian" weigh by them, and blocks are chosen by them.
        quantize: How the model will be exported, which a latency budget must know; defaults if left out.
        progress: Told after each block and each round, with "parameters" and "macs" of the model. With a
            budget, of the measurements too (step "latency"), and in the end of "before_ms", "predicted_ms",
            "measured_ms", "speedup", and "cross_validated", the mean error of predictions (a part of 1).

    Returns:
        The pruned copy, in eval mode. It needs fine-tuning.

    Raises:
        ValueError: Batches are needed and not given.
        DataError: The batches are empty or do not fit the model.
        CompressError: The model cannot be pruned as asked.
    """
    if batches is None and (how.blocks or how.importance in ("taylor", "hessian")):
        what = "removing blocks" if how.blocks else f'importance "{how.importance}"'
        raise ValueError(f'{what} needs `batches`; give them, or choose "magnitude" and no blocks')
    pruned = copy.deepcopy(model).eval()
    trainable = {name: each.requires_grad for name, each in pruned.named_parameters()}
    pruned.requires_grad_(True)
    replaced = Replaced.in_model(pruned)
    job = _Job(pruned, how, _one(example_inputs, model), batches, progress)
    if how.speedup or how.latency_ms:
        job.run_to_budget(Stopwatch(example_inputs, quantize or Quantize()))
    else:
        job.run()
    replaced.restore(pruned)
    for name, each in pruned.named_parameters():
        each.requires_grad_(trainable.get(name, True))
    return pruned


class _Job:
    """One pruning of one model, where it is."""

    def __init__(
        self,
        model: nn.Module,
        how: Prune,
        example: Inputs,
        batches: Iterable[Batch] | None,
        progress: OnProgress | None,
    ) -> None:
        self.model, self.how, self.example = model, how, example
        self.batches, self.progress = batches, progress
        with torch.no_grad():
            self.shape = call(model, example).shape
        self.budget = bool(how.speedup or how.latency_ms)
        self.done = 0
        self.total = how.blocks + (how.steps if how.ratio or how.heads or self.budget else 0)

    def run(self) -> None:
        if self.how.blocks:
            self.remove_blocks()
        if not self.how.ratio and not self.how.heads:
            return
        graph = Dependencies(self.model, self.example)
        self.check(graph)
        for step in range(1, self.how.steps + 1):
            scores = scores_of(self.model, graph, self.how, self.batches)
            self.shrink(graph, plan(graph, self.how, scores, step / self.how.steps))
            self.report()

    def run_to_budget(self, stopwatch: Stopwatch) -> None:
        """Removes blocks, and then as many channels and heads as the budget asks for, as measured."""
        how, whole = self.how, copy.deepcopy(self.model)
        if how.blocks:
            self.remove_blocks()
        graph = Dependencies(self.model, self.example)
        self.check(graph)
        model = latency_model(self.model, graph, how, self.example, stopwatch, self.progress)
        now = model.measured[0].milliseconds
        before = stopwatch.times(whole, ()).milliseconds if how.blocks else now
        part = min(1.0, (how.latency_ms or before / how.speedup) / now)
        start = model.milliseconds(model.measured[0].widths)
        for step in range(1, how.steps + 1):
            self.narrow(graph, model, start * part ** (step / how.steps), before)
            if step < how.steps:
                self.report()
        for attempt in range(TRIES):
            widths = tuple(graph.units(group) for group in graph.groups)
            predicted = model.milliseconds(widths)
            before, measured = stopwatch.compares(whole, self.model)
            goal = how.latency_ms or before / how.speedup
            if measured <= goal or attempt == TRIES - 1:
                break
            self.narrow(graph, model, min(predicted * goal / measured, 0.999 * predicted), before)
        missed = (
            f"pruning ends at {measured:.3g} ms where the budget is {goal:.3g} ms: measuring wavered, or the "
            "latency model is off; prune again on a quiet machine, or ask for a little more"
        )
        self.report(
            missed if measured > goal else "",
            before_ms=before,
            predicted_ms=predicted,
            measured_ms=measured,
            speedup=before / measured,
            cross_validated=model.cross_validation().mean,
        )

    def narrow(self, graph: Dependencies, model: LatencyModel, budget_ms: float, before_ms: float) -> None:
        """Removes what brings the model within a predicted latency."""
        scores = scores_of(self.model, graph, self.how, self.batches)
        choices = [offered(graph, index, self.how) for index in range(len(graph.groups))]
        widths = choose(model, choices, scores, budget_ms)
        if widths is None:
            raise cannot_be_met(model, choices, self.how, before_ms)
        self.shrink(
            graph,
            [
                torch.argsort(each, stable=True)[: len(each) - width].tolist()
                for each, width in zip(scores, widths, strict=True)
            ],
        )

    def check(self, graph: Dependencies) -> None:
        """Says what cannot be done, before anything is."""
        if self.how.heads and not any(g.heads for g in graph.groups):
            found = ", ".join(map(repr, graph.unrecognised))
            raise CompressError(
                (
                    f"the heads of the attention at {found} are not recognised: queries, keys and values "
                    "must be one linear layer each, in a module that keeps the number of heads in an "
                    "attribute with `head` in its name, such as `num_heads`"
                    if found
                    else "there are no heads to remove: no attention was found in the model"
                )
                + "; leave out `heads`"
            )
        channels = any(g.heads is None for g in graph.groups)
        if (self.how.ratio or self.budget) and not channels and not self.how.heads:
            raise CompressError("there is nothing to prune: no inner convolution or linear layer was found")

    def remove_blocks(self) -> None:
        assert self.batches is not None
        for _ in range(self.how.blocks):
            blocks = residual_blocks(self.model, self.example)
            if not blocks:
                raise CompressError(
                    f"cannot remove {self.how.blocks} residual blocks: only {self.done} were found, as "
                    "elements of an nn.Sequential or nn.ModuleList whose output has the shape of their "
                    f"input; set `blocks` to {self.done} at most"
                )
            losses = block_losses(self.model, blocks, self.batches, self.how.batches)
            remove_block(self.model, min(blocks, key=losses.__getitem__))
            self.report()

    def shrink(self, graph: Dependencies, removed: Sequence[Sequence[int]]) -> None:
        """Removes units of each group; heads first, for what is left of them can be proven."""
        pairs = list(zip(graph.groups, removed, strict=True))
        heads = [(group, units) for group, units in pairs if group.heads is not None and units]
        if heads:
            self.remove_heads(graph, heads)
        for group, units in pairs:
            if group.heads is None:
                graph.remove(group, units)
        with _explained("channels", "it may reshape by a fixed size"), torch.no_grad():
            now = call(self.model, self.example).shape
        if now != self.shape:
            raise CompressError(
                f"pruning changed the output's shape from {tuple(self.shape)} to {tuple(now)}"
            )

    def remove_heads(self, graph: Dependencies, chosen: Sequence[tuple[Group, Sequence[int]]]) -> None:
        """Silences heads, then removes them, and compares: both must compute the same."""
        probe = map_inputs(self.example, _noise)
        for group, units in chosen:
            for each in graph.consumers(group):
                gone = torch.isin(each.units, torch.tensor(units))
                with torch.no_grad():
                    each.layer.weight[:, each.inputs[gone]] = 0  # type: ignore[operator]
        with torch.no_grad():
            silenced = call(self.model, probe)
        for group, units in chosen:
            graph.remove(group, units)
        hint = "attention must reshape its output to a width of -1, or flatten it, not take that of its input"
        with _explained("heads", hint), torch.no_grad():
            removed = call(self.model, probe)
        largest = float(silenced.abs().max())
        if removed.shape != silenced.shape or not torch.allclose(
            removed, silenced, rtol=0, atol=1e-3 * largest + 1e-6
        ):
            names = ", ".join(repr(group.name) for group, _ in chosen)
            raise CompressError(
                f"without heads of {names} the model does not compute what it did with them silenced: it "
                "splits its heads by something else than the attribute that counts them; leave out `heads`"
            )

    def report(self, note: str = "", **more: float) -> None:
        self.done += 1
        if self.progress is not None:
            metrics = {
                "parameters": float(sum(each.numel() for each in self.model.parameters())),
                "macs": float(count_macs(self.model, self.example)),
                **more,
            }
            self.progress(
                Progress(step="prune", done=self.done, total=self.total, metrics=metrics, note=note)
            )


def plan(graph: Dependencies, how: Prune, scores: Sequence[Tensor], part: float) -> list[list[int]]:
    """Chooses the units that each group loses, until `part` of the whole job is done."""
    removed: list[list[int]] = [[] for _ in graph.groups]
    for heads, ratio, round_to in ((False, how.ratio, how.round_to), (True, how.heads, 1)):
        chosen = [i for i, group in enumerate(graph.groups) if (group.heads is not None) == heads]
        groups = [graph.groups[i] for i in chosen]
        if not ratio or not groups:
            continue
        if how.ranking == "uniform":
            kept = [kept_channels(g.first_units, ratio * part, round_to) for g in groups]
        else:
            least = [kept_channels(g.first_units, how.max_ratio, round_to) for g in groups]
            kept = _ranked(
                [graph.units(g) for g in groups],
                least,
                [scores[i] for i in chosen],
                round_to,
                round(sum(g.first_units for g in groups) * (1 - ratio * part)),
            )
        for i, group, count in zip(chosen, groups, kept, strict=True):
            order = torch.argsort(scores[i], stable=True)
            removed[i] = order[: max(0, graph.units(group) - count)].tolist()
    return removed


def _ranked(
    widths: Sequence[int], least: Sequence[int], scores: Sequence[Tensor], round_to: int, wanted: int
) -> list[int]:
    """How many units of each group stay when `wanted` of all do, the ones with the highest scores."""
    kept, ordered = list(widths), [torch.sort(each).values.tolist() for each in scores]
    while sum(kept) > wanted:
        offers = []
        for i, now in enumerate(kept):
            below = max(least[i], (now - 1) // round_to * round_to)
            if 0 < below < now:
                lost = sum(ordered[i][widths[i] - now : widths[i] - below])
                offers.append((lost / (now - below), i, below))
        if not offers:
            break
        _, i, below = min(offers)
        kept[i] = below
    return kept


def kept_channels(width: int, ratio: float, round_to: int) -> int:
    """Returns how many of `width` channels stay: the nearest multiple of `round_to`, but not zero."""
    wanted = max(1, round(width * (1 - ratio) / round_to)) * round_to
    return min(width, wanted)


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


def _noise(value: Tensor) -> Tensor:
    """Seeded noise in place of numbers; whole numbers, such as tokens, stay."""
    if not value.is_floating_point():
        return value
    generator = torch.Generator().manual_seed(0)
    return torch.randn(value.shape, generator=generator).to(value)


@contextmanager
def _explained(gone: str, hint: str) -> Iterator[None]:
    """Says what an error of the pruned model means."""
    try:
        yield
    except RuntimeError as error:
        raise CompressError(f"this model does not run once {gone} are gone ({hint}): {error}") from error
