"""Overflow witnesses: an input of one layer on which a runtime's sums overflow, and the runtime put to it.

A sum of two products overflows where both activations are at an end of their range. The layer's other inputs
are free, so they are chosen to bring the result to where the loss shows: a saturated sum that a clamp hides
is no witness. What the runtime makes of an input follows from the model of its kernel (`narrow_kernels.py`);
where it is installed, a graph of that layer alone tells whether the model is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgewright.integer_layers import IntegerLayer, OutputGrid
from edgewright.narrow_kernels import Kernel, met, narrowed
from edgewright.overflow_proof import Risk, activation_offset
from edgewright.wiring import attributes

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

TRIED = 4  # of the worst pairs, each of another output where there are as many
BLENDS = 17  # ways to set the layer's other inputs, between those that make the result least and greatest


@dataclass(frozen=True, slots=True, kw_only=True)
class OverflowWitness:
    """An input of a layer, not of the network, on which a runtime's result is not the exact one.

    Attributes:
        output: The channel, or feature, of the result.
        terms: The two terms whose products meet: (input channel, kernel position...) each.
        weights, activations: Their integers, as stored; activations in the kernel's form (uint8 or int8).
        total: What the two products sum to.
        exact, peer: The layer's result at `output`, in real units, and what the runtime makes of it.
        steps: By how many steps of the result's grid they differ; 0 where there is no grid.
    """

    output: int
    terms: tuple[tuple[int, ...], ...]
    weights: tuple[int, ...]
    activations: tuple[int, ...]
    total: int
    exact: float
    peer: float
    steps: int


def witness(layer: IntegerLayer, kernel: Kernel, risk: Risk) -> tuple[OverflowWitness, npt.NDArray[Any]]:
    """The layer input, of those tried, on which the runtime's result is farthest from the exact one.

    Args:
        layer: With a risk.
        kernel: Of the runtime.
        risk: Of the layer in the kernel, at least one pair.

    Returns:
        What happens, and the input as stored, (1, C, positions...) or (1, C). The positions are those of one
        kernel, dilation included, so that a convolution without padding gives one result per output channel.
    """
    pairs = met(kernel, layer.weight.shape, layer.groups)
    first = np.unique(risk.outputs, return_index=True)[1]  # the worst pair of each output
    tried = [
        _of_pair(layer, kernel, pairs, int(risk.outputs[i]), risk.terms[i], int(risk.sums[i]))
        for i in np.sort(first)[:TRIED]
    ]
    told, terms = max(tried, key=lambda t: (t[0].steps, abs(t[0].exact - t[0].peer)))
    return told, _tensor(layer, told.output, terms)


def _tensor(layer: IntegerLayer, output: int, terms: Integers) -> npt.NDArray[Any]:
    """A layer input in which an output's terms are these, and all else is zero."""
    channels, spatial = layer.weight.shape[1], _extent(layer)
    tensor = np.full((1, channels * layer.groups, *spatial), _zero(layer), layer.dtype)
    first = output // (len(layer.weight) // layer.groups) * channels
    place: list[int | slice] = [0, slice(first, first + channels)]
    place += [slice(None, None, d) for d in _dilations(layer)]
    tensor[tuple(place)] = terms.reshape(layer.weight.shape[1:])
    return tensor


def sums(layer: IntegerLayer, kernel: Kernel, output: int, terms: Integers) -> tuple[Integers, Integers]:
    """The sums that one output is made of, bias included: exact, and as the kernel has them.

    Args:
        layer: Whose weights.
        kernel: How it adds.
        output: Which result.
        terms: (N, terms) activations as stored, in the order of the weight in memory.

    Returns:
        (N,) each.
    """
    weight = layer.weight.reshape(len(layer.weight), -1)[output].astype(np.int64)
    zero = int(layer.weight_zero[output])
    inner = terms - layer.zero_point
    exact = inner @ (weight - zero) + layer.bias[output]
    return exact, exact + _lost(layer, kernel, met(kernel, layer.weight.shape, layer.groups), weight, terms)


