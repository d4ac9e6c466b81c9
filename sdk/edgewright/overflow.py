"""Weights that may be multiplied and added in 16 bits: a layer's integers, chosen so that all sums fit.

The fastest multiplication of 8-bit values on a CPU without VNNI, vpmaddubsw, adds two products u8 x s8 in 16
bits and saturates. It is exact where no such sum can leave 16 bits: where, of the weights whose products are
added, the positive ones sum to 128 at most and the negative ones to -128 at least (255 * 128 = 32,640). The
native engine looks whether a layer's weights are so; here they are made so, at the least squared error.

Products are added along the terms of an output in the order (rows, columns, channels): terms 2i and 2i + 1
("pairs"), or of every eight the terms 0, 1, 4, 5 and 2, 3, 6, 7 ("quads"). Quads hold pairs as well. ONNX
Runtime and OpenVINO add the same pairs, so their 16-bit kernels become exact too, except where convolutions
have an odd number of channels: OpenVINO's along one axis or more, ONNX Runtime's along three
(`narrow_kernels.py`; `verify` looks).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.wiring import attributes

OverflowSafe = Literal["off", "pairs", "quads"]

MOST = 128  # 255 * 128 fits 16 bits, 255 * 129 does not
# A larger step makes smaller integers, so that fewer must be bent: per channel the best of these is taken.
STEPS = (1.0, 1.15, 1.33, 1.55, 1.8, 2.1, 2.5, 3.0, 3.6)
CHUNK = 1 << 22  # weights looked at together

Floats = npt.NDArray[np.float64]


def safety(node: onnx.NodeProto, shape: tuple[int, ...], wanted: OverflowSafe) -> OverflowSafe:
    """What a layer's weights (O, C, ...) have to hold: nothing where nobody adds in 16 bits."""
    settings = attributes(node)
    depthwise = shape[1] == 1 and settings.get("group", 1) == shape[0]
    if node.op_type == "ConvTranspose" or depthwise:
        return "off"
    by_winograd = shape[2:] == (3, 3) and set(settings.get("strides", [1])) == {1}
    return "pairs" if by_winograd and wanted == "quads" else wanted


def added_together(shape: tuple[int, ...], safe: OverflowSafe) -> npt.NDArray[np.int64]:
    """A number for each term of an output, (terms,): equal where products are added in 16 bits.

    Args:
        shape: Of the weight, (O, C) or (O, C, spatial...); terms are numbered as it lies in memory.
        safe: Which products are added.
    """
    terms = math.prod(shape[1:])
    if safe == "off":
        return np.arange(terms)
    numbers = np.arange(1.0, terms + 1).reshape(1, *shape[1:])
    groups = _groups(_in_term_order(numbers), safe).astype(np.int64)
    found = np.zeros(terms + 1, np.int64)  # 0 is where a group has no term
    found[groups] = np.arange(len(groups))[:, None]
    return found[1:]


def safe_scale(weight: Floats, scale: npt.NDArray[np.float32], safe: OverflowSafe) -> npt.NDArray[np.float32]:
    """Scales (O,), each `scale` times 1 to 2, at which `safe_integers` has the least squared error.

    Args:
        weight: (O, C) or (O, C, spatial...).
        scale: (O,), the least that is allowed.
        safe: Which products are added.
    """
    if safe == "off":
        return scale
    errors = []
    for step in STEPS:
        scales = (scale * np.float32(step)).astype(np.float32)
        error = _by_rows(
            lambda w, s: np.square(w - _safe(w / s[:, None], safe) * s[:, None]).sum(axis=1),
            _in_term_order(weight),
            scales,
        )
        errors.append(error)
    best = np.argmin(errors, axis=0)
    chosen: npt.NDArray[np.float32] = scale * np.array(STEPS, np.float32)[best]
    return chosen


def safe_integers(weight: Floats, scale: npt.NDArray[np.float32], safe: OverflowSafe) -> npt.NDArray[np.int8]:
    """Integers in [-127, 127], of the shape of `weight`, whose products with uint8 add up within 16 bits.

    Args:
        weight: (O, C) or (O, C, spatial...).
        scale: (O,).
        safe: Which products are added; with "off" the integers are those nearest to `weight / scale`.
    """
    if safe == "off":
        steps = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
        return np.clip(steps, -127, 127).astype(np.int8)
    terms = _in_term_order(weight)
    found = _by_rows(lambda w, s: _safe(w / s[:, None], safe).astype(np.int8), terms, scale)
    return _from_term_order(found, weight.shape)


def is_safe(integers: npt.NDArray[Any], safe: OverflowSafe) -> bool:
    """Whether integers (O, C) or (O, C, spatial...) hold what `safe_integers` makes them hold."""
    groups = _groups(_in_term_order(integers.astype(np.float64)), safe)
    return all(float(np.maximum(sign * groups, 0).sum(axis=1).max(initial=0.0)) <= MOST for sign in (1, -1))


