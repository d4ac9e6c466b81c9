"""A QDQ graph as the two files of ncnn, in 8 bits.

Takes the operators of convolutional networks in the form that `edgewright.export` writes. The integers of the
weights stay what they are; activations, which ncnn keeps symmetric, get the grid of 127 steps to each side
that holds the range they had. Where a result goes to 8-bit convolutions alone it is handed on in 8 bits, as
ncnn's own converter arranges it. Formats: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.wiring import attributes, initializers, value_shapes

MAGIC = 7767517
INT8_TAG = struct.pack("<I", 0x000D4B38)


@dataclass(slots=True)
class _Layer:
    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, Any] = field(default_factory=dict)
    data: bytes = b""


def ncnn_files(model: onnx.ModelProto) -> tuple[str, bytes]:
    """The text of the .param file and the bytes of the .bin file.

    Raises:
        ValueError: An operator, or a form of one, that has no translation here.
    """
    return _Writer(model).run()


class _Writer:
    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self.graph = inferred.graph
        self.shapes = value_shapes(inferred)
        self.constants = initializers(inferred)
        self.producer = {o: n for n in self.graph.node for o in n.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.layers: list[_Layer] = []
        self.blobs: dict[str, str] = {}  # a value of the graph, and the blob that holds it

    def run(self) -> tuple[str, bytes]:
        for value in self.graph.input:
            if value.name not in self.constants:
                sizes = [d or 1 for d in self.shapes[value.name][1:]]
                self._layer("Input", value.name, [], value.name, dict(enumerate(reversed(sizes))))
        done: set[str] = set()
        for node in self.graph.node:
            if node.name not in done:
                done |= self._node(node)
        for value in self.graph.output:
            self._layer("Noop", value.name, [self.blobs[value.name]], value.name, {})
        layers = _with_splits(self.layers)
        blobs = {b for layer in layers for b in layer.outputs}
        lines = [str(MAGIC), f"{len(layers)} {len(blobs)}"]
        lines += [
            " ".join(
                [
                    x.kind, x.name, str(len(x.inputs)), str(len(x.outputs)), *x.inputs, *x.outputs,
                    *(f"{k}={v}" for k, v in x.parameters.items()),
                ]
            )
            for x in layers
        ]  # fmt: skip
        return "\n".join(lines) + "\n", b"".join(x.data for x in layers)

    def _layer(
        self,
        kind: str,
        name: str,
        inputs: list[str],
        output: str,
        parameters: dict[int, Any],
        data: bytes = b"",
    ) -> None:
        self.layers.append(_Layer(kind, name, inputs, [output], parameters, data))
        self.blobs[output] = output

    # What lies in the graph

    def _steps(self, name: str) -> float:
        """How many steps of 127 make one: of the dequantized value `name`, or of what it was."""
        dequantize = self.producer[name]
        scale, zero_point = (self.constants[n].item() for n in dequantize.input[1:3])
        return float(127 / (scale * max(zero_point, 255 - zero_point)))

    def _weight(self, name: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        dequantize = self.producer[name]
        return self.constants[dequantize.input[0]], self.constants[dequantize.input[1]].reshape(-1)

    def _bias(self, node: onnx.NodeProto, outputs: int) -> bytes:
        if len(node.input) < 3 or not node.input[2]:
            return bytes(4 * outputs)
        integers, scale = self._weight(node.input[2])
        return (integers * scale).astype("<f4").tobytes()

    def _node(self, node: onnx.NodeProto) -> set[str]:
        """Translates a node and what is fused into it; gives the names of the nodes dealt with."""
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            if node.input[0] in self.blobs:  # a layer of ncnn quantizes for itself
                self.blobs[node.output[0]] = self.blobs[node.input[0]]
            return {node.name}
        last, clip = node, None
        after = self.readers.get(node.output[0], [])
        if (
            node.op_type in {"Conv", "Gemm", "Add"}
            and len(after) == 1
            and after[0].op_type in {"Relu", "Clip"}
        ):
            last = clip = after[0]
        done, result = {node.name, last.name}, last.output[0]
        translate = getattr(self, f"_{node.op_type.lower()}", None)
        if translate is None:
            raise ValueError(f"{node.name}: no translation of {node.op_type}")
        translate(node, result, clip)
        return done

    def _activation(self, clip: onnx.NodeProto | None) -> dict[int, Any]:
        if clip is None:
            return {}
        if clip.op_type == "Relu":
            return {9: 1}
        low, high = (float(self.constants[n]) for n in clip.input[1:])
        return {9: 3, -23310: f"2,{low:e},{high:e}"}

    def _conv(self, node: onnx.NodeProto, result: str, clip: onnx.NodeProto | None) -> None:
        given = attributes(node)
        weight, scale = self._weight(node.input[1])
        groups, (high, wide) = given.get("group", 1), weight.shape[2:]
        strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
        top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
        if groups > 1 and not groups == len(weight):
            raise ValueError(f"{node.name}: {groups} groups")
        handed_on = self._goes_to_convolutions(result)
        parameters = {
            0: len(weight), 1: wide, 11: high, 2: dilations[1], 12: dilations[0], 3: strides[1],
            13: strides[0], 4: left, 14: top, 15: right, 16: bottom, 5: 1, 6: weight.size,
            8: (1 if groups > 1 else 2) + (100 if handed_on else 0),
        }  # fmt: skip
        if groups > 1:
            parameters[7] = groups
        data = INT8_TAG + _padded(weight.tobytes()) + self._bias(node, len(weight))
        data += _floats(1 / np.broadcast_to(scale, len(weight))) + _floats([self._steps(node.input[0])])
        if handed_on:
            data += _floats([self._steps(self._dequantized(result))])
        kind = "ConvolutionDepthWise" if groups > 1 else "Convolution"
        source = self.blobs[node.input[0]]
        self._layer(kind, node.name, [source], result, parameters | self._activation(clip), data)

    def _dequantized(self, result: str) -> str:
        quantize = self.readers[result][0]
        name: str = self.readers[quantize.output[0]][0].output[0]
        return name

    def _goes_to_convolutions(self, result: str) -> bool:
        after = self.readers.get(result, [])
        if len(after) != 1 or after[0].op_type != "QuantizeLinear":
            return False
        name = self._dequantized(result)
        return all(n.op_type == "Conv" for n in self.readers.get(name, [])) and name in self.readers

    def _gemm(self, node: onnx.NodeProto, result: str, clip: onnx.NodeProto | None) -> None:
        weight, scale = self._weight(node.input[1])
        parameters = {0: len(weight), 1: 1, 2: weight.size, 8: 2} | self._activation(clip)
        data = INT8_TAG + _padded(weight.tobytes()) + self._bias(node, len(weight))
        data += _floats(1 / np.broadcast_to(scale, len(weight))) + _floats([self._steps(node.input[0])])
        self._layer("InnerProduct", node.name, [self.blobs[node.input[0]]], result, parameters, data)

    def _add(self, node: onnx.NodeProto, result: str, clip: onnx.NodeProto | None) -> None:
        inputs = [self.blobs[n] for n in node.input]
        if clip is None:
            self._layer("BinaryOp", node.name, inputs, result, {0: 0})
            return
        if clip.op_type != "Relu":
            raise ValueError(f"{node.name}: only ReLU may follow an addition")
        self._layer("BinaryOp", node.name, inputs, node.output[0], {0: 0})
        self._layer("ReLU", clip.name, [node.output[0]], result, {})

    def _globalaveragepool(self, node: onnx.NodeProto, result: str, _: object) -> None:
        self._layer("Pooling", node.name, [self.blobs[node.input[0]]], result, {0: 1, 4: 1})

    def _maxpool(self, node: onnx.NodeProto, result: str, _: object) -> None:
        given = attributes(node)
        (high, wide), strides = given["kernel_shape"], given.get("strides", (1, 1))
        top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
        parameters = {
            0: 0, 1: wide, 11: high, 2: strides[1], 12: strides[0], 3: left, 13: top, 14: right, 15: bottom,
            5: 1,
        }  # fmt: skip
        self._layer("Pooling", node.name, [self.blobs[node.input[0]]], result, parameters)

    def _flatten(self, node: onnx.NodeProto, result: str, _: object) -> None:
        self.blobs[result] = self.blobs[node.input[0]]  # which has one pixel after a global pool


def _with_splits(layers: Sequence[_Layer]) -> list[_Layer]:
    """ncnn gives each blob to one layer; a Split stands where there are more."""
    readers = Counter(name for layer in layers for name in layer.inputs)
    taken: Counter[str] = Counter()
    found: list[_Layer] = []
    for layer in layers:
        for place, name in enumerate(layer.inputs):
            if readers[name] > 1:
                layer.inputs[place] = f"{name}.split{taken[name]}"
                taken[name] += 1
        found.append(layer)
        for name in layer.outputs:
            if readers[name] > 1:
                copies = [f"{name}.split{i}" for i in range(readers[name])]
                found.append(_Layer("Split", f"{name}_split", [name], copies))
    return found


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _floats(values: npt.ArrayLike) -> bytes:
    return np.asarray(values, "<f4").tobytes()
