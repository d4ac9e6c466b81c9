"""A tiny artifact for tests: one fully connected layer, built by hand from the formats' own writers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy

from edgewright_device import Artifact, Part, Port, encode_golden, write_artifact
from edgewright_kernels import plan as ewplan
from edgewright_kernels import reference

X_SCALE, Y_SCALE, W_SCALE = 2.0**-6, 2.0**-4, 2.0**-5
ZERO = 128
FEATURES, CLASSES = 16, 5


def arrays(*, seed: int, changed: int = 0) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Weights (O, I) and bias (O,); `changed` of the weights differ from those of the same seed with 0."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (CLASSES, FEATURES)).astype(np.int8)
    bias = rng.integers(-500, 500, CLASSES).astype(np.int32)
    weight.reshape(-1)[:changed] //= 2
    return weight, bias


def make_plan(weights: bytes) -> ewplan.Plan:
    header_bytes = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + header_bytes])

    def where(name: str) -> ewplan.ByteRange:
        begin, end = header[name]["data_offsets"]
        return ewplan.ByteRange(offset=8 + header_bytes + begin, size=end - begin)

    # acc * X_SCALE * W_SCALE / Y_SCALE is a shift by 7 to the right
    rescale = ewplan.Rescale(
        multiplier=np.full(CLASSES, 1 << 16, np.int32), shift=np.full(CLASSES, 16 + 7, np.int32)
    )
    return ewplan.Plan(
        tensors=(
            ewplan.Tensor(name="x", dtype="float32", shape=(FEATURES,)),
            ewplan.Tensor(name="x.q", dtype="uint8", shape=(FEATURES,), scale=X_SCALE, zero_point=ZERO),
            ewplan.Tensor(
                name="y.q", dtype="uint8", shape=(CLASSES,), scale=Y_SCALE, zero_point=ZERO, offset=64
            ),
            ewplan.Tensor(name="y", dtype="float32", shape=(CLASSES,)),
        ),
        ranges=(where("fc.weight"), where("fc.bias")),
        ops=(
            ewplan.Quantize(x=0, y=1, order=(0,)),
            ewplan.FullyConnected(x=1, y=2, weight=0, bias=1, rescale=rescale),
            ewplan.Dequantize(x=2, y=3, order=(0,)),
        ),
        inputs=(0,),
        outputs=(3,),
        arena_bytes=128,
        weights_bytes=len(weights),
    )


def tiny_artifact(
    path: Path, *, seed: int = 0, changed: int = 0, broken: bool = False, name: str = "tiny"
) -> Artifact:
    """Writes the artifact; a broken one has golden outputs that its weights do not give."""
    weight, bias = arrays(seed=seed, changed=changed)
    weights = safetensors.numpy.save({"fc.weight": weight, "fc.bias": bias})
    plan = make_plan(weights)
    inputs = {"x": samples(8)}
    outputs = reference.run(plan, weights, inputs)
    if broken:
        outputs = {"y": outputs["y"] + np.float32(Y_SCALE)}
    return write_artifact(
        path,
        name=name,
        producer="tests",
        targets=("x86-avx2",),
        inputs=(port("x", FEATURES, X_SCALE),),
        outputs=(port("y", CLASSES, Y_SCALE),),
        files={
            "plan.bin": ewplan.encode(plan),
            "weights.safetensors": weights,
            "model.onnx": float_onnx(weight, bias),
            "golden.npz": encode_golden(inputs, outputs),
        },
    )


def rewrite_golden(
    artifact: Artifact, inputs: dict[str, npt.NDArray[Any]], outputs: dict[str, npt.NDArray[Any]]
) -> Artifact:
    """The same artifact with other golden vectors."""
    files = {name: artifact.read(name) for name in artifact.files}
    return write_artifact(
        artifact.path,
        name=artifact.name,
        producer=artifact.producer,
        targets=artifact.targets,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        files={**files, "golden.npz": encode_golden(inputs, outputs)},
    )


def samples(count: int, *, seed: int = 1) -> npt.NDArray[np.float32]:
    """Inputs on the quantizer's grid, well inside its range."""
    integers = np.random.default_rng(seed).integers(-100, 100, (count, FEATURES))
    return (integers * X_SCALE).astype(np.float32)


