"""Wiring: an ONNX graph that can be read and changed, and the small questions one asks of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from edgewright.errors import ExportError

Array = npt.NDArray[Any]
SMALL = 4096  # elements of a constant that shape inference may want to look at


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    """Constants of a graph by name."""
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def value_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shapes of inputs, outputs and inferred values; None stands for a free size."""
    graph = model.graph
    return {
        v.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim)
        for v in (*graph.input, *graph.output, *graph.value_info)
    }


def check_ports(graph: onnx.ModelProto) -> None:
    """Holds a graph to what an artifact can have as inputs and outputs.

    Raises:
        ExportError: A type or a shape that it cannot.
    """
    for value in (*graph.graph.input, *graph.graph.output):
        kind = value.type.tensor_type.elem_type
        shape = value_shapes(graph)[value.name]
        is_input = any(value.name == i.name for i in graph.graph.input)
        if kind != onnx.TensorProto.FLOAT and not (is_input and kind == onnx.TensorProto.INT64):
            got = onnx.TensorProto.DataType.Name(kind).lower()
            raise ExportError(
                f"{value.name!r} is {got}; inputs must be float32, or int64 for row numbers of tables, "
                "outputs float32"
            )
        if len(shape) < 2 or shape[0] is not None or None in shape[1:]:
            raise ExportError(
                f"{value.name!r} has shape {shape}; the first dimension must be a free batch size, the "
                "others fixed: export the model to ONNX with dynamic batch only"
            )


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def scale_of(node: onnx.NodeProto, constants: Mapping[str, npt.NDArray[Any]]) -> tuple[str, float] | None:
    """What a node multiplies by a positive number, and that number; None for any other node."""
    if node.op_type not in {"Mul", "Div"}:
        return None
    other = [n for n in node.input if n not in constants]
    number = [constants[n] for n in node.input if n in constants]
    if len(other) != 1 or len(number) != 1 or number[0].size != 1:
        return None
    if node.op_type == "Div" and node.input[0] != other[0]:
        return None
    value = float(number[0].reshape(-1)[0])
    if not (math.isfinite(value) and value > 0):
        return None
    return other[0], value if node.op_type == "Mul" else 1 / value


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Removes constants that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [i for i in model.graph.initializer if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def set_initializer(model: onnx.ModelProto, name: str, value: Array) -> None:
    """Adds a constant, or replaces the one of that name."""
    tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
    for existing in model.graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


class Wiring:
    """The nodes of a graph, its constants as arrays, and who gives and reads each value.

    Attributes:
        nodes: In an order in which each value is given before it is read.
        constants: By name.
        inputs: Names, constants not among them.
        outputs: Names.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.source = model
        self.nodes = [_copy(n) for n in model.graph.node]
        self.constants = initializers(model)
        self.inputs = [i.name for i in model.graph.input if i.name not in self.constants]
        self.outputs = [o.name for o in model.graph.output]
        self._made = 0

    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that gives each value."""
        return {o: n for n in self.nodes for o in n.output if o}

    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each value, each as often as it does."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def fresh(self, base: str) -> str:
        """A name like `base` that no value has."""
        taken = {*self.constants, *self.inputs, *(o for n in self.nodes for o in n.output)}
        while True:
            self._made += 1
            name = f"{base}.{self._made}"
            if name not in taken:
                return name

    def constant(self, base: str, value: npt.ArrayLike) -> str:
        """Adds a constant; returns its name."""
        name = self.fresh(base)
        self.constants[name] = np.asarray(value)
        return name

    def read_instead(self, old: str, new: str) -> None:
        """Makes every node that reads `old` read `new`."""
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new

    def replace(self, node: onnx.NodeProto, *others: onnx.NodeProto) -> None:
        """Puts other nodes in the place of one."""
        at = next(i for i, n in enumerate(self.nodes) if n is node)
        self.nodes[at : at + 1] = others

    def drop_dead(self) -> None:
        """Removes nodes whose results nobody reads, and then constants."""
        needed = set(self.outputs)
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.constants = {n: v for n, v in self.constants.items() if n in needed}

    def infer(
        self, batch: int, known: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
        """Shapes and element types of all values at one batch size, as far as they can be told.

        Args:
            batch: The size of every free first dimension.
            known: Values that are known at this size.
        """
        constants = {**self.constants, **(known or {})}
        large = {n: v for n, v in constants.items() if v.size > SMALL}
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in large.items()
        ]
        for value in self.source.graph.input:
            if value.name in self.inputs:
                kind = value.type.tensor_type
                dims = [d.dim_value if d.HasField("dim_value") else batch for d in kind.shape.dim]
                inputs.append(helper.make_tensor_value_info(value.name, kind.elem_type, dims))
        nodes = [n for n in self.nodes if not any(o in constants for o in n.output)]
        graph = helper.make_graph(
            nodes,
            "shapes",
            inputs,
            [],
            [numpy_helper.from_array(v, n) for n, v in constants.items() if n not in large],
        )
        model = helper.make_model(
            graph, opset_imports=list(self.source.opset_import), ir_version=self.source.ir_version
        )
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        shapes: dict[str, tuple[int, ...]] = {n: v.shape for n, v in constants.items()}
        kinds: dict[str, int] = {
            n: int(helper.np_dtype_to_tensor_dtype(v.dtype)) for n, v in constants.items()
        }
        for value in (*inferred.input, *inferred.value_info):
            kind = value.type.tensor_type
            kinds.setdefault(value.name, kind.elem_type)
            if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
                shapes.setdefault(value.name, tuple(d.dim_value for d in kind.shape.dim))
        return shapes, kinds

    def model(self) -> onnx.ModelProto:
        """The graph as a model of its own, its nodes in order and each with a name."""
        made = onnx.ModelProto()
        made.CopyFrom(_without_body(self.source))
        for index, node in enumerate(self.nodes):
            node.name = node.name or f"{node.op_type}_{index}"
        made.graph.node.extend(_sorted(self.nodes))
        made.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in self.constants.items()
        )
        return made


def make_node(op: str, inputs: Sequence[str], output: str, name: str = "", **given: Any) -> onnx.NodeProto:
    """A node with one result, named after it where no name is given."""
    return helper.make_node(op, list(inputs), [output], name=name or f"{op.lower()}_{output}", **given)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


def _without_body(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
    )
    made.opset_import.extend(model.opset_import)
    made.metadata_props.extend(model.metadata_props)
    made.functions.extend(model.functions)
    made.graph.name = model.graph.name
    constants = {i.name for i in model.graph.initializer}
    made.graph.input.extend(i for i in model.graph.input if i.name not in constants)
    made.graph.output.extend(model.graph.output)
    return made


def _sorted(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes in an order in which each value is given before it is read, else as they stand."""
    given = {o for n in nodes for o in n.output if o}
    done: set[str] = set()
    waiting = list(nodes)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        left: list[onnx.NodeProto] = []
        for node in waiting:
            if all(n in done or n not in given for n in node.input):
                ordered.append(node)
                done.update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):  # a circle: the checker says so
            return [*ordered, *left]
        waiting = left
    return ordered
