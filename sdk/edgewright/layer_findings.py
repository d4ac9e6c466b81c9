"""What each value's quantization adds by itself, and how much noise has gathered up to it.

Two ratios of signal to noise tell them apart. *Local*: the layer reads the float model's values, so only its
own weights and its own grid differ. *Accumulated*: the value as the whole QDQ graph computes it. The local
noise is told apart once more: what lay beyond the ends of the grid, what rounding to its steps costs (a
twelfth of a squared step for each value, Widrow & Kollar 2008, "Quantization Noise"), and the rest, which is
of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.fusion import MASKED
from edgewright.graph import onnx_function
from edgewright.layer_names import layer_names
from edgewright.value_matching import GridValue, grid_values, integers_bits
from edgewright.wiring import Wiring

Array = npt.NDArray[Any]
Values = dict[str, Array]

CASES = 64
MOST_VALUES = 1 << 23  # elements of one graph's values, over all cases: about a second's work
LEAST_CASES = 2
# Equalization and smoothing scale the channels of a value, and its readers scale them back. One factor for
# each channel explains next to nothing of rounding noise. Where it explains three quarters of the noise, and
# what reads the value is right with it, the value is taken to be scaled.
SCALED_GAIN_DB, SCALED_DB = 6.0, 20.0
PLAIN_DB = 30.0  # a value this near is the same as it is
THERE = "edgewright.float/"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFinding:
    """One value on its grid, against the same value of the float model.

    Attributes:
        layer: The layer or node that gives it; the name of an input.
        operator: ONNX's name of it, "" for an input.
        value: The value's name in the float model.
        grid: "uint8", "int8", "int16" or "uint16".
        weight_bits: Of the layer's integers; 0 where it has none.
        accumulated_db: Signal to noise as the whole graph computes it.
        local_db: Signal to noise that the layer has from the float model's values.
        below: Share of the float model's values, 0..1, that lie below the grid.
        above: Likewise above it.
        clipped: Share of the local noise, 0..1, that the ends of the grid make.
        rounded: Share of the local noise, 0..1, that its steps make.
        worst_channel: The channel with the least local signal to noise.
        worst_channel_db: It.
        scaled: Whether channels were compared up to a factor each, as equalization leaves them.
        cases: Cases that it was measured on.
    """

    layer: str
    operator: str
    value: str
    grid: str
    weight_bits: int
    accumulated_db: float
    local_db: float
    below: float
    above: float
    clipped: float
    rounded: float
    worst_channel: int
    worst_channel_db: float
    scaled: bool
    cases: int


@dataclass(frozen=True, kw_only=True)  # arrays do not compare
class Measured:
    """Findings, with what they were found on.

    Attributes:
        findings: In the order in which values are computed.
        values: Of the QDQ graph, one for each finding.
        inputs: The cases, by the float model's names.
        floats: The float model's values by name, (cases, ...).
        local: What each layer makes of them, by name of the integers, in the float model's scale.
    """

    findings: tuple[LayerFinding, ...]
    values: tuple[GridValue, ...]
    inputs: Mapping[str, Array]
    floats: Mapping[str, Array]
    local: Mapping[str, Array]


def layer_findings(
    qdq: onnx.ModelProto, floats: onnx.ModelProto, inputs: Mapping[str, Array], *, cases: int = CASES
) -> tuple[LayerFinding, ...]:
    """Looks at every value of a QDQ graph that is on a grid, and that the float model has too.

    Args:
        qdq: With its constants inside.
        floats: The float model, as a graph of the same inputs.
        inputs: Real cases by input name, (cases, ...).
        cases: How many to use at most; where activations are large, fewer are.

    Returns:
        In the order in which values are computed; each says on how many cases.
    """
    return measure(qdq, floats, inputs, cases=cases).findings


def measure(
    qdq: onnx.ModelProto, floats: onnx.ModelProto, inputs: Mapping[str, Array], *, cases: int = CASES
) -> Measured:
    """As `layer_findings`, and keeps the values."""
    values = [v for v in grid_values(qdq, floats) if v.expected and v.read]
    if not values:
        return Measured(findings=(), values=(), inputs={}, floats={}, local={})
    few = _chosen(floats, values, {n: inputs[n] for n in Wiring(qdq).inputs}, cases)
    exact, gathered = _both(qdq, floats, values, few)
    values = [
        v
        for v in values
        if exact[v.expected].shape == gathered[v.quantized].shape and exact[v.expected].dtype == np.float32
    ]
    exact = {n: a for n, a in exact.items() if n in {v.expected for v in values}}
    outputs = {o.name for o in floats.graph.output}
    factors = _factors([v for v in values if v.node and v.expected not in outputs], exact, gathered)
    expected = _scaled(exact, factors)
    local = _local(qdq, values, expected, few)
    while factors and (borne_out := _borne_out(values, factors, expected, local)).keys() != factors.keys():
        factors, expected = borne_out, _scaled(exact, borne_out)
        local = _local(qdq, values, expected, few)
    graph, model = Wiring(qdq), Wiring(floats)
    names = layer_names(model)
    findings = tuple(
        _finding(v, graph, names, expected[v.expected], gathered[v.quantized], local[v.quantized], factors)
        for v in values
    )
    return Measured(
        findings=findings,
        values=tuple(values),
        inputs=dict(zip(Wiring(floats).inputs, few.values(), strict=True)),
        floats=exact,
        local={
            v.quantized: local[v.quantized] / factors[v.expected]
            if v.expected in factors
            else local[v.quantized]
            for v in values
        },
    )


def _chosen(
    floats: onnx.ModelProto, values: Sequence[GridValue], inputs: Mapping[str, Array], cases: int
) -> Values:
    """As many cases, spread over all, as memory and time allow."""
    shapes = Wiring(floats).infer(1)[0]
    one = sum(math.prod(shapes.get(v.expected, ())) for v in values)
    there = len(next(iter(inputs.values())))
    count = min(there, cases, max(LEAST_CASES, MOST_VALUES // max(one, 1)))
    rows = np.unique(np.linspace(0, there - 1, count).astype(np.int64))
    return {n: np.ascontiguousarray(v[rows]) for n, v in inputs.items()}


def _both(
    qdq: onnx.ModelProto, floats: onnx.ModelProto, values: Sequence[GridValue], inputs: Mapping[str, Array]
) -> tuple[Values, Values]:
    """Values of the float model by name, and of the QDQ graph by name of the integers."""
    theirs = dict(zip(Wiring(floats).inputs, Wiring(qdq).inputs, strict=True))
    feed = {mine: inputs[name] for mine, name in theirs.items()}
    wanted = [n for n in dict.fromkeys(v.expected for v in values) if n not in feed]
    exact = feed | onnx_function(floats, wanted)(feed)
    run = onnx_function(qdq, [v.read[0] for v in values])
    found = run(inputs)
    return exact, {v.quantized: found[v.read[0]] for v in values}


def _factors(values: Sequence[GridValue], exact: Values, gathered: Values) -> Values:
    """What each channel of a value was multiplied with, where it was; to broadcast."""
    found: Values = {}
    for value in values:
        a, b = exact[value.expected], gathered[value.quantized]
        plain = _db(_power(a), _power(a - b))
        if value.expected in found or plain > PLAIN_DB:
            continue
        axes = _other_axes(value, a)
        square, both = _products(a, a, axes), _products(a, b, axes)
        told = square > 1e-6 * square.max(initial=0)
        factor = np.where(told, both / np.where(told, square, 1), 1)
        noise = _products(b, b, axes).sum() - (factor * (2 * both - factor * square)).sum()
        found_db = _db(float((factor**2 * square).sum()), max(float(noise), 0.0))
        if (factor > 0).all() and found_db >= max(SCALED_DB, plain + SCALED_GAIN_DB):
            shape = [1 if axis in axes else -1 for axis in range(a.ndim)]
            found[value.expected] = factor.reshape(shape).astype(np.float32)
    return found


def _scaled(exact: Values, factors: Values) -> Values:
    return {n: a * factors[n] if n in factors else a for n, a in exact.items()}


def _borne_out(values: Sequence[GridValue], factors: Values, expected: Values, local: Values) -> Values:
    """The factors with which all that reads the value is right."""
    wrong: set[str] = set()
    root = {name: v.expected for v in values for name in v.read}
    for value in values:
        a, b = expected[value.expected], local[value.quantized]
        if _db(_power(a), _power(a - b)) < SCALED_DB:
            wrong |= {root[n] for n in value.reads if n in root}
    return {n: f for n, f in factors.items() if n not in wrong}


def _local(
    qdq: onnx.ModelProto,
    values: Sequence[GridValue],
    expected: Mapping[str, Array],
    inputs: Mapping[str, Array],
) -> Values:
    """What each layer makes of the float model's values, by name of the integers."""
    graph = Wiring(qdq)
    fed = {name: v for v in values for name in v.read}
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            if name in fed:
                node.input[index] = THERE + fed[name].expected
    graph.outputs = [v.read[0] for v in values]
    graph.drop_dead()
    model = graph.model()
    read = {n for node in model.graph.node for n in node.input}
    feed = {THERE + n: a for n, a in expected.items() if THERE + n in read}
    feed |= {n: a for n, a in inputs.items() if n in read}
    del model.graph.input[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), ["N", *a.shape[1:]]
        )
        for n, a in feed.items()
    )
    found = onnx_function(model, [v.read[0] for v in values])(feed)
    return {v.quantized: found[v.read[0]] for v in values}


