"""What enters and leaves an integer program, and what only moves in it, as LiteRT has them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgewright.litert.draft import SHIFT, Draft, factors
from edgewright.litert.file import BUILTIN
from edgewright.litert.layers import sliced
from edgewright_kernels.plan import (
    Concat,
    Constant,
    Dequantize,
    Embedding,
    Interpolation,
    Quantize,
    Reshape,
    Resize,
    Slice,
    Transpose,
)

FRACTIONS = 2048  # in which a plan counts places between two values


def quantize(draft: Draft, op: Quantize) -> None:
    """QUANTIZE, and then the other order of axes."""
    order = (0, *(a + 1 for a in op.order))
    x = draft.read(op.x)
    if list(order) == sorted(order):
        draft.file.emit(BUILTIN.QUANTIZE, [x], draft.give(op.y), schema.QuantizeOptionsT)
        return
    straight = draft.inner(f"{draft.tensor(op.y).name}_straight", draft.file.shape(x), draft.grid(op.y))
    draft.file.emit(BUILTIN.QUANTIZE, [x], straight, schema.QuantizeOptionsT)
    draft.transposed(straight, order, draft.give(op.y))


def dequantize(draft: Draft, op: Dequantize) -> None:
    """The other order of axes, and then DEQUANTIZE."""
    order = (0, *(a + 1 for a in op.order))
    x = draft.read(op.x)
    if list(order) != sorted(order):
        turned = draft.inner("turned", (1, *draft.tensor(op.y).shape), draft.grid(op.x))
        x = draft.transposed(x, order, turned)
    draft.file.emit(BUILTIN.DEQUANTIZE, [x], draft.give(op.y), schema.DequantizeOptionsT)


def transpose(draft: Draft, op: Transpose) -> None:
    """TRANSPOSE."""
    draft.transposed(draft.read(op.x), (0, *(a + 1 for a in op.order)), draft.give(op.y))


def reshape(draft: Draft, op: Reshape) -> None:
    """RESHAPE."""
    draft.reshaped(draft.read(op.x), (1, *draft.tensor(op.y).shape), draft.give(op.y))


def concat(draft: Draft, op: Concat) -> None:
    """CONCATENATION."""
    inputs = [draft.read(n) for n in op.inputs]
    draft.file.emit(
        BUILTIN.CONCATENATION, inputs, draft.give(op.y), schema.ConcatenationOptionsT, axis=op.axis + 1
    )


def slice_(draft: Draft, op: Slice) -> None:
    """STRIDED_SLICE."""
    sizes = draft.tensor(op.y).shape
    ends = (b + (n - 1) * s + 1 for b, n, s in zip(op.starts, sizes, op.steps, strict=True))
    sliced(draft, draft.read(op.x), (0, *op.starts), (1, *ends), (1, *op.steps), draft.give(op.y))


def constant(draft: Draft, op: Constant) -> None:
    """A constant of int8."""
    t = draft.tensor(op.y)
    value = draft.bytes_of(op.weight, np.uint8, t.shape).astype(np.int16) - SHIFT
    scale, zero_point = draft.grid(op.y)
    draft.numbers[op.y] = draft.file.constant(
        t.name, value.astype(np.int8)[None], [scale], zero_point=zero_point
    )


def embedding(draft: Draft, op: Embedding) -> None:
    """GATHER of rows of the table, by int64; and QUANTIZE, where the table is on another grid."""
    y = draft.tensor(op.y)
    if op.rescale.multiplier.size > 1:
        raise draft.refuse(op, op.y, "a table with a scale for each column, which LiteRT cannot gather from")
    scale = float(factors(op.rescale)[0]) * y.scale
    place = draft.plan.ranges[op.weight]
    table = draft.bytes_of(op.weight, np.int8, (place.size // y.shape[-1], y.shape[-1]))
    rows = draft.file.constant(f"{y.name}_table", table, [scale])
    inputs = [rows, draft.read(op.x)]
    same = np.float32(scale) == np.float32(y.scale) and y.zero_point == SHIFT

    def emit(result: int, _: int) -> None:
        taken = result if same else draft.inner(f"{y.name}_rows", (1, *y.shape), (scale, 0))
        draft.file.emit(BUILTIN.GATHER, inputs, taken, schema.GatherOptionsT, axis=0)
        if not same:
            draft.file.emit(BUILTIN.QUANTIZE, [taken], result, schema.QuantizeOptionsT)

    draft.result(op.y, op.rescale, emit, fuses=False)


def resize(draft: Draft, op: Resize) -> None:
    """Nearest: GATHER of rows and of columns. Linear: RESIZE_BILINEAR, in the three forms that LiteRT has."""
    x, y = draft.tensor(op.x), draft.tensor(op.y)
    nearest = not any(op.rows.fraction) and not any(op.columns.fraction)
    form = None if nearest else _bilinear(op, x.shape[:2], y.shape[:2])
    if not nearest and form is None:
        raise draft.refuse(op, op.y, "an interpolation between other places than LiteRT has")
    source, grid = draft.read(op.x), draft.grid(op.x)

    def emit(result: int, _: int) -> None:
        same = grid == draft.grid(op.y)
        made = result if same else draft.inner(f"{y.name}_resized", (1, *y.shape), grid)
        if form is None:
            rows = draft.inner(f"{y.name}_rows", (1, y.shape[0], *x.shape[1:]), grid)
            for table, axis, before, after in ((op.rows, 1, source, rows), (op.columns, 2, rows, made)):
                places = draft.file.constant("places", np.array(table.first, np.int32))
                draft.file.emit(BUILTIN.GATHER, [before, places], after, schema.GatherOptionsT, axis=axis)
        else:
            size = draft.file.constant("size", np.array(y.shape[:2], np.int32))
            draft.file.emit(
                BUILTIN.RESIZE_BILINEAR,
                [source, size],
                made,
                schema.ResizeBilinearOptionsT,
                alignCorners=form == "align_corners",
                halfPixelCenters=form == "half_pixel",
            )
        if not same:
            draft.file.emit(BUILTIN.QUANTIZE, [made], result, schema.QuantizeOptionsT)

    draft.result(op.y, op.rescale, emit, fuses=False)


def _bilinear(op: Resize, sizes: tuple[int, ...], wanted: tuple[int, ...]) -> str | None:
    """Which of LiteRT's ways to place the outputs is this one."""
    for form in ("half_pixel", "align_corners", "asymmetric"):
        tables = zip((op.rows, op.columns), sizes, wanted, strict=True)
        if all(_places(t) == _expected(form, n, w) for t, n, w in tables):
            return form
    return None


def _places(table: Interpolation) -> list[int]:
    """Where each output lies, in 2048ths of the distance of inputs."""
    places: npt.NDArray[np.int64] = np.array(table.first, np.int64) * FRACTIONS
    between = np.array(table.second) > np.array(table.first)
    found: list[int] = (places + np.where(between, table.fraction, 0)).tolist()
    return found


def _expected(form: str, size: int, wanted: int) -> list[int]:
    at = np.arange(wanted, dtype=np.float64)
    if form == "align_corners" and wanted > 1:
        places = at * (size - 1) / (wanted - 1)
    elif form == "half_pixel":
        places = (at + 0.5) * size / wanted - 0.5
    else:
        places = at * size / wanted
    found: list[int] = np.rint(np.clip(places, 0, size - 1) * FRACTIONS).astype(np.int64).tolist()
    return found
