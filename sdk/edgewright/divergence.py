"""Divergence: the first node at which a model leaves what is expected of it, and why.

There are three ways to go wrong, and each has its own search. *Quantization*: the float model against what
the integers are defined to give. Noise is expected to add up; a value diverges where it alone, all else in
floating point, brings the outputs at least half of the noise that they may have. *Kernel* and *conversion*:
two engines on one set of integers. Engines round differently, which moves few integers by a step; that is far
less noise than rounding to the grid makes in the first place, a twelfth of a squared step. The first value
that is further away, while all that it is computed from is not, is where an engine computes something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.errors import VerifyError
from edgewright.graph import onnx_function
from edgewright.layer_findings import LEAST_CASES, MOST_VALUES, LayerFinding, Measured
from edgewright.statistics import sqnr_db
from edgewright.value_matching import GridValue, on_grids
from edgewright.walk import Walk
from edgewright.wiring import Wiring, initializers

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]
Kind = Literal["quantization", "kernel", "conversion"]
Cause = Literal["saturates", "too coarse", "weights", "adds up", "16-bit overflow", "other integers"]

TRIED = 10  # values whose own noise is followed to the outputs: those with most of it
ROUNDING = 1 / 12  # squared steps
WATCH = "edgewright.watch/"
PAIR_LIMIT = (1 << 15) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Where a model leaves what is expected, and why.

    Attributes:
        kind: Between which two tellings of the model.
        layer: The first that diverges.
        operator: Its kind.
        value: What it gives.
        input_db: Signal to noise of the worst of its inputs, up to which all was as expected.
        own_db: Of "quantization": of the outputs, if this value alone had its noise. Else of the value.
        share: Of "quantization": of the outputs' noise that comes from it, 0..1 (noise of several may
            cancel). Else of its integers that are more than one step away.
        cause: Why, as far as it can be told.
        because: The same in a sentence.
    """

    kind: Kind
    layer: str
    operator: str
    value: str
    input_db: float
    own_db: float
    share: float
    cause: Cause
    because: str


def quantization_divergence(
    measured: Measured, floats: onnx.ModelProto, *, min_sqnr_db: float, anyway: bool = False
) -> Divergence | None:
    """The first value whose quantization alone costs the outputs half of what they may lose.

    Args:
        measured: By `layer_findings.measure`.
        floats: The same float model.
        min_sqnr_db: What the outputs must have.
        anyway: Look although the outputs have it, as decisions are flipped all the same: half of what they
            lose is the bound then.

    Returns:
        None where the outputs are as they must be, or no value could be compared.
    """
    ends = {o.name for o in floats.graph.output}
    outputs = [f for f in measured.findings if f.value in ends]
    if not outputs:
        return None
    reached = min(f.accumulated_db for f in outputs)
    if reached >= min_sqnr_db and not anyway:
        return None
    noise = _noise(reached)
    bound = (noise if reached >= min_sqnr_db else _noise(min_sqnr_db)) / 2
    worst = sorted(range(len(measured.findings)), key=lambda i: measured.findings[i].local_db)[:TRIED]
    # All at once: beside an LSTM there are values whose first axis is not the batch.
    walk = Walk(floats, measured.inputs, len(next(iter(measured.inputs.values()))))
    names = sorted(ends)
    exact = {n: measured.floats[n] for n in names if n in measured.floats}
    own: dict[int, float] = {}
    for index in sorted(worst):
        value = measured.values[index]
        got = walk.rest(exact, {value.expected: measured.local[value.quantized]})
        own[index] = min(sqnr_db(exact[n], got[n]) for n in exact)
    guilty = [i for i, db in own.items() if _noise(db) >= bound]
    first = guilty[0] if guilty else min(own, key=lambda i: own[i])
    finding = measured.findings[first]
    cause: Cause = _cause(finding) if guilty else "adds up"
    by_read = {name: f for v, f in zip(measured.values, measured.findings, strict=True) for name in v.read}
    inputs = [by_read[n].accumulated_db for n in measured.values[first].reads if n in by_read]
    return Divergence(
        kind="quantization",
        layer=finding.layer,
        operator=finding.operator,
        value=finding.value,
        input_db=min(inputs, default=float("inf")),
        own_db=own[first],
        share=min(1.0, _noise(own[first]) / noise) if noise else 0.0,
        cause=cause,
        because=_because(finding, cause),
    )


def _noise(db: float) -> float:
    """Noise over signal."""
    return 10.0 ** (-db / 10) if db > -1000 else 1e100


def _cause(finding: LayerFinding) -> Cause:
    if finding.clipped >= 0.5:
        return "saturates"
    return "too coarse" if finding.rounded >= 0.5 else "weights"