def _finding(
    value: GridValue,
    graph: Wiring,
    names: Mapping[str, str],
    exact: Array,
    gathered: Array,
    local: Array,
    factors: Mapping[str, Array],
) -> LayerFinding:
    hidden = exact <= MASKED  # what a mask hides is as good as any other large negative number
    if hidden.any():
        exact, gathered, local = (np.where(hidden, 0, a) for a in (exact, gathered, local))
    axes = _other_axes(value, exact)
    off = exact - local
    signal, noise = _products(exact, exact, axes), _products(off, off, axes)
    channels = [_db(s, n) for s, n in zip(signal, noise, strict=True)]
    worst = int(np.argmin(channels))
    low, high = value.ends
    half = value.scale / 2
    below, above = exact < low - half, exact > high + half
    clipping = _power(exact[below] - low) + _power(exact[above] - high)
    whole = float(noise.sum())
    rounding = value.scale**2 / 12 * float(np.count_nonzero(exact))
    weight = graph.constants.get(value.weight)
    return LayerFinding(
        layer=names.get(value.node, value.node) or value.expected,
        operator=value.operator,
        value=value.expected,
        grid=value.dtype,
        weight_bits=0 if weight is None else integers_bits(weight),
        accumulated_db=_db(_power(exact), _power(exact - gathered)),
        local_db=_db(float(signal.sum()), whole),
        below=float(below.mean()),
        above=float(above.mean()),
        clipped=min(1.0, clipping / whole) if whole else 0.0,
        rounded=min(1.0, rounding / whole) if whole else 0.0,
        worst_channel=worst,
        worst_channel_db=channels[worst],
        scaled=value.expected in factors,
        cases=len(exact),
    )


def _other_axes(value: GridValue, array: Array) -> tuple[int, ...]:
    """All axes but that of the channels."""
    second = array.ndim > 3 or value.operator in {"Conv", "ConvTranspose"}
    channel = min(1 if second else array.ndim - 1, array.ndim - 1)
    return tuple(a for a in range(array.ndim) if a != channel)


def _products(a: Array, b: Array, axes: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Sums of products of two arrays over all axes but that of the channels."""
    last = a.ndim - 1 not in axes
    shape = (-1, a.shape[-1], 1) if last else (*a.shape[:2], -1)
    sums: npt.NDArray[np.float64] = np.einsum("ncx,ncx->c", a.reshape(shape), b.reshape(shape)).astype(
        np.float64
    )
    return sums


def _power(array: Array) -> float:
    flat = array.reshape(-1)
    return float(np.vdot(flat, flat))


def _db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    if not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
