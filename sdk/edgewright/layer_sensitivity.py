"""Sensitivity: what each layer's quantization alone does to the outputs of a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgewright import post_training
from edgewright.allocation import layer_macs
from edgewright.errors import DataError
from edgewright.graph import float_graph, onnx_function
from edgewright.indices import tabulate
from edgewright.layer_names import layer_names
from edgewright.noise import BATCH, Noise
from edgewright.progress import OnProgress, Progress
from edgewright.recipe import Quantize
from edgewright.samples import Samples, as_tuple, calibration_samples, example_of
from edgewright.statistics import sqnr_db
from edgewright.wiring import Wiring, check_ports

if TYPE_CHECKING:
    from torch import nn

LEAST_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """What one layer does, quantized alone: its weights, and its result on its grid.

    Attributes:
        layer: Its name: of the module where weights tell it, else of the node; the name of an input.
        operator: ONNX's name of it, "" for an input.
        value: The value that is put on a grid.
        grid: "uint8" or "int16".
        sqnr_db: Signal to quantization noise ratio of the model's outputs, dB.
        share: Of the noise of all layers, 0..1.
        flip_rate: Share of samples, 0..1, that are decided otherwise than by the float model.
        accuracy_lost: Of the float model's accuracy, 0..1; None without labels.
        macs: Multiply-accumulates for one sample.
    """

    layer: str
    operator: str
    value: str
    grid: str
    sqnr_db: float
    share: float
    flip_rate: float
    accuracy_lost: float | None
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """A table of layers, the most sensitive first.

    Attributes:
        layers: One for each value that has a grid.
        sqnr_db: Of the outputs with all of them quantized, dB.
        flip_rate: Likewise, 0..1.
        accuracy: Of the float model, 0..1; None without labels.
        accuracy_lost: With all quantized; None without labels.
        samples: How many it was measured on.
    """

    layers: tuple[LayerSensitivity, ...]
    sqnr_db: float
    flip_rate: float
    accuracy: float | None
    accuracy_lost: float | None
    samples: int


def sensitivity(
    model: nn.Module | str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    calibration: Any,
    data: Any = None,
    labels: npt.ArrayLike | None = None,
    quantize: Quantize | None = None,
    progress: OnProgress | None = None,
) -> Sensitivity:
    """Quantizes one layer of a model at a time and looks at the outputs.

    Flipped and right decisions are those of the first output, over its last axis.

    Args:
        model: As for `export`; not quantized yet.
        example_inputs: For a module: the arguments of one call. Left out, calibration samples serve.
        calibration: Samples that grids are chosen by, as for `export`.
        data: Samples to measure on, in the same forms; the first 64 of the calibration if left out.
        labels: Their classes, (samples,).
        quantize: How grids are chosen; what it does to the graph is done before.
        progress: Called as the work goes on.

    Raises:
        ExportError: The model cannot be read, traced or quantized.
        DataError: The labels do not fit the samples.
    """
    report = progress or (lambda _: None)
    settings = quantize or Quantize()
    report(Progress(step="trace", done=0, total=1))
    if isinstance(model, str | os.PathLike):
        graph = float_graph(Path(model))
    else:
        given = example_of(model, calibration) if example_inputs is None else example_inputs
        graph = float_graph(model, as_tuple(given))
    check_ports(graph)
    graph = tabulate(graph)
    samples = calibration_samples(calibration, graph)
    measured = calibration_samples(data, graph) if data is not None else _first(samples)
    right = _checked(labels, measured)
    done = post_training.quantize(graph, settings, samples, report=report)
    return _table(done, measured, right, report)


def _first(samples: Samples) -> Samples:
    return {n: v[:LEAST_SAMPLES] for n, v in samples.items()}


def _checked(labels: npt.ArrayLike | None, measured: Samples) -> npt.NDArray[Any] | None:
    if labels is None:
        return None
    right = np.asarray(labels)
    count = len(next(iter(measured.values())))
    if right.ndim != 1 or len(right) < count:
        raise DataError(f"labels of shape {right.shape} do not fit {count} samples; give one class for each")
    return right[:count]


def _table(
    done: post_training.PostTraining,
    measured: Samples,
    right: npt.NDArray[Any] | None,
    report: OnProgress,
) -> Sensitivity:
    noise = Noise(done.graph, done.quantized, measured, done.keep_float)
    graph = Wiring(done.graph)
    producers, names, macs = graph.producers(), layer_names(graph), layer_macs(done.graph)
    first = noise.outputs[0]
    decided = noise.exact[first].argmax(axis=-1)
    accuracy = None
    if right is not None:
        if decided.ndim != 1:
            raise DataError(f"labels are for outputs of shape (samples, classes); {first!r} is not")
        accuracy = float((decided == right).mean())

    def lost(found: npt.NDArray[Any]) -> float | None:
        return None if right is None or accuracy is None else accuracy - float((found == right).mean())

    rows: list[tuple[float, dict[str, Any]]] = []
    for at, value in enumerate(noise.values, 1):
        outputs = noise.of_layer(value)
        node = noise.layers[value] or producers.get(value)
        found = outputs[first].argmax(axis=-1)
        row = {
            "layer": names[node.name] if node is not None else value,
            "operator": node.op_type if node is not None else "",
            "value": value,
            "grid": done.quantized.grids[value].dtype,
            "sqnr_db": sqnr_db(noise.exact[first], outputs[first]),
            "flip_rate": float((found != decided).mean()),
            "accuracy_lost": lost(found),
            "macs": macs.get(node.name, 0) if node is not None else 0,
        }
        rows.append((noise.error(outputs), row))
        report(Progress(step="probe", done=at, total=len(noise.values)))
    total = sum(error for error, _ in rows) or 1.0
    run = onnx_function(done.quantized.model)
    count = len(decided)
    parts = [run({n: v[i : i + BATCH] for n, v in measured.items()})[first] for i in range(0, count, BATCH)]
    everything = np.concatenate(parts)
    found = everything.argmax(axis=-1)
    ordered = sorted(rows, key=lambda r: r[0], reverse=True)
    return Sensitivity(
        layers=tuple(LayerSensitivity(share=error / total, **row) for error, row in ordered),
        sqnr_db=sqnr_db(noise.exact[first], everything),
        flip_rate=float((found != decided).mean()),
        accuracy=accuracy,
        accuracy_lost=lost(found),
        samples=count,
    )
