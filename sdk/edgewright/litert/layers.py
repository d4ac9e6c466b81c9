"""Layers and pools of an integer program, as LiteRT has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgewright.int4 import unpacked
from edgewright.litert.draft import LITTLE, Draft, factors
from edgewright.litert.file import BUILTIN
from edgewright_kernels.plan import (
    AveragePool,
    Convolution,
    FullyConnected,
    MatMul,
    MaxPool,
    Op,
    Rescale,
    TransposedConvolution,
    Window,
)

LOWEST = -128


def convolution(draft: Draft, op: Convolution) -> None:
    """CONV_2D or DEPTHWISE_CONV_2D; along one axis, of an image of one row."""
    x, y = draft.tensor(op.x), draft.tensor(op.y)
    channels, outputs = x.shape[-1], y.shape[-1]
    window = _flat(draft, op, op.window)
    shape = (outputs, channels // op.groups, *op.window.kernel)
    weight = _weight(draft, op.weight, op.weight_bits, shape).reshape(*shape[:2], *window.kernel)
    depthwise = op.groups == channels > 1
    filters = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
    scales = _weight_scales(op.rescale, x.scale, y.scale, outputs)
    source, padding = _windowed(draft, _image(draft, op.x), window)
    inputs = [
        source,
        draft.file.constant(f"{y.name}_weight", filters, scales, axis=3 if depthwise else 0),
        _bias(draft, op.bias, f"{y.name}_bias", x.scale, scales),
    ]
    how = {
        "padding": padding,
        "strideH": window.stride[0],
        "strideW": window.stride[1],
        "dilationHFactor": window.dilation[0],
        "dilationWFactor": window.dilation[1],
    }
    code, options = BUILTIN.CONV_2D, schema.Conv2DOptionsT
    if depthwise:
        code, options = BUILTIN.DEPTHWISE_CONV_2D, schema.DepthwiseConv2DOptionsT
        how["depthMultiplier"] = outputs // channels

    def emit(result: int, activation: int) -> None:
        _on_image(
            draft,
            op.y,
            result,
            lambda r: draft.file.emit(code, inputs, r, options, fusedActivationFunction=activation, **how),
        )

    draft.result(op.y, op.rescale, emit)


def transposed_convolution(draft: Draft, op: TransposedConvolution) -> None:
    """TRANSPOSE_CONV without padding, of which the padding is then cut off."""
    if op.groups != 1 or any(d != 1 for d in op.window.dilation):
        raise draft.refuse(op, op.y, "in groups or dilated, of which LiteRT has none")
    x, y = draft.tensor(op.x), draft.tensor(op.y)
    window = _flat(draft, op, op.window)
    extra = (0,) * (2 - len(op.extra)) + op.extra
    shape = (x.shape[-1], y.shape[-1], *op.window.kernel)
    weight = _weight(draft, op.weight, op.weight_bits, shape).reshape(*shape[:2], *window.kernel)
    scales = _weight_scales(op.rescale, x.scale, y.scale, y.shape[-1])
    source = _image(draft, op.x)
    size = draft.file.shape(source)[1:3]
    whole = tuple((n - 1) * s + k for n, s, k in zip(size, window.stride, window.kernel, strict=True))
    wanted = window.transposed_size(extra, *size)
    starts = window.padding[:2]
    if any(s + n > w for s, n, w in zip(starts, wanted, whole, strict=True)):
        raise draft.refuse(op, op.y, "its output_padding is larger than its padding behind")
    inputs = [
        draft.file.constant("output_shape", np.array([1, *whole, y.shape[-1]], np.int32)),
        draft.file.constant(f"{y.name}_weight", weight.transpose(1, 2, 3, 0), scales, axis=0),
        source,
        _bias(draft, op.bias, f"{y.name}_bias", x.scale, scales),
    ]

    def product(result: int, activation: int) -> None:
        draft.file.emit(
            BUILTIN.TRANSPOSE_CONV,
            inputs,
            result,
            schema.TransposeConvOptionsT,
            padding=schema.Padding.VALID,
            strideH=window.stride[0],
            strideW=window.stride[1],
            fusedActivationFunction=activation,
        )

    def emit(result: int, activation: int) -> None:
        def cut(target: int) -> None:
            if whole == tuple(wanted):
                product(target, activation)
                return
            uncut = draft.inner(f"{y.name}_uncut", (1, *whole, y.shape[-1]), draft.grid(op.y))
            product(uncut, activation)
            begin = (0, *starts, 0)
            end = (1, *(s + n for s, n in zip(starts, wanted, strict=True)), y.shape[-1])
            sliced(draft, uncut, begin, end, (1, 1, 1, 1), target)

        _on_image(draft, op.y, result, cut)

    draft.result(op.y, op.rescale, emit)


def sliced(
    draft: Draft, x: int, begin: Sequence[int], end: Sequence[int], steps: Sequence[int], result: int
) -> None:
    """Adds a STRIDED_SLICE; places count the batch."""
    tables = [draft.file.constant("places", np.array(v, np.int32)) for v in (begin, end, steps)]
    draft.file.emit(BUILTIN.STRIDED_SLICE, [x, *tables], result, schema.StridedSliceOptionsT)


def fully_connected(draft: Draft, op: FullyConnected) -> None:
    """FULLY_CONNECTED over the last axis."""
    x, y = draft.tensor(op.x), draft.tensor(op.y)
    outputs = y.shape[-1]
    weight = _weight(draft, op.weight, op.weight_bits, (outputs, x.shape[-1]))
    scales = _weight_scales(op.rescale, x.scale, y.scale, outputs)
    inputs = [
        draft.read(op.x),
        draft.file.constant(f"{y.name}_weight", weight, scales),
        _bias(draft, op.bias, f"{y.name}_bias", x.scale, scales),
    ]
    draft.result(
        op.y,
        op.rescale,
        lambda result, activation: draft.file.emit(
            BUILTIN.FULLY_CONNECTED,
            inputs,
            result,
            schema.FullyConnectedOptionsT,
            fusedActivationFunction=activation,
            keepNumDims=True,
        ),
    )


def matrix_product(draft: Draft, op: MatMul) -> None:
    """BATCH_MATMUL; a factor that the plan has in its multiplier is a MUL of its own behind it."""
    a, b, y = draft.tensor(op.a), draft.tensor(op.b), draft.tensor(op.y)
    factor = float(factors(op.rescale)[0]) * y.scale / (a.scale * b.scale)
    inputs = [draft.read(op.a), draft.read(op.b)]
    plain = abs(factor - 1) < 1e-6

    def emit(result: int, activation: int) -> None:
        # The product's integers are those of the result, on a grid without the factor.
        grid = (y.scale / factor, draft.grid(op.y)[1])
        product = result if plain else draft.inner(f"{y.name}_product", (1, *y.shape), grid)
        draft.file.emit(
            BUILTIN.BATCH_MATMUL, inputs, product, schema.BatchMatMulOptionsT, adjY=op.transpose_b
        )
        if not plain:
            number = draft.file.constant("factor", np.array([127], np.int8), [factor / 127])
            draft.file.emit(
                BUILTIN.MUL, [product, number], result, schema.MulOptionsT, fusedActivationFunction=activation
            )

    draft.result(op.y, op.rescale, emit, fuses=not plain)


def max_pool(draft: Draft, op: MaxPool) -> None:
    """MAX_POOL_2D; padding is of the lowest integer, which never wins."""
    window = _flat(draft, op, op.window)
    if any(d != 1 for d in window.dilation):
        raise draft.refuse(op, op.y, "dilated, of which LiteRT has none")
    source, padding = _windowed(draft, _image(draft, op.x), window, LOWEST)

    def emit(result: int) -> None:
        draft.file.emit(
            BUILTIN.MAX_POOL_2D,
            [source],
            result,
            schema.Pool2DOptionsT,
            padding=padding,
            filterHeight=window.kernel[0],
            filterWidth=window.kernel[1],
            strideH=window.stride[0],
            strideW=window.stride[1],
        )

    _on_image(draft, op.y, draft.give(op.y), emit)


def average_pool(draft: Draft, op: AveragePool) -> None:
    """MEAN of a whole image; else a depthwise convolution by ones: LiteRT's pool changes no scale."""
    x, y = draft.tensor(op.x), draft.tensor(op.y)
    spatial = x.shape[:-1]
    if op.window.kernel == spatial and not any(op.window.padding):
        axes = draft.file.constant("axes", np.arange(1, 1 + len(spatial), dtype=np.int32))
        draft.result(
            op.y,
            op.rescale,
            lambda result, _: draft.file.emit(
                BUILTIN.MEAN, [draft.read(op.x), axes], result, schema.ReducerOptionsT, keepDims=True
            ),
            fuses=False,
        )
        return
    window, channels = _flat(draft, op, op.window), x.shape[-1]
    scales = _weight_scales(op.rescale, x.scale, y.scale, channels)
    source, padding = _windowed(draft, _image(draft, op.x), window)
    inputs = [
        source,
        draft.file.constant("ones", np.ones((1, *window.kernel, channels), np.int8), scales, axis=3),
        _bias(draft, None, "no_bias", x.scale, scales),
    ]
    draft.result(
        op.y,
        op.rescale,
        lambda result, activation: _on_image(
            draft,
            op.y,
            result,
            lambda r: draft.file.emit(
                BUILTIN.DEPTHWISE_CONV_2D,
                inputs,
                r,
                schema.DepthwiseConv2DOptionsT,
                padding=padding,
                strideH=window.stride[0],
                strideW=window.stride[1],
                depthMultiplier=1,
                fusedActivationFunction=activation,
            ),
        ),
    )


