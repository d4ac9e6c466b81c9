"""ONNX operators in torch: what each computes, so that a gradient can flow through it.

The operators of the normal form (normalform.py) that the native engine has, and those that a graph computes
sizes and masks by. Meanings: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from edgewright.errors import CompressError
from edgewright.lower.moves import FRACTIONS, interpolation
from edgewright.lower.windows import window_of
from edgewright.wiring import attributes

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One node, as an operator needs it.

    Attributes:
        node: The node itself.
        given: Its attributes.
        fixed: Constants among its inputs, by place; those that cannot be trained alone.
    """

    node: onnx.NodeProto
    given: Mapping[str, Any]
    fixed: Mapping[int, Array]

    @classmethod
    def of(cls, node: onnx.NodeProto, constants: Mapping[str, Array]) -> Call:
        """Reads a node among the constants of its graph."""
        fixed = {i: constants[n] for i, n in enumerate(node.input) if n in constants}
        return cls(node=node, given=attributes(node), fixed=fixed)

    def numbers(self, place: int, inputs: Sequence[Tensor | None]) -> list[int] | None:
        """An input of whole numbers; None where it is left out."""
        if place in self.fixed:
            return [int(v) for v in self.fixed[place].reshape(-1)]
        value = inputs[place] if place < len(inputs) else None
        return None if value is None else [int(v) for v in value.reshape(-1).tolist()]


Operator = Callable[[Call, list[Any]], Any]
"""Takes a node and its inputs, tensors or None, each; gives its result."""


def operator_of(node: onnx.NodeProto) -> Operator:
    """What a node computes.

    Raises:
        CompressError: There is no such operator here.
    """
    found = OPERATORS.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
    if found is None:
        raise CompressError(
            f"operator {node.op_type} (node {node.name or node.output[0]!r}) cannot be trained through; "
            "leave the training of grids out for this model, and quantize it after training"
        )
    return found


# Layers


def _windowed(call: Call, x: Tensor, kernel: Sequence[int], fill: float) -> tuple[Tensor, dict[str, Any]]:
    """An image with its padding, which is filled, and the rest of the window."""
    window = window_of(call.node, x.shape[2:], kernel)
    axes = len(kernel)
    before, after = window.padding[:axes], window.padding[axes:]
    if any(window.padding):
        pads = [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair]
        x = functional.pad(x, pads, value=fill)
    return x, {"stride": window.stride, "dilation": window.dilation}


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGES = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _conv(call: Call, inputs: list[Any]) -> Tensor:
    x, weight, bias = [*inputs, None][:3]
    x, window = _windowed(call, x, weight.shape[2:], 0.0)
    convolution: Any = _CONVOLUTIONS[weight.ndim - 2]
    result: Tensor = convolution(x, weight, bias, groups=call.given.get("group", 1), **window)
    return result


def _conv_transpose(call: Call, inputs: list[Any]) -> Tensor:
    x, weight, bias = [*inputs, None][:3]
    axes = weight.ndim - 2
    if call.given.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"} or call.given.get("output_shape"):
        raise CompressError(
            f"node {call.node.name!r}: ConvTranspose with auto_pad or output_shape cannot be trained through"
        )
    window = window_of(call.node, x.shape[2:], weight.shape[2:])
    transposed: Any = _TRANSPOSED[axes]
    extra = call.given.get("output_padding", [0] * axes)
    # Padding cuts the result; cut here, as it may differ between the ends of an axis, and be lengthened.
    full: Tensor = transposed(
        x, weight, None, window.stride, 0, 0, call.given.get("group", 1), window.dilation
    )
    for axis in range(axes):
        before, after = window.padding[axis], window.padding[axes + axis] - extra[axis]
        if after < 0:
            full = functional.pad(full, [*[0, 0] * (axes - 1 - axis), 0, -after])
            after = 0
        full = full.narrow(axis + 2, before, full.shape[axis + 2] - before - after)
    return full if bias is None else full + bias.reshape(-1, *[1] * axes)