def _because(finding: LayerFinding, cause: Cause) -> str:
    if cause == "saturates":
        outside = finding.below + finding.above
        return f"its range is too small: {outside:.2%} of its values lie beyond it, and are cut off"
    if cause == "too coarse":
        return (
            f"the steps of its range are too coarse for most of its values ({finding.grid}); a few outliers "
            "make the range large"
        )
    if cause == "weights":
        bits = f"{finding.weight_bits}-bit weights" if finding.weight_bits else "operator"
        return (
            f"neither range nor steps of its result explain its noise: its {bits} compute something else "
            f"than the float model ({finding.worst_channel_db:.1f} dB in channel {finding.worst_channel})"
        )
    return "no layer stands out: noise of many adds up, of which this one adds most"


def kernel_divergence(
    qdq: onnx.ModelProto,
    inputs: Mapping[str, Array],
    *,
    stock: Callable[[onnx.ModelProto], Run] | None = None,
) -> Divergence | None:
    """The first node of which an engine gives other integers than the graph, operator by operator.

    Looking at a value from outside would keep the engine from fusing the operators around it. So the graph is
    cut short behind a value, which leaves all before it as it was, and the value is found by bisection.

    Args:
        qdq: With its constants inside.
        inputs: Real cases by input name, (cases, ...); where activations are large, the first of them serve.
        stock: Makes the engine's function of a graph; ONNX Runtime as it comes, if left out.

    Returns:
        None where no value is further away than rounding explains.

    Raises:
        VerifyError: The engine does not take the graph.
    """
    load = stock or stock_function
    values = [v for v in on_grids(qdq) if v.read]
    exact = onnx_function(_watched(qdq, values))
    one = exact({n: v[:1] for n, v in inputs.items()})
    most = max(LEAST_CASES, MOST_VALUES // max(1, sum(v.size for v in one.values())))
    inputs = {n: v[:most] for n, v in inputs.items()}
    wanted = _integers(values, exact(inputs))
    first, got = _bisected(qdq, values, inputs, wanted, load)
    if first is None:
        return None
    own = stock is None and _may_overflow(first, qdq)
    overflow = own and not _is_off(
        wanted[first.quantized], _cut_short(qdq, first, inputs, partial(stock_function, precise=True))
    )
    return _of_engines("kernel", first, values, wanted, got, overflow=overflow)


def conversion_divergence(
    qdq: onnx.ModelProto, inputs: Mapping[str, Array], trace: Mapping[str, Array]
) -> Divergence | None:
    """The first node whose integers an integer program computes otherwise than its QDQ graph.

    Args:
        qdq: With its constants inside, of this SDK.
        inputs: Real cases by input name, (cases, ...).
        trace: All tensors of the program for them, by name, channels last
            (`edgewright_kernels.reference.trace`).
    """
    values = [v for v in on_grids(qdq) if v.read and v.quantized in trace]
    wanted = _integers(values, onnx_function(_watched(qdq, values))(inputs))
    got = {}
    for value in values:
        exact, tensor = wanted[value.quantized], trace[value.quantized]
        turned = np.moveaxis(tensor, -1, 1) if tensor.ndim > 2 else tensor
        fitting = [t for t in (turned, tensor) if t.shape == exact.shape]
        if not fitting and tensor.size == exact.size:
            fitting = [tensor.reshape(exact.shape)]
        if fitting:  # where both fit, it is the one that agrees
            off = [np.count_nonzero(_steps(exact, t)) for t in fitting]
            got[value.quantized] = fitting[int(np.argmin(off))]
    first = first_otherwise([v for v in values if v.quantized in got], wanted, got)
    return None if first is None else _of_engines("conversion", first, values, wanted, got)


def first_otherwise(
    values: Sequence[GridValue], wanted: Mapping[str, Array], got: Mapping[str, Array]
) -> GridValue | None:
    """The first value further away than rounding explains, while none of its inputs is.

    Args:
        values: In the order in which they are computed.
        wanted: Integers by name.
        got: Likewise.
    """
    off = [v for v in values if _is_off(wanted[v.quantized], got[v.quantized])]
    read = {name for v in off for name in v.read}
    return next((v for v in off if not read.intersection(v.reads)), off[0] if off else None)


def stock_function(model: onnx.ModelProto, *, precise: bool = False) -> Run:
    """A graph in ONNX Runtime as it comes: on the CPU, with all its rewrites and kernels.

    Args:
        model: With its constants inside.
        precise: Without kernels that add in 16 bits.

    Raises:
        VerifyError: It cannot load the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions share no base of their own
        raise VerifyError(f"ONNX Runtime cannot load this graph: {error}") from error
    names = [o.name for o in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _watched(qdq: onnx.ModelProto, values: Sequence[GridValue], *, alone: bool = False) -> onnx.ModelProto:
    """The graph, in which each value is dequantized once more, for an output of its own."""
    graph = Wiring(qdq)
    dequantize = {n.output[0]: n for n in graph.nodes if n.op_type == "DequantizeLinear"}
    for value in values:
        again = onnx.NodeProto()
        again.CopyFrom(dequantize[value.read[0]])
        again.output[0] = again.name = WATCH + value.quantized
        graph.nodes.append(again)
    if alone:
        graph.outputs = [WATCH + v.quantized for v in values]
        graph.drop_dead()
    made = graph.model()
    if alone:
        del made.graph.output[:]
    made.graph.output.extend(
        onnx.helper.make_tensor_value_info(WATCH + v.quantized, onnx.TensorProto.FLOAT, None) for v in values
    )
    return made


def _integers(values: Sequence[GridValue], found: Mapping[str, Array]) -> dict[str, Array]:
    """The integers of dequantized values, by name."""
    return {
        v.quantized: np.rint(found[WATCH + v.quantized] / np.float32(v.scale)).astype(np.int32) + v.zero_point
        for v in values
    }


def _bisected(
    qdq: onnx.ModelProto,
    values: Sequence[GridValue],
    inputs: Mapping[str, Array],
    wanted: Mapping[str, Array],
    load: Callable[[onnx.ModelProto], Run],
) -> tuple[GridValue | None, dict[str, Array]]:
    """By graphs that end at one value each; what comes behind a value that is off is taken to be off."""
    found: dict[str, Array] = {}

    def off(value: GridValue) -> bool:
        found[value.quantized] = _cut_short(qdq, value, inputs, load)
        return _is_off(wanted[value.quantized], found[value.quantized])

    low, high = -1, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if off(values[middle]) else (middle, high)
    return (values[high], found) if high < len(values) else (None, found)


def _cut_short(
    qdq: onnx.ModelProto,
    value: GridValue,
    inputs: Mapping[str, Array],
    load: Callable[[onnx.ModelProto], Run],
) -> Array:
    """The integers of a value by an engine, from a graph that ends there."""
    cut = _watched(qdq, [value], alone=True)
    read = {i.name for i in cut.graph.input}
    return _integers([value], load(cut)({n: v for n, v in inputs.items() if n in read}))[value.quantized]


def _is_off(wanted: Array, got: Array) -> bool:
    """Whether integers are further away than rounding explains."""
    return bool(np.square(_steps(wanted, got)).mean() > ROUNDING)


def _steps(wanted: Array, got: Array) -> npt.NDArray[np.int64]:
    difference: npt.NDArray[np.int64] = np.abs(wanted.astype(np.int64) - got.astype(np.int64))
    return difference


def _of_engines(
    kind: Kind,
    first: GridValue,
    values: Sequence[GridValue],
    wanted: Mapping[str, Array],
    got: Mapping[str, Array],
    *,
    overflow: bool = False,
) -> Divergence:
    def agreement_db(value: GridValue) -> float:
        a, b = (x[value.quantized].astype(np.float64) - value.zero_point for x in (wanted, got))
        return sqnr_db(a, b)

    share = float((_steps(wanted[first.quantized], got[first.quantized]) > 1).mean())
    inputs = [v for v in values if set(v.read) & set(first.reads) and v.quantized in got]
    what = (
        "the engine gives other integers than its graph"
        if kind == "kernel"
        else ("the integer program computes something else than model.onnx")
    )
    why = "; sums of two products leave 16 bits, for x64quantprecision=1 makes it right" if overflow else ""
    return Divergence(
        kind=kind,
        layer=first.node or first.source,
        operator=first.operator,
        value=first.source,
        input_db=min((agreement_db(v) for v in inputs), default=float("inf")),
        own_db=agreement_db(first),
        share=share,
        cause="16-bit overflow" if overflow else "other integers",
        because=f"{what}: {share:.2%} of them are more than one step away{why}",
    )


def _may_overflow(value: GridValue, qdq: onnx.ModelProto) -> bool:
    """Whether some two weights of one sign of an output are too large together (overflow_risks.py proves)."""
    weight = initializers(qdq).get(value.weight)
    if weight is None or weight.dtype != np.int8:
        return False
    axis = 0 if value.operator == "Conv" else 1
    rows = np.moveaxis(weight.astype(np.int64), axis, 0).reshape(weight.shape[axis], -1)
    if rows.shape[1] < 2:
        return False
    ends = np.sort(rows, axis=1)
    return bool(255 * max(ends[:, -2:].sum(axis=1).max(), -ends[:, :2].sum(axis=1).min()) > PAIR_LIMIT)
