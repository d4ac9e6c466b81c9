"""Fake quantization: floating-point values moved onto the grids of integers, with gradients straight through.

What is here are operators of a graph (torch_operators.py), in a domain of their own. Integers and scales come
from the functions that quantization takes them from, so they are those of the artifact.

Rounding has no useful gradient; where a value lies on its grid, its gradient goes through as if there were no
rounding (Bengio et al. 2013, arXiv:1308.3432), and where it is clipped the end of the range has it. The ends
are learned by what rounding and clipping cost: Esser et al. 2020, "Learned Step Size Quantization", eq. 3,
written for both ends of an affine grid as in Jain et al. 2020, arXiv:1903.08066.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from edgewright.calibrate import LEAST_SCALE, Grid
from edgewright.overflow import OverflowSafe, safe_integers
from edgewright.torch_operators import Call, Operator
from edgewright.weight_scale import weight_scale

DOMAIN = "edgewright"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedGrid:
    """The grid of an activation, and what its gradient goes to.

    Attributes:
        low: One end of the range that it was made from, a scalar.
        high: The other end.
        grid: The grid.
    """

    low: Tensor
    high: Tensor
    grid: Grid


class _OnGrid(torch.autograd.Function):
    """The nearest values of a grid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
        """Rounds and clips; x of any shape."""
        ctx.save_for_backward(x)
        ctx.grid, ctx.lower_is_wider = grid, bool(-low > high)
        return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, *grid.limits)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Through where x is on the grid; to the ends what scale and clipping make of them."""
        (gradient,), (x,), grid = gradients, ctx.saved_tensors, ctx.grid
        steps = x / grid.scale
        whole = torch.round(steps)
        least, most = (limit - grid.zero_point for limit in grid.limits)
        below, above = whole < least, whole > most
        inside = torch.where(below | above, 0.0, gradient)
        rounding = float((inside * (whole - steps)).sum())
        clipped_low, clipped_high = float(gradient[below].sum()), float(gradient[above].sum())
        if grid.dtype == "int16":  # symmetric: the wider end makes the scale
            to_range = clipped_high - clipped_low + rounding / most
            ends = (-to_range, 0.0) if ctx.lower_is_wider else (0.0, to_range)
        else:
            ends = (clipped_low - rounding / 255, clipped_high + rounding / 255)
        return inside, *(torch.tensor(end, dtype=torch.float64, device=x.device) for end in ends), None


def on_grid(x: Tensor, learned: LearnedGrid) -> Tensor:
    """The nearest values of a grid, with gradients for x and for both ends of the range."""
    apply = cast("Any", _OnGrid).apply
    return cast("Tensor", apply(x, learned.low, learned.high, learned.grid))


def fake_layer(
    weight: Tensor,
    bias: Tensor | None,
    source: Grid,
    result: Grid,
    *,
    axis: int,
    groups: int,
    safe: OverflowSafe,
) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias as the integers that quantization would choose, times their scales.

    Args:
        weight: Output channels along `axis`.
        bias: (O,), or None.
        source: The grid of the layer's input.
        result: That of its result.
        axis: 0, or 1 for ConvTranspose and MatMul.
        groups: Of a ConvTranspose, whose scales are shared by them; else 1.
        safe: Which products must add up within 16 bits.

    Returns:
        Both in their shapes; gradients go through as if there were no rounding.
    """
    rows = np.moveaxis(_numbers(weight), axis, 0)
    biases = np.zeros(len(rows) * groups) if bias is None else _numbers(bias).astype(np.float64)
    largest = np.abs(biases).reshape(groups, -1).max(axis=0)
    scale, _ = weight_scale(rows, largest, source, result, safe, None)
    integers = safe_integers(rows, scale, safe)
    near = integers * scale.reshape(-1, *[1] * (rows.ndim - 1))
    fake = _through(weight, np.moveaxis(near, 0, axis))
    if bias is None:
        return fake, None
    step = np.tile(np.float32(source.scale) * scale, groups).astype(np.float32)
    whole = np.clip(np.rint(biases / step), -(2**30), 2**30).astype(np.int32)
    return fake, _through(bias, whole * step)


def fake_rows(table: Tensor, index: Tensor, *, by_column: bool) -> Tensor:
    """Rows of a table of embeddings as int8 of one scale, or of one for each column."""
    scale = _table_scale(table, by_column=by_column)
    rows = functional.embedding(torch.where(index < 0, index + len(table), index), table)
    near = torch.clamp(torch.round(rows / scale), -127, 127) * scale
    return rows + (near - rows).detach()


def table_grid(table: Tensor, *, wide: bool) -> LearnedGrid:
    """The grid of rows of a table, which follows from the table: its int8 moved to uint8, or int16."""
    low, high = table.detach().min().double(), table.detach().max().double()
    if wide:
        return LearnedGrid(low=low, high=high, grid=Grid.around(float(low), float(high), "int16"))
    scale = float(_table_scale(table, by_column=False))
    return LearnedGrid(low=low, high=high, grid=Grid(scale=scale, zero_point=128))


def _table_scale(table: Tensor, *, by_column: bool) -> Tensor:
    most = table.detach().abs().amax(dim=0) if by_column else table.detach().abs().max()
    return (most.double() / 127).clamp(min=LEAST_SCALE).float()


def _numbers(value: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = value.detach().cpu().numpy()
    return found


def _through(value: Tensor, near: npt.NDArray[Any]) -> Tensor:
    """`near`, with the gradient of `value`."""
    fixed = torch.from_numpy(np.ascontiguousarray(near, np.float32)).to(value.device)
    return cast("Tensor", cast("Any", _Replaced).apply(value, fixed))


class _Replaced(torch.autograd.Function):
    """Other numbers in the place of a value, whose gradient they give on."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, near: Tensor) -> Tensor:
        """Both of one shape."""
        del ctx, value
        return near

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> Any:
        """To the value alone."""
        del ctx
        return gradients[0], None


def _on_grid(_: Call, inputs: list[Any]) -> Tensor:
    return on_grid(inputs[0], inputs[1])


def _table_grid(call: Call, inputs: list[Any]) -> LearnedGrid:
    return table_grid(inputs[0], wide=bool(call.given["wide"]))


def _layer(call: Call, inputs: list[Any]) -> tuple[Tensor, Tensor | None]:
    weight, bias, source, result = inputs
    given = call.given
    return fake_layer(
        weight,
        bias,
        source.grid,
        result.grid,
        axis=given["axis"],
        groups=given["groups"],
        safe=cast("OverflowSafe", given["safe"].decode()),
    )


def _rows(call: Call, inputs: list[Any]) -> Tensor:
    return fake_rows(*inputs, by_column=bool(call.given["by_column"]))


FAKE_OPERATORS: Mapping[str, Operator] = {
    "Layer": _layer,  # weight, bias or nothing, grid of the source, grid of the result
    "OnGrid": _on_grid,  # value, grid
    "Rows": _rows,  # table, row numbers
    "TableGrid": _table_grid,  # table
}
