"""How far the outputs of two models differ: in bits, and in steps of the output's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.errors import VerifyError
from edgewright.statistics import sqnr_db

Outputs = Sequence[npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputComparison:
    """Outputs of B against those of A.

    Attributes:
        values: Compared.
        differing: In any bit.
        by_steps: Of those, how many differ by how many steps, rounded: "0" (less than half a step), "1", "2",
            "3 or more"; empty where no output has a grid.
        largest: The largest difference, in the output's unit.
        sqnr_db: Of B's values against A's, dB, the lowest of the outputs; inf where all are equal.
    """

    values: int
    differing: int
    by_steps: dict[str, int]
    largest: float
    sqnr_db: float


def compare_outputs(a: Outputs, b: Outputs, *, scales: Sequence[float]) -> OutputComparison:
    """Compares outputs for the same samples.

    Args:
        a: In order; any shapes.
        b: The same of the other.
        scales: Steps of the grids, in order; 0 where there is none, empty where no output has one.

    Raises:
        VerifyError: They do not agree in number, shape or type.
    """
    here, there = ([(o.shape, str(o.dtype)) for o in outputs] for outputs in (a, b))
    if here != there:
        raise VerifyError(f"A gives outputs {here}, B {there}: models of different shapes cannot be compared")
    steps: dict[str, int] = {}
    differing, largest = 0, 0.0
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        changed = _bytes(x) != _bytes(y)
        per_value = changed.reshape(x.size, -1).any(axis=1)
        differing += int(np.count_nonzero(per_value))
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).ravel()[per_value]
        if distance.size:
            largest = float(np.fmax(largest, np.max(distance)))
        scale = scales[index] if index < len(scales) else 0.0
        if scale:
            counted = np.rint(np.nan_to_num(distance, nan=np.inf) / scale)
            for name, low, high in (("0", 0, 0), ("1", 1, 1), ("2", 2, 2), ("3 or more", 3, np.inf)):
                hits = int(np.count_nonzero((counted >= low) & (counted <= high)))
                steps[name] = steps.get(name, 0) + hits
    return OutputComparison(
        values=sum(x.size for x in a),
        differing=differing,
        by_steps=steps,
        largest=largest,
        sqnr_db=min(sqnr_db(x, y) for x, y in zip(a, b, strict=True)),
    )


def _bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
