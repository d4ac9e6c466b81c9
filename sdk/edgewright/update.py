"""An update that is small to send: integers by rate and distortion together, given those now on the devices.

The sweep of rounding.py, but each weight goes to the integer of least `error + trade * bits`: `error` is what
it adds to the squared error of the model's outputs, `bits` what its difference to the base costs an entropy
coder. It may keep the base's integer, go to the nearest, or stop on the way. Differences may be multiples of
a coarser step, chosen for each layer: where all weights moved, the finest steps are the most expensive.

Layers are made comparable by what an error of each does to the outputs, measured by disturbing one at a time.
The trade is the largest, of a series, whose outputs on samples kept aside stay near enough to those of the
float model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.disturbance import Outputs, divergence
from edgewright.graph import onnx_function
from edgewright.hessian import Layer, damped, layers_of, moments, stages
from edgewright.overflow import OverflowSafe, added_together, safety
from edgewright.progress import OnProgress, Progress
from edgewright.quantization import Quantized
from edgewright.rounding import MOST_BYTES, Room, sweep, with_integers, within_sums
from edgewright.samples import Samples

TRADES = 17  # tried, each twice the one before
LEAST_TRADE = 4e-7  # times the number of weights: relative squared error of the outputs for a bit
STEPS = (1, 2, 3, 4, 6, 8, 12)  # of the grid, between differences
KEPT_ASIDE = 0.25  # of the samples
WATCHED = 256  # samples at most, by which outputs are judged
PROBED = 64  # samples by which layers are weighed
SPAN = 254  # the largest difference of two weights

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An update and what was traded for its size.

    Attributes:
        quantized: The graph with the chosen integers.
        trade: What a bit was worth, in squared error of the outputs; 0 where nothing was gained by any.
        bits: Estimated size of the differences of all weights.
        exact_bits: The same without a trade.
        divergence: From the float model, of samples kept aside (`divergence`).
        exact_divergence: The same without a trade.
    """

    quantized: Quantized
    trade: float
    bits: float
    exact_bits: float
    divergence: float
    exact_divergence: float


def small_update(
    quantized: Quantized,
    floats: onnx.ModelProto,
    base: Mapping[str, Integers],
    samples: Samples,
    *,
    most_loss: float,
    overflow_safe: OverflowSafe,
    report: OnProgress,
) -> Outcome:
    """Chooses the integers of Conv, Gemm and MatMul so that little differs from the base.

    Args:
        quantized: The update as `quantize_graph` gave it, on the base's grids as far as they fit.
        floats: The float graph it was made of.
        base: Integers of the artifact now on the devices, by name.
        samples: The graph's inputs by name, (samples, ...); the last quarter judges.
        most_loss: By how much the divergence may grow.
        overflow_safe: What the integers hold.
        report: Told of each layer, and of each trade that is tried.
    """
    count = len(next(iter(samples.values())))
    aside = max(1, min(WATCHED, round(KEPT_ASIDE * count)))
    judging = {n: v[-aside:] for n, v in samples.items()}
    fitting = {n: v[:-aside] if count > aside else v for n, v in samples.items()}
    want = onnx_function(floats)(judging)
    layers = [
        x
        for x in layers_of(quantized.model, floats)
        if x.name in base and base[x.name].shape == x.integers.shape and not x.four
    ]
    total = sum(quantized.weights[x.name].size for x in layers)
    trades = [LEAST_TRADE / max(total, 1) * 2.0**i for i in range(TRADES)]
    outputs = Outputs(floats, {n: v[:PROBED] for n, v in fitting.items()})
    choices: list[dict[str, Integers]] = [{} for _ in trades]
    sizes = np.zeros(len(trades))
    done = 0
    for stage in stages(layers, MOST_BYTES, len(layers)):
        found = moments(quantized.model, stage, fitting)
        for layer in stage:
            scale = quantized.weights[f"{layer.name}.scale"].astype(np.float64)
            seen = _priced(outputs, layer, damped(found.pop(layer.name)), scale)
            tried = _series(layer, seen, scale, base[layer.name], trades, overflow_safe)
            for i, (integers, bits) in enumerate(tried):
                choices[i][layer.name] = integers
                sizes[i] += bits
            done += 1
            report(Progress(step="update", done=done, total=len(layers)))
    exact = divergence(want, onnx_function(quantized.model)(judging))
    differences = (_bits_of(quantized.weights[x.name], base[x.name]) for x in layers)
    exact_bits = float(sum(differences))
    for i in reversed(range(len(trades))):
        made = with_integers(quantized, choices[i])
        far = divergence(want, onnx_function(made.model)(judging))
        report(
            Progress(
                step="trade",
                done=len(trades) - i,
                total=len(trades),
                metrics={"bytes": sizes[i] / 8, "divergence": far},
            )
        )
        if far <= exact + most_loss and sizes[i] < exact_bits:
            return Outcome(
                quantized=made,
                trade=trades[i],
                bits=sizes[i],
                exact_bits=exact_bits,
                divergence=far,
                exact_divergence=exact,
            )
    return Outcome(
        quantized=quantized,
        trade=0.0,
        bits=exact_bits,
        exact_bits=exact_bits,
        divergence=exact,
        exact_divergence=exact,
    )


