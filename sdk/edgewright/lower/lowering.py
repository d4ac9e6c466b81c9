"""From each QuantizeLinear back to what it quantizes: one operator of the program.

Reads graphs in which every operator stands between DequantizeLinear and QuantizeLinear, with uint8 or
int16 activations and int8 weights that are symmetric per output channel. Which operators and forms:
docs/guides/operators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import onnx

from edgewright.elementwise import FUNCTIONS, moving_inputs
from edgewright.errors import ExportError
from edgewright.lower import functions, layers, moves, windows
from edgewright.lower.arena import place_in_arena
from edgewright.lower.draft import Draft, Result, Value, channels_last, straight
from edgewright.lower.scales import REMEDY, describe, rescale_of
from edgewright.wiring import scale_of
from edgewright_kernels.plan import LIMITS, ByteRange, Dequantize, Plan, Quantize, Requantize

_Handler = Callable[[Draft, onnx.NodeProto, Result], None]
_HANDLERS: Mapping[str, _Handler] = {
    "Add": functions.pair,
    "AveragePool": windows.average_pool,
    "Concat": moves.concat,
    "Conv": layers.convolution,
    "ConvTranspose": layers.transposed_convolution,
    "Flatten": moves.reshape,
    "Gemm": layers.fully_connected,
    "GlobalAveragePool": windows.global_average_pool,
    "LayerNormalization": functions.layer_norm,
    "MatMul": layers.matrix_product,
    "MaxPool": windows.max_pool,
    "Mul": functions.pair,
    "Reshape": moves.reshape,
    "Resize": moves.resize,
    "Slice": moves.slice_,
    "Softmax": functions.softmax,
    "Sub": functions.pair,
    "Transpose": moves.transpose,
}
_IMAGE = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"})
LACKING = "the native engine has no such operator (docs/guides/operators.md lists what it has)"
NATIVE_OPERATORS = tuple(sorted({*_HANDLERS, *FUNCTIONS, "Gather"}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What of a QDQ graph the native engine can compute.

    Attributes:
        given: Results of QuantizeLinear that a program can hold.
        reasons: Why what a QuantizeLinear reads cannot be computed natively, by the result's name. Where that
            result is in `given`, a program may take what is read as an input.
    """

    given: frozenset[str]
    reasons: Mapping[str, str]


def lower(model: onnx.ModelProto, ranges: Mapping[str, ByteRange], weights_bytes: int) -> Plan:
    """Lowers a QDQ graph.

    Args:
        model: The graph, its constants inside.
        ranges: Where each constant's bytes lie in weights.safetensors, by name.
        weights_bytes: Size of that file.

    Raises:
        ExportError: An operator, or a form of one, that the native engine lacks; named, with the backend that
            can run it.
    """
    draft = Draft(model, ranges)
    inputs = [_input(draft, name) for name in draft.graph.inputs]
    for node in draft.graph.nodes:
        if node.op_type == "QuantizeLinear":
            _quantized(draft, node)
    outputs = [_output(draft, name) for name in draft.graph.outputs]
    tensors, arena_bytes = place_in_arena(draft.tensors, draft.ops)
    return Plan(
        tensors=tensors,
        ranges=tuple(ranges[name] for name in draft.range_numbers),
        ops=tuple(draft.ops),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        arena_bytes=arena_bytes,
        weights_bytes=weights_bytes,
    )