def _gemm(call: Call, inputs: list[Any]) -> Tensor:
    a, b, c = [*inputs, None][:3]
    given = call.given
    a = a.transpose(0, 1) if given.get("transA", 0) else a
    b = b if given.get("transB", 0) else b.transpose(0, 1)
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        product = given.get("alpha", 1.0) * functional.linear(a, b)
        scaled: Tensor = product if c is None else product + given.get("beta", 1.0) * c
        return scaled
    if c is None or c.ndim == 1:
        return functional.linear(a, b, c)
    full: Tensor = functional.linear(a, b) + c
    return full


def _max_pool(call: Call, inputs: list[Any]) -> Tensor:
    kernel = call.given["kernel_shape"]
    x, window = _windowed(call, inputs[0], kernel, float("-inf"))
    pool: Any = _MAXIMA[len(kernel)]
    result: Tensor = pool(x, kernel, ceil_mode=bool(call.given.get("ceil_mode", 0)), **window)
    return result


def _average_pool(call: Call, inputs: list[Any]) -> Tensor:
    kernel, given = call.given["kernel_shape"], call.given
    x, window = _windowed(call, inputs[0], kernel, 0.0)
    if set(window.pop("dilation")) != {1}:
        raise CompressError(f"node {call.node.name!r}: a dilated AveragePool cannot be trained through")
    pool: Any = _AVERAGES[len(kernel)]
    ceil = bool(given.get("ceil_mode", 0))
    result: Tensor = pool(x, kernel, ceil_mode=ceil, **window)
    if x.shape != inputs[0].shape and not given.get("count_include_pad", 0):
        ones, _ = _windowed(call, torch.ones_like(inputs[0][:1, :1]), kernel, 0.0)
        result = result / pool(ones, kernel, ceil_mode=ceil, **window)
    return result


def _resize(call: Call, inputs: list[Any]) -> Tensor:
    x: Tensor = inputs[0]
    scales = call.fixed.get(2)
    sizes = call.numbers(3, inputs)
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        by_scale = scales is not None and scales.size > axis
        factor = float(scales[axis]) if by_scale and scales is not None else 0.0
        wanted = int(size * factor) if by_scale or sizes is None else sizes[axis]
        places = interpolation(call.node, size, wanted, factor or wanted / size)
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        share = torch.tensor(places.fraction, dtype=x.dtype, device=x.device).reshape(shape) / FRACTIONS
        first, second = (
            x.index_select(axis, torch.tensor(p, device=x.device)) for p in (places.first, places.second)
        )
        x = first + share * (second - first)
    return x


def _layer_norm(call: Call, inputs: list[Any]) -> Tensor:
    x, gain, offset = [*inputs, None][:3]
    axis = call.given.get("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], gain, offset, call.given.get("epsilon", 1e-5))


def _batch_norm(call: Call, inputs: list[Any]) -> Tensor:
    x, gain, offset, mean, variance = inputs[:5]
    return functional.batch_norm(x, mean, variance, gain, offset, False, 0.0, call.given.get("epsilon", 1e-5))


# Moves


def _gather(call: Call, inputs: list[Any]) -> Tensor:
    table, index = inputs
    axis = call.given.get("axis", 0) % table.ndim
    index = torch.where(index < 0, index + table.shape[axis], index).to(torch.int64)
    if axis == 0 and table.ndim == 2 and table.is_floating_point():
        return functional.embedding(index, table)
    taken = table.index_select(axis, index.reshape(-1))
    shape = (*table.shape[:axis], *index.shape, *table.shape[axis + 1 :])
    result: Tensor = taken.reshape(shape)
    return result


def _reshape(call: Call, inputs: list[Any]) -> Tensor:
    x: Tensor = inputs[0]
    shape = call.numbers(1, inputs) or []
    kept = not call.given.get("allowzero", 0)
    return x.reshape([x.shape[i] if d == 0 and kept else d for i, d in enumerate(shape)])


def _flatten(call: Call, inputs: list[Any]) -> Tensor:
    x: Tensor = inputs[0]
    axis = call.given.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[: axis % (x.ndim + 1)])), -1) if axis != 1 else x.flatten(1)


