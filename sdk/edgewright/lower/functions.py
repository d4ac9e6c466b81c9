"""Functions: sums and products of two values, tables, softmax, layer norm."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.elementwise import evaluate, moving_inputs
from edgewright.errors import ExportError
from edgewright.fusion import MASKED
from edgewright.lower.draft import Draft, Result, Value, last_stays
from edgewright.lower.scales import REMEDY, describe, rescale_of
from edgewright.wiring import attributes
from edgewright_kernels.plan import Add, LayerNorm, Lookup, Multiply, Rescale, Softmax, Tensor

EXPONENT_ONE = 65536  # exp(0) in the table of softmax


def pair(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """Add, Sub or Mul of two values, of which one may broadcast to the other."""
    a, b = draft.operand(node, 0), draft.operand(node, 1)
    if node.op_type == "Sub":
        b = _negated(draft, b)
    if draft.shape(a) != result.shape:
        a, b = b, a
    if draft.shape(a) != result.shape:
        raise ExportError(
            f"{describe(node)}: neither {draft.shape(a)} nor {draft.shape(b)} is its result's shape; {REMEDY}"
        )
    b = _beside(draft, b, a)
    scales = [draft.tensor(v).scale for v in (a, b)]
    if node.op_type == "Mul":
        change = rescale_of(node, [scales[0] * scales[1] / result.scale], result.low, result.high)
        y = draft.give(result, a.order)
        draft.ops.append(Multiply(a=a.number, b=b.number, y=y.number, rescale=change))
        return
    factors = [s / result.scale for s in scales]
    change = rescale_of(node, factors, result.low, result.high, same_shift=True)
    y = draft.give(result, a.order)
    draft.ops.append(Add(a=a.number, b=b.number, y=y.number, rescale=change))


def _beside(draft: Draft, b: Value, a: Value) -> Value:
    """`b` in the order of `a`, so that it broadcasts as it does in the graph."""
    if all(size == 1 for size in draft.shape(b)) or a.order == tuple(range(len(a.order))) == b.order:
        return b
    return draft.arranged(draft.widened(b, len(a.order)), a.order)


def _negated(draft: Draft, value: Value) -> Value:
    t = draft.tensor(value)
    zero_point = 255 - t.zero_point if t.dtype == "uint8" else 0
    y = draft.new(f"-{t.name}", draft.shape(value), value.order, t.scale, zero_point, t.dtype)
    table = bytes(range(255, -1, -1)) if t.dtype == "uint8" else _line(-_nodes(), t.limits)
    draft.ops.append(Lookup(x=value.number, y=y.number, table=table))
    return y


def _nodes() -> npt.NDArray[np.float64]:
    """The 513 integers of int16 that a table has entries for, the last one past its end."""
    return np.arange(-256, 257) * np.float64(128)


def _line(steps: npt.NDArray[np.float64], limits: tuple[int, int]) -> bytes:
    """The table of a function of int16, from its results at `_nodes()` in steps of y, zero point included."""
    with np.errstate(all="ignore"):
        entries = np.clip(np.rint(128 * steps), 128 * limits[0], 128 * limits[1])
    return entries.astype("<i4").tobytes()


def _reals(t: Tensor) -> npt.NDArray[np.float64]:
    """The real values that a table of a tensor has entries for."""
    integers = np.arange(256) - t.zero_point if t.dtype == "uint8" else _nodes()
    return integers * np.float64(np.float32(t.scale))


def lookup(draft: Draft, node: onnx.NodeProto, source: str, result: Result) -> None:
    """Any function of one value, as a table: in float64, rounded half to even; lines between for int16."""
    before = draft.producers[source]
    x = draft.values[before.input[0]]
    real = evaluate(node.output[0], source, _reals(draft.tensor(x)), draft.producers, draft.graph.constants)
    with np.errstate(all="ignore"):
        steps = np.nan_to_num(real, nan=0.0) / result.scale
        if draft.tensor(x).dtype == "int16":
            table = _line(steps + result.zero_point, (result.low, result.high))
        else:
            whole = np.clip(np.rint(steps) + result.zero_point, result.low, result.high)
            table = whole.astype(np.dtype(result.dtype).newbyteorder("<")).tobytes()
    y = draft.give(result, x.order)
    draft.ops.append(Lookup(x=x.number, y=y.number, table=table))


def softmax(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """Softmax over the last axis, of the scores that a mask keeps."""
    scores, mask = _masked(draft, node)
    rank = len(scores.order)
    if attributes(node).get("axis", -1) not in {-1, rank}:
        raise ExportError(f"{describe(node)}: only the last axis is in the native engine; {REMEDY}")
    x = draft.arranged(scores, last_stays(scores.order))
    if mask is not None:
        mask = _beside(draft, mask, x)
    table = _exponentials(draft.tensor(x))
    change = rescale_of(node, [1 / (result.scale * EXPONENT_ONE)], result.low, result.high)
    y = draft.give(result, x.order)
    draft.ops.append(
        Softmax(
            x=x.number,
            mask=None if mask is None else mask.number,
            y=y.number,
            table=tuple(int(v) for v in table),
            rescale=change,
        )
    )


def _exponentials(t: Tensor) -> npt.NDArray[np.float64]:
    """The table of softmax over values of this tensor; of int16 two: of low bytes, and of high ones."""
    steps = -np.float64(t.scale) * np.arange(256)
    parts = [EXPONENT_ONE * np.exp(steps)]
    if t.dtype == "int16":
        parts = [EXPONENT_ONE / 2 * np.exp(steps), EXPONENT_ONE * np.exp(256 * steps)]
    table: npt.NDArray[np.float64] = np.rint(np.concatenate(parts))
    return table


def _masked(draft: Draft, node: onnx.NodeProto) -> tuple[Value, Value | None]:
    """What softmax reads: scores, and a mask if an Add stands between."""
    add = draft.producers.get(node.input[0])
    if add is None or add.op_type != "Add":
        return draft.operand(node, 0), None
    for index in range(2):
        name = add.input[1 - index]
        source = source_of(draft, name)
        if source is None or source == name or not _is_dequantized(draft, add.input[index]):
            continue
        keep = draft.operand(draft.readers[source][0], list(draft.readers[source][0].input).index(source))
        t = draft.tensor(keep)
        hidden = evaluate(name, source, _reals(t), draft.producers, draft.graph.constants) <= MASKED
        if bool(hidden[t.zero_point]) and int(hidden.sum()) == 1:
            return draft.operand(add, index), keep
        y = draft.new(f"{t.name}.keep", draft.shape(keep), keep.order, 1.0, 0)
        table = np.where(hidden, 0, 1).astype(np.uint8)
        draft.ops.append(Lookup(x=keep.number, y=y.number, table=table.tobytes()))
        return draft.operand(add, index), y
    raise ExportError(
        f"{describe(add)}: adds something else than a mask before softmax, unquantized; {REMEDY}"
    )


def source_of(draft: Draft, name: str) -> str | None:
    """The one dequantized value that `name` is a function of, element by element."""
    waiting, seen, sources = [name], set[str](), set[str]()
    while waiting:
        value = waiting.pop()
        node = draft.producers.get(value)
        moving = moving_inputs(node, draft.graph.constants) if node is not None else None
        if moving is None:
            sources.add(value)
        else:
            waiting += [m for m in moving if m not in seen]
            seen.update(moving)
    if len(sources) != 1:
        return None
    (source,) = sources
    return source if _is_dequantized(draft, source) else None


def _is_dequantized(draft: Draft, name: str) -> bool:
    before = draft.producers.get(name)
    return before is not None and before.op_type == "DequantizeLinear"


def layer_norm(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """LayerNormalization over the last axis."""
    given = draft.operand(node, 0)
    rank = len(given.order)
    if attributes(node).get("axis", -1) not in {-1, rank}:
        raise ExportError(f"{describe(node)}: only the last axis is in the native engine; {REMEDY}")
    x = draft.arranged(given, last_stays(given.order))
    t, size = draft.tensor(x), draft.shape(x)[-1]
    constants = [draft.graph.constants.get(n) for n in node.input[1:] if n]
    if any(c is None or c.size != size for c in constants) or not constants:
        raise ExportError(
            f"{describe(node)}: its gain and offset are not constants of its last axis; {REMEDY}"
        )
    gain, offset = (
        np.asarray(c, np.float64).reshape(-1) / result.scale
        for c in [*constants, np.zeros(size)][:2]
        if c is not None
    )
    # As many bits as fit: gain * 2^(shift - 15) within 31 bits, offset * 2^shift within 55.
    bits = [46 - _exponent(gain), 55 - _exponent(offset), 62]
    shift = min(bits)
    if shift < 1:
        raise ExportError(f"{describe(node)}: its gain or offset does not fit the integer program")
    epsilon = round(size**2 * attributes(node).get("epsilon", 1e-5) / float(t.scale) ** 2)
    y = draft.give(result, x.order)
    draft.ops.append(
        LayerNorm(
            x=x.number,
            y=y.number,
            gain=tuple(int(v) for v in np.rint(np.ldexp(gain, shift - 15))),
            offset=tuple(int(v) for v in np.rint(np.ldexp(offset, shift))),
            epsilon=min(max(epsilon, 1), 1 << (46 if t.dtype == "uint8" else 60)),
            rescale=Rescale(
                multiplier=np.array([1], np.int32),
                shift=np.array([shift], np.int32),
                low=result.low,
                high=result.high,
            ),
        )
    )


def _exponent(values: npt.NDArray[np.float64]) -> int:
    """The least e with |values| rounded still below 2^e."""
    largest = float(np.abs(values).max())
    return int(np.frexp(largest * (1 + 1e-9))[1]) if largest else -100