def _lost(
    layer: IntegerLayer, kernel: Kernel, pairs: Integers, weight: Integers, terms: Integers
) -> Integers:
    """What narrow sums add to each result, (N,), of terms (N, terms)."""
    products = np.zeros((len(terms), len(weight) + 1), np.int64)
    np.multiply(terms - activation_offset(layer, kernel), weight, out=products[:, :-1])
    together = products[:, pairs[:, 0]] + products[:, pairs[:, 1]]
    lost: Integers = (narrowed(kernel, together) - together).sum(axis=1)
    return lost


def _of_pair(
    layer: IntegerLayer, kernel: Kernel, pairs: Integers, output: int, pair: Integers, total: int
) -> tuple[OverflowWitness, Integers]:
    weight = layer.weight.reshape(len(layer.weight), -1)[output].astype(np.int64)
    upwards = (weight > 0) == (total > 0)
    at_most, at_least = np.where(upwards, layer.high, layer.low), np.where(upwards, layer.low, layer.high)
    # The pair alone, and all pairs that overflow to the same side; the rest from one end to the other.
    products = np.append((at_most - activation_offset(layer, kernel)) * weight, 0)[pairs].sum(axis=1)
    over = pairs[narrowed(kernel, products) != products].reshape(-1)
    share = np.linspace(0, 1, BLENDS)[:, None]
    blends = np.rint(at_least + share * (at_most - at_least)).astype(np.int64)
    held = np.zeros((2, 1, len(weight) + 1), bool)
    held[0, :, pair], held[1, :, over] = True, True
    terms = np.where(held[..., :-1], at_most, blends).reshape(2 * BLENDS, -1)
    exact = (terms - layer.zero_point) @ (weight - layer.weight_zero[output]) + layer.bias[output]
    peer = exact + _lost(layer, kernel, pairs, weight, terms)
    unit = layer.scale * float(layer.weight_scale[output])
    steps = np.zeros(len(terms), np.int64)
    if layer.output is not None:
        steps = np.abs(_rounded(layer.output, exact * unit) - _rounded(layer.output, peer * unit))
    best = int(np.lexsort((np.abs(exact - peer), steps))[-1])
    kept = [int(t) for t in pair if t < len(weight)]
    offset = activation_offset(layer, kernel)
    told = OverflowWitness(
        output=output,
        terms=tuple(tuple(int(v) for v in np.unravel_index(t, layer.weight.shape[1:])) for t in kept),
        weights=tuple(int(weight[t]) for t in kept),
        activations=tuple(int(terms[best][t]) - offset for t in kept),
        total=total,
        exact=float(exact[best] * unit),
        peer=float(peer[best] * unit),
        steps=int(steps[best]),
    )
    return told, terms[best]


def _rounded(grid: OutputGrid, values: npt.NDArray[Any]) -> Integers:
    steps = np.rint(values / grid.scale) + grid.zero_point
    rounded: Integers = np.clip(steps, grid.low, grid.high).astype(np.int64)
    return rounded


def _zero(layer: IntegerLayer) -> int:
    return int(np.clip(layer.zero_point, layer.low, layer.high))


def _dilations(layer: IntegerLayer) -> list[int]:
    return list(attributes(layer.node).get("dilations", [1] * (layer.weight.ndim - 2)))


def _extent(layer: IntegerLayer) -> tuple[int, ...]:
    return tuple((k - 1) * d + 1 for k, d in zip(layer.weight.shape[2:], _dilations(layer), strict=True))