def port(name: str, features: int, scale: float) -> Port:
    return Port(
        name=name,
        shape=(None, features),
        dtype="float32",
        scale=scale,
        zero_point=ZERO,
        minimum=-2.0,
        maximum=2.0,
    )


def float_onnx(weight: npt.NDArray[Any], bias: npt.NDArray[Any]) -> bytes:
    """The same layer in float arithmetic, clipped to what the integers can say."""
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    constants = {
        "w": (weight.T * W_SCALE).astype(np.float32),
        "b": (bias * X_SCALE * W_SCALE).astype(np.float32),
        "low": np.float32(-ZERO * Y_SCALE),
        "high": np.float32((255 - ZERO) * Y_SCALE),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
            helper.make_node("Clip", ["z", "low", "high"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", kind, ["N", FEATURES])],
        [helper.make_tensor_value_info("y", kind, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def tiny_in_parts(path: Path, *, onnx_first: bool = False) -> Artifact:
    """The same layer, its result summed up by ONNX Runtime; or its input summed up before it."""
    weight, bias = arrays(seed=0)
    weights = safetensors.numpy.save({"fc.weight": weight, "fc.bias": bias})
    names = ("x", "m", "y")
    read, given = names[1:] if onnx_first else names[:2]
    plan = make_plan(weights)
    tensors = tuple(replace(t, name={"x": read, "y": given}.get(t.name, t.name)) for t in plan.tensors)
    program = ewplan.encode(replace(plan, tensors=tensors))
    x = samples(8)
    if onnx_first:
        values = {"x": x, "m": np.cumsum(x, 1, np.float32)}
        values["y"] = reference.run(plan, weights, {"x": values["m"]})["y"]
    else:
        values = {"x": x, "m": reference.run(plan, weights, {"x": x})["y"]}
        values["y"] = np.cumsum(values["m"], 1, np.float32)
    size = FEATURES if onnx_first else CLASSES
    sums = running_sums(*(names[:2] if onnx_first else names[1:]), size)
    files = ["part-0.onnx", "part-1.bin"] if onnx_first else ["part-0.bin", "part-1.onnx"]
    return write_artifact(
        path,
        name="tiny",
        producer="tests",
        targets=("x86-avx2",),
        inputs=(port("x", FEATURES, X_SCALE),),
        outputs=(port("y", CLASSES, Y_SCALE),),
        files={
            **{f: program if f.endswith("bin") else sums for f in files},
            "weights.safetensors": weights,
            "model.onnx": float_onnx(weight, bias),
            "golden.npz": encode_golden({"x": x}, {"y": values["y"]}, values={"m": values["m"]}),
        },
        parts=tuple(
            Part(file=f, inputs=(a,), outputs=(b,))
            if f.endswith("bin")
            else Part(file=f, inputs=(a,), outputs=(b,), operators=("CumSum",), tolerance=1e-4)
            for f, a, b in zip(files, names[:2], names[1:], strict=True)
        ),
    )


def running_sums(read: str, given: str, size: int, *, factor: float = 1.0) -> bytes:
    """An ONNX file that sums up along an axis."""
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("CumSum", [read, "axis"], ["s"]),
            helper.make_node("Mul", ["s", "factor"], [given]),
        ],
        "sums",
        [helper.make_tensor_value_info(read, kind, ["N", size])],
        [helper.make_tensor_value_info(given, kind, ["N", size])],
        [
            numpy_helper.from_array(np.array(1, np.int64), "axis"),
            numpy_helper.from_array(np.array(factor, np.float32), "factor"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
