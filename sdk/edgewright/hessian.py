"""Second-order information about a layer's weights: the second moments of what the layer reads.

The squared error of a layer's results is, for each output, `(w - v) H (w - v)'` with H the second moments of
its inputs (X X' over samples and positions; for a convolution X holds the patches under its kernel). It is
the Hessian of the layer-wise problem of Frantar et al. 2023, "GPTQ", arXiv:2210.17323.

Inputs are taken as the integer program will see them, behind the layers before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.graph import onnx_function
from edgewright.int4 import INT4
from edgewright.lower.windows import window_of
from edgewright.samples import Samples
from edgewright.wiring import Wiring, attributes
from edgewright_kernels.plan import Window

BATCH = 32
LEAST_ROWS = 1 << 14  # rows of X to sum over, where the samples have so many
ROWS_PER_TERM = 8  # and no fewer than this for each row of H
DAMPING = 0.01  # of the mean diagonal, added to it

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of a QDQ graph.

    Attributes:
        name: Of its integers.
        node: Conv, Gemm or MatMul.
        source: What it reads.
        own: Of its weights in the float graph.
        weight: Those, (O, C) or (O, C / groups, kernel...).
        integers: Of the graph, as they were when it was looked at.
        four: Whether these have 4 bits.
        groups: Of channels, each with an H of its own.
        wide: Whether it reads int16.
        window: Of a convolution.
    """

    name: str
    node: onnx.NodeProto
    source: str
    own: str
    weight: npt.NDArray[np.float32]
    integers: npt.NDArray[np.int8]
    four: bool
    groups: int
    wide: bool
    window: Window | None

    @property
    def terms(self) -> int:
        """How many products an output sums."""
        return int(math.prod(self.weight.shape[1:]))

    def parts(self) -> Iterator[tuple[slice, int]]:
        """The outputs of each group."""
        size = len(self.weight) // self.groups
        return ((slice(g * size, (g + 1) * size), g) for g in range(self.groups))

    def rows(self, x: npt.NDArray[np.float32], at: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float32]:
        """What each output multiplies: (groups, rows, terms), at some positions of all if these are given."""
        if self.window is None:
            flat = x.reshape(-1, x.shape[-1])
            return (flat if at is None else flat[at])[None]
        w, n, channels = self.window, len(x), x.shape[1]
        half = len(w.kernel)
        x = np.pad(x, [(0, 0), (0, 0), *zip(w.padding[:half], w.padding[half:], strict=True)])
        spans = [(k - 1) * d + 1 for k, d in zip(w.kernel, w.dilation, strict=True)]
        axes = tuple(range(2, x.ndim))
        seen = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)
        steps = (slice(None, None, step) for step in (1, 1, *w.stride, *w.dilation))
        seen = seen[tuple(steps)]
        places = seen.shape[2 : 2 + len(spans)]
        if at is None:
            at = np.arange(n * math.prod(places))
        sample, *place = np.unravel_index(at, (n, *places))
        patches = np.moveaxis(seen, 1, 1 + len(places))[(sample, *place)]  # (rows, C, kernel...)
        grouped = patches.reshape(len(at), self.groups, channels // self.groups, -1)
        return np.ascontiguousarray(grouped.swapaxes(0, 1)).reshape(self.groups, len(at), -1)

    def positions(self, x: npt.NDArray[np.float32]) -> int:
        """How many rows there are."""
        if self.window is None:
            return math.prod(x.shape[:-1])
        return len(x) * math.prod(self.window.output_size(*x.shape[2:]))


def layers_of(model: onnx.ModelProto, floats: onnx.ModelProto) -> list[Layer]:
    """The layers of a QDQ graph whose weights have a float counterpart, in the graph's order."""
    graph, plain = Wiring(model), Wiring(floats)
    shapes, producers = graph.infer(1)[0], graph.producers()
    found: list[Layer] = []
    for node in graph.nodes:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        constant = producers.get(node.input[1])
        if constant is not None and constant.op_type == "Transpose":
            constant = producers.get(constant.input[0])
        given = producers.get(node.input[0])
        if constant is None or constant.op_type != "DequantizeLinear" or given is None:
            continue
        name = constant.input[0]
        own = next((n for n in (name, name.removesuffix(f".{node.name}")) if n in plain.constants), None)
        if own is None or name not in graph.constants or given.op_type != "DequantizeLinear":
            continue
        weight = plain.constants[own]
        source = node.input[0]
        convolves = node.op_type == "Conv"
        found.append(
            Layer(
                name=name,
                node=node,
                source=source,
                own=own,
                weight=weight.T if node.op_type == "MatMul" else weight,
                integers=graph.constants[name].astype(np.int8),
                four=graph.constants[name].dtype == INT4,
                groups=int(attributes(node).get("group", 1)),
                wide=graph.constants[given.input[2]].dtype == np.int16,
                window=window_of(node, shapes[source][2:], weight.shape[2:]) if convolves else None,
            )
        )
    return found


def moments(model: onnx.ModelProto, layers: Sequence[Layer], samples: Samples) -> dict[str, Floats]:
    """Runs a QDQ graph on samples; gives the moments of some layers, (groups, terms, terms), by name.

    Rows are drawn with a fixed seed, the same number of every batch. What a mask hides does not count.
    """
    count = len(next(iter(samples.values())))
    watch = _watch(model, [x.source for x in layers])
    sums = {x.name: np.zeros((x.groups, x.terms, x.terms)) for x in layers}
    for number, start in enumerate(range(0, count, BATCH)):
        feed = {n: v[start : start + BATCH] for n, v in samples.items()}
        values = watch(feed)
        for layer in layers:
            x = values[layer.source]
            if layer.window is None and (kept := _kept(x, feed)) is not None:
                x = x[kept]
            rows = layer.positions(x)
            most = -(-max(LEAST_ROWS, ROWS_PER_TERM * layer.terms) // -(-count // BATCH))
            random = np.random.default_rng(number)
            at = np.sort(random.choice(rows, most, replace=False)) if rows > most else None
            seen = layer.rows(x, at)
            sums[layer.name] += seen.swapaxes(1, 2) @ seen
    return sums


def damped(seen: Floats) -> Floats:
    """With `DAMPING` of the mean diagonal of each group added to it, so that it can be inverted."""
    diagonal = np.einsum("gii->gi", seen).mean(axis=1)
    result: Floats = seen + np.maximum(DAMPING * diagonal, 1e-12)[:, None, None] * np.eye(seen.shape[1])
    return result


def _kept(x: npt.NDArray[np.float32], feed: Samples) -> npt.NDArray[np.bool_] | None:
    """Where a mask among the inputs, of 0 and 1, hides nothing of x (N, length, C)."""
    for value in feed.values():
        binary = value.dtype == np.int64 and value.shape == x.shape[:-1] and value.any()
        if binary and np.isin(value, (0, 1)).all():
            return value.astype(np.bool_)
    return None


def stages(layers: Sequence[Layer], most_bytes: int, most_stages: int) -> Iterator[list[Layer]]:
    """Layers, in order, to be looked at together: few enough stages, each within its memory."""
    stage: list[Layer] = []
    held = 0
    for layer in layers:
        size = 8 * layer.groups * layer.terms**2
        if stage and (len(stage) >= -(-len(layers) // most_stages) or held + size > most_bytes):
            yield stage
            stage, held = [], 0
        stage.append(layer)
        held += size
    if stage:
        yield stage


def _watch(
    model: onnx.ModelProto, names: Sequence[str]
) -> Callable[[Samples], Mapping[str, npt.NDArray[Any]]]:
    """The graph up to some values, as a function that gives them."""
    wanted = list(dict.fromkeys(names))
    graph = Wiring(model)
    given = [n for n in wanted if n in graph.inputs]
    graph.outputs = [n for n in wanted if n not in given]
    if not graph.outputs:
        return lambda feed: {n: feed[n] for n in given}
    graph.drop_dead()
    cut = graph.model()
    del cut.graph.output[:]
    run = onnx_function(cut, graph.outputs)
    needed = {i.name for i in cut.graph.input}
    return lambda feed: run({n: feed[n] for n in needed}) | {n: feed[n] for n in given}
