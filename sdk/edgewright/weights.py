"""weights.safetensors: where each constant lies, and how a graph points there."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
import safetensors.numpy

from edgewright.calibrate import Grid
from edgewright.quantization import BaseGrids
from edgewright_device import Artifact
from edgewright_kernels.plan import ByteRange

INTEGERS = "edgewright.integers"
"""The key under which model.onnx says how its integers came about, where rounding alone did not make them."""


def byte_ranges(weights: bytes) -> dict[str, ByteRange]:
    """Where each tensor of a safetensors file lies, counted from the start of the file."""
    (length,) = struct.unpack_from("<Q", weights)
    header = json.loads(weights[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: ByteRange(offset=8 + length + begin, size=end - begin)
        for name, (begin, end) in ((n, e["data_offsets"]) for n, e in header.items())
    }


def base_grids(base: Artifact, *, integers: bool = False) -> BaseGrids:
    """The grids that an artifact's QDQ graph and weights use; with its integers, if they are asked for."""
    model = onnx.load_from_string(base.read("model.onnx"))
    weights = safetensors.numpy.load(base.read("weights.safetensors"))
    inline = {
        i.name: onnx.numpy_helper.to_array(i)
        for i in model.graph.initializer
        if i.data_location != onnx.TensorProto.EXTERNAL
    }
    grids = {
        node.output[0].removesuffix("_quantized"): Grid(
            scale=float(inline[node.input[1]]),
            zero_point=int(inline[node.input[2]]),
            dtype="int16" if inline[node.input[2]].dtype == np.int16 else "uint8",
        )
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    scales = {n.removesuffix(".scale"): w for n, w in weights.items() if n.endswith(".scale")}
    known = {n: weights[n] for n in scales if n in weights and weights[n].dtype == np.int8}
    return BaseGrids(activations=grids, weights=scales, integers=known if integers else {})


def note_integers(model: onnx.ModelProto, how: Literal["trained", "near base"]) -> None:
    """Writes into a graph that its integers are not those nearest to the float model's weights, and why."""
    onnx.helper.set_model_props(model, {INTEGERS: how})


def noted_integers(model: onnx.ModelProto) -> str:
    """What `note_integers` wrote; empty where it wrote nothing."""
    return next((str(p.value) for p in model.metadata_props if p.key == INTEGERS), "")


def with_external_data(model: onnx.ModelProto, ranges: Mapping[str, ByteRange]) -> bytes:
    """The graph's bytes, with every constant that weights.safetensors holds taken from there."""
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    for tensor in slim.graph.initializer:
        if tensor.name not in ranges:
            continue
        place = ranges[tensor.name]
        for field in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (
            ("location", "weights.safetensors"),
            ("offset", str(place.offset)),
            ("length", str(place.size)),
        ):
            tensor.external_data.add(key=key, value=value)
    data: bytes = slim.SerializeToString(deterministic=True)
    return data
