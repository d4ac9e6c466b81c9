"""The quantized node cases of the ONNX backend test suite, on the native engine.

Each case becomes a plan of one operator between Quantize and Dequantize; the answers must be the suite's.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.backend.test.case import node as onnx_cases

from edgewright.lower import rescale
from edgewright.wiring import attributes
from edgewright_kernels import Engine, cpu_paths, reference
from edgewright_kernels.plan import (
    ByteRange,
    Convolution,
    Dequantize,
    MatMul,
    Op,
    Plan,
    Quantize,
    Rescale,
    Tensor,
    Window,
    encode,
)

Array = npt.NDArray[Any]

MODULES = (
    "convinteger",
    "dequantizelinear",
    "dynamicquantizelinear",
    "matmulinteger",
    "qlinearconv",
    "qlinearmatmul",
    "quantizelinear",
)
# What in a case's name puts it outside the operator set, and why.
OUTSIDE = {
    "axis": "one grid for each channel of an activation; the engine has one for all",
    "blocked": "one grid for each block of an activation",
    "e4m3fn": "8-bit floats",
    "e5m2": "8-bit floats",
    "float4": "4-bit floats",
    "int16": "16-bit activations",
    "int2": "2-bit values",
    "int4": "4-bit activations",
    "dynamic": "the grid is computed from the data in each call",
    "qlinearconv": "its one weight, less its zero point, is -255, beyond 8 bits",
}


@dataclass(frozen=True)
class Case:
    name: str
    operator: str
    given: Mapping[str, Any]
    inputs: tuple[Array, ...]
    output: Array


def cases() -> list[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite's own arithmetic
        for name in MODULES:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    found = {}
    for case in onnx_cases._NodeTestCases:
        (inputs, outputs), (node, *more) = case.data_sets[0], case.model.graph.node
        if not more:
            arrays = tuple(onnx.numpy_helper.to_array(v) if hasattr(v, "data_type") else v for v in inputs)
            found[case.name] = Case(case.name, node.op_type, attributes(node), arrays, outputs[0])
    return list(found.values())


CASES = cases()
INSIDE = [c for c in CASES if not any(part in c.name for part in OUTSIDE)]


def moved(x: Array, zero_point: Array) -> tuple[Array, int]:
    """8-bit values as uint8, with their zero point."""
    shift = 128 if x.dtype == np.int8 else 0
    return np.asarray(x.astype(np.int64) + shift, np.uint8), int(zero_point.item()) + shift


class Builder:
    """A plan of one operator over whole arrays; the batch around it is one."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []
        self.inputs: dict[str, Array] = {}
        self.at = 0

    def tensor(self, name: str, shape: tuple[int, ...], scale: float = 0.0, zero_point: int = 0) -> int:
        dtype: Any = "uint8" if scale else "float32"
        offset = self.at if scale else 0
        tensor = Tensor(
            name=name, dtype=dtype, shape=shape, scale=scale, zero_point=zero_point, offset=offset
        )
        self.tensors.append(tensor)
        self.at += -(-tensor.size_bytes // 64) * 64 if scale else 0
        return len(self.tensors) - 1

    def quantized(
        self, name: str, q: Array, scale: float, zero_point: int, order: tuple[int, ...] = ()
    ) -> int:
        """An input that holds the integers `q`, its axes then in `order`."""
        self.inputs[name] = ((q.astype(np.float32) - zero_point) * np.float32(scale))[np.newaxis]
        order = order or tuple(range(q.ndim))
        x = self.tensor(name, q.shape)
        y = self.tensor(f"{name}_q", tuple(q.shape[i] for i in order), scale, zero_point)
        self.ops.append(Quantize(x=x, y=y, order=order))
        return y

    def run(self, y: int, order: tuple[int, ...] = (), weights: bytes = b"\0") -> Array:
        """The values of tensor `y`, its axes in `order`: the same from the reference and from every path."""
        tensor = self.tensors[y]
        order = order or tuple(range(len(tensor.shape)))
        out = self.tensor("out", tuple(tensor.shape[i] for i in order))
        self.ops.append(Dequantize(x=y, y=out, order=order))
        plan = Plan(
            tensors=tuple(self.tensors),
            ranges=(ByteRange(offset=0, size=len(weights)),),
            ops=tuple(self.ops),
            inputs=tuple(i for i, t in enumerate(self.tensors[:-1]) if t.dtype == "float32"),
            outputs=(out,),
            arena_bytes=self.at,
            weights_bytes=len(weights),
        )
        exact: Array = reference.run(plan, weights, self.inputs)["out"]
        for path in cpu_paths():
            assert np.array_equal(Engine(encode(plan), weights, cpu=path).run(self.inputs)["out"], exact), (
                path
            )
        return np.asarray(exact[0])

    def integers(self, y: int, order: tuple[int, ...] = (), weights: bytes = b"\0") -> Array:
        """As `run`, as integers on the grid, zero point and all."""
        scale, zero_point = np.float32(self.tensors[y].scale), self.tensors[y].zero_point
        return np.rint(self.run(y, order, weights) / scale).astype(int) + zero_point


def change(factor: Array | float) -> Rescale:
    return rescale(np.atleast_1d(np.asarray(factor, np.float64)))


def quantize_linear(case: Case) -> None:
    x, scale, zero_point = case.inputs
    build = Builder()
    source = build.tensor("x", x.shape)
    build.inputs["x"] = x[np.newaxis]
    y = build.tensor("y", x.shape, scale.item(), zero_point.item())
    build.ops.append(Quantize(x=source, y=y, order=tuple(range(x.ndim))))
    assert np.array_equal(build.integers(y), case.output)


def dequantize_linear(case: Case) -> None:
    x, scale, zero_point = case.inputs
    build = Builder()
    y = build.quantized("x", x, scale.item(), zero_point.item())
    assert np.array_equal(build.run(y), case.output)


def span_of(expected: Array) -> int:
    """A zero point with which these int32 results fit 8 bits on a grid of step one."""
    low, high = min(int(expected.min()), 0), max(int(expected.max()), 0)
    assert high - low <= 255
    return -low


def mat_mul_integer(case: Case) -> None:
    a, b, a_zero, b_zero = case.inputs
    build = Builder()
    product(build, (a, 1.0, a_zero), (b, 1.0, b_zero), 1.0, span_of(case.output), case.output)


def q_linear_mat_mul(case: Case) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = case.inputs
    expected, zero_point = moved(case.output, y_zero)
    build = Builder()
    scales = [float(np.float32(s.item())) for s in (a_scale, b_scale, y_scale)]
    product(
        build, (a, scales[0], a_zero), (b, scales[1], b_zero), scales[2], zero_point,
        expected.astype(int) - zero_point,
    )  # fmt: skip


def product(
    build: Builder,
    a: tuple[Array, float, Array],
    b: tuple[Array, float, Array],
    scale: float,
    zero_point: int,
    expected: Array,
) -> None:
    numbers = []
    for name, (q, step, zero) in (("a", a), ("b", b)):
        unsigned, zero_of = moved(q, zero)
        numbers.append(build.quantized(name, unsigned, step, zero_of))
    y = build.tensor("y", expected.shape, scale, zero_point)
    factor = a[1] * b[1] / scale
    build.ops.append(MatMul(a=numbers[0], b=numbers[1], y=y, rescale=change(factor)))
    assert np.array_equal(build.integers(y) - zero_point, expected)


def conv_integer(case: Case) -> None:
    x, weight, x_zero = case.inputs[:3]
    weight_zero = case.inputs[3] if len(case.inputs) > 3 else np.zeros(1, np.uint8)
    centred = weight.astype(int) - weight_zero.reshape(-1, 1, 1, 1)
    build = Builder()
    source = build.quantized("x", x[0], 1.0, int(x_zero), (1, 2, 0))
    zero_point, (channels, height, width) = span_of(case.output), case.output.shape[1:]
    y = build.tensor("y", (height, width, channels), 1.0, zero_point)
    window = Window(kernel=weight.shape[2:], padding=tuple(case.given.get("pads", (0, 0, 0, 0))))
    factors = change(np.ones(channels))
    build.ops.append(Convolution(x=source, y=y, weight=0, window=window, rescale=factors))
    found = build.integers(y, (2, 0, 1), centred.astype(np.int8).tobytes())
    assert np.array_equal(found - zero_point, case.output[0])


LOWERED: dict[str, Callable[[Case], None]] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "MatMulInteger": mat_mul_integer,
    "QLinearMatMul": q_linear_mat_mul,
    "QuantizeLinear": quantize_linear,
}


@pytest.mark.parametrize("case", INSIDE, ids=lambda c: c.name)
def test_a_quantized_node_case_gives_the_answer_of_the_suite(case: Case) -> None:
    LOWERED[case.operator](case)


def test_the_suite_has_the_cases_that_are_meant() -> None:
    assert len(INSIDE) >= 13
    assert {c.operator for c in INSIDE} == LOWERED.keys()
    assert all(any(part in c.name for c in CASES) for part in OUTSIDE)
