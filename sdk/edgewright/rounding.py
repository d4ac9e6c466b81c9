"""Which integers stand for a layer's weights: not the nearest ones, but those that keep its results.

A sweep over the terms of a layer (GPTQ, Frantar et al. 2023, arXiv:2210.17323): each weight goes to an
integer in turn, and those not yet decided make up for the error as far as the layer's inputs allow. In the
form of Chee et al. 2023, "QuIP", arXiv:2307.13304: with the second moments of the inputs (hessian.py)
H = (U + 1) D (U + 1)', U strictly upper triangular, the squared error of an output is the sum over terms k of
D[k] (v[k] - t[k])^2, where t[k] = w[k] + sum over j < k of (w[j] - v[j]) U[j, k]. So the integer nearest to
the target t[k] is the best there. The terms whose inputs are largest are decided first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.hessian import Layer, damped, layers_of, moments, stages
from edgewright.int4 import INT4, packed
from edgewright.int4 import MOST as MOST_OF_INT4
from edgewright.overflow import MOST, OverflowSafe, added_together, safety
from edgewright.progress import OnProgress, Progress
from edgewright.quantization import Quantized
from edgewright.samples import Samples
from edgewright.wiring import initializers, set_initializer

BLOCK = 128  # terms decided before their errors move on to all that follow
MOST_BYTES = 512 << 20  # of moments held at a time
MOST_STAGES = 24  # passes over the samples
ON_GRID = 1e-3  # of a step: weights this close to integers are some already
ROOM_OF_WIDE = (1 << 15) - 1  # a sum of |weights| that surely keeps products with int16 within 32 bits

Floats = npt.NDArray[np.float64]
Choice = Callable[[int, Floats, float], Floats]
"""Of a term, its targets in steps, (O,), and what a squared step of error costs: the integers, (O,)."""


def rounded(
    quantized: Quantized,
    floats: onnx.ModelProto,
    samples: Samples,
    *,
    overflow_safe: OverflowSafe = "off",
    report: OnProgress,
) -> Quantized:
    """Chooses the integers of Conv, Gemm and MatMul anew, layer after layer.

    Layers whose float weights lie on their grid already, as in a model that was quantized before, stay.

    Args:
        quantized: As `quantize_graph` gave it; scales, grids and biases stay.
        floats: The float graph it was made of.
        samples: The graph's inputs by name, (samples, ...).
        overflow_safe: What the integers hold already, and will.
        report: Told of each layer.
    """
    made = with_integers(quantized, {})
    layers = [x for x in layers_of(made.model, floats) if not _on_grid(x, made)]
    done = 0
    for stage in stages(layers, MOST_BYTES, MOST_STAGES):
        found = moments(made.model, stage, samples)
        for layer in stage:
            integers = _layer_integers(layer, found.pop(layer.name), made, overflow_safe)
            made = with_integers(made, {layer.name: integers}, copy=False)
            done += 1
            report(Progress(step="round", done=done, total=len(layers)))
    return made


def with_integers(
    quantized: Quantized, integers: Mapping[str, npt.NDArray[Any]], *, copy: bool = True
) -> Quantized:
    """The same graph with other integers, int8, for some weights, by name, of the shapes that it has."""
    model = quantized.model
    if copy:
        model = onnx.ModelProto()
        model.CopyFrom(quantized.model)
    weights = dict(quantized.weights)
    for name, value in integers.items():
        four = weights[name].dtype == np.uint8
        set_initializer(model, name, value.astype(INT4) if four else value)
        weights[name] = packed(value) if four else value
    return replace(quantized, model=model, weights=weights)


def like(quantized: Quantized, other: onnx.ModelProto) -> Quantized:
    """With the integers that another graph has for weights and biases of the same name, shape and scales."""
    theirs = initializers(other)
    same = {
        name: theirs[name].astype(np.int8 if theirs[name].dtype == INT4 else value.dtype)
        for name, value in quantized.weights.items()
        if name in theirs
        and (theirs[name].dtype == INT4 or theirs[name].dtype == value.dtype in (np.int8, np.int32))
        and theirs[name].size == value.size * (2 if value.dtype == np.uint8 else 1)
        and np.array_equal(theirs.get(f"{name}.scale", ()), quantized.weights.get(f"{name}.scale", (0,)))
    }
    return with_integers(quantized, same)


def sweep(steps: Floats, seen: Floats, choose: Choice) -> Floats:
    """Integers (O, terms) for weights that share their inputs.

    Args:
        steps: The weights in steps of their grid, (O, terms).
        seen: Second moments of the inputs, (terms, terms), positive definite.
        choose: How a target becomes an integer.
    """
    order = np.argsort(-np.diagonal(seen), kind="stable")
    upper, costs = _factors(seen[np.ix_(order, order)])
    wanted = steps[:, order]
    chosen, errors = np.empty_like(wanted), np.empty_like(wanted)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        targets = wanted[:, start:end] + errors[:, :start] @ upper[:start, start:end]
        for k in range(start, end):
            target = targets[:, k - start] + errors[:, start:k] @ upper[start:k, k]
            chosen[:, k] = choose(int(order[k]), target, float(costs[k]))
            errors[:, k] = wanted[:, k] - chosen[:, k]
    result = np.empty_like(chosen)
    result[:, order] = chosen
    return result


def _factors(seen: Floats) -> tuple[Floats, Floats]:
    """U strictly upper triangular and D (terms,), with (U + 1) D (U + 1)' = `seen`."""
    lower = np.linalg.cholesky(seen[::-1, ::-1])
    upper = lower[::-1, ::-1]
    diagonal = np.diagonal(upper).copy()
    return np.triu(upper / diagonal, 1), np.square(diagonal)


