"""Pools, and the windows of pools and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from edgewright.errors import ExportError
from edgewright.lower.draft import Draft, Result, channels_last
from edgewright.lower.scales import REMEDY, describe, rescale_of
from edgewright.wiring import attributes
from edgewright_kernels.plan import AveragePool, MaxPool, Window


def window_of(node: onnx.NodeProto, size: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a node over an image of this size."""
    given, axes = attributes(node), len(kernel)
    if axes != len(size) or not 1 <= axes <= 3:
        raise ExportError(
            f"{describe(node)}: only windows over one to three axes are in the native engine; {REMEDY}"
        )
    strides = tuple(given.get("strides", (1,) * axes))
    dilations = tuple(given.get("dilations", (1,) * axes))
    pads = tuple(given.get("pads", (0,) * 2 * axes))
    auto = given.get("auto_pad", b"NOTSET")
    if auto in {b"SAME_UPPER", b"SAME_LOWER"}:
        total = [
            max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, s, d, k in zip(size, strides, dilations, kernel, strict=True)
        ]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = (*less, *more) if auto == b"SAME_UPPER" else (*more, *less)
    return Window(kernel=tuple(kernel), stride=strides, padding=pads, dilation=dilations)


def _pool_window(node: onnx.NodeProto, size: Sequence[int], result: Result) -> Window:
    window = window_of(node, size, attributes(node)["kernel_shape"])
    if attributes(node).get("ceil_mode", 0) and window.output_size(*size) != result.shape[1:]:
        raise ExportError(f"{describe(node)}: ceil_mode is not in the native engine; {REMEDY}")
    return window


def max_pool(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """MaxPool along one to three axes."""
    given = draft.operand(node, 0)
    x = draft.arranged(given, channels_last(len(given.order)))
    window = _pool_window(node, draft.tensor(x).shape[:-1], result)
    y = draft.like(x, result.name, result.shape, x.order)
    draft.ops.append(MaxPool(x=x.number, y=y.number, window=window))
    draft.keep(node, y, result)


def average_pool(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """AveragePool along one to three axes, padding counting as zero."""
    given = draft.operand(node, 0)
    x = draft.arranged(given, channels_last(len(given.order)))
    window = _pool_window(node, draft.tensor(x).shape[:-1], result)
    if any(window.padding) and not attributes(node).get("count_include_pad", 0):
        raise ExportError(
            f"{describe(node)}: padding that does not count is not in the native engine; {REMEDY}"
        )
    _average(draft, node, x.number, x.order, window, result)


def global_average_pool(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """The mean over everything but channels; these axes may lie in any order."""
    given = draft.operand(node, 0)
    order = given.order if given.order[-1] == 0 else channels_last(len(given.order))
    x = draft.arranged(given, order)
    size = draft.tensor(x).shape[:-1]
    if not 1 <= len(size) <= 3:
        raise ExportError(
            f"{describe(node)}: only one to three spatial axes are in the native engine; {REMEDY}"
        )
    _average(draft, node, x.number, x.order, Window(kernel=size), result)


def _average(
    draft: Draft, node: onnx.NodeProto, x: int, order: tuple[int, ...], window: Window, result: Result
) -> None:
    factor = draft.tensors[x].scale / (result.scale * window.taps)
    change = rescale_of(node, [factor], result.low, result.high)
    y = draft.give(result, order)
    draft.ops.append(AveragePool(x=x, y=y.number, window=window, rescale=change))