def attempt(model: onnx.ModelProto, ranges: Mapping[str, ByteRange]) -> Attempt:
    """Finds out which values of a QDQ graph the native engine can compute, and which must be handed to it.

    Args:
        model: The graph, its constants inside.
        ranges: As for `lower`.

    Raises:
        ExportError: An input of the graph is of a kind that no program takes.
    """
    draft = Draft(model, ranges)
    for name in draft.graph.inputs:
        _input(draft, name)
    twice = draft.graph.infer(2)[0]
    reasons: dict[str, str] = {}
    for node in draft.graph.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] in draft.graph.constants:
            continue
        result = node.output[0]
        try:
            _quantized(draft, node)
            if result in draft.values:
                continue
            reason = f"{describe(node)}: what it reads is not quantized"
        except ExportError as error:
            reason = str(error).removesuffix(f"; {REMEDY}")
        reasons[result] = reason
        draft.values.pop(result, None)
        once = draft.shapes.get(node.input[0], ())
        per_sample = len(once) > 1 and twice.get(node.input[0]) == (2, *once[1:]) and once[0] == 1
        if per_sample and draft.kinds.get(node.input[0]) == onnx.TensorProto.FLOAT:
            with suppress(ExportError):
                _enter(draft, node)
    given = {o for n in draft.graph.nodes if n.op_type == "QuantizeLinear" for o in n.output}
    return Attempt(given=frozenset(given & draft.values.keys()), reasons=reasons)


def _enter(draft: Draft, quantize: onnx.NodeProto) -> None:
    """Takes what a QuantizeLinear reads as one more input of the program."""
    source = quantize.input[0]
    shape = draft.sample_shape(source)
    draft.values[source] = Value(draft.add(name=source, dtype="float32", shape=shape), straight(len(shape)))
    _from_input(draft, source, _result(draft, quantize, shape))
    del draft.values[source]


def _result(draft: Draft, quantize: onnx.NodeProto, shape: tuple[int, ...]) -> Result:
    """Where what a QuantizeLinear reads goes."""
    scale, zero_point, dtype = draft.grid(quantize)
    low, high = LIMITS[dtype]
    return Result(
        name=quantize.output[0],
        shape=shape,
        scale=scale,
        zero_point=zero_point,
        low=low,
        high=high,
        dtype=dtype,
    )


def _input(draft: Draft, name: str) -> int:
    kind = draft.kinds.get(name)
    if kind not in {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}:
        raise ExportError(f"input {name!r} must be float32, or int64 for row numbers of a table")
    shape = draft.sample_shape(name)
    number = draft.add(name=name, dtype="int64" if kind == onnx.TensorProto.INT64 else "float32", shape=shape)
    draft.values[name] = Value(number, straight(len(shape)))
    return number


def _output(draft: Draft, name: str) -> int:
    node = draft.producers.get(name)
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in draft.values:
        raise ExportError(_why_not_quantized(draft, name))
    value = draft.values[node.input[0]]
    shape = draft.shape(value)
    number = draft.add(name=name, dtype="float32", shape=shape)
    order = tuple(value.order.index(a) for a in range(len(shape)))
    draft.ops.append(Dequantize(x=value.number, y=number, order=order))
    return number


def _why_not_quantized(draft: Draft, name: str) -> str:
    """Names the node on the way to an output that keeps it from running in integers."""
    waiting, seen = [name], set[str]()
    while waiting:  # what is computed in floating point on the way
        node = draft.producers.get(waiting.pop())
        if node is not None and node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            waiting += [n for n in node.input if n and n not in seen]
            seen.update(node.output)
    found = [n for n in draft.graph.nodes if seen.intersection(n.output)]
    if not found or not any(n.op_type == "QuantizeLinear" for n in draft.graph.nodes):
        return f"output {name!r} is not quantized; the native engine needs a QDQ graph"
    strange = next((n for n in found if n.op_type not in NATIVE_OPERATORS), None)
    if strange is not None:
        return f"{describe(strange)}: {LACKING}; {REMEDY}"
    return f"{describe(found[0])}: its result is not quantized; the native engine has no such form; {REMEDY}"


def _quantized(draft: Draft, quantize: onnx.NodeProto) -> None:
    """Writes the operator whose result a QuantizeLinear takes."""
    source = quantize.input[0]
    if source in draft.graph.constants:
        return
    result = _result(draft, quantize, draft.sample_shape(quantize.output[0]))
    node = draft.producers.get(source)
    if node is None:
        _from_input(draft, source, result)
        return
    if node.op_type == "DequantizeLinear":
        gather = draft.producers.get(node.input[0])
        if gather is not None and gather.op_type == "Gather" and gather.input[0] in draft.graph.constants:
            layers.embedding(draft, gather, node, result)
        elif node.input[0] in draft.values:
            draft.keep(node, draft.values[node.input[0]], result)
        return
    _operator(draft, node, result, quantize)