def _on_grid(layer: Layer, made: Quantized) -> bool:
    scale = made.weights[f"{layer.name}.scale"].astype(np.float64)
    steps = layer.weight.reshape(len(scale), -1) / scale[:, None]
    return bool(np.abs(steps - np.rint(steps)).max() < ON_GRID)


def _layer_integers(
    layer: Layer, found: Floats, made: Quantized, overflow_safe: OverflowSafe
) -> npt.NDArray[np.int8]:
    scale = made.weights[f"{layer.name}.scale"].astype(np.float64)
    shape = layer.integers.shape
    rows = layer.integers.reshape(len(scale), -1).astype(np.float64)
    weight = layer.weight.reshape(len(scale), -1).astype(np.float64)
    safe: OverflowSafe = "off" if layer.four else safety(layer.node, shape, overflow_safe)
    seen = damped(found)
    chosen = np.empty_like(rows)
    for part, group in layer.parts():
        steps = weight[part] / scale[part, None]
        chosen[part] = sweep(
            steps, seen[group], nearest(rows[part], shape, safe, MOST_OF_INT4 if layer.four else 127)
        )
    return within_sums(layer, chosen, rows).astype(np.int8).reshape(shape)


def within_sums(layer: Layer, chosen: Floats, before: Floats) -> Floats:
    """Integers (O, terms) whose products with int16 fit 32 bits, as those before do; which some rows stay."""
    if not layer.wide:
        return chosen
    sums = np.abs(chosen).sum(axis=1)
    over = (sums > np.abs(before).sum(axis=1)) & (sums > ROOM_OF_WIDE)
    return np.where(over[:, None], before, chosen)


def nearest(before: Floats, shape: tuple[int, ...], safe: OverflowSafe, most: int = 127) -> Choice:
    """The nearest integer that is allowed.

    Args:
        before: Integers (O, terms) that hold `safe`.
        shape: Of the weight.
        safe: Which products must add up within 16 bits. A weight may take what those added to it leave,
            whether they are decided or still as they were before, so that none ever lacks room.
        most: The largest integer.
    """
    room = None if safe == "off" else Room(before, added_together(shape, safe))

    def choose(term: int, target: Floats, cost: float) -> Floats:
        del cost  # the nearest is the best at any
        if room is None:
            return np.clip(np.rint(target), -most, most)
        chosen = np.clip(np.rint(target), *room.of(term))
        room.take(term, chosen)
        return chosen

    return choose


class Room:
    """What is left to each weight of those whose products are added in 16 bits."""

    def __init__(self, before: Floats, together: npt.NDArray[np.int64]) -> None:
        self.now, self.together = before.copy(), together
        groups = int(together.max()) + 1
        self.above, self.below = (np.zeros((groups, len(before))) for _ in range(2))
        np.add.at(self.above, together, np.maximum(self.now, 0).T)
        np.add.at(self.below, together, np.minimum(self.now, 0).T)

    def of(self, term: int) -> tuple[Floats, Floats]:
        """The least and the largest it may be, (O,) each."""
        group, own = self.together[term], self.now[:, term]
        low = -MOST - self.below[group] + np.minimum(own, 0)
        high = MOST - self.above[group] + np.maximum(own, 0)
        return np.maximum(low, -127), np.minimum(high, 127)

    def take(self, term: int, chosen: Floats) -> None:
        """Decides a weight."""
        group, own = self.together[term], self.now[:, term]
        self.above[group] += np.maximum(chosen, 0) - np.maximum(own, 0)
        self.below[group] += np.minimum(chosen, 0) - np.minimum(own, 0)
        self.now[:, term] = chosen