def fitted(steps: Floats, safe: OverflowSafe) -> Floats:
    """What `safe_integers` rounds: weights in steps, those that do not fit moved as little as can be.

    Args:
        steps: (O, C) or (O, C, spatial...), any real numbers.
        safe: Which products are added.
    """
    terms = _in_term_order(steps)
    groups = _groups(terms, safe)
    rounded = np.clip(np.rint(groups), -127, 127)
    for sign in (1.0, -1.0):
        bad = np.flatnonzero(np.maximum(sign * rounded, 0).sum(axis=1) > MOST)
        if bad.size:
            moved = sign * _onto_simplex(np.clip(sign * groups[bad], 0, 127))
            groups[bad] = np.where(sign * rounded[bad] > 0, moved, groups[bad])
    return _from_term_order(_from_groups(groups, terms.shape[1], safe), steps.shape)


def _by_rows(
    make: Callable[[Floats, npt.NDArray[np.float32]], npt.NDArray[Any]],
    terms: Floats,
    scale: npt.NDArray[np.float32],
) -> npt.NDArray[Any]:
    """Calls `make` with some rows at a time, to bound the memory it takes."""
    rows = max(1, CHUNK // max(1, terms.shape[1]))
    starts = range(0, len(terms), rows)
    return np.concatenate([make(terms[i : i + rows], scale[i : i + rows]) for i in starts])


def _safe(terms: Floats, safe: OverflowSafe) -> Floats:
    return _from_groups(_fitted(_groups(terms, safe)), terms.shape[1], safe)


def _fitted(groups: Floats) -> Floats:
    """Whole numbers near (N, T); those of one sign in a row sum to MOST at most, in magnitude.

    Where plain rounding does not fit, the values of that sign are projected onto the simplex of that sum
    (Duchi et al. 2008, "Efficient Projections onto the l1-Ball", figure 1) and rounded to keep it.
    """
    result = np.clip(np.rint(groups), -127, 127)
    for sign in (1.0, -1.0):
        sums = np.maximum(sign * result, 0).sum(axis=1)
        bad = np.flatnonzero(sums > MOST)
        if bad.size:
            magnitudes = np.clip(sign * groups[bad], 0, 127)
            fitted = _rounded_down_to_sum(_onto_simplex(magnitudes))
            result[bad] = np.where(sign * result[bad] > 0, sign * fitted, result[bad])
    return result


def _onto_simplex(values: Floats) -> Floats:
    """The nearest non-negative rows that sum to MOST, of rows (N, T) that sum to more."""
    falling = -np.sort(-values, axis=1)
    over = (np.cumsum(falling, axis=1) - MOST) / np.arange(1, values.shape[1] + 1)
    last = (falling > over).sum(axis=1) - 1
    shift = np.take_along_axis(over, last[:, None], axis=1)
    return np.maximum(values - shift, 0)


def _rounded_down_to_sum(values: Floats) -> Floats:
    """Rows (N, T) rounded to whole numbers of sum MOST at most: the largest fractions go up."""
    whole = np.floor(values)
    left = MOST - whole.sum(axis=1)
    rank = np.argsort(np.argsort(whole - values, axis=1, kind="stable"), axis=1, kind="stable")
    goes_up = (rank < left[:, None]) & (values - whole >= 0.5)
    rounded: Floats = whole + goes_up
    return rounded


def _in_term_order(weight: Floats) -> Floats:
    """(O, C, depth, rows, columns) as the engine takes its terms: (O, rows, columns, depth, C), flat."""
    return np.ascontiguousarray(weight.transpose(_order(weight.ndim))).reshape(len(weight), -1)


def _from_term_order(terms: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    order = _order(len(shape))
    moved = terms.reshape([shape[a] for a in order])
    return np.ascontiguousarray(moved.transpose(np.argsort(order)))


def _order(axes: int) -> tuple[int, ...]:
    return (0, 3, 4, 2, 1) if axes == 5 else (0, *range(2, axes), 1)


def _groups(terms: Floats, safe: OverflowSafe) -> Floats:
    """The terms whose products are added, side by side: (N, 2) or (N, 4); zeros where terms are lacking."""
    rows, count = terms.shape
    padded = np.zeros((rows, -(-count // 8) * 8))
    padded[:, :count] = terms
    if safe == "pairs":
        return padded.reshape(-1, 2)
    return padded.reshape(-1, 2, 2, 2).swapaxes(1, 2).reshape(-1, 4)


def _from_groups(groups: Floats, count: int, safe: OverflowSafe) -> Floats:
    eights = -(-count // 8)
    if safe == "quads":
        groups = groups.reshape(-1, 2, 2, 2).swapaxes(1, 2)
    return groups.reshape(-1, eights * 8)[:, :count]
