"""Sums, products, tables, softmax and layer norm of an integer program, as LiteRT has them.

What LiteRT has no integer kernel for, and what its integer kernels would change by more than a rounding
(softmax under a mask, layer norm), is computed in float32 between a DEQUANTIZE and a QUANTIZE.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgewright.litert.draft import SHIFT, Draft, Grid
from edgewright.litert.file import BUILTIN
from edgewright_kernels.plan import Add, LayerNorm, Lookup, Multiply, Requantize, Softmax

PROBABILITY: Grid = (1 / 256, -128)  # the one grid that LiteRT's integer softmax gives
MASKED = -1e4  # added to scores that a mask hides
Reals = npt.NDArray[np.float64]


def pair(draft: Draft, op: Add | Multiply) -> None:
    """ADD or MUL, of which LiteRT broadcasts either operand."""
    code, options = (
        (BUILTIN.ADD, schema.AddOptionsT) if isinstance(op, Add) else (BUILTIN.MUL, schema.MulOptionsT)
    )
    a, b = draft.read(op.a), draft.read(op.b)
    rank = len(draft.file.shape(a))
    if len(draft.file.shape(b)) < rank:  # the batch comes first, so a smaller one must be widened by hand
        shape = draft.file.shape(b)
        b = draft.reshaped(b, (1, *(1,) * (rank - len(shape)), *shape[1:]))
    draft.result(
        op.y,
        op.rescale,
        lambda result, activation: draft.file.emit(
            code, [a, b], result, options, fusedActivationFunction=activation
        ),
    )


def requantize(draft: Draft, op: Requantize) -> None:
    """QUANTIZE from one grid to another."""
    if op.rescale.multiplier.size > 1:
        raise draft.refuse(op, op.y, "a scale for each channel, which LiteRT's activations cannot have")
    x = draft.read(op.x)
    draft.result(
        op.y,
        op.rescale,
        lambda result, _: draft.file.emit(BUILTIN.QUANTIZE, [x], result, schema.QuantizeOptionsT),
        fuses=False,
    )


def _gelu(x: Reals) -> Reals:
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _gelu_tanh(x: Reals) -> Reals:
    inner: Reals = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * 0.5 * (1 + inner)


_GELUS = ((_gelu, False), (_gelu_tanh, True))


def lookup(draft: Draft, op: Lookup) -> None:
    """GELU, where LiteRT's has this very table; else GATHER from it, by the integer itself: exact."""
    x, y = draft.tensor(op.x), draft.tensor(op.y)
    table = np.frombuffer(op.table, np.uint8)
    reals = (np.arange(256) - x.zero_point) * np.float64(np.float32(x.scale))
    source = draft.read(op.x)

    for function, approximate in _GELUS:
        steps = np.rint(function(reals) / np.float64(np.float32(y.scale))) + y.zero_point
        if np.array_equal(np.clip(steps, 0, 255), table):
            draft.file.emit(
                BUILTIN.GELU, [source], draft.give(op.y), schema.GeluOptionsT, approximate=approximate
            )
            return
    shape = (1, *x.shape)
    wide = draft.file.tensor(f"{y.name}_wide", shape, np.int32)
    draft.file.emit(
        BUILTIN.CAST,
        [source],
        wide,
        schema.CastOptionsT,
        inDataType=schema.TensorType.INT8,
        outDataType=schema.TensorType.INT32,
    )
    places = draft.file.tensor(f"{y.name}_places", shape, np.int32)
    shift = draft.file.constant("shift", np.array([SHIFT], np.int32))
    draft.file.emit(BUILTIN.ADD, [wide, shift], places, schema.AddOptionsT)
    entries = (table.astype(np.int16) - SHIFT).astype(np.int8)
    scale, zero_point = draft.grid(op.y)
    constant = draft.file.constant(f"{y.name}_table", entries, [scale], zero_point=zero_point)
    draft.file.emit(BUILTIN.GATHER, [constant, places], draft.give(op.y), schema.GatherOptionsT, axis=0)


