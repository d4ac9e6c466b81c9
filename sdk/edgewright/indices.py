"""Integer inputs: what a graph computes from token numbers becomes rows of tables.

An integer program reads an int64 input in one way: as row numbers of a table. A lookup of embeddings is that.
What else a model computes from such an input, one value for one number (a mask from `attention_mask`, from
`ids != 0`), is a table too: of as many rows as the embeddings of that input have, or of two rows, for 0 and
1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, shape_inference

from edgewright.elementwise import FUNCTIONS
from edgewright.fusion import MASKED
from edgewright.graph import onnx_function
from edgewright.wiring import Wiring, make_node

_SAME_PLACE = frozenset(
    {*FUNCTIONS, "And", "Or", "Xor", "Cast", "Reshape", "Flatten", "Unsqueeze", "Squeeze"}
)
_FAR = -10 * MASKED
_Values: TypeAlias = npt.NDArray[np.float32]


def tabulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replaces each function of one int64 input by a Gather of a table, in a normalized graph.

    A mask that is added to scores before softmax (or chosen by Where) is written as (keep - 1) * 10,000, with
    `keep` the 0 or 1 from the table.
    """
    graph = Wiring(model)
    shapes, kinds = graph.infer(1)
    inputs = [n for n in graph.inputs if kinds.get(n) == onnx.TensorProto.INT64]
    if not inputs:
        return model
    origin = {n: n for n in inputs}
    for node in graph.nodes:
        moving = {n for n in node.input if n and n not in graph.constants}
        found = {origin.get(n) for n in moving}
        if node.op_type in _SAME_PLACE and len(found) == 1 and None not in found:
            origin[node.output[0]] = found.pop()
    rows = dict.fromkeys(inputs, 2)
    for node in graph.nodes:
        if node.op_type == "Gather" and node.input[0] in graph.constants and node.input[1] in origin:
            source = origin[node.input[1]]
            rows[source] = max(rows[source], len(graph.constants[node.input[0]]))
    _masked_means(graph, origin, shapes)
    readers = graph.readers()
    made: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.output and origin.get(node.output[0]):
            continue
        for index, name in enumerate(node.input):
            source = origin.get(name)
            if source is None or (node.op_type == "Gather" and index == 1):
                continue
            after = readers.get(node.output[0], [])
            masks = len(after) == 1 and after[0].op_type == "Softmax"
            if node.op_type == "Where" and index == 0 and masks:
                _choice(graph, node, _table(graph, source, name, rows[source]), (source, shapes[name]))
                break
            if kinds.get(name) == onnx.TensorProto.FLOAT:
                if name not in made:
                    values = _table(graph, source, name, rows[source])
                    made[name] = _column(
                        graph, source, values, shapes[name], name, mask=masks and node.op_type == "Add"
                    )
                node.input[index] = made[name]
    graph.drop_dead()
    tabulated = graph.model()
    return shape_inference.infer_shapes(tabulated, strict_mode=True, data_prop=True)


def _table(graph: Wiring, source: str, name: str, rows: int) -> _Values:
    """The value of `name` where the input is 0, 1, ... everywhere."""
    part = Wiring(graph.source)
    part.nodes, part.constants, part.outputs = list(graph.nodes), dict(graph.constants), [name]
    part.drop_dead()
    numbers = part.fresh(f"{name}.number")
    part.nodes.append(make_node("Cast", [name], numbers, to=onnx.TensorProto.FLOAT))
    model = part.model()
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(numbers, onnx.TensorProto.FLOAT, None))
    used = [i for i in model.graph.input if i.name == source]
    del model.graph.input[:]
    model.graph.input.extend(used)
    inner = [d.dim_value for d in used[0].type.tensor_type.shape.dim[1:]]
    feed = np.broadcast_to(np.arange(rows).reshape(-1, *[1] * len(inner)), (rows, *inner)).astype(np.int64)
    (values,) = onnx_function(model)({source: feed}).values()
    flat = values.reshape(rows, -1)
    table: _Values = flat[:, 0].astype(np.float32)
    return table


