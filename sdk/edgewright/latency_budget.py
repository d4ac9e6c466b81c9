"""Pruning to a latency budget: how wide each layer may be for the model to be fast enough on this machine."""

from __future__ import annotations

import copy
import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewright.data import Inputs
from edgewright.dependencies import Dependencies
from edgewright.errors import CompressError, ExportError
from edgewright.latency import measure
from edgewright.latency_model import LatencyModel, Measured, Operator, Widths, load_measured, save_measured
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Prune, Quantize

SECONDS = 0.5  # of runs by which a model is timed
LEAST_ROUNDS, MOST_ROUNDS = 20, 2000


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Times models in INT8 on the native engine of this machine, one sample on one thread.

    Attributes:
        example: Inputs, (N, ...), to calibrate and to run with; the time does not depend on their values.
        quantize: How the models are exported.
    """

    example: Inputs
    quantize: Quantize

    def key(self) -> dict[str, str]:
        """What measurements hold for: the machine's target and its instructions, and the export."""
        from edgewright_device import detect
        from edgewright_kernels import cpu_paths

        return {"target": detect().name, "cpu": cpu_paths()[0], "quantize": repr(self.quantize)}

    def times(self, model: nn.Module, widths: Widths) -> Measured:
        """Times a model, whole and by operator.

        Raises:
            CompressError: It cannot be exported for the native engine.
        """
        from edgewright.profiling import profile

        with tempfile.TemporaryDirectory() as folder:
            artifact = self._export(model, Path(folder) / "model.ew")
            call = self._call(artifact)
            start = time.perf_counter()
            call()
            rounds = _rounds(time.perf_counter() - start)
            whole = measure({"model": call}, rounds=rounds)["model"].min_ms
            operators = profile(artifact, rounds=rounds)
        return Measured(
            widths=widths,
            milliseconds=whole,
            operators=tuple(
                Operator(
                    name=op.output,
                    macs=op.macs,
                    read=op.read,
                    written=op.written,
                    microseconds=op.microseconds,
                )
                for op in operators
            ),
        )

    def compares(self, before: nn.Module, after: nn.Module) -> tuple[float, float]:
        """Milliseconds of two models, the fastest of runs that alternate."""
        with tempfile.TemporaryDirectory() as folder:
            calls = {
                name: self._call(self._export(model, Path(folder) / f"{name}.ew"))
                for name, model in {"before": before, "after": after}.items()
            }
            start = time.perf_counter()
            for call in calls.values():
                call()
            found = measure(calls, rounds=_rounds(time.perf_counter() - start))
        return found["before"].min_ms, found["after"].min_ms

    def _export(self, model: nn.Module, out: Path) -> Any:
        from edgewright.exporting import export
        from edgewright_device import detect

        try:
            return export(
                model,
                target=detect(),
                calibration=_arrays(self.example),
                out=out,
                quantize=self.quantize,
                fallback=False,
            )
        except ExportError as error:
            raise CompressError(
                f"cannot measure this model, which a latency budget needs: {error} (give `ratio` instead)"
            ) from error

    def _call(self, artifact: Any) -> Callable[[], object]:
        from edgewright_device import Runner

        runner = Runner(artifact)
        values = artifact.golden_values()
        inputs = {port.name: values[port.name][:1] for port in artifact.inputs}
        return lambda: runner.run(inputs)


def latency_model(
    model: nn.Module,
    graph: Dependencies,
    how: Prune,
    example: Inputs,
    stopwatch: Stopwatch,
    progress: OnProgress | None = None,
) -> LatencyModel:
    """Measures copies of a model with other widths, and fits a latency model to them.

    Where `how.measurements` names a file that holds those of this model and machine, nothing is measured.

    Args:
        model: The model of the graph. It is not changed.
        graph: Its groups.
        how: Which widths may be, and of how many copies.
        example: Inputs to trace with.
        stopwatch: Times them.
        progress: Told after each copy, as step "latency".

    Raises:
        CompressError: The model cannot be measured, or the file is damaged.
    """
    choices = [offered(graph, index, how) for index in range(len(graph.groups))]
    key = stopwatch.key() | {"model": _structure(model), "choices": repr(choices)}
    path = Path(how.measurements) if how.measurements else None
    measured = list(load_measured(path, key)) if path is not None else []
    if not measured:
        for done, widths in enumerate(_designs(choices, how.samples), start=1):
            measured.append(stopwatch.times(narrowed(model, example, widths), widths))
            if progress is not None:
                metrics = {"milliseconds": measured[-1].milliseconds}
                progress(Progress(step="latency", done=done, total=how.samples, metrics=metrics))
        if path is not None:
            save_measured(path, key, measured)
    return LatencyModel(measured)


def offered(graph: Dependencies, index: int, how: Prune) -> tuple[int, ...]:
    """The widths that a group may get under a budget, from the narrowest to the one it has."""
    group, now = graph.groups[index], graph.units(graph.groups[index])
    step = 1 if group.heads is not None else how.round_to
    most = how.heads if group.heads is not None else how.max_ratio
    least = max(1, math.ceil(group.first_units * (1 - most) / step)) * step if most else now
    return (*range(least, now, step), now)


