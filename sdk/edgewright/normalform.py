"""The normal form of a float graph: equal things written in one way, the batch in front of every value.

What quantization and lowering may rely on:
    * a reshape has a constant shape that begins with -1 and keeps each sample to itself; squeezing,
      unsqueezing, splitting and taking one of an axis are reshapes and slices
    * a fully connected layer is Gemm with transB = 1 on (N, features), MatMul by a 2-D constant and the Add
      of a bias on more axes
    * a mean over axes is GlobalAveragePool; a batch norm that could not be folded is a depthwise convolution
    * attention is the products, transposes and softmax that it stands for
    * layer norms, however spelled, are LayerNormalization over the last axis; softmax is over the last axis
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
from onnx import shape_inference

from edgewright.attention_forms import spell_out_attention
from edgewright.batch import NotPerSampleError, batch_first, fold_batch
from edgewright.errors import ExportError
from edgewright.wiring import (
    Wiring,
    attributes,
    drop_unused_initializers,
    initializers,
    make_node,
    scale_of,
    set_initializer,
    value_shapes,
)

OPSET = 20
Shape = tuple[int | None, ...]


def normalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplifies a graph and writes equal things in one way; see above. Every node gets a name.

    A graph that mixes samples, or whose first dimensions are not free, is simplified only.

    Raises:
        ExportError: The graph is not valid ONNX.
    """
    import onnxslim

    try:
        onnx.checker.check_model(model)
        slim: onnx.ModelProto = onnxslim.slim(_modern(model))
        slim = shape_inference.infer_shapes(slim, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"not a valid ONNX graph: {str(error).strip().splitlines()[0]}") from None
    slim = _per_sample(slim)
    constants = initializers(slim)
    shapes = value_shapes(slim)
    for index, node in enumerate(slim.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
        if node.op_type == "Reshape":
            _reshape_to_flatten(node, shapes)
    _matmul_to_gemm(slim, constants, shapes)
    for node in slim.graph.node:
        if node.op_type == "Gemm":
            _transpose_gemm(slim, node, constants)
            _flatten_gemm_bias(slim, node, constants)
    drop_unused_initializers(slim)
    del slim.graph.value_info[:]
    return shape_inference.infer_shapes(slim, strict_mode=True, data_prop=True)


def _per_sample(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the batch in front of every value, and each operator in its one form."""
    shapes = value_shapes(model)
    graph = Wiring(model)
    if not all(shapes[n] and shapes[n][0] is None and None not in shapes[n][1:] for n in graph.inputs):
        return model
    spell_out_attention(graph, graph.infer(1)[0])
    try:
        _join_equals(graph)
        batch_first(graph, *fold_batch(graph))
    except NotPerSampleError:
        return model
    for _ in range(2):  # what one form gives, another may read
        for form in _FORMS:
            form(graph, graph.infer(1)[0])
            graph.drop_dead()
    made = graph.model()
    onnx.checker.check_model(made)
    return shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in the opset that quantization is written in, its constants no longer listed as inputs."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    constants = {i.name for i in copied.graph.initializer}
    inputs = [i for i in copied.graph.input if i.name not in constants]
    del copied.graph.input[:]
    copied.graph.input.extend(inputs)
    copied.ir_version = max(copied.ir_version, 8)
    opset = next((o.version for o in copied.opset_import if o.domain in {"", "ai.onnx"}), 1)
    if opset >= OPSET:
        return copied
    try:
        return onnx.version_converter.convert_version(copied, OPSET)
    except Exception as error:  # it raises RuntimeError and what C++ makes of it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"the graph is of ONNX opset {opset} and cannot be brought to {OPSET} ({reason}); export it anew"
        ) from None


# Forms. Each takes the graph and the shapes of its values at batch size 1, and changes the graph.

Shapes = Mapping[str, tuple[int, ...]]


def _join_equals(graph: Wiring) -> None:
    """Nodes that compute the same thing become one."""
    seen: dict[bytes, onnx.NodeProto] = {}
    kept: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        same = onnx.NodeProto(op_type=node.op_type, domain=node.domain, input=node.input)
        same.attribute.extend(sorted(node.attribute, key=lambda a: a.name))
        first = seen.setdefault(same.SerializeToString(deterministic=True), node)
        if first is node or set(node.output) & set(graph.outputs) or node.op_type.startswith("Random"):
            kept.append(node)
        else:
            renamed.update(zip(node.output, first.output, strict=True))
    graph.nodes = kept


def _drop_idle(graph: Wiring, shapes: Shapes) -> None:
    """Removes what changes nothing: Identity, Dropout, casts of float to float, a guard against NaN."""
    producers = graph.producers()
    for node in list(graph.nodes):
        idle = node.op_type in {"Identity", "Dropout"} or (
            node.op_type == "Expand" and shapes.get(node.input[0]) == shapes.get(node.output[0])
        )
        source = node.input[0] if node.input else ""
        if node.op_type == "Where":  # Where(IsNaN(x), constant, x), torch's guard of a row masked whole
            guard = producers.get(node.input[0])
            idle = guard is not None and guard.op_type == "IsNaN" and guard.input[0] == node.input[2]
            source = node.input[2]
        if idle and node.output[0] not in graph.outputs and source not in graph.constants:
            graph.read_instead(node.output[0], source)


def _reshaped(
    graph: Wiring, source: str, result: str, inner: tuple[int, ...], name: str = ""
) -> onnx.NodeProto:
    shape = graph.constant(f"{result}_shape", np.array([-1, *inner], np.int64))
    return make_node("Reshape", [source, shape], result, name)


def _takes(graph: Wiring, shapes: Shapes) -> None:
    """Gather of constant places and Split become Slice, with a Reshape or a Concat."""
    for node in list(graph.nodes):
        if not node.input or node.input[0] in graph.constants or node.input[0] not in shapes:
            continue
        source, shape = node.input[0], shapes[node.input[0]]
        axis = attributes(node).get("axis", 0) % max(len(shape), 1)
        if node.op_type == "Split" and axis:
            sizes = [shapes[o][axis] for o in node.output]
            starts = np.cumsum([0, *sizes])
            graph.replace(
                node,
                *(
                    _slice(graph, source, o, axis, int(a), int(b))
                    for o, a, b in zip(node.output, starts, starts[1:], strict=False)
                ),
            )
        elif node.op_type == "Gather" and axis and node.input[1] in graph.constants:
            index = graph.constants[node.input[1]].astype(np.int64) % shape[axis]
            flat, result = index.reshape(-1), node.output[0]
            steps = set(np.diff(flat).tolist())
            if flat.size == 1 or (len(steps) == 1 and min(steps) > 0):
                step = steps.pop() if steps else 1
                parts = [(int(flat[0]), int(flat[-1]) + 1, step)]
            else:
                parts = [(int(i), int(i) + 1, 1) for i in flat]
            if len(parts) > 64:
                continue
            made: list[onnx.NodeProto] = []
            names: list[str] = []
            for start, end, step in parts:
                names.append(graph.fresh(f"{result}.part"))
                made.append(_slice(graph, source, names[-1], axis, start, end, step))
            taken = names[0]
            if len(names) > 1:
                taken = graph.fresh(f"{result}.taken")
                made.append(make_node("Concat", names, taken, axis=axis))
            made.append(_reshaped(graph, taken, result, shapes[result][1:], node.name))
            graph.replace(node, *made)


def _slice(
    graph: Wiring, source: str, result: str, axis: int, start: int, end: int, step: int = 1
) -> onnx.NodeProto:
    numbers = [
        graph.constant(f"{result}_{n}", np.array([v], np.int64)) for n, v in _ends(start, end, axis, step)
    ]
    return make_node("Slice", [source, *numbers], result)


def _ends(start: int, end: int, axis: int, step: int) -> list[tuple[str, int]]:
    return [("start", start), ("end", end), ("axis", axis), ("step", step)]


def _depth_to_space(graph: Wiring, shapes: Shapes) -> None:
    """DepthToSpace and SpaceToDepth are a reshape, a transpose and a reshape."""
    for node in list(graph.nodes):
        if node.op_type not in {"DepthToSpace", "SpaceToDepth"} or node.input[0] not in shapes:
            continue
        given = attributes(node)
        b, (_, c, h, w), result = given["blocksize"], shapes[node.input[0]], node.output[0]
        if node.op_type == "SpaceToDepth":
            split, order = (c, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4)
        elif given.get("mode", b"DCR") == b"CRD":
            split, order = (c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
        else:
            split, order = (b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
        parts, turned = graph.fresh(f"{result}.parts"), graph.fresh(f"{result}.turned")
        graph.replace(
            node,
            _reshaped(graph, node.input[0], parts, split),
            make_node("Transpose", [parts], turned, node.name, perm=order),
            _reshaped(graph, turned, result, shapes[result][1:]),
        )


def _means(graph: Wiring, shapes: Shapes) -> None:
    """A mean over axes behind the batch becomes GlobalAveragePool over (channels, what is averaged)."""
    for node in list(graph.nodes):
        if node.op_type != "ReduceMean" or node.input[0] not in shapes:
            continue
        source, result, shape = node.input[0], node.output[0], shapes[node.input[0]]
        given = attributes(node)
        axes = given.get("axes")
        if len(node.input) > 1:
            axes = np.ravel(graph.constants[node.input[1]]) if node.input[1] in graph.constants else None
        if axes is None or not len(axes):
            continue
        away = sorted(int(a) % len(shape) for a in axes)
        kept = [i for i in range(len(shape)) if i not in away]
        if 0 in away or not 1 <= len(away) <= 3:
            continue
        order, made, at = [*kept, *away], [], source
        if order != sorted(order):
            at = graph.fresh(f"{result}.turned")
            made.append(make_node("Transpose", [source], at, perm=order))
        merged = (math.prod(shape[i] for i in kept[1:]), *(shape[i] for i in away))
        if len(kept) != 2:
            merged_name = graph.fresh(f"{result}.merged")
            made.append(_reshaped(graph, at, merged_name, merged))
            at = merged_name
        if shapes[result][1:] == (merged[0], *[1] * len(away)):
            made.append(make_node("GlobalAveragePool", [at], result, node.name))
        else:
            pooled = graph.fresh(f"{result}.pooled")
            made.append(make_node("GlobalAveragePool", [at], pooled, node.name))
            made.append(_reshaped(graph, pooled, result, shapes[result][1:]))
        graph.replace(node, *made)


def _batch_norms(graph: Wiring, shapes: Shapes) -> None:
    """A batch norm that no layer could take in becomes a depthwise convolution of one tap."""
    for node in list(graph.nodes):
        if node.op_type != "BatchNormalization" or any(n not in graph.constants for n in node.input[1:5]):
            continue
        scale, offset, mean, variance = (graph.constants[n].astype(np.float64) for n in node.input[1:5])
        factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        spatial = len(shapes[node.input[0]]) - 2
        bias = graph.constant(f"{node.input[2]}.folded", (offset - mean * factor).astype(np.float32))
        if not 1 <= spatial <= 3:
            weight = graph.constant(f"{node.input[1]}.folded", factor.astype(np.float32))
            scaled = graph.fresh(f"{node.output[0]}.scaled")
            graph.replace(
                node,
                make_node("Mul", [node.input[0], weight], scaled),
                make_node("Add", [scaled, bias], node.output[0], node.name),
            )
            continue
        kernel = factor.astype(np.float32).reshape(-1, 1, *[1] * spatial)
        weight = graph.constant(f"{node.input[1]}.folded", kernel)
        graph.replace(
            node,
            make_node("Conv", [node.input[0], weight, bias], node.output[0], node.name, group=len(kernel)),
        )


def _layer_norms(graph: Wiring, shapes: Shapes) -> None:
    """(x - mean) / sqrt(variance + epsilon) * gain + offset, spelled out, becomes LayerNormalization."""
    producers, readers = graph.producers(), graph.readers()

    def given_by(name: str, op: str) -> onnx.NodeProto | None:
        node = producers.get(name)
        while node is not None and node.op_type in {"Reshape", "Expand"} and op != node.op_type:
            node = producers.get(node.input[0])  # the variance may lose its last axis and win it back
        return node if node is not None and node.op_type == op else None

    def last_mean(node: onnx.NodeProto | None) -> bool:
        if node is None or len(node.input) < 2 or node.input[1] not in graph.constants:
            return False
        rank = len(shapes[node.input[0]])
        return [int(a) % rank for a in np.ravel(graph.constants[node.input[1]])] == [rank - 1]

    for node in list(graph.nodes):
        if node.op_type != "Div":
            continue
        centred, root = given_by(node.input[0], "Sub"), given_by(node.input[1], "Sqrt")
        mean = given_by(centred.input[1], "ReduceMean") if centred else None
        shifted = given_by(root.input[0], "Add") if root else None
        if centred is None or shifted is None or mean is None or not last_mean(mean):
            continue
        x = centred.input[0]
        epsilon = [graph.constants[n] for n in shifted.input if n in graph.constants]
        variance = next((v for n in shifted.input if (v := given_by(n, "ReduceMean"))), None)
        square = producers.get(variance.input[0]) if variance is not None and last_mean(variance) else None
        if mean.input[0] != x or len(epsilon) != 1 or epsilon[0].size != 1 or square is None:
            continue
        power = graph.constants.get(square.input[-1])
        squares = (square.op_type == "Mul" and square.input[0] == square.input[1]) or (
            square.op_type == "Pow" and power is not None and power.size == 1 and float(power.item()) == 2
        )
        base = producers.get(square.input[0])
        if not squares or base is None or base.op_type != "Sub" or list(base.input) != list(centred.input):
            continue
        size, result, last = shapes[x][-1], node.output[0], node
        parts = {"Mul": np.ones(size, np.float32), "Add": np.zeros(size, np.float32)}
        for op in parts:
            after = readers.get(result, [])
            if len(after) != 1 or after[0].op_type != op or result in graph.outputs:
                continue
            other = [n for n in after[0].input if n != result]
            value = graph.constants.get(other[0]) if len(other) == 1 else None
            if value is not None and value.size in {1, size} and value.shape[-1:] in {(), (1,), (size,)}:
                parts[op] = np.broadcast_to(value.reshape(-1), (size,)).astype(np.float32)
                last, result = after[0], after[0].output[0]
        names = [
            graph.constant(f"{result}_{n}", v)
            for n, v in zip(("gain", "offset"), parts.values(), strict=True)
        ]
        made = make_node(
            "LayerNormalization", [x, *names], result, node.name, axis=-1, epsilon=float(epsilon[0].item())
        )
        graph.replace(last, made)
        producers, readers = graph.producers(), graph.readers()


def _last_axes(graph: Wiring, shapes: Shapes) -> None:
    """Softmax over another axis than the last moves that axis; layer norm over several merges them."""
    for node in list(graph.nodes):
        source = node.input[0] if node.input else ""
        if node.op_type not in {"Softmax", "LayerNormalization"} or source not in shapes:
            continue
        rank, result = len(shapes[source]), node.output[0]
        axis = attributes(node).get("axis", -1) % rank
        if axis == rank - 1 or axis == 0:
            continue
        if node.op_type == "Softmax":
            order = [*range(axis), *range(axis + 1, rank), axis]
            back = list(np.argsort(order))
            turned, soft = graph.fresh(f"{result}.turned"), graph.fresh(f"{result}.soft")
            graph.replace(
                node,
                make_node("Transpose", [source], turned, perm=order),
                make_node("Softmax", [turned], soft, node.name, axis=-1),
                make_node("Transpose", [soft], result, perm=[int(i) for i in back]),
            )
        elif all(n in graph.constants for n in node.input[1:] if n):
            merged, norm = graph.fresh(f"{result}.merged"), graph.fresh(f"{result}.norm")
            inner = shapes[source][1:]
            size = math.prod(shapes[source][axis:])
            parts = [graph.constant(f"{n}.flat", graph.constants[n].reshape(-1)) for n in node.input[1:] if n]
            epsilon = attributes(node).get("epsilon", 1e-5)
            graph.replace(
                node,
                _reshaped(graph, source, merged, (*shapes[source][1:axis], size)),
                make_node("LayerNormalization", [merged, *parts], norm, node.name, axis=-1, epsilon=epsilon),
                _reshaped(graph, norm, result, inner),
            )


def _scales(graph: Wiring, shapes: Shapes) -> None:
    """A positive number that multiplies an operand of MatMul multiplies its result instead."""
    for node in list(graph.nodes):
        if node.op_type != "MatMul" or any(n in graph.constants for n in node.input):
            continue
        producers, factor = graph.producers(), 1.0
        for index in range(2):
            before = producers.get(node.input[index])
            scale = scale_of(before, graph.constants) if before is not None else None
            if before is not None and scale is not None:
                factor *= scale[1]
                node.input[index] = scale[0]
        if factor != 1.0:
            product = graph.fresh(f"{node.output[0]}.product")
            number = graph.constant(f"{node.output[0]}_factor", np.array(factor, np.float32))
            scaled = make_node("Mul", [product, number], node.output[0])
            node.output[0] = product
            graph.replace(node, node, scaled)
    del shapes


def _views(graph: Wiring, shapes: Shapes) -> None:
    """A reshape of a reshape is one; a transpose that only moves axes of size 1 is one; idle ones go."""
    for op in ("Flatten", "Squeeze", "Unsqueeze"):
        for node in list(graph.nodes):
            result = node.output[0]
            source = node.input[0]
            if node.op_type != op or result not in shapes or source not in shapes:
                continue
            if op == "Flatten" and len(shapes[result]) == 2:
                continue
            if shapes[result][:1] == shapes[source][:1]:
                graph.replace(node, _reshaped(graph, source, result, shapes[result][1:], node.name))
    for node in list(graph.nodes):
        if node.op_type == "Transpose" and node.input[0] in shapes:
            shape = shapes[node.input[0]]
            order = attributes(node).get("perm", list(range(len(shape)))[::-1])
            real = [a for a in order if shape[a] != 1 or a == 0]
            if real == sorted(real) and order[0] == 0:
                made = _reshaped(graph, node.input[0], node.output[0], shapes[node.output[0]][1:], node.name)
                graph.replace(node, made)
    producers = graph.producers()
    for node in graph.nodes:
        before = producers.get(node.input[0]) if node.input else None
        if before is None or before.op_type != node.op_type or node.op_type not in {"Reshape", "Transpose"}:
            continue
        if node.op_type == "Transpose":
            first, second = attributes(before).get("perm"), attributes(node).get("perm")
            if first is None or second is None:
                continue
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("perm", [first[i] for i in second]))
        node.input[0] = before.input[0]
    for node in list(graph.nodes):
        same = node.op_type == "Reshape" and shapes.get(node.input[0]) == shapes.get(node.output[0], ())
        order = attributes(node).get("perm") if node.op_type == "Transpose" else None
        if (same or (order is not None and order == sorted(order))) and node.output[0] not in graph.outputs:
            graph.read_instead(node.output[0], node.input[0])


_FORMS: tuple[Callable[[Wiring, Shapes], None], ...] = (
    _drop_idle,
    _layer_norms,
    _takes,
    _depth_to_space,
    _means,
    _batch_norms,
    _last_axes,
    _scales,
    _views,
)


# Fully connected layers


def _reshape_to_flatten(node: onnx.NodeProto, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    features = math.prod(d or 0 for d in before[1:])
    if len(after) != 2 or not features or after[1] != features:
        return
    source = node.input[0]
    node.op_type = "Flatten"
    del node.input[:], node.attribute[:]
    node.input.append(source)
    node.attribute.append(onnx.helper.make_attribute("axis", 1))


def _matmul_to_gemm(
    model: onnx.ModelProto,
    constants: dict[str, npt.NDArray[Any]],
    shapes: Mapping[str, tuple[int | None, ...]],
) -> None:
    """MatMul by a 2-D constant, with the Add of a bias that may follow, becomes Gemm."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in model.graph.output}
    for node in list(model.graph.node):
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.ndim != 2 or len(shapes.get(node.input[0], ())) != 2:
            continue
        node.op_type = "Gemm"
        after = readers.get(node.output[0], [])
        if len(after) != 1 or after[0].op_type != "Add" or node.output[0] in outputs:
            continue
        bias = [n for n in after[0].input if n != node.output[0]]
        if len(bias) == 1 and bias[0] in constants and constants[bias[0]].shape == (weight.shape[1],):
            node.input.append(bias[0])
            node.output[0] = after[0].output[0]
            model.graph.node.remove(after[0])


def _transpose_gemm(
    model: onnx.ModelProto, node: onnx.NodeProto, constants: dict[str, npt.NDArray[Any]]
) -> None:
    given = attributes(node)
    weight = constants.get(node.input[1])
    plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
    if weight is None or not plain or given.get("transB", 0):
        return
    name = (
        f"{node.input[1]}.T" if sum(node.input[1] in n.input for n in model.graph.node) > 1 else node.input[1]
    )
    set_initializer(model, name, weight.T)
    constants[name] = weight.T
    node.input[1] = name
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("transB", 1))


def _flatten_gemm_bias(
    model: onnx.ModelProto, node: onnx.NodeProto, constants: dict[str, npt.NDArray[Any]]
) -> None:
    """A bias that is spread over the outputs, such as (1, O) or a single number, becomes (O,)."""
    weight, name = constants.get(node.input[1]), [*node.input, ""][2]
    bias = constants.get(name)
    if weight is None or bias is None or bias.shape == (len(weight),) or not attributes(node).get("transB"):
        return
    if bias.size not in {1, len(weight)} or bias.shape[-1:] not in {(), (1,), (len(weight),)}:
        return
    shared = sum(name in n.input for n in model.graph.node) > 1
    own = f"{name}.{node.name}" if shared else name
    constants[own] = np.broadcast_to(bias.reshape(-1), (len(weight),)).copy()
    set_initializer(model, own, constants[own])
    node.input[2] = own
