"""A .tflite file made of an integer program: its tensors, and what every operator's translation needs.

Integers stay what they are: an activation's uint8 `q` becomes int8 `q - 128`, and its zero point moves along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgewright.errors import ExportError
from edgewright.litert.file import ACTIVATION, BUILTIN, LiteRtFile
from edgewright_kernels.plan import Op, Plan, Rescale, Tensor

SHIFT = 128  # from uint8 to int8
Grid = tuple[float, int]
LITTLE = 1e-30  # the scale of weights whose products vanish: LiteRT wants scales above 0


class Draft:
    """A file while an integer program is translated into it.

    Attributes:
        plan: The program.
        file: What is written.
        numbers: Of the file's tensors, by those of the plan's.
    """

    def __init__(self, plan: Plan, weights: bytes) -> None:
        self.plan, self._weights = plan, weights
        self.file = LiteRtFile("made by edgewright of an integer program")
        self.numbers: dict[int, int] = {}

    def tensor(self, number: int) -> Tensor:
        """A tensor of the plan.

        Raises:
            ExportError: It is int16.
        """
        found = self.plan.tensors[number]
        if found.dtype == "int16":
            raise ExportError(
                f"LiteRT: {found.name!r} is int16, and model.tflite has 8 bits alone; export with 8-bit "
                "activations, or without litert"
            )
        return found

    def grid(self, number: int) -> Grid:
        """The grid of an inner tensor of the plan, in the file: scale, zero point of int8."""
        t = self.tensor(number)
        return t.scale, t.zero_point - SHIFT

    def read(self, number: int) -> int:
        """The tensor of the file in which a value of the plan lies."""
        self.tensor(number)
        return self.numbers[number]

    def give(self, number: int) -> int:
        """Adds the tensor of the file for a value of the plan."""
        t = self.tensor(number)
        inner = t.is_inside
        dtype = np.int8 if inner else np.dtype(t.dtype)
        self.numbers[number] = self.file.tensor(
            t.name, (1, *t.shape), dtype, self.grid(number) if inner else None
        )
        return self.numbers[number]

    def inner(self, name: str, shape: Sequence[int], grid: Grid | None) -> int:
        """Adds a tensor that the plan does not have: int8 on a grid, or float32."""
        return self.file.tensor(name, shape, np.float32 if grid is None else np.int8, grid)

    def bytes_of(self, number: int, dtype: npt.DTypeLike, shape: Sequence[int]) -> npt.NDArray[Any]:
        """A range of the weights as an array."""
        place = self.plan.ranges[number]
        data = self._weights[place.offset : place.offset + place.size]
        return np.frombuffer(data, dtype).reshape(tuple(shape))

    def refuse(self, op: Op, number: int, why: str) -> ExportError:
        """What to raise where LiteRT has no integer kernel for an operator; names it."""
        name = self.plan.tensors[number].name.removesuffix("_quantized")
        return ExportError(f"LiteRT: {type(op).__name__} that gives {name!r}: {why}; export without litert")

    # Small operators

    def reshaped(self, x: int, shape: Sequence[int], output: int | None = None) -> int:
        """Adds a RESHAPE of a tensor of the file, into a new tensor if none is given."""
        result = self.inner("reshaped", shape, self.file.grid(x)) if output is None else output
        table = self.file.constant("shape", np.array(shape, np.int32))
        return self.file.emit(
            BUILTIN.RESHAPE, [x, table], result, schema.ReshapeOptionsT, newShape=list(shape)
        )

    def transposed(self, x: int, order: Sequence[int], output: int) -> int:
        """Adds a TRANSPOSE, or a RESHAPE where only axes of size 1 move; `order` counts the batch."""
        shape = self.file.shape(x)
        if [a for a in order if shape[a] != 1] == [a for a in range(len(shape)) if shape[a] != 1]:
            return self.reshaped(x, [shape[a] for a in order], output)
        table = self.file.constant("order", np.array(order, np.int32))
        return self.file.emit(BUILTIN.TRANSPOSE, [x, table], output, schema.TransposeOptionsT)

    def padded(self, x: int, pads: Sequence[tuple[int, int]], value: int | None = None) -> int:
        """Adds a PAD: by the zero point, or by the integer `value`; `pads` count the batch."""
        if not any(before or after for before, after in pads):
            return x
        grid = self.file.grid(x)
        shape = [n + before + after for n, (before, after) in zip(self.file.shape(x), pads, strict=True)]
        result = self.inner("padded", shape, grid)
        table = self.file.constant("pads", np.array(pads, np.int32))
        if value is None or grid is None:
            return self.file.emit(BUILTIN.PAD, [x, table], result, schema.PadOptionsT)
        fill = self.file.constant("fill", np.array([value], np.int8), [grid[0]], zero_point=grid[1])
        return self.file.emit(BUILTIN.PADV2, [x, table, fill], result, schema.PadV2OptionsT)

    def result(
        self, number: int, rescale: Rescale, emit: Callable[[int, int], object], *, fuses: bool = True
    ) -> None:
        """Adds the operator of a result of the plan, and what holds it between its clamps.

        Args:
            number: Of the result, in the plan.
            rescale: Has the clamps.
            emit: Adds the operator, given the tensor to write and the activation to fuse.
            fuses: Whether the operator can take in an activation.
        """
        t, grid = self.tensor(number), self.grid(number)
        low, high = rescale.low, rescale.high
        if fuses and low == t.zero_point and high == min(round(6 / t.scale) + t.zero_point, 255) < 255:
            emit(self.give(number), ACTIVATION.RELU6)
            return
        if fuses and low == t.zero_point > 0 and high == 255:
            emit(self.give(number), ACTIVATION.RELU)
            return
        bounds = [(BUILTIN.MAXIMUM, low)] if low > 0 else []
        bounds += [(BUILTIN.MINIMUM, high)] if high < 255 else []
        before = -1
        for count in range(len(bounds) + 1):
            last = count == len(bounds)
            y = self.give(number) if last else self.inner(f"{t.name}_unbounded", (1, *t.shape), grid)
            if count == 0:
                emit(y, ACTIVATION.NONE)
            else:
                kind, bound = bounds[count - 1]
                limit = self.file.constant(
                    "bound", np.array([bound - SHIFT], np.int8), [grid[0]], zero_point=grid[1]
                )
                self.file.emit(kind, [before, limit], y, schema.MaximumMinimumOptionsT)
            before = y


def factors(rescale: Rescale) -> npt.NDArray[np.float64]:
    """The real numbers that multipliers and shifts stand for."""
    found: npt.NDArray[np.float64] = np.ldexp(rescale.multiplier.astype(np.float64), -rescale.shift)
    return found