def narrowed(model: nn.Module, example: Inputs, widths: Widths) -> nn.Module:
    """A copy of a model with other widths. Which channels it keeps has no meaning."""
    narrow = copy.deepcopy(model)
    graph = Dependencies(narrow, example)
    for group, units in zip(graph.groups, widths, strict=True):
        graph.remove(group, range(graph.units(group) - units))
    return narrow


def choose(
    model: LatencyModel, choices: Sequence[Sequence[int]], scores: Sequence[Tensor], budget_ms: float
) -> Widths | None:
    """Chooses widths whose predicted latency is within the budget, at little importance lost.

    First, step by step, the group becomes narrower that loses the least importance for each millisecond
    saved. Then, as long as that loses less, one group becomes wider again and another narrower for it.

    Args:
        model: Predicts.
        choices: Widths that each group may get, ascending; the last is the one it has.
        scores: Importance of each unit of each group.
        budget_ms: Milliseconds.

    Returns:
        A width for each group; None if the narrowest are still too slow.
    """
    first = tuple(each[-1] for each in choices)
    sums = [np.concatenate([[0.0], np.cumsum(torch.sort(each).values.double().numpy())]) for each in scores]

    def lost(widths: Widths) -> float:
        return float(sum(total[f - w] for total, f, w in zip(sums, first, widths, strict=True)))

    widths, now = first, model.milliseconds(first)
    while now > budget_ms:
        offers = []
        for group in range(len(choices)):
            for narrower in _narrower(widths, choices, group):
                then = model.milliseconds(narrower)
                if then < now:  # kernels like some widths better, so a small step may save nothing
                    offers.append(((lost(narrower) - lost(widths)) / (now - then), narrower, then))
                    break
        if not offers:
            return None
        _, widths, now = min(offers)
    while True:
        exchanges = [
            (lost(other), other)
            for group in range(len(choices))
            for wider in _wider(widths, choices, group)
            for other in _fitting(wider, choices, group, model, budget_ms)
        ]
        if not exchanges or min(exchanges)[0] >= lost(widths):
            return widths
        widths = min(exchanges)[1]


def _fitting(
    widths: Widths, choices: Sequence[Sequence[int]], but: int, model: LatencyModel, budget_ms: float
) -> Iterator[Widths]:
    """Widths within the budget: these, or else with one group narrower, in each way."""
    if model.milliseconds(widths) <= budget_ms:
        yield widths
        return
    for group in range(len(choices)):
        if group != but:
            narrower = _narrower(widths, choices, group)
            yield from islice((w for w in narrower if model.milliseconds(w) <= budget_ms), 1)


def _narrower(widths: Widths, choices: Sequence[Sequence[int]], group: int) -> Iterator[Widths]:
    """The widths with one group narrower, the widest first."""
    for width in reversed(choices[group]):
        if width < widths[group]:
            yield (*widths[:group], width, *widths[group + 1 :])


def _wider(widths: Widths, choices: Sequence[Sequence[int]], group: int) -> Iterator[Widths]:
    """The widths with one group wider, the narrowest first."""
    for width in choices[group]:
        if width > widths[group]:
            yield (*widths[:group], width, *widths[group + 1 :])


def cannot_be_met(
    model: LatencyModel, choices: Sequence[Sequence[int]], how: Prune, before_ms: float
) -> CompressError:
    """Says the best that could be."""
    best = model.milliseconds(tuple(each[0] for each in choices))
    asked = f"{how.latency_ms:g} ms" if how.latency_ms else f"{how.speedup:g}x faster"
    return CompressError(
        f"the latency budget of {asked} cannot be met: the narrowest layers that "
        f"max_ratio = {how.max_ratio:g} allows take about {best:.3g} ms, "
        f"{before_ms / best:.2f}x faster than the {before_ms:.3g} ms of now; "
        "ask for less, raise max_ratio (and `heads`, for attention), or remove `blocks`"
    )


def _designs(choices: Sequence[Sequence[int]], count: int) -> list[Widths]:
    """Widths to measure: all, the narrowest, and some in which each group runs through all it may have."""
    random = np.random.default_rng(0)
    designs = [tuple(each[-1] for each in choices), tuple(each[0] for each in choices)]
    rows = max(0, count - 2)
    columns = [
        [each[i] for i in random.permutation(np.linspace(0, len(each) - 1, rows).round().astype(int))]
        for each in choices
    ]
    return [*designs, *zip(*columns, strict=True)][:count]


def _structure(model: nn.Module) -> str:
    """A digest of what the model is, apart from the values of its weights."""
    shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    return hashlib.sha256(f"{model}{shapes}".encode()).hexdigest()


def _rounds(seconds: float) -> int:
    return int(np.clip(SECONDS / max(seconds, 1e-6), LEAST_ROUNDS, MOST_ROUNDS))


def _arrays(inputs: Inputs) -> Any:
    """Calibration samples in the form that `export` takes."""
    if isinstance(inputs, Mapping):
        return {name: value.cpu().numpy() for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(value.cpu().numpy() for value in inputs)
    return inputs.cpu().numpy()
