"""Smoothing: outlier channels of activations are divided, and the weights that read them multiplied.

Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438: with the largest activation a and the largest weight w of
a channel, its factor is a^alpha / w^(1 - alpha), so alpha says how much of the difficulty moves into the
weights, whose grids are per output. Where a layer norm stands before the layers, channels are also centred
(Wei et al. 2023, "Outlier Suppression+", arXiv:2304.09145): the grid is affine, and biases take them in.

It goes beyond norms: any seam will do (seams.py). In a transformer whose sums stand before its norms, others
read a norm's result too; the layers then get a norm of their own, which costs its time once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.calibrate import Grid
from edgewright.graph import onnx_function
from edgewright.progress import OnProgress, Progress
from edgewright.seams import Seam, inputs_most, scale, seams, weight_rows, with_biases
from edgewright.wiring import Wiring, attributes

ALPHAS = tuple(float(a) for a in np.linspace(0.0, 1.0, 11))
ROWS = 512  # of activations that an alpha is tried on
BATCH = 32
SAMPLES = 256
LEAST_GAIN = 10**0.05  # of the squared error: what a norm of its own must be worth, half a decibel
TINY = 1e-6

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """What is done at one seam.

    Attributes:
        factor: (channels,).
        offset: (channels,), or None.
    """

    factor: Floats
    offset: Floats | None


def smoothings(
    model: onnx.ModelProto,
    samples: Mapping[str, npt.NDArray[Any]],
    alpha: float | None,
    report: OnProgress,
) -> dict[str, Smoothing]:
    """Decides what to do at each seam.

    Args:
        model: A normalized float graph.
        samples: Its inputs by name, (samples, ...).
        alpha: How much moves into the weights, 0..1; None tries several for each seam, and nothing at all,
            and keeps what leaves the layers behind it with the least squared error.
        report: Told of each seam.

    Returns:
        By the value at the seam; seams that are best left alone are not in it.
    """
    graph = Wiring(model)
    with_biases(graph)
    found = seams(graph)
    decided: dict[str, Smoothing] = {}
    if not found:
        return decided
    seen = _Seen(graph, found, samples)
    for done, seam in enumerate(found, 1):
        low, high = seen.ranges[seam.value]
        offset = (low + high) / 2 if seam.moves else None
        largest = np.maximum(np.abs(low), np.abs(high)) if offset is None else (high - low) / 2
        weights = inputs_most(seam, graph)
        if alpha is not None:
            decided[seam.value] = Smoothing(factor=_factor(largest, weights, alpha), offset=offset)
        else:
            error = _Error(graph, seam, seen.rows[seam.value])
            best = error.of(np.ones(seam.channels), None) / LEAST_GAIN
            for tried in ALPHAS:
                factor = _factor(largest, weights, tried)
                found_error = error.of(factor, offset)
                if found_error < best:
                    best = found_error
                    decided[seam.value] = Smoothing(factor=factor, offset=offset)
        report(Progress(step="smooth", done=done, total=len(found)))
    return decided


def smoothed(model: onnx.ModelProto, decided: Mapping[str, Smoothing]) -> onnx.ModelProto:
    """The graph with what was decided done; its function is the same."""
    graph = Wiring(model)
    with_biases(graph)
    for seam in seams(graph):
        if seam.value in decided:
            scale(graph, seam, decided[seam.value].factor, decided[seam.value].offset)
    graph.drop_dead()
    return graph.model()


def _factor(activations: Floats, weights: Floats, alpha: float) -> Floats:
    """Factors whose geometric mean is 1."""
    alive = (activations > TINY) & (weights > TINY)
    if not alive.any():
        return np.ones_like(weights)
    logs = np.zeros_like(weights)
    logs[alive] = alpha * np.log(activations[alive]) - (1 - alpha) * np.log(weights[alive])
    logs[alive] -= logs[alive].mean()
    return np.exp(logs)


class _Seen:
    """Ranges of channels, and some rows of channels, at each seam."""

    def __init__(self, graph: Wiring, found: list[Seam], samples: Mapping[str, npt.NDArray[Any]]) -> None:
        self.ranges: dict[str, tuple[Floats, Floats]] = {}
        self.rows: dict[str, npt.NDArray[np.float32]] = {}
        run = onnx_function(graph.model(), [s.value for s in found])
        count = min(SAMPLES, len(next(iter(samples.values()))))
        kept: dict[str, list[npt.NDArray[np.float32]]] = {s.value: [] for s in found}
        random = np.random.default_rng(0)
        for start in range(0, count, BATCH):
            values = run({n: v[start : min(start + BATCH, count)] for n, v in samples.items()})
            for seam in found:
                rows = _channels_last(values[seam.value], seam)
                low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
                if seam.value in self.ranges:
                    low = np.minimum(low, self.ranges[seam.value][0])
                    high = np.maximum(high, self.ranges[seam.value][1])
                self.ranges[seam.value] = low, high
                some = max(1, ROWS * BATCH // count)
                kept[seam.value].append(rows[random.integers(0, len(rows), some)])
        self.rows = {n: np.concatenate(v) for n, v in kept.items()}


def _channels_last(value: npt.NDArray[np.float32], seam: Seam) -> npt.NDArray[np.float32]:
    """(rows, channels)."""
    if seam.repeat > 1:
        value = value.reshape(len(value), seam.channels, seam.repeat)
    axis = -1 if seam.after[0].op_type == "MatMul" and seam.repeat == 1 else 1
    return np.moveaxis(value, axis, -1).reshape(-1, seam.channels)


class _Error:
    """The squared error that quantization leaves behind a seam, on some rows of its value.

    A convolution is taken as one tap after another, each as a layer on channels alone.
    """

    def __init__(self, graph: Wiring, seam: Seam, rows: npt.NDArray[np.float32]) -> None:
        self.rows = rows
        self.weights: list[npt.NDArray[np.float32]] = []  # (taps, O, channels) each
        self.depthwise: list[bool] = []
        for node in seam.after:
            weight = weight_rows(node, graph)
            depthwise = node.op_type == "Conv" and int(attributes(node).get("group", 1)) > 1
            if depthwise:
                taps = weight.reshape(seam.channels, -1, int(np.prod(weight.shape[2:]))).max(axis=1).T
                self.weights.append(taps[:, None, :])
            else:
                each = weight.reshape(len(weight), seam.channels, -1)
                self.weights.append(np.moveaxis(each, -1, 0))
            self.depthwise.append(depthwise)

    def of(self, factor: Floats, offset: Floats | None) -> float:
        """Summed over outputs and rows."""
        rows = self.rows if offset is None else self.rows - offset.astype(np.float32)
        moved = rows / factor.astype(np.float32)
        grid = Grid.around(float(moved.min()), float(moved.max()))
        steps = np.clip(np.rint(moved / grid.scale) + grid.zero_point, *grid.limits) - grid.zero_point
        wrong = (steps * grid.scale).astype(np.float32)
        total = 0.0
        for weight, depthwise in zip(self.weights, self.depthwise, strict=True):
            heavy = weight * factor.astype(np.float32)
            if depthwise:  # each channel has a grid of its own: nothing is lost in the weights
                total += float(sum(np.square((moved - wrong) * tap).sum() for tap in heavy))
                continue
            most = np.abs(heavy).max(axis=(0, 2), keepdims=True)
            step = np.maximum(most, TINY) / 127
            integers = np.rint(heavy / step) * step
            for exact, tap in zip(heavy, integers, strict=True):
                total += float(np.square(moved @ exact.T - wrong @ tap.T).sum())
        return total
