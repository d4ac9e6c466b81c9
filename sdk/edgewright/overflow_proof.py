"""The overflow proof: whether any input at all can make the 16-bit sums of a layer overflow, by arithmetic.

Two products meet in 16 bits, w0 * x0 + w1 * x1, with constant weights, and activations that each take any
integer of a range. A linear function on a box is greatest and least at corners, so the extremes are exact:
the sum of max(w * low, w * high), and of the minima. A layer is cleared where no pair of no output can leave
16 bits, by arithmetic and not by trial; flagged where some pair can, with a layer input that does
(`overflow_witness.py`). Whether the network can be fed so that the layer gets such an input is another
question, which a search may answer with yes, and no search with no (`overflow_reach.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.integer_layers import IntegerLayer
from edgewright.narrow_kernels import HIGH, LOW, Kernel, met

Integers = npt.NDArray[np.int64]

MOST_32 = 2**31 - 1
KEPT = 256  # pairs of a layer that are told of, the worst
ROWS = 1 << 21  # weights looked at together


@dataclass(frozen=True, kw_only=True)
class Risk:
    """The pairs of a layer that can overflow, the greatest excess first.

    Attributes:
        outputs: (N,) of each pair.
        terms: (N, 2), numbers as the weight lies in memory; the number of terms stands for none.
        sums: (N,), the sum farthest beyond the limit.
        worst: The sum farthest from zero of all pairs.
        count, channels: Of all pairs and outputs that can overflow; the arrays hold the `KEPT` worst.
    """

    outputs: Integers
    terms: Integers
    sums: Integers
    worst: int
    count: int
    channels: int


def runs_in_integers(layer: IntegerLayer, kernel: Kernel) -> bool:
    """Whether the runtime computes a layer in 8-bit integers, rather than dequantized.

    ONNX Runtime's rules, found by experiment (1.32.0): a convolution needs a quantized result; a ReLU or a
    clamp between result and grid keeps any layer in floating point, unless the grid begins and ends there.
    """
    if not kernel.needs_output_grid:
        return True
    return not layer.clamped and (layer.output is not None or layer.node.op_type != "Conv")


def activation_offset(layer: IntegerLayer, kernel: Kernel) -> int:
    """What is subtracted from an activation as stored to give what the kernel multiplies."""
    lowest = int(np.iinfo(layer.dtype).min)
    return lowest + 128 if kernel.signed else lowest


def risk(layer: IntegerLayer, kernel: Kernel) -> Risk:
    """The exact extremes of every sum of two products that the kernel adds in 16 bits."""
    pairs = met(kernel, layer.weight.shape, layer.groups)
    offset = activation_offset(layer, kernel)
    low, high = layer.low - offset, layer.high - offset
    weight = layer.weight.reshape(len(layer.weight), -1)
    step = max(1, ROWS // max(1, weight.shape[1]))
    kept: list[tuple[Integers, Integers, Integers]] = []
    worst, count, channels = 0, 0, 0
    for start in range(0, len(weight), step):
        rows = _side_by_side(weight[start : start + step], pairs)
        # For low <= x <= high, w * x is greatest at high where w > 0, else at low; least the other way.
        above, below = _pair_sums(np.maximum(rows, 0)), _pair_sums(-np.minimum(rows, 0))
        if low >= 0:
            most, least = _less(above, high, below, low), _less(below, high, above, low)
        else:
            most = above * np.uint16(max(high, 0)) + below * np.uint16(-low)
            least = above * np.uint16(-low) + below * np.uint16(max(high, 0))
        for end in (int(most.max(initial=0)), -int(least.max(initial=0))):
            worst = max(worst, end, key=abs)
        if worst <= HIGH and worst >= LOW:
            continue
        o, p = np.nonzero((most > HIGH) | (least > -LOW))
        ups, downs = most[o, p].astype(np.int64), least[o, p].astype(np.int64)
        beyond = np.where(ups >= downs, ups, -downs)
        count += len(o)
        channels += 1 + int(np.count_nonzero(np.diff(o)))  # they come in order
        sums = beyond
        first = np.argpartition(-np.abs(sums), min(KEPT, len(sums)) - 1)[:KEPT]
        kept.append((o[first] + start, pairs[p[first]], sums[first]))
    if not kept:
        none = np.zeros(0, np.int64)
        return Risk(outputs=none, terms=none.reshape(0, 2), sums=none, worst=worst, count=0, channels=0)
    outputs, terms, sums = (np.concatenate([k[i] for k in kept]) for i in range(3))
    order = np.argsort(-np.abs(sums), kind="stable")[:KEPT]
    return Risk(
        outputs=outputs[order],
        terms=terms[order],
        sums=sums[order],
        worst=worst,
        count=count,
        channels=channels,
    )


def _side_by_side(rows: npt.NDArray[Any], pairs: Integers) -> npt.NDArray[np.int8]:
    """Weights (O, terms) as (O, pairs, 2); zero where a term is lacking."""
    if np.array_equal(pairs.reshape(-1), np.arange(rows.shape[1])):
        return rows.reshape(len(rows), -1, 2)
    padded = np.pad(rows, ((0, 0), (0, 1)))
    return np.take(padded, pairs.reshape(-1), axis=1).reshape(len(rows), -1, 2)


def _pair_sums(rows: npt.NDArray[np.int8]) -> npt.NDArray[np.uint16]:
    """The sums of both, (O, pairs), of weights (O, pairs, 2) that are not negative, 128 as -128 included."""
    both = np.ascontiguousarray(rows).view(np.uint16)[..., 0]
    sums: npt.NDArray[np.uint16] = (both & np.uint16(255)) + (both >> np.uint16(8))
    return sums


def _less(
    one: npt.NDArray[np.uint16], by: int, two: npt.NDArray[np.uint16], other: int
) -> npt.NDArray[np.uint16]:
    """`one * by - two * other`, 0 at least: no larger than 2 * 128 * 255, which fits."""
    if not other:
        return one * np.uint16(by)
    whole, part = one * np.uint16(by), two * np.uint16(other)
    difference: npt.NDArray[np.uint16] = np.maximum(whole, part) - part
    return difference


def any_two_fit(layer: IntegerLayer, kernel: Kernel) -> bool:
    """Whether no two products of one output can leave 16 bits together, whichever they are."""
    offset = activation_offset(layer, kernel)
    weight = layer.weight.reshape(len(layer.weight), -1).astype(np.int32)
    ends = weight * (layer.low - offset), weight * (layer.high - offset)
    most, least = np.sort(np.maximum(*ends), axis=1)[:, -2:], np.sort(np.minimum(*ends), axis=1)[:, :2]
    up, down = np.maximum(most, 0).sum(axis=1), np.minimum(least, 0).sum(axis=1)
    return bool((up <= HIGH).all() and (down >= LOW).all())


def worst_32(layer: IntegerLayer) -> tuple[int, int]:
    """A bound on the sums of all products of any output, and how many outputs can leave 32 bits.

    The bound holds for products with and without their zero points, since runtimes add either.
    """
    reach = max(255, abs(layer.low - layer.zero_point), abs(layer.high - layer.zero_point))
    bias = np.abs(layer.bias)
    if layer.terms * 255 * reach + int(bias.max(initial=0)) <= MOST_32:
        return layer.terms * 255 * reach + int(bias.max(initial=0)), 0
    rows = np.abs(layer.weight.reshape(len(layer.weight), -1).astype(np.int64)).sum(axis=1)
    sums = rows * reach + bias
    return int(sums.max(initial=0)), int((sums > MOST_32).sum())