class Floats:
    """Operators on float32 values, added one behind the other."""

    def __init__(self, draft: Draft, name: str) -> None:
        self._draft, self._name = draft, name

    def dequantized(self, number: int) -> int:
        """A value of the plan in float32."""
        x = self._draft.read(number)
        result = self._draft.inner(f"{self._name}_float", self._draft.file.shape(x), None)
        return self._draft.file.emit(BUILTIN.DEQUANTIZE, [x], result, schema.DequantizeOptionsT)

    def number(self, value: npt.ArrayLike) -> int:
        """A constant."""
        return self._draft.file.constant(f"{self._name}_number", np.atleast_1d(np.asarray(value, np.float32)))

    def pair(self, code: int, a: int, b: int) -> int:
        """ADD, SUB, MUL, MINIMUM or SQUARED_DIFFERENCE, b broadcasting to a."""
        options = {
            BUILTIN.ADD: schema.AddOptionsT,
            BUILTIN.SUB: schema.SubOptionsT,
            BUILTIN.MUL: schema.MulOptionsT,
            BUILTIN.MINIMUM: schema.MaximumMinimumOptionsT,
            BUILTIN.SQUARED_DIFFERENCE: schema.SquaredDifferenceOptionsT,
        }[code]
        result = self._draft.inner(f"{self._name}_inner", self._draft.file.shape(a), None)
        return self._draft.file.emit(code, [a, b], result, options)

    def mean(self, x: int) -> int:
        """MEAN over the last axis, which stays with size 1."""
        shape = self._draft.file.shape(x)
        result = self._draft.inner(f"{self._name}_mean", (*shape[:-1], 1), None)
        axes = self._draft.file.constant("last", np.array([len(shape) - 1], np.int32))
        return self._draft.file.emit(BUILTIN.MEAN, [x, axes], result, schema.ReducerOptionsT, keepDims=True)

    def function(self, code: int, x: int, options: object = None, **how: object) -> int:
        """A function of one value, such as RSQRT or SOFTMAX."""
        result = self._draft.inner(f"{self._name}_inner", self._draft.file.shape(x), None)
        return self._draft.file.emit(code, [x], result, options, **how)


def softmax(draft: Draft, op: Softmax) -> None:
    """SOFTMAX in integers; under a mask in float32, and 0 where all is masked."""
    y, shape = draft.tensor(op.y), (1, *draft.tensor(op.x).shape)
    if op.mask is None:
        x = draft.read(op.x)

        def emit(result: int, _: int) -> None:
            same = draft.grid(op.y) == PROBABILITY
            given = result if same else draft.inner(f"{y.name}_256ths", shape, PROBABILITY)
            draft.file.emit(BUILTIN.SOFTMAX, [x], given, schema.SoftmaxOptionsT, beta=1.0)
            if not same:
                draft.file.emit(BUILTIN.QUANTIZE, [given], result, schema.QuantizeOptionsT)

        draft.result(op.y, op.rescale, emit, fuses=False)
        return
    if draft.tensor(op.mask).zero_point:
        raise draft.refuse(op, op.y, "a mask that does not begin at 0")
    floats = Floats(draft, y.name)
    # Kept values are one step or more: 1 then, and 0 else.
    steps = floats.pair(
        BUILTIN.MUL, floats.dequantized(op.mask), floats.number(1 / draft.tensor(op.mask).scale)
    )
    keep = floats.pair(BUILTIN.MINIMUM, steps, floats.number(1.0))
    rank = len(shape)
    if len(draft.file.shape(keep)) < rank:
        sizes = draft.file.shape(keep)
        keep = draft.reshaped(keep, (1, *(1,) * (rank - len(sizes)), *sizes[1:]))
    hidden = floats.pair(
        BUILTIN.MUL, floats.pair(BUILTIN.SUB, keep, floats.number(1.0)), floats.number(-MASKED)
    )
    scores = floats.pair(BUILTIN.ADD, floats.dequantized(op.x), hidden)
    shares = floats.function(BUILTIN.SOFTMAX, scores, schema.SoftmaxOptionsT, beta=1.0)
    kept = floats.pair(BUILTIN.MUL, shares, keep)
    draft.result(
        op.y,
        op.rescale,
        lambda result, _: draft.file.emit(BUILTIN.QUANTIZE, [kept], result, schema.QuantizeOptionsT),
        fuses=False,
    )


def layer_norm(draft: Draft, op: LayerNorm) -> None:
    """Layer norm over the last axis, in float32."""
    x, y = draft.tensor(op.x), draft.tensor(op.y)
    shift, size = int(op.rescale.shift[0]), x.shape[-1]
    gain = np.ldexp(np.array(op.gain, np.float64), 15 - shift) * y.scale
    offset = np.ldexp(np.array(op.offset, np.float64), -shift) * y.scale
    epsilon = op.epsilon * np.float64(x.scale) ** 2 / size**2
    floats = Floats(draft, y.name)
    values = floats.dequantized(op.x)
    mean = floats.mean(values)
    variance = floats.mean(floats.pair(BUILTIN.SQUARED_DIFFERENCE, values, mean))
    root = floats.function(BUILTIN.RSQRT, floats.pair(BUILTIN.ADD, variance, floats.number(epsilon)))
    normal = floats.pair(BUILTIN.MUL, floats.pair(BUILTIN.SUB, values, mean), root)
    scaled = floats.pair(BUILTIN.MUL, normal, floats.number(gain))
    done = floats.pair(BUILTIN.ADD, scaled, floats.number(offset))
    draft.result(
        op.y,
        op.rescale,
        lambda result, _: draft.file.emit(BUILTIN.QUANTIZE, [done], result, schema.QuantizeOptionsT),
        fuses=False,
    )