# Weights


def _weight(draft: Draft, number: int, bits: int, shape: Sequence[int]) -> npt.NDArray[np.int8]:
    """Weights as int8, also those of four bits."""
    if bits == 8:
        return draft.bytes_of(number, np.int8, shape)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    packed = draft.bytes_of(number, np.uint8, (rows, (columns + 1) // 2))
    return unpacked(packed, columns).reshape(tuple(shape))


def _weight_scales(rescale: Rescale, of_x: float, of_y: float, outputs: int) -> list[float]:
    """The scales of weights: what the multipliers hold beside the scales of x and y."""
    scales = np.maximum(factors(rescale) * of_y / of_x, LITTLE)
    return [float(s) for s in np.broadcast_to(scales.astype(np.float32), (outputs,))]


def _bias(draft: Draft, number: int | None, name: str, of_x: float, scales: Sequence[float]) -> int:
    """Bias, zeros where there is none: XNNPACK and others want one."""
    shape = (len(scales),)
    value = np.zeros(shape, np.int32) if number is None else draft.bytes_of(number, "<i4", shape)
    return draft.file.constant(name, value.astype(np.int32), [of_x * s for s in scales])


# Windows


def _flat(draft: Draft, op: Op, window: Window) -> Window:
    """The window over an image of two axes; one axis is an image of one row."""
    axes = len(window.kernel)
    if axes == 3:
        raise draft.refuse(op, op.y, "over three axes, for which LiteRT has no integer kernel")
    if axes == 2:
        return window
    (before, after) = window.padding
    return Window(
        kernel=(1, *window.kernel),
        stride=(1, *window.stride),
        padding=(0, before, 0, after),
        dilation=(1, *window.dilation),
    )


def _image(draft: Draft, number: int) -> int:
    """A value as an image of two axes."""
    x = draft.read(number)
    shape = draft.file.shape(x)
    return x if len(shape) == 4 else draft.reshaped(x, (1, 1, *shape[1:]))


def _on_image(draft: Draft, number: int, result: int, emit: Callable[[int], object]) -> None:
    """Adds an operator on images, `emit(tensor)`, whose result may have one spatial axis."""
    shape = draft.file.shape(result)
    if len(shape) == 4:
        emit(result)
        return
    image = draft.inner("row", (1, 1, *shape[1:]), draft.grid(number))
    emit(image)
    draft.reshaped(image, shape, result)


def _windowed(draft: Draft, x: int, window: Window, value: int | None = None) -> tuple[int, int]:
    """The input, behind a PAD where the padding is neither none nor "same"; and LiteRT's padding."""
    size = draft.file.shape(x)[1:3]
    if not any(window.padding):
        return x, int(schema.Padding.VALID)
    total = [
        max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(size, window.stride, window.span, strict=True)
    ]
    if window.padding == (*(t // 2 for t in total), *(t - t // 2 for t in total)):
        return x, int(schema.Padding.SAME)
    pads = [(0, 0), window.padding[0::2], window.padding[1::2], (0, 0)]
    return draft.padded(x, [(p[0], p[1]) for p in pads], value), int(schema.Padding.VALID)
