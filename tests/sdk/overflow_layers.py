"""Layers to test the overflow proof with, and a program that asks other runtimes about them.

    python -m sdk.overflow_layers CASES                 # ONNX Runtime
    python -m sdk.overflow_layers CASES openvino
    python -m sdk.overflow_layers FILE.onnx DATA.npz    # a network in ONNX Runtime

run where the runtime saturates, shows it CASES inputs of each layer and prints, as JSON, how often it differs
from the model of its kernel and from exact integers; of a network, how far it is from what it is when exact.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import numpy as np
from onnx import helper

from edgewright.integer_layers import IntegerLayer, OutputGrid
from edgewright.narrow_kernels import ONNX_RUNTIME, OPENVINO, Kernel
from edgewright.overflow import OverflowSafe, safe_integers, safe_scale
from edgewright.overflow_proof import risk
from edgewright.overflow_witness import (
    confirm,
    dequantized,
    layer_graph,
    run_stock,
    sums,
    witness,
)

# Kind, shape of the weight, groups, dilation: each way in which terms become pairs.
SHAPES: tuple[tuple[str, tuple[int, ...], int, int], ...] = (
    ("Gemm", (7, 33), 1, 1),
    ("MatMul", (16, 64), 1, 1),
    ("Conv", (8, 3, 3, 3), 1, 1),
    ("Conv", (16, 4, 3, 3), 1, 2),
    ("Conv", (16, 8, 1, 1), 1, 1),
    ("Conv", (6, 3, 3, 3), 2, 1),
    ("Conv", (8, 1, 3, 3), 4, 1),
    ("Conv", (5, 3, 5), 1, 1),
    ("Conv", (4, 3, 2, 2, 2), 1, 1),
)

SAFE = ("off", "pairs", "quads", "reduce_range", "limit")


def layer(
    weight: Any,
    *,
    kind: str = "Gemm",
    groups: int = 1,
    dilation: int = 1,
    dtype: Any = np.uint8,
    zero: int | None = None,
    low: int | None = None,
    high: int | None = None,
    bias: Any = None,
    grid: bool = True,
) -> IntegerLayer:
    """A layer with scales of 1, whose grid holds most of its sums; its range is by default its type's."""
    weight = np.asarray(weight, np.int8)
    rows, rank, limits = len(weight), weight.ndim - 2, np.iinfo(dtype)
    if kind == "Conv":
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], group=groups, dilations=[dilation] * rank, strides=[1] * rank
        )
    elif kind == "Gemm":
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    else:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    terms = weight.reshape(rows, -1)
    step = float(np.sqrt(terms.shape[1]) * 180)
    middle = 128 + int(limits.min)
    return IntegerLayer(
        name="layer",
        node=node,
        weight=weight,
        weight_zero=np.zeros(rows, np.int64),
        weight_scale=np.ones(rows),
        bias=np.zeros(rows, np.int64) if bias is None or kind == "MatMul" else np.asarray(bias, np.int64),
        groups=groups,
        value="x",
        scale=1.0,
        zero_point=middle if zero is None else zero,
        dtype=np.dtype(dtype),
        low=int(limits.min) if low is None else low,
        high=int(limits.max) if high is None else high,
        padded=False,
        output=OutputGrid(
            scale=step, zero_point=middle, low=int(limits.min), high=int(limits.max), dtype=np.dtype(dtype)
        )
        if grid
        else None,
        clamped=False,
    )


def drawn(random: np.random.Generator, at: int, dtype: Any, safe: str, grid: bool) -> IntegerLayer:
    """A layer of SHAPES with weights at random: as they come, safe in a way, or just at the limit."""
    kind, shape, groups, dilation = SHAPES[at]
    real = random.normal(size=shape)
    scale = (np.abs(real).reshape(len(real), -1).max(axis=1) / 127).astype(np.float32)
    if safe in ("pairs", "quads"):
        way: OverflowSafe = "pairs" if safe == "pairs" else "quads"
        weight = safe_integers(real, safe_scale(real, scale, way), way)
    else:
        weight = safe_integers(real, scale, "off")
    if safe == "reduce_range":
        weight = np.clip(np.rint(weight / 2), -64, 63).astype(np.int8)
    if safe == "limit":  # every pair sums to 128 or -128 exactly
        signs = random.choice([-1, 1], (shape[0], *[1] * (len(shape) - 1)))
        weight = np.broadcast_to(64 * signs, shape)
    bias = random.integers(-9000, 9000, shape[0])
    zero = int(random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1))
    return layer(
        weight, kind=kind, groups=groups, dilation=dilation, dtype=dtype, zero=zero, bias=bias, grid=grid
    )