def _priced(outputs: Outputs, layer: Layer, seen: Floats, scale: Floats) -> Floats:
    """Second moments, scaled so that they give the squared error of the outputs over their variance.

    Found by moving each weight by a random half step.
    """
    move = np.random.default_rng(0).choice([-0.5, 0.5], (len(scale), layer.terms)) * scale[:, None]
    grouped = move.reshape(layer.groups, -1, layer.terms)
    inside = float(np.einsum("gok,gkl,gol->", grouped, seen, grouped, optimize=True))
    outside = outputs.error_with(layer, layer.weight + move.reshape(layer.weight.shape))
    return seen * (outside / max(inside, 1e-300))


def _series(
    layer: Layer,
    seen: Floats,
    scale: Floats,
    base: Integers,
    trades: Sequence[float],
    overflow_safe: OverflowSafe,
) -> list[tuple[Integers, float]]:
    """For each trade, ascending: a layer's integers, and the bits that their differences to the base take."""
    before = layer.integers
    rows, old = (x.reshape(len(scale), -1).astype(np.float64) for x in (before, base))
    safe = safety(layer.node, before.shape, overflow_safe)
    together = None if safe == "off" else added_together(before.shape, safe)
    results: list[tuple[Integers, float]] = []
    last, at = rows - old, 0
    for trade in trades:
        best: tuple[float, Floats, int] | None = None
        for number in range(at, min(at + 2, len(STEPS))):
            table = _table(last, STEPS[number])
            spent = 0.0
            chosen = np.empty_like(rows)
            for part, group in layer.parts():
                choice = _Choice(
                    base=old[part],
                    worth=np.square(scale[part]),
                    trade=trade,
                    table=table,
                    step=STEPS[number],
                    room=None if together is None else Room(rows[part], together),
                )
                steps = layer.weight.reshape(rows.shape)[part] / scale[part, None]
                chosen[part] = sweep(steps, seen[group], choice)
                spent += choice.spent
            total = spent + trade * _bits_of(chosen, old)
            if best is None or total < best[0]:
                best = total, chosen, number
        assert best is not None
        _, chosen, at = best
        chosen = within_sums(layer, chosen, rows)
        last = chosen - old
        results.append((chosen.astype(np.int8).reshape(before.shape), _bits_of(chosen, old)))
    return results


@dataclass(slots=True, kw_only=True)
class _Choice:
    """Chooses between the base's integer, the nearest to the target, and what lies between.

    Attributes:
        base: Integers (O, terms).
        worth: Of a squared step of each output's error, (O,).
        trade: What a bit is worth.
        table: Bits of each difference, from -SPAN on.
        step: Differences are multiples of it.
        room: What `overflow_safe` leaves.
        spent: Squared error so far.
    """

    base: Floats
    worth: Floats
    trade: float
    table: Floats
    step: int
    room: Room | None
    spent: float = 0.0

    def __call__(self, term: int, target: Floats, cost: float) -> Floats:
        """Integers for one term."""
        base = self.base[:, term]
        away = (target - base) / self.step
        down = np.floor(away)
        low, high = (-127, 127) if self.room is None else self.room.of(term)
        ways = np.stack([np.zeros_like(away), down, down + 1, np.rint(away / 2)])
        given = np.clip(base + self.step * ways, low, high)
        errors = cost * self.worth * np.square(given - target)
        bits = self.table[(given - base).astype(np.int64) + SPAN]
        best = np.argmin(errors + self.trade * bits, axis=0)[None]
        chosen: Floats = np.take_along_axis(given, best, 0)[0]
        self.spent += float(np.take_along_axis(errors, best, 0).sum())
        if self.room is not None:
            self.room.take(term, chosen)
        return chosen


def _table(differences: Floats, step: int) -> Floats:
    """Bits of each difference, if they were spread as those are when rounded to multiples of a step."""
    numbers = np.rint(differences / step).astype(np.int64) * step
    counts = np.bincount(np.clip(numbers, -SPAN, SPAN).reshape(-1) + SPAN, minlength=2 * SPAN + 1)
    all_ = np.arange(-SPAN, SPAN + 1)
    prior = np.where(all_ % step == 0, 0.5 ** (np.abs(all_) / step), 1e-6)
    share = (counts + prior) / (counts.sum() + prior.sum())
    result: Floats = -np.log2(share)
    return result


def _bits_of(new: npt.NDArray[Any], old: npt.NDArray[Any]) -> float:
    """The entropy of the differences of a layer, and a little for each value that occurs."""
    differences = (new.astype(np.int64) - old.astype(np.int64)).reshape(-1)
    counts = np.unique(differences, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(counts * np.log2(share)).sum() + 12 * (len(counts) - 1))