def layer_graph(layer: IntegerLayer) -> onnx.ModelProto:
    """A QDQ graph of one layer alone, without padding: float input "x", as on its grid, and output "y".

    A layer whose result stays in floating point gives that.
    """
    kind = layer.node.op_type
    wide = len(layer.weight)
    unsigned = np.array(layer.zero_point, layer.dtype)
    steps = (layer.scale * layer.weight_scale).astype(np.float32)
    weight = layer.weight.T if kind == "MatMul" else layer.weight
    constants: dict[str, npt.NDArray[Any]] = {
        "x_scale": np.array(layer.scale, np.float32),
        "x_zero": unsigned,
        "w": np.ascontiguousarray(weight),
        "w_scale": layer.weight_scale.astype(np.float32),
        "w_zero": layer.weight_zero.astype(layer.weight.dtype),
        "b": layer.bias.astype(np.int32),
        "b_scale": steps,
        "b_zero": np.zeros(wide, np.int32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"]),
        helper.make_node(
            "DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_dq"], axis=int(kind == "MatMul")
        ),
        helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["b_dq"], axis=0),
    ]
    result = "y" if layer.output is None else "sums"
    if kind == "Conv":
        given = {n: v for n, v in attributes(layer.node).items() if n not in ("pads", "auto_pad")}
        nodes.append(helper.make_node("Conv", ["x_dq", "w_dq", "b_dq"], [result], **given))
    elif kind == "Gemm":
        nodes.append(helper.make_node("Gemm", ["x_dq", "w_dq", "b_dq"], [result], transB=1))
    else:
        nodes.append(helper.make_node("MatMul", ["x_dq", "w_dq"], [result]))
    if layer.output is not None:
        grid = layer.output
        constants["y_scale"] = np.array(grid.scale, np.float32)
        constants["y_zero"] = np.array(grid.zero_point, grid.dtype)
        nodes.append(helper.make_node("QuantizeLinear", ["sums", "y_scale", "y_zero"], ["y_q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["y_q", "y_scale", "y_zero"], ["y"]))
    shape = (None, layer.weight.shape[1] * layer.groups, *_extent(layer))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (None, wide, *[1] * (len(shape) - 2)))],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def dequantized(layer: IntegerLayer, tensor: npt.NDArray[Any]) -> Floats:
    """Integers of a layer's input as the numbers they stand for."""
    return ((tensor.astype(np.float64) - layer.zero_point) * layer.scale).astype(np.float32)


def run_stock(
    model: onnx.ModelProto, x: Floats, *, exact: bool = False, names: tuple[str, str] = ("x", "y")
) -> Floats:
    """What ONNX Runtime makes of a graph, as it comes on this machine.

    Args:
        model: Of one input and one output.
        x: Its input.
        exact: With x64quantprecision, so that it does not saturate.
        names: Of input and output; those of `layer_graph` if left out.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: Floats = session.run([names[1]], {names[0]: x})[0]
    return result


@cache
def saturates_here() -> bool:
    """Whether the installed ONNX Runtime saturates on this machine, found by 255 * 127 + 255 * 127."""
    weight = np.full((1, 2), 127, np.int8)
    layer = IntegerLayer(
        name="two products",
        node=helper.make_node("Gemm", ["x", "w"], ["y"]),
        weight=weight,
        weight_zero=np.zeros(1, np.int64),
        weight_scale=np.ones(1),
        bias=np.zeros(1, np.int64),
        groups=1,
        value="x",
        scale=1.0,
        zero_point=0,
        dtype=np.dtype(np.uint8),
        low=0,
        high=255,
        padded=False,
        output=None,
        clamped=False,
    )
    got = run_stock(layer_graph(layer), np.full((1, 2), 255, np.float32))
    return abs(float(got[0, 0]) - 2 * 255 * 127) > 1


def confirm(layer: IntegerLayer, told: OverflowWitness, tensor: npt.NDArray[Any]) -> str:
    """What ONNX Runtime makes of a layer's witness, in words; nothing where it does not saturate."""
    if not saturates_here():
        return ""
    x = dequantized(layer, tensor)
    graph = layer_graph(layer)
    plain, exact = run_stock(graph, x).reshape(-1), run_stock(graph, x, exact=True).reshape(-1)
    difference = abs(float(plain[told.output]) - float(exact[told.output]))
    if layer.output is None:
        return f"differs by {difference:.4g} at output {told.output}" if difference else "does not differ"
    steps = round(difference / layer.output.scale)
    return f"differs by {steps} steps at output {told.output}" if steps else "does not differ"