def inputs(random: np.random.Generator, of: IntegerLayer, count: int) -> Any:
    """Layer inputs, at random and adversarial: a share of the values, drawn anew, are ends of the range."""
    rank = of.weight.ndim - 2
    spread = [d for a in of.node.attribute if a.name == "dilations" for d in a.ints] or [1] * rank
    size = [(k - 1) * d + 1 for k, d in zip(of.weight.shape[2:], spread, strict=True)]
    shape = (count, of.weight.shape[1] * of.groups, *size)
    x = random.integers(of.low, of.high + 1, shape)
    ends = random.random((count, *[1] * (len(shape) - 1)))
    lean = random.random((count, *[1] * (len(shape) - 1)))
    end = np.where(random.random(shape) < lean, of.high, of.low)
    return np.where(random.random(shape) < ends, end, x)


def of_output(of: IntegerLayer, x: Any, output: int) -> Any:
    """The terms of one output, (N, terms), of layer inputs."""
    rank = of.weight.ndim - 2
    spread = [d for a in of.node.attribute if a.name == "dilations" for d in a.ints] or [1] * rank
    channels = of.weight.shape[1]
    first = output // (len(of.weight) // of.groups) * channels
    cut = (slice(None), slice(first, first + channels), *(slice(None, None, d) for d in spread))
    return x[cut].reshape(len(x), -1)


def differing(of: IntegerLayer, kernel: Kernel, x: Any, got: Any) -> tuple[int, int, int]:
    """Results that are not what the kernel's model says; not the exact ones; and sums that overflowed."""
    wrong, inexact, overflowed = 0, 0, 0
    for output in range(len(of.weight)):
        exact, peer = sums(of, kernel, output, of_output(of, x, output))
        result = got.reshape(len(x), -1)[:, output]
        wrong += int((_off(of, peer, result) > 0).sum())
        inexact += int((_off(of, exact, result) > 0).sum())
        overflowed += int((exact != peer).sum())
    return wrong, inexact, overflowed


def _off(of: IntegerLayer, sums: Any, got: Any) -> Any:
    """How far results lie from these sums, beyond rounding, which may go either way midway of a step."""
    if of.output is None:
        return np.maximum(np.abs(sums - got) - 0.5, 0)
    grid = of.output
    steps = np.clip(sums / grid.scale, grid.low - grid.zero_point, grid.high - grid.zero_point)
    return np.maximum(np.abs(steps - got / grid.scale) - 0.501, 0)


def ask_openvino(of: IntegerLayer, x: Any) -> Any:
    """What OpenVINO makes of layer inputs."""
    import openvino

    model = layer_graph(of)
    rank = of.weight.ndim - 2
    for value, sizes in (
        (model.graph.input[0], x.shape),
        (model.graph.output[0], (len(x), len(of.weight), *[1] * rank)),
    ):
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    return compiled(dequantized(of, x))[0]


def about_layers(count: int, peer: str) -> list[dict[str, Any]]:
    """What the runtime makes of each layer."""
    kernel = OPENVINO if peer == "openvino" else ONNX_RUNTIME
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    ways = itertools.product(range(len(SHAPES)), (np.uint8, np.int8), SAFE)
    for at, dtype, safe in ways:
        kind, shape, groups, _ = SHAPES[at]
        grid = kind == "Conv" or safe != "limit" or kernel == OPENVINO
        of = drawn(random, at, dtype, safe, grid=grid)
        found = risk(of, kernel)
        few = min(count, 2000) if found.count else count
        total = [0, 0, 0]
        for _ in range(-(-few // 10_000)):
            x = inputs(random, of, min(few, 10_000))
            got = (
                ask_openvino(of, x) if kernel == OPENVINO else run_stock(layer_graph(of), dequantized(of, x))
            )
            for i, n in enumerate(differing(of, kernel, x, got)):
                total[i] += n
        row: dict[str, Any] = {
            "layer": f"{kind} {shape} {groups} {np.dtype(dtype).name} {safe}",
            "safe": safe,
            "pairs": found.count,
            "inputs": few,
            "not_the_model": total[0],
            "not_exact": total[1],
            "overflowed": total[2],
        }
        if found.count:
            told, tensor = witness(of, kernel, found)
            row["steps"] = told.steps
            row["confirmed"] = confirm(of, told, tensor) if kernel == ONNX_RUNTIME else ""
        rows.append(row)
    return rows


def about_network(path: str, data: str) -> float:
    """The largest difference, as a share of the range, that ONNX Runtime's own choice of kernels makes."""
    import onnx

    model = onnx.load(path)
    with np.load(data) as samples:
        x = samples["x"]
    name, result = model.graph.input[0].name, model.graph.output[0].name
    plain, exact = (run_stock(model, x, exact=e, names=(name, result)) for e in (False, True))
    return float(np.abs(plain - exact).max() / np.ptp(exact))


def main() -> None:
    """Prints what is asked for."""
    first, *more = sys.argv[1:]
    if first.isdigit():
        answer: Any = about_layers(int(first), more[0] if more else "onnxruntime")
    else:
        answer = about_network(first, more[0])
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
