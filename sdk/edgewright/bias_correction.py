"""Bias correction: what quantization adds to the mean of each output channel is taken off the bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.2, in its empirical form: means over calibration samples, layer after layer, so that a layer is
corrected for what the corrected ones before it still leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.graph import onnx_function
from edgewright.progress import OnProgress, Progress
from edgewright.quantization import Quantized
from edgewright.seams import bias_of, is_layer
from edgewright.walk import Walk
from edgewright.wiring import Wiring, set_initializer

BATCH = 32
SAMPLES = 128
LARGEST = 1 << 29  # of a corrected bias, as of any other

Floats = npt.NDArray[np.float64]


def corrected(
    quantized: Quantized,
    floats: onnx.ModelProto,
    samples: Mapping[str, npt.NDArray[Any]],
    report: OnProgress,
) -> Quantized:
    """Changes the int32 biases of Conv, Gemm and MatMul; nothing else.

    Args:
        quantized: As `quantize_graph` gave it, or with other integers for its weights.
        floats: The float graph it was made of, each of its layers with a bias (`seams.with_biases`).
        samples: The graph's inputs by name, (samples, ...).
        report: Told of each layer.
    """
    some = {n: v[:SAMPLES] for n, v in samples.items()}
    graph = Wiring(floats)
    readers = graph.readers()
    biases = {n.name: b for n in graph.nodes if is_layer(n, graph) and (b := bias_of(n, graph, readers))}
    layers = [n for n in graph.nodes if n.name in biases]
    wanted = _means(floats, layers, some)
    nodes = {n.name: n for n in quantized.model.graph.node}
    walk = Walk(quantized.model, some, BATCH)
    changed: dict[str, npt.NDArray[Any]] = {}
    for done, layer in enumerate(layers, 1):
        node = nodes.get(layer.name)
        integers = _integers(node, quantized, biases[layer.name]) if node is not None else ""
        if node is not None and integers and integers not in changed:
            result = node.output[0]
            value = walk.to(result)
            axis = _axis(layer)
            others = tuple(a for a in range(value.ndim) if a != axis % value.ndim)
            error = value.mean(axis=others, dtype=np.float64) - wanted[layer.name]
            scale = quantized.weights[f"{integers}.scale"].astype(np.float64)
            before = quantized.weights[integers]
            room = max(LARGEST, int(np.abs(before).max()))
            after = np.clip(before - np.rint(error / scale), -room, room).astype(np.int32)
            changed[integers] = walk.constants[integers] = after
            if layer.op_type != "MatMul":  # whose bias comes later
                moved = ((after - before) * scale).astype(np.float32)
                shape = [1] * value.ndim
                shape[axis] = -1
                walk.values[result] = value + moved.reshape(shape)
        report(Progress(step="correct biases", done=done, total=len(layers)))
    model = onnx.ModelProto()
    model.CopyFrom(quantized.model)
    for name, value in changed.items():
        set_initializer(model, name, value)
    return replace(quantized, model=model, weights={**quantized.weights, **changed})


def _axis(layer: onnx.NodeProto) -> int:
    return 1 if layer.op_type == "Conv" else -1


def _means(
    floats: onnx.ModelProto, layers: list[onnx.NodeProto], samples: Mapping[str, npt.NDArray[Any]]
) -> dict[str, Floats]:
    """The mean of each output channel in the float graph, by layer."""
    run = onnx_function(floats, [n.output[0] for n in layers])
    count = len(next(iter(samples.values())))
    sums: dict[str, Floats] = {}
    for start in range(0, count, BATCH):
        feed = {n: v[start : start + BATCH] for n, v in samples.items()}
        values = run(feed)
        for layer in layers:
            value = np.moveaxis(values[layer.output[0]], _axis(layer), -1)
            mean = value.reshape(-1, value.shape[-1]).mean(axis=0, dtype=np.float64)
            share = len(next(iter(feed.values()))) / count
            sums[layer.name] = sums.get(layer.name, np.zeros_like(mean)) + share * mean
    return sums


def _integers(node: onnx.NodeProto, quantized: Quantized, bias: str) -> str:
    """The name of a layer's int32 bias in the quantized graph."""
    for name in (f"{bias}.{node.name}", bias):
        value = quantized.weights.get(name)
        if value is not None and value.dtype == np.int32:
            return name
    return ""