def _column(
    graph: Wiring,
    source: str,
    values: _Values,
    shape: tuple[int, ...],
    name: str,
    *,
    mask: bool,
) -> str:
    """Adds the nodes that look up one value for each number, in the shape given; returns its name."""
    hidden = values <= MASKED
    mask = mask and bool(hidden.any() and (np.abs(values[~hidden]) < 1e-3).all() and (~hidden).any())
    table = graph.constant(
        f"{name}_table", (np.where(hidden, 0, 1) if mask else values).astype(np.float32)[:, None]
    )
    rows, shaped = graph.fresh(f"{name}.rows"), graph.fresh(f"{name}.keep" if mask else f"{name}.value")
    inner = graph.constant(f"{name}_shape", np.array([-1, *shape[1:]], np.int64))
    graph.nodes[:0] = [
        make_node("Gather", [table, source], rows, axis=0),
        make_node("Reshape", [rows, inner], shaped),
    ]
    if not mask:
        return shaped
    one, far = graph.constant(f"{name}_one", np.float32(1)), graph.constant(f"{name}_far", np.float32(_FAR))
    less, result = graph.fresh(f"{name}.less"), graph.fresh(f"{name}.mask")
    graph.nodes[2:2] = [make_node("Sub", [shaped, one], less), make_node("Mul", [less, far], result)]
    return result


def _choice(
    graph: Wiring,
    node: onnx.NodeProto,
    kept: _Values,
    condition: tuple[str, tuple[int, ...]],
) -> None:
    """Where(condition, scores, far below) becomes the Add of a mask."""
    for scores, other, when in (
        (node.input[1], node.input[2], kept),
        (node.input[2], node.input[1], 1 - kept),
    ):
        number = graph.constants.get(other)
        if number is None or number.size != 1 or number.item() > MASKED or scores in graph.constants:
            continue
        values = np.where(when > 0, 0.0, -2 * _FAR).astype(np.float32)
        mask = _column(graph, condition[0], values, condition[1], node.input[0], mask=True)
        graph.replace(node, make_node("Add", [scores, mask], node.output[0], node.name))
        return


def _masked_means(graph: Wiring, origin: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """sum(x * mask) / sum(mask) over rows becomes softmax(mask) @ x: attention with equal scores."""
    producers = graph.producers()

    def behind(name: str, *ops: str) -> onnx.NodeProto | None:
        node = producers.get(name)
        while (
            node is not None
            and node.op_type in {"Expand", "Clip", "Max", "Reshape"}
            and node.op_type not in ops
        ):
            node = producers.get(node.input[0])
        return node if node is not None and node.op_type in ops else None

    def mask_of(name: str) -> str | None:
        while name not in origin and (node := producers.get(name)) is not None and node.op_type == "Expand":
            name = node.input[0]
        return name if name in origin else None

    def rows_summed(node: onnx.NodeProto | None) -> bool:
        axes = graph.constants.get(node.input[1]) if node is not None and len(node.input) > 1 else None
        return (
            axes is not None and axes.tolist() in ([1], [-len(shapes[node.input[0]]) + 1]) if node else False
        )

    for node in list(graph.nodes):
        total = behind(node.input[0], "ReduceSum") if node.op_type == "Div" else None
        count = behind(node.input[1], "ReduceSum") if total is not None else None
        product = producers.get(total.input[0]) if total is not None and rows_summed(total) else None
        if product is None or count is None or product.op_type != "Mul" or not rows_summed(count):
            continue
        mask = mask_of(count.input[0])
        values = [n for n in product.input if mask_of(n) is None]
        masks = [m for n in product.input if (m := mask_of(n)) is not None]
        if mask is None or len(values) != 1 or len(masks) != 1 or origin[masks[0]] != origin[mask]:
            continue
        x, source, result = values[0], origin[mask], node.output[0]
        if len(shapes[x]) != 3 or math.prod(shapes[mask]) != shapes[x][1]:
            continue
        tables = [_table(graph, source, n, 2) for n in (masks[0], mask)]
        if any(t.tolist() != [0.0, 1.0] for t in tables):
            continue
        far = np.array([_FAR, 0], np.float32) * np.array([-1, 1], np.float32)
        scores = _column(graph, source, far, (1, 1, shapes[x][1]), mask, mask=True)
        weights, pooled = graph.fresh(f"{result}.weights"), graph.fresh(f"{result}.pooled")
        inner = graph.constant(f"{result}_shape", np.array([-1, *shapes[result][1:]], np.int64))
        graph.replace(
            node,
            make_node("Softmax", [scores], weights, axis=-1),
            make_node("MatMul", [weights, x], pooled),
            make_node("Reshape", [pooled, inner], result, node.name),
        )
