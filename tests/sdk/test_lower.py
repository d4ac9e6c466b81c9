"""Lowering: each operator computes what the QDQ graph says, and what is not there is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgewright.elementwise import FUNCTIONS
from edgewright.errors import ExportError
from edgewright.graph import float_graph
from edgewright.lower import NATIVE_OPERATORS, lower, place_in_arena, rescale
from edgewright.statistics import sqnr_db
from edgewright_kernels.plan import ARENA_ALIGNMENT, Add, Op, Requantize, Tensor, tensor_inputs
from sdk.graphs import Node, graph, lowered, mlp, normal, quantize, rng

IMAGE = (4, 9, 7)


def image(node: Node, *more: Node, out: tuple[int | None, ...] = (None, None, None), **constants: Any) -> Any:
    last = (more or (node,))[-1][2]
    return graph([node, *more], {"x": IMAGE}, {last: out}, constants)


def conv(w: tuple[int, ...], bias: bool = True, **attributes: Any) -> Any:
    constants: dict[str, Any] = {"w": normal(*w, seed=1), **({"b": normal(w[0], seed=2)} if bias else {})}
    return image(("Conv", ["x", *constants], "y", attributes), **constants)


def after_conv(*nodes: Node, out: tuple[int | None, ...] = (None, None, None), **constants: Any) -> Any:
    """The operator under test behind a convolution, so that its input is no input of the graph."""
    first: Node = ("Conv", ["x", "w0"], "c", {"pads": [1, 1, 1, 1]})
    return image(first, *nodes, out=out, w0=normal(4, 4, 3, 3, seed=3), **constants)


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "Conv 3x3": lambda: conv((5, 4, 3, 3)),
    "Conv 1x1": lambda: conv((5, 4, 1, 1)),
    "Conv without bias": lambda: conv((5, 4, 3, 3), bias=False),
    "Conv with padding": lambda: conv((5, 4, 3, 3), pads=[1, 2, 0, 1]),
    "Conv with strides": lambda: conv((5, 4, 3, 3), strides=[2, 3], pads=[1, 1, 1, 1]),
    "Conv with dilations": lambda: conv((5, 4, 3, 2), dilations=[2, 3]),
    "Conv auto_pad SAME_UPPER": lambda: conv((5, 4, 2, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv auto_pad SAME_LOWER": lambda: conv((5, 4, 2, 4), auto_pad="SAME_LOWER", strides=[2, 2]),
    "Conv auto_pad VALID": lambda: conv((5, 4, 3, 3), auto_pad="VALID"),
    "Conv depthwise": lambda: conv((4, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
    "Conv depthwise with strides": lambda: conv((4, 1, 5, 3), group=4, strides=[2, 1]),
    "Conv then Relu": lambda: after_conv(("Relu", ["c"], "y", {})),
    "Conv then Clip": lambda: after_conv(
        ("Clip", ["c", "lo", "hi"], "y", {}), lo=np.float32(0), hi=np.float32(6)
    ),
    "Clip with a lower bound alone": lambda: after_conv(("Clip", ["c", "lo"], "y", {}), lo=np.float32(-1.5)),
    "Clip with an upper bound alone": lambda: after_conv(
        ("Clip", ["c", "", "hi"], "y", {}), hi=np.float32(1.25)
    ),
    "Relu of an input": lambda: after_conv_of_relu(),
    "Relu and then Clip": lambda: after_conv(
        ("Relu", ["c"], "r", {}), ("Clip", ["r", "lo", "hi"], "y", {}), lo=np.float32(0.5), hi=np.float32(3)
    ),
    "Conv read twice": lambda: after_conv(("Relu", ["c"], "r", {}), ("Add", ["c", "r"], "y", {})),
    "Add": lambda: after_conv(("Add", ["x", "c"], "y", {})),
    "Add of a value to itself": lambda: after_conv(("Add", ["c", "c"], "y", {})),
    "Add then Relu": lambda: after_conv(("Add", ["c", "x"], "a", {}), ("Relu", ["a"], "y", {})),
    "MaxPool": lambda: after_conv(("MaxPool", ["c"], "y", {"kernel_shape": [2, 2], "strides": [2, 2]})),
    "MaxPool with padding": lambda: after_conv(
        ("MaxPool", ["c"], "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]})
    ),
    "MaxPool with dilations": lambda: after_conv(
        ("MaxPool", ["c"], "y", {"kernel_shape": [2, 2], "dilations": [3, 2]})
    ),
    "AveragePool": lambda: after_conv(("AveragePool", ["c"], "y", {"kernel_shape": [3, 2]})),
    "AveragePool with padding that counts": lambda: after_conv(
        ("AveragePool", ["c"], "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1})
    ),
    "GlobalAveragePool": lambda: after_conv(("GlobalAveragePool", ["c"], "y", {})),
    "Flatten": lambda: after_conv(("Flatten", ["c"], "y", {"axis": 1}), out=(None,)),
    "Gemm": lambda: mlp(features=20),
    "Gemm behind Flatten": lambda: after_conv(
        ("Flatten", ["c"], "f", {"axis": 1}),
        ("Gemm", ["f", "w", "b"], "y", {"transB": 1}),
        out=(None,),
        w=normal(6, 4 * 9 * 7, seed=4),
        b=normal(6, seed=5),
    ),
    "Gemm with a bias of shape (1, O)": lambda: graph(
        [("Gemm", ["x", "w", "b"], "y", {})],
        {"x": (6,)},
        {"y": (3,)},
        {"w": normal(6, 3), "b": normal(1, 3)},
    ),
    "two readers of one weight": lambda: after_conv(
        ("Conv", ["c", "w0"], "d", {"pads": [1, 1, 1, 1]}), ("Add", ["c", "d"], "y", {})
    ),
}


def line(*nodes: Node, out: tuple[int | None, ...] = (None, None), **constants: Any) -> Any:
    """The operators under test on a line of 11 places, behind a convolution of one axis."""
    first: Node = ("Conv", ["x", "w0"], "c", {"pads": [1, 1]})
    return graph(
        [first, *nodes], {"x": (4, 11)}, {nodes[-1][2]: out}, {"w0": normal(6, 4, 3, seed=3), **constants}
    )


def volume(*nodes: Node, **constants: Any) -> Any:
    first: Node = ("Conv", ["x", "w0"], "c", {"strides": [1, 2, 1]})
    out = (None,) * (2 if nodes and nodes[-1][0] == "Flatten" else 4)
    return graph(
        [first, *nodes],
        {"x": (2, 5, 7, 6)},
        {(nodes or (first,))[-1][2]: out[1:] if len(out) == 2 else out},
        {"w0": normal(4, 2, 3, 3, 2, seed=3), **constants},
    )


def rows(*nodes: Node, out: tuple[int | None, ...] = (None, None), **constants: Any) -> onnx.ModelProto:
    """The operators under test on a sequence of 7 rows of 12 features, behind a fully connected layer."""
    first: list[Node] = [("MatMul", ["x", "w0"], "m", {}), ("Add", ["m", "b0"], "c", {})]
    return graph(
        [*first, *nodes],
        {"x": (7, 12)},
        {nodes[-1][2] if nodes else "c": out},
        {"w0": normal(12, 12, seed=3, scale=0.4), "b0": normal(12, seed=4), **constants},
    )


def heads(*nodes: Node, **constants: Any) -> Any:
    """Attention of three heads, the nodes given between scores and softmax."""
    split: Node = ("Reshape", ["c", "s1"], "h", {})
    last = nodes[-1][2] if nodes else "p"
    return rows(
        split,
        ("Transpose", ["h"], "q", {"perm": [0, 2, 1, 3]}),
        ("Transpose", ["h"], "k", {"perm": [0, 2, 3, 1]}),
        ("Mul", ["q", "f"], "qf", {}),
        ("MatMul", ["qf", "k"], "p", {}),
        *nodes,
        ("Softmax", [last], "a", {"axis": -1}),
        ("MatMul", ["a", "q"], "o", {}),
        ("Transpose", ["o"], "t", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["t", "s2"], "y", {}),
        s1=np.array([-1, 7, 3, 4]),
        s2=np.array([-1, 7, 12]),
        f=np.float32(0.5),
        **constants,
    )


CAUSAL = np.where(np.tri(7) > 0, 0, -np.inf).astype(np.float32)[None, None]
CLASS = normal(1, 1, 12, seed=5)

GRAPHS |= {
    "Conv 1-D": lambda: line(("Relu", ["c"], "y", {})),
    "Conv 3-D": volume,
    "Conv in groups": lambda: conv((6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    "Conv depthwise with a multiplier": lambda: conv((8, 1, 3, 3), group=4),
    "ConvTranspose": lambda: after_conv(
        (
            "ConvTranspose",
            ["c", "w", "b"],
            "y",
            {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]},
        ),
        w=normal(4, 5, 3, 3, seed=5),
        b=normal(5, seed=6),
    ),
    "ConvTranspose in groups": lambda: after_conv(
        ("ConvTranspose", ["c", "w", "b"], "y", {"group": 2, "dilations": [1, 2]}),
        w=normal(4, 3, 2, 2, seed=5),
        b=normal(6, seed=6),
    ),
    "ConvTranspose 1-D": lambda: line(
        ("ConvTranspose", ["c", "w"], "t", {"strides": [2]}), ("Relu", ["t"], "y", {}), w=normal(6, 4, 4)
    ),
    "MaxPool 1-D": lambda: line(
        ("MaxPool", ["c"], "y", {"kernel_shape": [3], "strides": [2], "pads": [1, 1]})
    ),
    "MaxPool 3-D": lambda: volume(("MaxPool", ["c"], "y", {"kernel_shape": [2, 1, 2]})),
    "MaxPool whose ceil_mode changes nothing": lambda: after_conv(
        ("MaxPool", ["c"], "y", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1})
    ),
    "AveragePool 1-D": lambda: line(("AveragePool", ["c"], "y", {"kernel_shape": [2]})),
    "GlobalAveragePool 1-D": lambda: line(("GlobalAveragePool", ["c"], "y", {})),
    "GlobalAveragePool 3-D": lambda: volume(
        ("GlobalAveragePool", ["c"], "p", {}), ("Flatten", ["p"], "y", {})
    ),
    "mean over the rows": lambda: rows(
        ("ReduceMean", ["c", "i"], "y", {"keepdims": 0}), out=(None,), i=np.array([1])
    ),
    "mean over channels": lambda: after_conv(("ReduceMean", ["c", "i"], "y", {}), i=np.array([1])),
    "MatMul of rows": rows,
    "MatMul of rows without a bias": lambda: graph(
        [("MatMul", ["x", "w"], "y", {})], {"x": (7, 12)}, {"y": (7, 5)}, {"w": normal(12, 5)}
    ),
    "MatMul of rows then Relu": lambda: rows(("Relu", ["c"], "y", {})),
    "attention": heads,
    "attention behind a causal mask": lambda: heads(("Add", ["p", "mask"], "pm", {}), mask=CAUSAL),
    "Softmax over channels": lambda: after_conv(
        ("Softmax", ["c"], "s", {"axis": 1}), ("Mul", ["s", "c"], "y", {})
    ),
    "LayerNormalization": lambda: rows(
        ("LayerNormalization", ["c", "g", "o"], "y", {}), g=normal(12, seed=7), o=normal(12, seed=8)
    ),
    "LayerNormalization of channels last": lambda: after_conv(
        ("Transpose", ["c"], "t", {"perm": [0, 2, 3, 1]}),
        ("LayerNormalization", ["t", "g", "o"], "n", {"epsilon": 1e-6}),
        ("Transpose", ["n"], "y", {"perm": [0, 3, 1, 2]}),
        g=normal(4, seed=7),
        o=normal(4, seed=8),
    ),
    "LayerNormalization of whole images": lambda: after_conv(
        ("LayerNormalization", ["c", "g", "o"], "y", {"axis": 1}),
        g=normal(4, 9, 7, seed=7),
        o=normal(4, 9, 7, seed=8),
    ),
    "layer norm spelled out": lambda: rows(
        ("ReduceMean", ["c", "i"], "mean", {}),
        ("Sub", ["c", "mean"], "d", {}),
        ("Pow", ["d", "two"], "d2", {}),
        ("ReduceMean", ["d2", "i"], "var", {}),
        ("Add", ["var", "eps"], "ve", {}),
        ("Sqrt", ["ve"], "root", {}),
        ("Div", ["d", "root"], "n", {}),
        ("Mul", ["n", "g"], "ng", {}),
        ("Add", ["ng", "o"], "y", {}),
        i=np.array([-1]),
        two=np.float32(2),
        eps=np.float32(1e-5),
        g=normal(12, seed=7),
        o=normal(12, seed=8),
    ),
    "Add that broadcasts": lambda: after_conv(
        ("GlobalAveragePool", ["c"], "g", {}), ("Add", ["g", "c"], "y", {})
    ),
    "Add of a constant": lambda: after_conv(
        ("MaxPool", ["c"], "m", {"kernel_shape": [2, 2]}), ("Add", ["m", "k"], "y", {}), k=normal(1, 4, 8, 6)
    ),
    "Add of a constant of channels": lambda: after_conv(
        ("MaxPool", ["c"], "m", {"kernel_shape": [2, 2]}), ("Add", ["m", "k"], "y", {}), k=normal(4, 1, 1)
    ),
    "Add of a constant row": lambda: rows(
        ("Relu", ["c"], "r", {}), ("Add", ["k", "r"], "y", {}), k=normal(7, 12, seed=5)
    ),
    "Sub": lambda: after_conv(("Sub", ["x", "c"], "y", {})),
    "Sub that broadcasts the other way": lambda: after_conv(
        ("GlobalAveragePool", ["c"], "g", {}), ("Sub", ["g", "c"], "y", {})
    ),
    "Mul": lambda: after_conv(("Mul", ["x", "c"], "y", {})),
    "Mul by a constant of channels": lambda: after_conv(
        ("Relu", ["c"], "r", {}), ("Mul", ["r", "k"], "y", {}), k=normal(4, 1, 1, seed=5)
    ),
    "squeeze and excitation": lambda: after_conv(
        ("GlobalAveragePool", ["c"], "g", {}),
        ("Conv", ["g", "w1"], "e", {}),
        ("HardSigmoid", ["e"], "s", {}),
        ("Mul", ["s", "c"], "y", {}),
        w1=normal(4, 4, 1, 1, seed=5, scale=3),
    ),
    "BatchNormalization of an input": lambda: image(
        ("BatchNormalization", ["x", "g", "o", "m", "v"], "n", {}),
        ("Conv", ["n", "w"], "y", {}),
        g=normal(4, seed=1),
        o=normal(4, seed=2),
        m=normal(4, seed=3),
        v=np.array([1, 2, 0.5, 3], np.float32),
        w=normal(5, 4, 3, 3, seed=4),
    ),
    "Concat of channels": lambda: after_conv(
        ("Relu", ["c"], "r", {}), ("Concat", ["c", "r", "x"], "y", {"axis": 1})
    ),
    "Concat of rows with a constant": lambda: rows(
        ("Relu", ["c"], "r", {}),
        ("Shape", ["r"], "n", {"end": 1}),
        ("Concat", ["n", "rest"], "shape", {"axis": 0}),
        ("Expand", ["token", "shape"], "t", {}),
        ("Concat", ["t", "r"], "y", {"axis": 1}),
        rest=np.array([1, 12]),
        token=CLASS,
    ),
    "Split and Concat": lambda: after_conv(
        ("Gather", ["c", "first"], "a", {"axis": 1}),
        ("Gather", ["c", "rest"], "b", {"axis": 1}),
        ("Concat", ["b", "a"], "y", {"axis": 1}),
        first=np.array([1]),
        rest=np.array([3, 0]),
    ),
    "Slice": lambda: after_conv(
        ("Slice", ["c", "b", "e", "a", "s"], "y", {}),
        b=np.array([1, -6]),
        e=np.array([99, -1]),
        a=np.array([2, 3]),
        s=np.array([3, 2]),
    ),
    "Gather of one row": lambda: rows(("Gather", ["c", "i"], "y", {"axis": 1}), out=(None,), i=np.array(-2)),
    "Unsqueeze and Squeeze": lambda: rows(
        ("Unsqueeze", ["c", "i"], "u", {}),
        ("Relu", ["u"], "r", {}),
        ("Squeeze", ["r", "i"], "y", {}),
        i=np.array([2]),
    ),
    "an image as rows and, turned round, as a product": lambda: after_conv(
        ("Transpose", ["c"], "t", {"perm": [0, 3, 1, 2]}),
        ("Reshape", ["t", "s"], "a", {}),
        ("Reshape", ["c", "s"], "b", {}),
        ("Add", ["a", "b"], "y", {}),
        out=(None, None),
        s=np.array([-1, 9, 28]),
    ),
    "image to rows": lambda: after_conv(
        ("Reshape", ["c", "s"], "f", {}),
        ("Transpose", ["f"], "t", {"perm": [0, 2, 1]}),
        ("MatMul", ["t", "w"], "y", {}),
        out=(None, None),
        s=np.array([-1, 4, 63]),
        w=normal(4, 6, seed=5),
    ),
    "rows to image": lambda: rows(
        ("Transpose", ["c"], "t", {"perm": [0, 2, 1]}),
        ("Reshape", ["t", "s"], "i", {}),
        ("Conv", ["i", "w"], "y", {}),
        out=(None, None, None),
        s=np.array([-1, 12, 7, 1]),
        w=normal(3, 12, 3, 1, seed=5),
    ),
    "channel shuffle": lambda: after_conv(
        ("Reshape", ["c", "s1"], "a", {}),
        ("Transpose", ["a"], "b", {"perm": [0, 2, 1, 3, 4]}),
        ("Reshape", ["b", "s2"], "y", {}),
        s1=np.array([-1, 2, 2, 9, 7]),
        s2=np.array([-1, 4, 9, 7]),
    ),
    "DepthToSpace": lambda: after_conv(("DepthToSpace", ["c"], "y", {"blocksize": 2, "mode": "CRD"})),
    "DepthToSpace by columns": lambda: after_conv(("DepthToSpace", ["c"], "y", {"blocksize": 2})),
    "SpaceToDepth": lambda: after_conv(
        ("MaxPool", ["c"], "m", {"kernel_shape": [2, 2]}), ("SpaceToDepth", ["m"], "y", {"blocksize": 2})
    ),
    "Resize nearest": lambda: after_conv(
        (
            "Resize",
            ["c", "", "f"],
            "y",
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ),
        f=np.array([1, 1, 2, 3], np.float32),
    ),
    "Resize nearest, half a pixel on": lambda: after_conv(
        ("Shape", ["c"], "b", {"end": 2}),
        ("Concat", ["b", "s"], "n", {"axis": 0}),
        ("Resize", ["c", "", "", "n"], "y", {"mode": "nearest"}),
        s=np.array([5, 16]),
    ),
    "Resize linear": lambda: after_conv(
        ("Resize", ["c", "", "f"], "y", {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
        f=np.array([1, 1, 2, 2], np.float32),
    ),
    "Resize linear, corner to corner": lambda: after_conv(
        (
            "Resize",
            ["c", "", "f"],
            "y",
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        ),
        f=np.array([1, 1, 3, 0.5], np.float32),
    ),
    "Resize of a line": lambda: line(
        ("Resize", ["c", "", "f"], "y", {"mode": "linear"}), f=np.array([1, 1, 2.5], np.float32)
    ),
    "two readers of a line, one as rows": lambda: line(
        ("Transpose", ["c"], "t", {"perm": [0, 2, 1]}),
        ("MatMul", ["t", "w"], "m", {}),
        ("Transpose", ["m"], "u", {"perm": [0, 2, 1]}),
        ("Add", ["c", "u"], "y", {}),
        w=normal(6, 6, seed=5),
    ),
    "GELU spelled out": lambda: rows(
        ("Div", ["c", "root"], "d", {}),
        ("Erf", ["d"], "e", {}),
        ("Add", ["e", "one"], "f", {}),
        ("Mul", ["c", "f"], "g", {}),
        ("Mul", ["g", "half"], "y", {}),
        root=np.float32(2**0.5),
        one=np.float32(1),
        half=np.float32(0.5),
    ),
    "SiLU": lambda: rows(("Sigmoid", ["c"], "s", {}), ("Mul", ["c", "s"], "y", {})),
    "Softplus as torch writes it": lambda: rows(
        ("Softplus", ["c"], "s", {}),
        ("Greater", ["c", "k"], "g", {}),
        ("Where", ["g", "c", "s"], "y", {}),
        k=np.float32(1.5),
    ),
    "a function read in its midst": lambda: rows(
        ("Tanh", ["c"], "t", {}),
        ("Mul", ["t", "t"], "u", {}),
        ("MatMul", ["t", "w"], "v", {}),
        ("Add", ["u", "v"], "y", {}),
        w=normal(12, 12, seed=5),
    ),
    "Gather of rows by tokens": lambda: tokens(),
    "Gather of rows, masked by their tokens": lambda: tokens(masked=True),
}


def tokens(masked: bool = False) -> onnx.ModelProto:
    """Embeddings, and attention that leaves out token 0."""
    nodes: list[Node] = [("Gather", ["table", "x"], "e", {}), ("MatMul", ["e", "w"], "m", {})]
    if masked:
        nodes += [
            ("Transpose", ["e"], "t", {"perm": [0, 2, 1]}),
            ("MatMul", ["m", "t"], "s", {}),
            ("Equal", ["x", "zero"], "pad", {}),
            ("Unsqueeze", ["pad", "i"], "wide", {}),
            ("Where", ["wide", "far", "s"], "sm", {}),
            ("Softmax", ["sm"], "a", {"axis": -1}),
            ("MatMul", ["a", "e"], "y", {}),
        ]
    constants = {"table": normal(9, 12, seed=5), "w": normal(12, 12, seed=6, scale=0.2)}
    made = graph(
        nodes,
        {"x": (7,)},
        {nodes[-1][2]: (7, 12)},
        constants | ({"zero": np.array(0), "i": np.array([1]), "far": np.float32(-1e9)} if masked else {}),
        check=False,
    )
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.checker.check_model(made)
    return made


# Where a value lies on a jump, a hair before it is as far from the float result as it gets.
JUMPS = {"Ceil", "Floor", "Round", "Sign", "ThresholdedRelu"}
_POSITIVE = {"Log", "Sqrt", "Reciprocal", "Pow"}
_TWO = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"), np.float32(0.7)),
    "Pow": np.float32(1.7),
}
_CHOICES = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}


def function(name: str) -> onnx.ModelProto:
    """A graph with one elementwise operator on what a layer gives."""
    first: list[Node] = (
        [("Relu", ["c"], "r", {}), ("Add", ["r", "half"], "z", {})] if name in _POSITIVE else []
    )
    source = "z" if first else "c"
    constants: dict[str, Any] = {"half": np.float32(0.5)} if first else {}
    if name in _CHOICES or name in {"Not", "Where"}:
        choice = name if name in _CHOICES else "Greater"
        nodes: list[Node] = [("Floor", [source], "f", {}), (choice, ["f", "k"], "g", {})]
        nodes += [("Not", ["g"], "n", {})] if name == "Not" else []
        nodes.append(("Where", [nodes[-1][2], source, "k"], "y", {}))
        constants["k"] = np.float32(1)
    elif name in _TWO:
        nodes = [(name, [source, "k"], "y", {})]
        constants["k"] = _TWO[name].reshape(1) if name == "PRelu" else _TWO[name]
    elif name == "Clip":
        nodes = [("Clip", [source, "k"], "t", {}), ("Tanh", ["t"], "y", {})]
        constants["k"] = np.float32(-1)
    elif name == "Identity":
        nodes = [("Identity", [source], "i", {}), ("Tanh", ["i"], "y", {})]
    else:
        nodes = [(name, [source], "y", {})]
    return rows(*first, *nodes, **constants)


GRAPHS |= {f"function {name}": lambda name=name: function(name) for name in FUNCTIONS}  # type: ignore[misc]


def after_conv_of_relu() -> onnx.ModelProto:
    model: onnx.ModelProto = image(
        ("Relu", ["x"], "r", {}), ("Conv", ["r", "w"], "y", {}), w=normal(3, 4, 3, 3, seed=7)
    )
    return model


def feed_for(model: onnx.ModelProto, count: int, seed: int) -> dict[str, Any]:
    feed: dict[str, Any] = {}
    for value in model.graph.input:
        shape = (count, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:]))
        whole = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        feed[value.name] = rng(seed).integers(0, 9, shape) if whole else normal(*shape, seed=seed)
    return feed


def test_every_native_operator_has_a_graph_here() -> None:
    used = {node.op_type for make in GRAPHS.values() for node in make().graph.node}
    assert set(NATIVE_OPERATORS) <= used


@pytest.mark.parametrize("name", GRAPHS)
def test_native_engine_computes_what_the_qdq_graph_says(name: str) -> None:
    model = GRAPHS[name]()
    result = lowered(model, feed_for(model, 256, seed=10))
    feed = feed_for(model, 32, seed=11)
    native, unfused, floats = result.native(feed), result.unfused(feed), result.floats(feed)
    for output, got in native.items():
        step = result.quantized.grids[output].scale
        assert got.shape == floats[output].shape
        assert np.ptp(got) > 20 * step  # there is something to compare
        # Each rounds once where the other does; a tie or a clamp between them may cost a step, which
        # LayerNorm may widen.
        apart = np.abs(got - unfused[output]) / step
        assert apart.max() <= (4.01 if name.startswith("LayerNormalization") else 1.01)
        assert np.mean(apart > 0.5) < (0.15 if name.startswith("Resize") else 0.02)
        if name.removeprefix("function ") not in JUMPS:
            assert sqnr_db(floats[output], got) > (20 if name.startswith("function") else 25)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6()), (3, 12, 12)),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()), (4, 8, 8)),
        (
            nn.Sequential(
                nn.Conv2d(2, 8, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
            ),
            (2, 10, 10),
        ),
    ],
    ids=["conv, batch norm, relu6", "depthwise, average pool", "to classes"],
)
def test_torch_modules_lower_to_what_they_compute(module: nn.Module, shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.4)
    module = module.eval()
    x = normal(64, *shape)
    result = lowered(float_graph(module, [x[:2]]), {"input": x})
    got = result.native({"input": x})["y"]
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    assert sqnr_db(want, got) > 25


def test_two_inputs_and_two_outputs_keep_their_order() -> None:
    model = graph(
        [
            ("Gemm", ["b", "w"], "p", {"transB": 1}),
            ("Add", ["a", "p"], "second", {}),
            ("Relu", ["second"], "first", {}),
        ],
        {"a": (3,), "b": (5,)},
        {"first": (3,), "second": (3,)},
        {"w": normal(3, 5)},
    )
    result = lowered(model, feed_for(model, 64, seed=1))
    names = [result.plan.tensors[n].name for n in (*result.plan.inputs, *result.plan.outputs)]
    assert names == ["a", "b", "first", "second"]
    feed = feed_for(model, 16, seed=2)
    got = result.native(feed)
    for name, want in result.floats(feed).items():
        assert sqnr_db(want, got[name]) > 25


UNSUPPORTED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "CumSum": (
        lambda: after_conv(
            ("CumSum", ["c", "axis"], "s", {}), ("Relu", ["s"], "y", {}), axis=np.array(2, np.int64)
        ),
        "operator CumSum .node 'cumsum_s'.*no such operator",
    ),
    "InstanceNormalization at the end": (
        lambda: after_conv(("InstanceNormalization", ["c", "g", "g"], "y", {}), g=np.ones(4, np.float32)),
        "operator InstanceNormalization .node 'instancenormalization_y'.*no such operator",
    ),
    "cubic Resize": (
        lambda: after_conv(
            ("Resize", ["c", "", "f"], "y", {"mode": "cubic"}), f=np.array([1, 1, 2, 2], np.float32)
        ),
        "operator Resize .node 'resize_y'.*no such form",
    ),
    "Resize by a rule of its own": (
        lambda: after_conv(
            (
                "Resize",
                ["c", "r", "f"],
                "y",
                {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
            ),
            r=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
            f=np.array([1, 1, 2, 2], np.float32),
        ),
        "operator Resize .node 'resize_y'.*coordinates by 'tf_crop_and_resize'",
    ),
    "Conv 4-D": (
        lambda: graph(
            [("Conv", ["x", "w"], "y", {})],
            {"x": (1, 2, 2, 2, 2)},
            {"y": (1, 1, 1, 1, 1)},
            {"w": normal(1, 1, 2, 2, 2, 2)},
        ),
        "operator Conv .node 'conv_y'.*one to three spatial axes",
    ),
    "Slice backwards": (
        lambda: after_conv(
            ("Slice", ["c", "b", "e", "a", "s"], "y", {}),
            b=np.array([-1]),
            e=np.array([-99]),
            a=np.array([3]),
            s=np.array([-1]),
        ),
        "operator Slice .node 'slice_y'.*backwards",
    ),
    "a sum before softmax that is no mask": (
        lambda: after_conv(
            ("Add", ["x", "c"], "a", {}),
            ("CumSum", ["a", "i"], "m", {}),
            ("Add", ["m", "c"], "y", {}),
            i=np.array(1),
        ),
        "operator CumSum",
    ),
    "MaxPool ceil_mode": (
        lambda: after_conv(
            ("MaxPool", ["c"], "y", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1})
        ),
        "operator MaxPool .node 'maxpool_y'.*ceil_mode",
    ),
    "AveragePool, padding left out": (
        lambda: after_conv(("AveragePool", ["c"], "y", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})),
        "operator AveragePool .node 'averagepool_y'.*padding that does not count",
    ),
    "Clip with moving bounds": (
        lambda: graph(
            [
                ("Gemm", ["x", "w"], "g", {"transB": 1}),
                ("ReduceMax", ["g", "axes"], "hi", {"keepdims": 0}),
                ("Clip", ["g", "", "hi"], "y", {}),
            ],
            {"x": (4,)},
            {"y": (3,)},
            {"w": normal(3, 4), "axes": np.array([0, 1], np.int64)},
        ),
        "operator",
    ),
    "Conv with computed weights": (
        lambda: graph(
            [("Conv", ["x", "k"], "c", {}), ("Conv", ["c", "w"], "y", {})],
            {"x": (4, 6, 6), "k": (4, 3, 3)},
            {"y": (2, 4, 4)},
            {"w": normal(2, 3, 1, 1)},
            batch=3,
        ),
        "operator Conv .node 'conv_c'.*not quantized|operator Conv .node 'conv_c'.*quantized constant",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_the_engine_lacks_is_named_with_the_backend_that_has_it(name: str) -> None:
    make, message = UNSUPPORTED[name]
    model = make()
    count = 3 if name == "Conv with computed weights" else 16
    with pytest.raises(ExportError, match=f"{message}.*backend='onnxruntime'"):
        lowered(model, feed_for(model, count, seed=0))


def test_a_float_graph_is_no_program() -> None:
    with pytest.raises(ExportError, match="not quantized"):
        lower(mlp(), {}, 0)


def test_activations_of_another_kind_are_refused() -> None:
    quantized = quantize(mlp(), {"x": normal(16, 8)})
    for constant in quantized.model.graph.initializer:
        if constant.name == "x_zero_point":
            constant.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.int8), "x_zero_point"))
    with pytest.raises(ExportError, match="'x': activations must be uint8 or int16 with one scale, not int8"):
        lower(quantized.model, {}, 0)


# Rescale


@given(st.lists(st.floats(2.0**-31, 2.0**29, allow_subnormal=False), min_size=1, max_size=8))
def test_rescale_is_exact_to_thirty_bits_over_all_magnitudes(factors: list[float]) -> None:
    made = rescale(factors)
    got = made.multiplier.astype(np.float64) / 2.0**made.shift
    np.testing.assert_allclose(got, factors, rtol=2.0**-30)
    assert ((made.multiplier >= 0) & (made.shift >= 1) & (made.shift <= 62)).all()


@pytest.mark.parametrize("factor", [1.0, 0.5, 2.0, 1 - 2.0**-40, 2.0**29 - 0.1, 2.0**30 - 2, 1e-300])
def test_rescale_holds_at_the_edges(factor: float) -> None:
    made = rescale([factor])
    assert 1 <= made.shift[0] <= 62
    assert made.multiplier[0] / 2.0 ** made.shift[0] == pytest.approx(factor, rel=2.0**-30, abs=2.0**-62)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_factors_that_share_a_shift_are_exact_to_the_largest(a: float, b: float) -> None:
    made = rescale([a, b], same_shift=True)
    assert made.shift[0] == made.shift[1]
    np.testing.assert_allclose(
        made.multiplier / 2.0 ** made.shift[0], [a, b], atol=max(a, b) * 2.0**-30, rtol=0
    )


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf, 2.0**30, 1e30])
def test_factors_that_do_not_fit_are_refused(factor: float) -> None:
    with pytest.raises(ExportError, match="does not fit the integer program"):
        rescale([factor])


def test_a_change_of_scale_that_does_not_fit_names_the_operator() -> None:
    model = after_conv(("Clip", ["c", "lo", "hi"], "y", {}), lo=np.float32(0), hi=np.float32(1e-18))
    with pytest.raises(ExportError, match=r"operator Conv \(node .*does not fit.*hardly moves"):
        lowered(model, feed_for(model, 8, seed=0))


# The arena


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Tensor], list[Op]]:
    """Random graphs: each operator reads one or two earlier values and writes a new one."""
    count = draw(st.integers(1, 14))
    tensors = [
        Tensor(name=f"t{i}", dtype="uint8", shape=(draw(st.integers(1, 500)),), scale=1.0)
        for i in range(count + 1)
    ]
    unused = rescale([1.0])
    ops: list[Op] = []
    for y in range(1, count + 1):
        a, b = draw(st.integers(0, y - 1)), draw(st.integers(0, y - 1))
        ops.append(Requantize(x=a, y=y, rescale=unused) if a == b else Add(a=a, b=b, y=y, rescale=unused))
    return tensors, ops


@settings(max_examples=150)
@given(programs())
def test_values_alive_together_never_overlap(program: tuple[list[Tensor], list[Op]]) -> None:
    tensors, ops = program
    placed, arena = place_in_arena(tensors, ops)
    uses: dict[int, list[int]] = {}
    for step, op in enumerate(ops):
        for number in (*tensor_inputs(op), op.y):
            uses.setdefault(number, []).append(step)
    for a, b in combinations(uses, 2):
        if min(uses[a]) <= max(uses[b]) and min(uses[b]) <= max(uses[a]):
            first, second = sorted((placed[a], placed[b]), key=lambda t: t.offset)
            assert first.offset + first.size_bytes <= second.offset
    for number in uses:
        assert placed[number].offset % ARENA_ALIGNMENT == 0
        assert placed[number].offset + placed[number].size_bytes <= arena
        assert replace(placed[number], offset=0) == tensors[number]
    assert arena <= sum(-(-t.size_bytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT for t in tensors)


def test_a_chain_of_any_length_lives_in_the_room_of_two() -> None:
    tensors = [Tensor(name=f"t{i}", dtype="uint8", shape=(100,), scale=1.0) for i in range(50)]
    ops = [Requantize(x=i, y=i + 1, rescale=rescale([1.0])) for i in range(49)]
    assert place_in_arena(tensors, ops)[1] == 2 * 128


def test_nothing_needs_no_arena() -> None:
    assert place_in_arena([], []) == ((), 0)
