"""Weights by themselves: how far the integers of each layer lie from the float model's weights, in steps.

With q the integers, s their scale and w the float weights, r = q - w / s is what rounding did. Rounding to
nearest leaves r in -0.5..0.5, evenly spread: a root mean square of 0.289. What a quantizer may do beyond that
moves single weights by few steps, and no channel as a whole: error feedback (GPTQ) has 0.3 to 0.6, scales
kept from an update clip at 2 % beyond the grid. Where all integers of a layer are safe from 16-bit overflow,
w is first bent as `overflow.py` bends it. So a channel is sound where

    * r has no trend along q (a scale that is wrong by a part e has r = -e q), and no mean (a zero point)
    * its root mean square is small
    * no single r is large: the high bits of an integer cannot be the work of rounding

Trends and means are held to five or six standard errors of what remains, so that one channel in a hundred
million is accused wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.overflow import OverflowSafe, fitted, is_safe
from edgewright.soundness.bare import Integers

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_SAFE: tuple[OverflowSafe, ...] = ("quads", "pairs")
UNIFORM = 12**-0.5  # root mean square of rounding to nearest, in steps
SIGMAS = 6.0
STAYS = 0.01  # relative: a trend below it is none, whatever its error
STAYS_OF_FOUR = 0.05  # clipped weights of 4 bits make one
CLIPPED_OF_EIGHT = 3.0  # steps beyond the grid: 2 % of 127, and rounding
CUT_OFF = 0.1  # steps nearer to zero, on average, beyond chance
CLIPPED_OF_FOUR = 11.0  # int4.py clips at 0.4 of the largest weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is allowed, in steps.

    Attributes:
        single: Of one weight.
        channel: Root mean square of a channel, of a layer with many terms.
        mean: Mean of a channel.
        trend: Along q, as a part of it.
    """

    single: float
    channel: float
    mean: float
    trend: float

    def wider(self, steps: float) -> Limits:
        """The same, where channels may be off by so many steps more."""
        return replace(self, channel=self.channel + steps, mean=self.mean + steps)


ROUNDED = Limits(single=3.0, channel=0.65, mean=0.2, trend=STAYS)
"""Rounding to nearest, with error feedback, or safe from overflow."""
MOVED = Limits(single=40.0, channel=4.5, mean=1.5, trend=0.06)
"""Integers that were trained, or held near those of the version before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What rounding did to one constant.

    Attributes:
        rms: Root mean square of r over the whole constant, in steps.
        worst: The largest |r| of a weight that is not clipped.
        broken: What is wrong, in words; empty where nothing is.
        excess: By how much the worst measure leaves what is allowed, as a ratio; at most 1 where it is sound.
    """

    rms: float
    worst: float
    broken: str
    excess: float


def residual(weight: Array, integers: Integers, axis: int | None, limits: Limits) -> Residual:
    """Judges one constant.

    Args:
        weight: What the float model has, of the shape of the integers.
        integers: What the QDQ graph has.
        axis: Of output channels; None where the constant has none.
        limits: What is allowed.
    """
    along = integers.axis
    axis = axis if axis is not None else along if along is not None else 0
    four = integers.most == 7
    rows = _rows(integers.steps.astype(np.float64), axis)
    wanted = _rows(_fitted(weight.astype(np.float64) / integers.scale, integers, axis), axis)
    r = rows - wanted
    beyond = (np.abs(rows) >= integers.most) & (np.abs(wanted) > integers.most) & (rows * wanted > 0)
    room = CLIPPED_OF_FOUR if four else CLIPPED_OF_EIGHT
    clipped = beyond & (np.abs(r) <= room)
    r = np.where(clipped, 0.0, r)
    terms = rows.shape[1]
    power = np.square(rows).sum(axis=1)
    rms = np.sqrt(np.square(r).mean(axis=1))
    trend = (r * rows).sum(axis=1) / np.maximum(power, 1)
    trend_room = SIGMAS * UNIFORM / np.sqrt(np.maximum(power, 1)) + (
        max(limits.trend, STAYS_OF_FOUR) if four else limits.trend
    )
    mean = r.mean(axis=1)
    mean_room = limits.mean + SIGMAS * UNIFORM / np.sqrt(terms)
    rms_room = np.sqrt(limits.channel**2 + SIGMAS * limits.channel**2 * 0.9 / np.sqrt(terms))
    worst = np.abs(r).max(axis=1)
    measures = np.stack(
        [worst / limits.single, rms / rms_room, np.abs(mean) / mean_room, np.abs(trend) / trend_room]
    )
    towards = _towards_zero(r, wanted)
    excess = float(measures.max(initial=0.0))
    if limits.single == ROUNDED.single:
        excess = max(excess, towards / CUT_OFF)
    broken = "" if excess <= 1 else _why(rows, wanted, r, measures, towards, integers)
    if broken and along is not None and along != axis:
        broken = f"its scales lie along axis {along}, its output channels along axis {axis}"
    return Residual(
        rms=float(np.sqrt(np.square(r).mean())) if r.size else 0.0,
        worst=float(worst.max(initial=0.0)),
        broken=broken,
        excess=excess,
    )


