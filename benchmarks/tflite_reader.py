"""A float convolutional network of a TensorFlow Lite file, as an ONNX graph.

Takes what MLPerf Tiny's residual network has: CONV_2D, ADD, AVERAGE_POOL_2D over a whole image, RESHAPE to
features, FULLY_CONNECTED. Images become (N, C, H, W); a SOFTMAX at the end is left out: outputs are logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import helper, numpy_helper

OPSET = 20
KINDS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def onnx_of(path: Path) -> onnx.ModelProto:
    """The network, its input `x`, float32 (N, C, H, W), and its logits `y`.

    Raises:
        ValueError: An operator, or a form of one, that has no translation here.
    """
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    graph = file.subgraphs[0]
    names = {int(graph.inputs[0]): "x"}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, npt.NDArray[np.float32]] = {}

    def constant(index: int) -> npt.NDArray[np.float32]:
        tensor = graph.tensors[index]
        data = np.asarray(file.buffers[tensor.buffer].data, np.uint8)
        return data.view(np.float32).reshape(tensor.shape)

    def emit(kind: str, inputs: list[str], at: int, activation: int, **given: Any) -> None:
        result = f"v{at}"
        last = f"{result}.linear" if activation else result
        nodes.append(helper.make_node(kind, inputs, [last], name=f"{kind.lower()}_{at}", **given))
        if activation == schema.ActivationFunctionType.RELU:
            nodes.append(helper.make_node("Relu", [last], [result], name=f"relu_{at}"))
        elif activation:
            raise ValueError(f"activation {activation} of tensor {at}")
        names[at] = result

    for operator in graph.operators:
        code = file.operatorCodes[operator.opcodeIndex]
        kind = KINDS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        read, at, how = [int(i) for i in operator.inputs], int(operator.outputs[0]), operator.builtinOptions
        shape = [int(d) for d in graph.tensors[read[0]].shape]
        if kind == "CONV_2D":
            weight = constant(read[1]).transpose(0, 3, 1, 2)
            pads = _same(shape[1:3], weight.shape[2:], (how.strideH, how.strideW))
            constants |= {f"conv_{at}.weight": weight, f"conv_{at}.bias": constant(read[2])}
            inputs = [names[read[0]], f"conv_{at}.weight", f"conv_{at}.bias"]
            if how.padding != schema.Padding.SAME or how.dilationHFactor != 1 or how.dilationWFactor != 1:
                raise ValueError(f"convolution {at}: padded otherwise than to the same size, or dilated")
            emit(
                "Conv", inputs, at, how.fusedActivationFunction, pads=pads, strides=[how.strideH, how.strideW]
            )
        elif kind == "ADD":
            emit("Add", [names[i] for i in read], at, how.fusedActivationFunction)
        elif kind == "AVERAGE_POOL_2D" and shape[1:3] == [how.filterHeight, how.filterWidth]:
            emit("GlobalAveragePool", [names[read[0]]], at, 0)
        elif kind == "RESHAPE" and shape[1:3] == [1, 1]:
            emit("Flatten", [names[read[0]]], at, 0)
        elif kind == "FULLY_CONNECTED":
            constants |= {f"dense_{at}.weight": constant(read[1]), f"dense_{at}.bias": constant(read[2])}
            inputs = [names[read[0]], f"dense_{at}.weight", f"dense_{at}.bias"]
            emit("Gemm", inputs, at, how.fusedActivationFunction, transB=1)
        elif kind == "SOFTMAX":
            names[at] = names[read[0]]
        else:
            raise ValueError(f"{kind}: has no translation here")
    last = names[int(graph.outputs[0])]
    nodes[-1].output[0] = "y" if nodes[-1].output[0] == last else nodes[-1].output[0]
    _, height, width, channels = (int(d) for d in graph.tensors[graph.inputs[0]].shape)
    classes = int(graph.tensors[graph.outputs[0]].shape[1])
    made = helper.make_graph(
        nodes,
        path.stem,
        [_value("x", channels, height, width)],
        [_value("y", classes)],
        [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape])


def _same(sizes: Any, kernel: Any, strides: Any) -> list[int]:
    """Padding to ceil(size / stride), the odd one behind."""
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    return [*(t // 2 for t in total), *(t - t // 2 for t in total)]
