"""Biases by themselves: the float model's, rounded to the grid of a layer's sums, or moved by little.

Rounding to nearest leaves half a step. Where means are corrected (bias_correction.py) or a model was trained
for its integers, every bias of a model moves, by a small part of what its layer gives; what moves much
farther than the others of its model is no correction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.soundness.bare import Integers

Array = npt.NDArray[Any]

HALF = 0.55  # of a step
OF_FLOAT32 = 1e-6  # relative
OF_FACTORS = 0.02  # relative: factors between layers are read off rounded weights
LARGEST = 1 << 29  # quantization.py clips there
LEAST_MOVE, MOST_MOVE, FARTHER = 0.01, 0.1, 8.0
"""Of a layer's standard deviation: what moving biases may add in any case, and at most; and how many times
the median of the model's biases is still one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """How far a bias is from the float model's.

    Attributes:
        name: In the bare graph.
        rounding: Its largest error, in parts of what rounding may do.
        move: The same in parts of the standard deviation of what the layer gives, rounding taken off.
        worst: The channel.
    """

    name: str
    rounding: float
    move: float
    worst: int

    @classmethod
    def of(cls, name: str, wanted: Array, integers: Integers, spread: float, *, factors: bool) -> Bias:
        """Compares one.

        Args:
            name: In the bare graph.
            wanted: The float model's, (channels,).
            integers: What the QDQ graph has.
            spread: Standard deviation of what the layer gives.
            factors: Whether factors moved through the layer.
        """
        steps = integers.steps.astype(np.float64)
        off = np.abs(steps - wanted.astype(np.float64) / integers.scale)
        size = np.abs(steps)
        room = HALF + OF_FLOAT32 * size
        if factors:
            room = room + 2 + OF_FACTORS * size.max(initial=0.0)
        off = np.where(size >= LARGEST, 0.0, off)
        move = np.maximum(off - room, 0.0) * integers.scale / max(spread, 1e-30)
        worst = int((off / room).argmax()) if off.size else 0
        return cls(
            name=name,
            rounding=float((off / room).max(initial=0.0)),
            move=float(move.max(initial=0.0)),
            worst=worst,
        )


def wrong_biases(biases: Sequence[Bias]) -> Iterator[tuple[Bias, float]]:
    """Those that neither rounding nor moving explains, and how many times they exceed what is allowed."""
    rounded = 2 * sum(b.rounding <= 1 for b in biases) >= len(biases)
    if rounded:
        yield from ((b, b.rounding) for b in biases if b.rounding > 1)
        return
    usual = float(np.median([b.move for b in biases]))
    room = float(np.clip(FARTHER * usual, LEAST_MOVE, MOST_MOVE))
    yield from ((b, b.move / room) for b in biases if b.move > room)
