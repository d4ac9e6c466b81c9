"""Small ONNX graphs built by hand, and the way from one to an integer program that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy
from onnx import helper, numpy_helper

from edgewright.calibrate import observe
from edgewright.graph import onnx_function
from edgewright.indices import tabulate
from edgewright.lower import lower
from edgewright.normalform import normalize
from edgewright.quantization import Quantized, activations_to_observe, quantize_graph
from edgewright.weights import byte_ranges
from edgewright_kernels import Engine, reference
from edgewright_kernels.plan import Plan, encode

FloatArray = npt.NDArray[np.float32]
FLOAT = onnx.TensorProto.FLOAT
Node = tuple[str, Sequence[str], str, Mapping[str, Any]]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> FloatArray:
    return (scale * rng(seed).standard_normal(shape)).astype(np.float32)


def corners_and_more(features: int) -> FloatArray:
    """Samples in [-1, 1] that fill a cube, its corners among them."""
    corners = np.array(list(product((-1, 1), repeat=features)), np.float32)
    inner = rng(9).uniform(-1, 1, (200, features)).astype(np.float32)
    return rng(9).permutation(np.concatenate([corners, inner]))


def graph(
    nodes: Sequence[Node],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int | None]],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 20,
    batch: str | int = "N",
    check: bool = True,
) -> onnx.ModelProto:
    """A model of (operator, inputs, output, attributes); shapes without the batch."""
    made = helper.make_graph(
        [helper.make_node(op, list(i), [o], name=f"{op.lower()}_{o}", **a) for op, i, o, a in nodes],
        "test",
        [helper.make_tensor_value_info(n, FLOAT, [batch, *s]) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, FLOAT, [batch, *s]) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    if check:
        onnx.checker.check_model(model)
    return model


def mlp(seed: int = 0, *, features: int = 8, hidden: int = 16, classes: int = 4) -> onnx.ModelProto:
    """Two fully connected layers with a ReLU between them."""
    return graph(
        [
            ("Gemm", ["x", "w1", "b1"], "h", {"transB": 1}),
            ("Relu", ["h"], "r", {}),
            ("Gemm", ["r", "w2", "b2"], "y", {"transB": 1}),
        ],
        {"x": (features,)},
        {"y": (classes,)},
        {
            "w1": normal(hidden, features, seed=seed),
            "b1": normal(hidden, seed=seed + 1),
            "w2": normal(classes, hidden, seed=seed + 2),
            "b2": normal(classes, seed=seed + 3),
        },
    )


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A float graph, its QDQ graph, and the integer program."""

    floating: onnx.ModelProto
    quantized: Quantized
    plan: Plan
    weights: bytes

    def native(self, feed: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """The engine's outputs, held to the reference's, bit for bit."""
        got: dict[str, FloatArray] = Engine(encode(self.plan), self.weights).run(dict(feed))
        want = reference.run(self.plan, self.weights, dict(feed))
        for name in want:
            assert got[name].tobytes() == want[name].tobytes()
        return got

    def unfused(self, feed: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """The QDQ graph in ONNX Runtime, operator by operator."""
        return onnx_function(self.quantized.model)(feed)

    def floats(self, feed: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return onnx_function(self.floating)(feed)


def quantize(model: onnx.ModelProto, samples: Mapping[str, FloatArray], **how: Any) -> Quantized:
    normal_form = tabulate(normalize(model))
    watched = [v.name for v in (*normal_form.graph.input, *normal_form.graph.output)]
    observed = observe(normal_form, watched + activations_to_observe(normal_form), samples)
    return quantize_graph(normal_form, observed, **how)


def lowered(model: onnx.ModelProto, samples: Mapping[str, FloatArray], **how: Any) -> Lowered:
    quantized = quantize(model, samples, **how)
    weights = safetensors.numpy.save(dict(sorted(quantized.weights.items())))
    return Lowered(
        floating=model,
        quantized=quantized,
        plan=lower(quantized.model, byte_ranges(weights), len(weights)),
        weights=weights,
    )