def _from_input(draft: Draft, name: str, result: Result) -> None:
    x = draft.values[name]
    shape = draft.shape(x)
    image = 2 <= len(shape) <= 4 and _goes_to_image(draft, result.name)
    order = channels_last(len(shape)) if image else straight(len(shape))
    y = draft.give(result, order)
    draft.ops.append(Quantize(x=x.number, y=y.number, order=order))


def _goes_to_image(draft: Draft, name: str) -> bool:
    """Whether an operator on images is the first to care how a value lies."""
    waiting, seen = [name], set[str]()
    while waiting:
        value = waiting.pop()
        for reader in draft.readers.get(value, []):
            if reader.op_type in _IMAGE:
                return True
            passes = reader.op_type in FUNCTIONS or reader.op_type in {
                "QuantizeLinear",
                "DequantizeLinear",
                "Concat",
            }
            if passes and reader.output[0] not in seen:
                seen.add(reader.output[0])
                waiting.append(reader.output[0])
    return False


def _operator(draft: Draft, node: onnx.NodeProto, result: Result, quantize: onnx.NodeProto) -> None:
    source = functions.source_of(draft, node.output[0])
    if source is not None and moving_inputs(node, draft.graph.constants) is not None:
        if not draft.is_constant(source):
            _function(draft, node, source, result)
        return
    core, bias = node, None
    if core.op_type in {"Relu", "Clip"}:
        result = result.clamped(*_clip(draft, core))
        core = _before(draft, core)
    elif (scale := scale_of(core, draft.graph.constants)) and _before(
        draft, core, scale[0]
    ).op_type == "MatMul":
        result = replace(result, factor=scale[1])
        core = _before(draft, core, scale[0])
    if core.op_type == "Add":
        products = [
            p for n in core.input if (p := draft.producers.get(n)) is not None and p.op_type == "MatMul"
        ]
        if len(products) == 1 and any(draft.is_constant(n) for n in core.input):
            core, bias = products[0], core
    handler = _HANDLERS.get(core.op_type)
    if handler is None:
        raise ExportError(f"{describe(core)}: {LACKING}; {REMEDY}")
    if bias is not None:
        layers.fully_connected(draft, core, result, bias)
    else:
        handler(draft, core, result)
    del quantize


def _function(draft: Draft, node: onnx.NodeProto, source: str, result: Result) -> None:
    """A function of one value: a change of scale with a clamp, or a table."""
    if node.op_type in {"Relu", "Clip"} and node.input[0] == source:
        value = draft.values[draft.producers[source].input[0]]
        draft_scale = draft.tensor(value).scale
        clamped = result.clamped(*_clip(draft, node))
        change = rescale_of(node, [draft_scale / result.scale], clamped.low, clamped.high)
        y = draft.give(result, value.order)
        draft.ops.append(Requantize(x=value.number, y=y.number, rescale=change))
        return
    functions.lookup(draft, node, source, result)


def _before(draft: Draft, node: onnx.NodeProto, name: str | None = None) -> onnx.NodeProto:
    """The node whose result this one takes in."""
    found = draft.producers.get(name or node.input[0])
    if found is None or found.op_type == "DequantizeLinear":
        raise ExportError(f"{describe(node)}: its input {node.input[0]!r} is not quantized; {REMEDY}")
    return found


def _clip(draft: Draft, node: onnx.NodeProto) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, math.inf
    names = [*node.input[1:], "", ""][:2]
    if any(n and n not in draft.graph.constants for n in names):
        raise ExportError(f"{describe(node)}: its bounds are not constant; {REMEDY}")
    low, high = (draft.graph.constants[n].item() if n else None for n in names)
    return (-math.inf if low is None else low), (math.inf if high is None else high)