def _fitted(steps: Floats, integers: Integers, axis: int) -> Floats:
    """What was rounded: where all integers are safe from overflow, which bends some, the bent weights."""
    if integers.most != 127 or not 2 <= steps.ndim <= 5:
        return steps
    channels_first = np.moveaxis(integers.steps, axis, 0)
    for safe in _SAFE:
        if is_safe(channels_first, safe):
            return np.moveaxis(fitted(np.moveaxis(steps, axis, 0), safe), 0, axis)
    return steps


def _rows(values: Array, axis: int) -> Array:
    """(channels, terms)."""
    if values.ndim == 0:
        return values.reshape(1, 1)
    if values.ndim == 1:
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _towards_zero(r: Floats, wanted: Floats) -> float:
    """How much nearer to zero weights lie than they should, in steps: 0.5 on average where they are cut."""
    far = np.abs(wanted) > 1
    count = int(np.count_nonzero(far))
    if count < 16:
        return 0.0
    mean = float((-r * np.sign(wanted))[far].mean())
    return max(0.0, abs(mean) - SIGMAS * UNIFORM / float(np.sqrt(count)))


def _why(rows: Floats, wanted: Floats, r: Floats, measures: Floats, towards: float, of: Integers) -> str:
    """The likeliest of what could have made such integers, in words."""
    bad = np.flatnonzero((measures > 1).any(axis=0))
    if not len(bad):
        return f"its weights are cut off towards zero, by {towards:.2f} steps on average, not rounded"
    found = _whole(rows, wanted) if len(bad) > 1 else ""
    if found:
        return found
    first = int(bad[np.argmax(measures[:, bad].max(axis=0))])
    where = "of its only channel" if len(rows) == 1 else f"of channel {first}"
    if len(bad) > 1:
        where = f"{where} and {len(bad) - 1} more of {len(rows)}"
    row, want, off = rows[first], wanted[first], r[first]
    alone = np.abs(off) > 2.5
    if alone.sum() == 1 and len(bad) <= 2:
        at = int(np.argmax(np.abs(off)))
        step = abs(int(row[at]) - round(float(want[at])))
        bit = " (one flipped bit)" if step and step & (step - 1) == 0 else ""
        return f"weight {at} of channel {first} is {int(row[at])} where {want[at]:.1f} is wanted{bit}"
    if _similar(-row, want):
        return f"the sign of the weights {where} is wrong"
    ratio = float(np.dot(row, want) / max(np.dot(row, row), 1.0))
    if _similar(row * ratio, want) and abs(ratio - 1) > 0.005:
        return f"the scale {where} is {1 / ratio:.3g} times what it should be"
    if abs(off.mean()) > 0.4 and np.std(off) < 0.7:
        return f"the weights {where} are off by {off.mean():+.2f} steps: a zero point, or bits that are lost"
    others = [i for i in range(len(wanted)) if i != first and _similar(row, wanted[i])]
    if others:
        return f"the weights of channel {first} are those of channel {others[0]}"
    gone = (row == 0) & (np.abs(want) > 2)
    if gone.sum() > 1:
        return f"{int(gone.sum())} weights {where} are 0 where they should not be"
    lost = np.std(off) < 2.5 and abs(off.mean()) > 0.4
    if lost:
        return f"the weights {where} are off by {off.mean():+.2f} steps: low bits are lost"
    rms = float(np.sqrt(np.square(off).mean()))
    if np.corrcoef(row, want)[0, 1] > 0.8 if len(row) > 2 and row.any() and want.any() else False:
        return f"the weights {where} are off by {rms:.2g} steps: an older version's, or other scales"
    return f"the weights {where} are not those of the float model (off by {rms:.3g} steps of {of.most})"


def _similar(row: Floats, want: Floats) -> bool:
    return bool(np.sqrt(np.square(row - want).mean()) < 0.9 + 0.01 * np.sqrt(np.square(want).mean()))


def _whole(rows: Floats, wanted: Floats) -> str:
    """A change of a whole matrix or of all kernels."""
    if rows.shape[0] == rows.shape[1] and _similar(rows.T, wanted):
        return "its weights are transposed"
    for what, turned in (
        ("its input channels are in reverse", rows[:, ::-1]),
        ("its output channels are in reverse", rows[::-1]),
    ):
        if _similar(turned, wanted):
            return what
    if _similar(-rows, wanted):
        return "the sign of its weights is wrong"
    ratios = (rows * wanted).sum(axis=1) / np.maximum(np.square(rows).sum(axis=1), 1)
    scaled = rows * ratios[:, None]
    if len(rows) > 2 and np.sqrt(np.square(scaled - wanted).mean()) < 0.9:
        spread = float(np.ptp(ratios))
        if spread < 0.02 * abs(float(ratios.mean())):
            return f"its scales are {1 / float(ratios.mean()):.3g} times what they should be"
        count = int(np.count_nonzero(np.abs(ratios - 1) > 0.01))
        if ratios.min() > 0:
            return (
                f"the scales of {count} of its {len(rows)} channels are wrong, by factors of "
                f"{1 / ratios.max():.3g} to {1 / ratios.min():.3g}: they belong to other channels, lie along "
                "another axis, or a norm is not folded in"
            )
    return ""
