"""Layers: what multiplies activations by weights, or by one another."""

from __future__ import annotations

import numpy as np
import onnx

from edgewright.errors import ExportError
from edgewright.lower.draft import Draft, Order, Result, channels_last, last_stays
from edgewright.lower.scales import REMEDY, describe, rescale_of
from edgewright.lower.windows import window_of
from edgewright.wiring import attributes
from edgewright_kernels.plan import Convolution, Embedding, FullyConnected, MatMul, TransposedConvolution


def convolution(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """Conv along one to three axes, with any groups."""
    weight = draft.weight(node, 1)
    bias = draft.range(draft.weight(node, 2).name) if len(node.input) > 2 and node.input[2] else None
    given = draft.operand(node, 0)
    _check_axes(node, len(given.order))
    x = draft.arranged(given, channels_last(len(given.order)))
    window = window_of(node, draft.tensor(x).shape[:-1], weight.shape[2:])
    scale = np.broadcast_to(weight.scale.astype(np.float64), (weight.shape[0],))
    factors = scale * draft.tensor(x).scale / result.scale * result.factor
    change = rescale_of(node, factors, result.low, result.high)
    number = draft.range(weight.name)
    y = draft.give(result, x.order)
    draft.ops.append(
        Convolution(
            x=x.number,
            y=y.number,
            weight=number,
            weight_bits=weight.bits,
            bias=bias,
            window=window,
            groups=int(attributes(node).get("group", 1)),
            rescale=change,
        )
    )


def transposed_convolution(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """ConvTranspose along one to three axes."""
    weight = draft.weight(node, 1)
    bias = draft.range(draft.weight(node, 2).name) if len(node.input) > 2 and node.input[2] else None
    given = attributes(node)
    source = draft.operand(node, 0)
    _check_axes(node, len(source.order))
    x = draft.arranged(source, channels_last(len(source.order)))
    if given.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"} or given.get("output_shape"):
        raise ExportError(
            f"{describe(node)}: auto_pad and output_shape are not in the native engine; {REMEDY}"
        )
    window = window_of(node, draft.tensor(x).shape[:-1], weight.shape[2:])
    groups = int(given.get("group", 1))
    scale = np.tile(np.broadcast_to(weight.scale.astype(np.float64), (weight.shape[1],)), groups)
    factors = scale * draft.tensor(x).scale / result.scale * result.factor
    change = rescale_of(node, factors, result.low, result.high)
    y = draft.give(result, x.order)
    draft.ops.append(
        TransposedConvolution(
            x=x.number,
            y=y.number,
            weight=draft.range(weight.name),
            bias=bias,
            window=window,
            extra=tuple(given.get("output_padding", (0,) * len(window.kernel))),
            groups=groups,
            rescale=change,
        )
    )


def _check_axes(node: onnx.NodeProto, rank: int) -> None:
    if not 2 <= rank <= 4:
        raise ExportError(
            f"{describe(node)}: only one to three spatial axes are in the native engine; {REMEDY}"
        )


def fully_connected(
    draft: Draft, node: onnx.NodeProto, result: Result, bias_node: onnx.NodeProto | None = None
) -> None:
    """Gemm on (N, features), or MatMul by a constant (and the Add of a bias) on more axes."""
    weight = draft.weight(node, 1)
    bias = None
    if bias_node is not None:
        index = 0 if draft.is_constant(bias_node.input[0]) else 1
        bias = draft.range(draft.weight(bias_node, index).name)
    elif len(node.input) > 2 and node.input[2]:
        bias = draft.range(draft.weight(node, 2).name)
    given = draft.operand(node, 0)
    x = draft.arranged(given, last_stays(given.order))
    scale = np.broadcast_to(weight.scale.astype(np.float64), (weight.shape[0],))
    factors = scale * draft.tensor(x).scale / result.scale * result.factor
    change = rescale_of(node, factors, result.low, result.high)
    number = draft.range(weight.name)
    y = draft.give(result, x.order)
    draft.ops.append(
        FullyConnected(
            x=x.number,
            y=y.number,
            weight=number,
            weight_bits=weight.bits,
            bias=bias,
            rescale=change,
        )
    )


def matrix_product(draft: Draft, node: onnx.NodeProto, result: Result) -> None:
    """MatMul of two activations."""
    if not (_is_activation(draft, node.input[0]) and _is_activation(draft, node.input[1])):
        fully_connected(draft, node, result)
        return
    a, b = draft.operand(node, 0), draft.operand(node, 1)
    rank = len(a.order)
    if rank < 2 or len(b.order) != rank or draft.shape(a)[:-2] != draft.shape(b)[:-2]:
        raise ExportError(
            f"{describe(node)}: multiplies {draft.shape(a)} by {draft.shape(b)}; the native engine "
            f"wants equal leading sizes; {REMEDY}"
        )
    plain: Order = tuple(range(rank))
    turned: Order = (*range(rank - 2), rank - 1, rank - 2)
    a = draft.arranged(a, plain)
    # The order in which values need be moved least: what lies last stays last.
    transpose_b = b.order != plain and b.order[-1] != rank - 1
    b = draft.arranged(b, turned if transpose_b else plain)
    factor = draft.tensor(a).scale * draft.tensor(b).scale / result.scale * result.factor
    change = rescale_of(node, [factor], result.low, result.high)
    y = draft.give(result, plain)
    draft.ops.append(MatMul(a=a.number, b=b.number, y=y.number, transpose_b=transpose_b, rescale=change))


def _is_activation(draft: Draft, name: str) -> bool:
    before = draft.producers.get(name)
    return (
        before is not None
        and before.op_type == "DequantizeLinear"
        and before.input[0] not in draft.graph.constants
    )


def embedding(draft: Draft, node: onnx.NodeProto, dequantize: onnx.NodeProto, result: Result) -> None:
    """Gather of rows of a table of int8, by an int64 input."""
    table, x = node.input[0], node.input[1]
    if x not in draft.values or draft.tensor(draft.values[x]).dtype != "int64":
        raise ExportError(f"{describe(node)}: its indices must be an int64 input of the model; {REMEDY}")
    scale = draft.graph.constants[dequantize.input[1]]
    integers = draft.graph.constants[table]
    scales = scale.size == 1 or (
        scale.size == integers.shape[-1] and attributes(dequantize).get("axis", 1) in {-1, len(result.shape)}
    )
    if not scales or integers.dtype != np.int8 or integers.ndim != 2 or table not in draft.ranges:
        raise ExportError(
            f"{describe(node)}: its table must be int8, two-dimensional, with one scale, or one for each "
            f"column; {REMEDY}"
        )
    factors = scale.reshape(-1).astype(np.float64) / result.scale
    change = rescale_of(node, factors, result.low, result.high)
    y = draft.give(result, tuple(range(len(result.shape))))
    draft.ops.append(
        Embedding(x=draft.values[x].number, y=y.number, weight=draft.range(table), rescale=change)
    )
