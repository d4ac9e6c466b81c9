"""The rules of what slides a window over an image, and of Resize."""

from __future__ import annotations

from edgewright_kernels.errors import PlanError
from edgewright_kernels.operators import AveragePool, Convolution, MaxPool, Resize, TransposedConvolution
from edgewright_kernels.parameters import Interpolation, Window
from edgewright_kernels.program import DType, Plan, Tensor
from edgewright_kernels.rules import check_groups, check_rescale, check_weights, same_grid, same_shape

MAX_WINDOW_AXES = 3
MAX_WINDOW = 4096
# Values under one average pool: their sum fits 32 bits.
MAX_AVERAGED: dict[DType, int] = {"uint8": ((1 << 31) - 1) // 255, "int16": ((1 << 31) - 1) // (1 << 15)}
FULL = 1 << 11  # the weight of one input in Resize


def check_window(plan: Plan, op: Convolution | MaxPool | AveragePool, x_t: Tensor, y_t: Tensor) -> None:
    """The window fits, y has the sizes that follow, and the weights theirs."""
    window = op.window
    image, channels_in = _image(window, x_t, y_t)
    # Only a convolution may look at nothing but padding; in a pool each window must hold a real value.
    if not isinstance(op, Convolution):
        if any(p >= s for p, s in zip(window.padding, window.span * 2, strict=True)):
            raise PlanError("its padding is as large as its window")
        if any(d > n for d, n in zip(window.dilation, image, strict=True)):
            raise PlanError(f"its dilation is larger than {image}")
    size = window.output_size(*image)
    if min(size) < 1:
        raise PlanError(f"its window does not fit into {image}")
    if isinstance(op, Convolution):
        outputs = y_t.shape[-1]
        same_shape(y_t, (*size, outputs))
        check_groups(op.groups, channels_in, outputs)
        check_weights(plan, op, y_t, outputs, channels_in // op.groups * window.taps)
        return
    same_shape(y_t, (*size, channels_in))
    if isinstance(op, AveragePool):
        if window.taps > MAX_AVERAGED[x_t.dtype]:
            raise PlanError(f"averages more than {MAX_AVERAGED[x_t.dtype]} values")
        check_rescale(op.rescale, 1, y_t)
    else:
        same_grid(x_t, y_t)


def check_transposed(plan: Plan, op: TransposedConvolution, x_t: Tensor, y_t: Tensor) -> None:
    """The result has the sizes that follow, and the weights theirs."""
    window = op.window
    image, channels_in = _image(window, x_t, y_t)
    if any(not 0 <= e < max(s, d) for e, s, d in zip(op.extra, window.stride, window.dilation, strict=True)):
        raise PlanError("its extra is not below its stride or dilation")
    size = window.transposed_size(op.extra, *image)
    if min(size) < 1:
        raise PlanError("its padding takes all of its result")
    outputs = y_t.shape[-1]
    same_shape(y_t, (*size, outputs))
    check_groups(op.groups, channels_in, outputs)
    check_weights(plan, op, y_t, channels_in, outputs // op.groups * window.taps)


def _image(window: Window, x_t: Tensor, y_t: Tensor) -> tuple[tuple[int, ...], int]:
    """Spatial sizes and channels of x, its rank and the window's numbers being good."""
    axes = len(window.kernel)
    if len(x_t.shape) != axes + 1 or len(y_t.shape) != axes + 1:
        raise PlanError(f"takes and gives {axes} spatial axes and channels")
    values = (*window.kernel, *window.stride, *window.dilation)
    if not all(1 <= v <= MAX_WINDOW for v in values) or not all(0 <= v <= MAX_WINDOW for v in window.padding):
        raise PlanError(f"its window is out of bounds (1 to {MAX_WINDOW}; padding 0 to {MAX_WINDOW})")
    return x_t.shape[:-1], x_t.shape[-1]


def check_resize(op: Resize, x_t: Tensor, y_t: Tensor) -> None:
    """No output looks outside the image."""
    if len(x_t.shape) != 3:
        raise PlanError("takes and gives (H, W, C)")
    same_shape(y_t, (len(op.rows.first), len(op.columns.first), x_t.shape[2]))
    for along, size in ((op.rows, x_t.shape[0]), (op.columns, x_t.shape[1])):
        _check_interpolation(along, size)
    check_rescale(op.rescale, 1, y_t)


def _check_interpolation(along: Interpolation, size: int) -> None:
    if not len(along.first) == len(along.second) == len(along.fraction):
        raise PlanError("its parts differ in length")
    if not all(0 <= i < size for i in (*along.first, *along.second)):
        raise PlanError(f"it looks outside 0..{size - 1}")
    if not all(0 <= f <= FULL for f in along.fraction):
        raise PlanError(f"a fraction is not in 0..{FULL}")