def _slice(call: Call, inputs: list[Any]) -> Tensor:
    x: Tensor = inputs[0]
    starts, ends, axes, steps = (call.numbers(i, inputs) for i in range(1, 5))
    assert starts is not None
    assert ends is not None
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[i] if axes is not None else i) % x.ndim
        places = range(x.shape[axis])[slice(start, end, steps[i] if steps is not None else 1)]
        if places.step < 0 and end < -x.shape[axis]:  # which means: to the first
            places = range(x.shape[axis])[slice(start, None, places.step)]
        if places.step == 1:
            x = x.narrow(axis, places.start, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _transpose(call: Call, inputs: list[Any]) -> Tensor:
    x: Tensor = inputs[0]
    return x.permute(call.given.get("perm", list(range(x.ndim))[::-1]))


def _expand(call: Call, inputs: list[Any]) -> Tensor:
    shape = call.numbers(1, inputs) or []
    repeated: Tensor = inputs[0] * torch.ones(shape, dtype=inputs[0].dtype, device=inputs[0].device)
    return repeated


def _unsqueeze(call: Call, inputs: list[Any]) -> Tensor:
    x: Tensor = inputs[0]
    axes = call.numbers(1, inputs) or []
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(call: Call, inputs: list[Any]) -> Tensor:
    x: Tensor = inputs[0]
    axes = call.numbers(1, inputs)
    return x.squeeze() if axes is None else x.squeeze([a % x.ndim for a in axes])


def _shape(call: Call, inputs: list[Any]) -> Tensor:
    sizes = list(inputs[0].shape)[call.given.get("start", 0) : call.given.get("end")]
    return torch.tensor(sizes, dtype=torch.int64, device=inputs[0].device)


def _reduction(reduce_axes: Callable[..., Any]) -> Operator:
    def compute(call: Call, inputs: list[Any]) -> Any:
        axes = call.numbers(1, inputs)
        keep = bool(call.given.get("keepdims", 1))
        if not axes:
            axes = [] if call.given.get("noop_with_empty_axes", 0) else list(range(inputs[0].ndim))
        return reduce_axes(inputs[0], axes, keep) if axes else inputs[0]

    return compute


# Functions of one value, or of several, element by element


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _, inputs: function(inputs[0])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _, inputs: function(inputs[0], inputs[1])


def _clip(_: Call, inputs: list[Any]) -> Tensor:
    x, low, high = [*inputs, None, None][:3]
    return x if low is None and high is None else torch.clamp(x, low, high)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def _selu(call: Call, inputs: list[Any]) -> Tensor:
    gamma = float(call.given.get("gamma", 1.0507009873554804))
    return gamma * _elu(inputs[0], call.given.get("alpha", 1.6732632423543772))


def _gelu(call: Call, inputs: list[Any]) -> Tensor:
    return functional.gelu(inputs[0], approximate=call.given.get("approximate", b"none").decode())


def _cast(call: Call, inputs: list[Any]) -> Tensor:
    kind = onnx.helper.tensor_dtype_to_np_dtype(call.given["to"])
    return inputs[0].to(torch.from_numpy(np.zeros(1, kind)).dtype)  # type: ignore[no-any-return]


OPERATORS: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Celu": lambda c, i: functional.celu(i[0], c.given.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": lambda c, i: torch.cat(i, c.given["axis"]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _unary(torch.cos),
    "Div": _binary(_divided),
    "Elu": lambda c, i: _elu(i[0], c.given.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _unary(lambda x: x.mean(dim=list(range(2, x.ndim)), keepdim=True)),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": lambda c, i: (c.given.get("alpha", 0.2) * i[0] + c.given.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _unary(lambda x: x * (x / 6 + 0.5).clamp(0, 1)),
    "Identity": _unary(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda c, i: functional.leaky_relu(i[0], c.given.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "MatMul": _binary(torch.matmul),
    "Max": lambda _, i: reduce(torch.maximum, i),
    "MaxPool": _max_pool,
    "Min": lambda _, i: reduce(torch.minimum, i),
    "Mish": _unary(functional.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _binary(lambda x, slope: torch.where(x < 0, slope * x, x)),
    "Pow": _binary(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduction(lambda x, axes, keep: torch.amax(x, axes, keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: torch.mean(x, axes, keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: torch.sum(x, axes, keep)),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _unary(torch.round),
    "Selu": _selu,
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": lambda c, i: torch.softmax(i[0], c.given.get("axis", -1)),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": lambda c, i: torch.where(i[0] > c.given.get("alpha", 1.0), i[0], 0),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, i: torch.where(i[0].bool(), i[1], i[2]),
    "Xor": _binary(torch.logical_xor),
}
