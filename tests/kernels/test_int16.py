"""Activations of 16 bits: the same bits on every path, right to a step, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgewright_kernels import Engine, PlanError, cpu_paths, reference
from edgewright_kernels import plan as ir
from kernels.plans import Draw, Program, exponentials, rescale

WIDE = (-32768, 32767)
DTYPES: tuple[ir.DType, ...] = ("uint8", "int16")


def same_bits_everywhere(p: Program, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    plan = p.plan()
    expected = reference.run(plan, p.weights, inputs)
    for cpu in cpu_paths():
        found = Engine(ir.encode(plan), p.weights, cpu=cpu).run(inputs)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, strict=True, err_msg=cpu)
    return expected


def ends(y: ir.DType) -> tuple[int, int]:
    return WIDE if y == "int16" else (0, 255)


@pytest.mark.parametrize("y", DTYPES)
@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("terms", [*range(1, 20), 31, 32, 33, 64, 65, 500])
def test_every_tail_of_terms_and_channels_is_exact(terms: int, x: ir.DType, y: ir.DType) -> None:
    draw = Draw(terms)
    for outputs in (1, 7, 8, 9, 15, 16, 17, 24, 33):
        p = Program()
        of = p.input("x", (1 + terms % 7, terms), zero_point=draw.zero_point(), dtype=x)
        spread = 127.0 * terms * (128 if x == "int16" else 1)
        weight, scale = draw.weight((outputs, terms), x=x), draw.rescale(outputs, spread, y)
        p.output("y", p.fully_connected(of, weight, draw.bias(outputs), scale, 11, dtype=y))
        same_bits_everywhere(p, draw.inputs(p.plan(), 1))


def _at_the_edge(past: int) -> tuple[Program, dict[str, np.ndarray]]:
    """Sums of 32,768 * 65,535 and a bias that leave 32 bits by `past`."""
    weight = np.full((3, 517), 127, np.int8)
    weight[:, 516] = 3  # 516 * 127 + 3 = 65,535
    bias = np.full(3, 2**31 - 1 - 32768 * 65535 + past, np.int32)
    weight[1], bias[1] = -weight[1], -bias[1]
    p = Program()
    x = p.input("x", (2, 517), dtype="int16")
    p.output("y", p.fully_connected(x, weight, bias, rescale([1 << 30] * 3, [46] * 3, *WIDE), dtype="int16"))
    values = np.full((1, 2, 517), -32768, np.float32)
    values[:, 1] = 32767
    return p, {"x": values}


def test_accumulators_that_fill_32_bits_are_exact() -> None:
    p, inputs = _at_the_edge(0)
    same_bits_everywhere(p, inputs)


def test_accumulators_that_could_leave_32_bits_are_refused() -> None:
    p, _ = _at_the_edge(1)
    data = ir.encode(p.plan())
    message = r"operator 1 \(FullyConnected\): output channel 0 can reach 2147483648, beyond 32 bits"
    with pytest.raises(PlanError, match=message):
        reference.check_weights(p.plan(), p.weights)
    with pytest.raises(PlanError, match=message):
        Engine(data, p.weights)


@pytest.mark.parametrize("y", DTYPES)
@pytest.mark.parametrize("shift", [1, 2, 17, 18, 19, 31, 32, 33, 54, 55, 61, 62])
@pytest.mark.parametrize("multiplier", [0, 1, 12345, (1 << 31) - 1])
def test_every_end_of_the_rescale_is_exact(multiplier: int, shift: int, y: ir.DType) -> None:
    rng = np.random.default_rng(1)
    bias = np.array([0, 1, -1, 2**31 - 1 - 127 * 32768, -(2**31) + 1 + 127 * 32768], np.int32)
    low, high = ends(y)
    for clamps in ((low, high), (17, 17), (low + 100, high - 100)):
        p = Program()
        x = p.input("x", (1,), dtype="int16")
        scale = rescale([multiplier] * 5, [shift] * 5, *clamps)
        weight = np.array([[127], [-127], [127], [-127], [127]], np.int8)
        p.output("dense", p.fully_connected(x, weight, bias, scale, 9, dtype=y))
        a, b = (p.input(n, (40,), dtype="int16") for n in "ab")
        both = rescale([multiplier] * 2, [shift] * 2, *clamps)
        p.output("sum", p.add(a, b, both, 9, dtype=y))
        one = rescale(multiplier, shift, *clamps)
        p.output("product", p.multiply(a, b, one, 9, dtype=y))
        c = p.input("c", (40,), zero_point=255)
        p.output("mixed sum", p.add(a, c, both, 9, dtype=y))
        p.output("mixed product", p.multiply(c, b, one, 9, dtype=y))
        p.output("same", p.requantize(a, one, 9, dtype=y))
        p.output("each", p.requantize(a, rescale([multiplier] * 40, [shift] * 40, *clamps), 9, dtype=y))
        values = rng.choice(np.array([-32768, -1, 0, 1, 32767], np.float32), (2, 3, 40))
        inputs = {"a": values[0], "b": values[1], "x": np.array([[-32768], [0], [32767]], np.float32)}
        inputs["c"] = rng.choice(np.array([-255, -1, 0], np.float32), (3, 40))
        same_bits_everywhere(p, inputs)


@pytest.mark.parametrize("shift", [1, 18, 19, 20, 31, 32, 33, 54, 55, 62])
@pytest.mark.parametrize("multiplier", [0, 1, 1 << 30, (1 << 31) - 1])
def test_sums_of_uint8_become_int16_exactly_by_every_factor(multiplier: int, shift: int) -> None:
    """Sums of each size, those where int16 saturates by a factor of a half among them."""
    rng = np.random.default_rng(shift)
    edges = [sign * (1 << 17) + off for sign in (1, -1) for off in (-2, -1, 0, 1, 2)]
    bias = np.array(
        [0, 1, -1, 2**31 - 1 - 127 * 255, -(2**31) + 1 + 127 * 255, *edges, *rng.integers(-40000, 40000, 28)],
        np.int32,
    )
    for low, high in (WIDE, (-30000, 77)):
        p = Program()
        x = p.input("x", (13, 1))
        scale = rescale([multiplier] * len(bias), [shift] * len(bias), low, high)
        weight = rng.choice(np.array([-127, 1, 127], np.int8), (len(bias), 1))
        p.output("dense", p.fully_connected(x, weight, bias, scale, dtype="int16"))
        a, b = p.input("a", (13, 40), zero_point=255), p.input("b", (40, 35), zero_point=3)
        p.output("product", p.matmul(a, b, rescale(multiplier, shift, low, high), dtype="int16"))
        inputs = {"x": np.linspace(0, 255, 13, dtype=np.float32).reshape(1, 13, 1)}
        inputs["a"] = rng.choice([-255.0, -3.0, 0.0], (1, 13, 40)).astype(np.float32)
        inputs["b"] = rng.choice([-3.0, 0.0, 1.0, 252.0], (1, 40, 35)).astype(np.float32)
        same_bits_everywhere(p, inputs)


def test_a_convolution_of_three_by_three_gives_int16_exactly() -> None:
    for draw, channels in ((Draw(1), 16), (Draw(2), 32)):
        p = Program()
        x = p.input("x", (9, 11, channels), zero_point=draw.zero_point())
        window = ir.Window(kernel=(3, 3), padding=(1, 1, 1, 1))
        weight, scale = draw.weight((48, channels, 3, 3)), draw.rescale(48, 40000.0 * 8, "int16")
        p.output("y", p.convolution(x, weight, draw.bias(48), window, scale, dtype="int16"), (0, 1, 2))
        same_bits_everywhere(p, draw.inputs(p.plan(), 2))


def test_nan_infinity_halves_and_extremes_quantize_as_specified() -> None:
    halves = np.arange(-40000, 40000, 61, dtype=np.float32) + np.float32(0.5)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 3.4e38, -3.4e38, 1e-45], np.float32)
    values = np.concatenate([special, halves, np.nextafter(halves, np.float32(0))])
    for scale in (1.0, float(np.float32(0.1)), float(np.float32(1e-40))):
        p = Program()
        p.output("y", p.input("x", (len(values),), scale=scale, dtype="int16"))
        found = same_bits_everywhere(p, {"x": values[None]})
        if scale == 1.0:
            np.testing.assert_array_equal(found["y"][0, :4], [0, 32767, -32768, 0])


def line(function: Any, x_scale: float, y_scale: float, zero_point: int, y: ir.DType) -> np.ndarray:
    """The table of a function of int16, as the exporter makes it."""
    real = np.vectorize(function)(np.arange(-256, 257) * 128 * x_scale)
    low, high = ends(y)
    table: np.ndarray = np.clip(np.rint(128 * (real / y_scale + zero_point)), 128 * low, 128 * high)
    return table.astype(np.int32)


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def test_a_lookup_of_every_int16_is_exact_and_right_to_a_step() -> None:
    x_scale = 10 / 32768
    cases: tuple[tuple[ir.DType, float, int, float], ...] = (
        ("int16", 10 / 32768, 0, 1.01),  # the last entry is that of 32,768, which is not there
        ("uint8", 10.2 / 255, 4, 0.53),
    )
    for y, y_scale, zero_point, most in cases:
        p = Program()
        x = p.input("x", (65536,), scale=x_scale, dtype="int16")
        table = line(gelu, p.tensors[x].scale, y_scale, zero_point, y)
        of = p.lookup(x, table, dtype=y)
        p.output("y", of)
        q = np.arange(-32768, 32768)
        found = same_bits_everywhere(p, {"x": (q * p.tensors[x].scale).astype(np.float32)[None]})["y"][0]
        low, high = (end - zero_point for end in ends(y))
        exact = np.clip(np.vectorize(gelu)(q * p.tensors[x].scale) / y_scale, low, high)
        assert np.abs(found - zero_point - exact).max() < most


@pytest.mark.parametrize("scale", [2.0**-15, 0.003, 0.05, 1.0])
@pytest.mark.parametrize("columns", [2, 128, 1000])
def test_softmax_of_int16_is_right_to_a_step(scale: float, columns: int) -> None:
    p = Program()
    x = p.input("x", (6, columns), scale=scale, dtype="int16")
    y = p.softmax(x, None, rescale(1 << 30, 38))
    p.output("y", y)
    values = np.random.default_rng(columns).normal(0, 4, (2, 6, columns)).astype(np.float32)
    values[0, 0, 0], values[0, 1] = 40000 * scale, -40000 * scale
    traced = reference.trace(p.plan(), b"", {"x": values})
    q = traced[p.tensors[x].name].astype(np.float64) * p.tensors[x].scale
    exact = torch.softmax(torch.from_numpy(q), -1).numpy()
    apart = np.abs(traced[p.tensors[y].name].astype(np.int64) - np.clip(exact * 256, 0, 255))
    assert apart.max() < 0.51 + 256 * columns * 2.0**-16
    same_bits_everywhere(p, {"x": values})


def test_a_row_that_is_wholly_masked_gives_nothing() -> None:
    p = Program()
    x, mask = p.input("x", (2, 20), dtype="int16"), p.input("mask", (2, 1), zero_point=7)
    p.output("y", p.softmax(x, mask, rescale(1 << 30, 38), 3))
    values = np.full((1, 2, 20), -32768, np.float32)
    found = same_bits_everywhere(p, {"x": values, "mask": np.array([[[0], [1]]], np.float32)})["y"]
    np.testing.assert_array_equal(found[0, 0], np.zeros(20))
    assert (found[0, 1] > 0).all()


@pytest.mark.parametrize("y", DTYPES)
@pytest.mark.parametrize("columns", [2, 5, 384, 4096])
@pytest.mark.parametrize("spread", [20.0, 3000.0, 30000.0])
def test_layer_norm_of_int16_is_right_to_a_step(columns: int, spread: float, y: ir.DType) -> None:
    rng = np.random.default_rng(columns)
    gain, offset = rng.normal(1, 0.5, columns), rng.normal(0, 0.5, columns)
    x_scale, y_scale = 2.0**-10, 0.0625 if y == "uint8" else 2.0**-11
    shift, zero_point = (24, 128) if y == "uint8" else (24, 0)
    epsilon = max(1, round(columns**2 * 1e-5 / x_scale**2))
    p = Program()
    x = p.input("x", (5, columns), scale=x_scale, dtype="int16")
    of = p.layer_norm(
        x,
        np.rint(gain / y_scale * 2.0 ** (shift - 15)).astype(np.int64),
        np.rint(offset / y_scale * 2.0**shift).astype(np.int64),
        epsilon,
        rescale(1, shift, *ends(y)),
        zero_point,
        dtype=y,
    )
    p.output("y", of)
    values = (rng.normal(0, spread, (2, 5, columns)) * x_scale).astype(np.float32)
    values[0, 0] = 0
    values[0, 1] = np.where(np.arange(columns) % 2, 40, -40)
    traced = reference.trace(p.plan(), b"", {"x": values})
    exact = torch.from_numpy(traced[p.tensors[x].name] * x_scale)
    wanted = functional.layer_norm(
        exact, (columns,), torch.from_numpy(gain), torch.from_numpy(offset), epsilon * x_scale**2 / columns**2
    ).numpy()
    low, high = (end - zero_point for end in ends(y))
    found = traced[p.tensors[of].name].astype(np.int64) - zero_point
    apart = np.abs(found - np.clip(wanted / y_scale, low, high))
    assert apart.max() < (0.52 if y == "uint8" else 0.8)
    same_bits_everywhere(p, {"x": values})


def test_layer_norm_of_the_longest_rows_of_extremes_is_exact() -> None:
    values = np.full((4, 32768), -32768, np.float32)
    values[1, ::2] = 32767
    values[2, 0] = 32767
    values[3] = 32767
    for epsilon in (1, 1 << 60):
        p = Program()
        x = p.input("x", (4, 32768), dtype="int16")
        gain = np.full(32768, (1 << 31) - 1)
        y = p.layer_norm(x, gain, np.zeros(32768, np.int64), epsilon, rescale(1, 31, *WIDE), dtype="int16")
        p.output("y", y)
        same_bits_everywhere(p, {"x": values[None]})


def test_a_multiplier_per_channel_scales_each_channel_by_its_own() -> None:
    p = Program()
    x = p.input("x", (2, 3), dtype="int16")
    p.output("y", p.requantize(x, rescale([1 << 20, 1 << 19, 1 << 18], [20, 20, 20]), 100))
    found = same_bits_everywhere(p, {"x": np.array([[[40, 40, 40], [-80, -80, 99999]]], np.float32)})["y"]
    np.testing.assert_array_equal(found[0], [[40, 20, 10], [-80, -40, 155]])


def test_average_and_largest_of_int16_over_volumes_are_exact() -> None:
    draw = Draw(3)
    window = ir.Window(kernel=(2, 3, 2), padding=(1, 1, 0, 0, 1, 1), stride=(1, 2, 1))
    p = Program()
    x = p.input("x", (4, 5, 3, 70), dtype="int16")
    p.output("average", p.average_pool(x, window, rescale(1 << 28, 31, *WIDE), dtype="int16"), (0, 1, 2, 3))
    p.output("largest", p.max_pool(x, window), (0, 1, 2, 3))
    same_bits_everywhere(p, {"x": draw.rng.choice([-32768.0, 32767.0], (2, 4, 5, 3, 70)).astype(np.float32)})


# What is refused


def both_refuse(p: Program, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ir.check(p.plan())
    with pytest.raises(ValueError, match=message):
        ir.encode(p.plan())


def test_operators_of_uint8_alone_say_so() -> None:
    p = Program()
    a = p.input("a", (2, 3), dtype="int16")
    y = p.value((2, 2))
    p.ops.append(ir.MatMul(a=a, b=a, y=y, transpose_b=True, rescale=rescale(1, 1)))
    p.output("y", y)
    both_refuse(p, r"operator 1 \(MatMul\): takes uint8; 't1' is int16")
    p = Program()
    along = ir.Interpolation(first=(0,), second=(0,), fraction=(0,))
    p.output("y", p.resize(p.input("x", (1, 1, 1), dtype="int16"), along, along, rescale(1, 1)))
    both_refuse(p, r"\(Resize\): takes uint8; 't1' is int16")


def test_moving_between_dtypes_is_refused() -> None:
    p = Program()
    x, y = p.input("x", (4,), dtype="int16"), p.value((4,))
    p.ops.append(ir.Reshape(x=x, y=y))
    p.output("y", y)
    both_refuse(p, "gives int16; 't2' is uint8")


def test_int16_has_no_zero_point() -> None:
    p = Program()
    p.output("y", p.input("x", (4,), dtype="int16"))
    p.tensors[1] = replace(p.tensors[1], zero_point=1)
    both_refuse(p, "zero point 1 is not in 0..0")


def test_clamps_lie_within_the_dtype_of_the_result() -> None:
    cases: tuple[tuple[ir.DType, int, int], ...]
    cases = (("uint8", -1, 255), ("int16", -32769, 5), ("int16", 0, 32768))
    for y, low, high in cases:
        p = Program()
        x = p.input("x", (4,), dtype="int16")
        p.output("y", p.requantize(x, rescale(1, 1, low, high), dtype=y))
        both_refuse(p, f"clamps to {low}..{high}")


def test_entries_of_a_table_lie_within_the_dtype_of_the_result() -> None:
    p = Program()
    table = np.zeros(513, np.int32)
    table[7] = 255 * 128 + 1
    p.output("y", p.lookup(p.input("x", (4,), dtype="int16"), table))
    both_refuse(p, "an entry of its table is not in 0..32640")
    p = Program()
    p.output("y", p.lookup(p.input("x", (4,), dtype="int16"), table[:512]))
    both_refuse(p, "has 2048 bytes, 2052 are needed")


def test_softmax_of_int16_needs_both_of_its_tables() -> None:
    p = Program()
    x = p.input("x", (1, 4), scale=0.01, dtype="int16")
    p.output("y", p.softmax(x, None, rescale(1 << 30, 38)))
    op = p.ops[1]
    assert isinstance(op, ir.Softmax)
    p.ops[1] = replace(op, table=tuple(exponentials(replace(p.tensors[x], dtype="uint8")).tolist()))
    both_refuse(p, "256 values that start with 32768")


# Versions


def test_a_plan_of_uint8_alone_is_written_as_version_2() -> None:
    versions: tuple[tuple[ir.DType, int], ...] = (("uint8", 2), ("int16", 3))
    for dtype, version in versions:
        p = Program()
        p.output("y", p.requantize(p.input("x", (3,)), rescale(1, 1), dtype=dtype))
        assert ir.encode(p.plan())[8] == version
    p = Program()
    p.output("y", p.requantize(p.input("x", (3,)), rescale([1, 2, 3], [1, 1, 1])))
    assert ir.encode(p.plan())[8] == 3


def test_version_2_holds_nothing_of_version_3() -> None:
    p = Program()
    p.output("y", p.input("x", (3,), dtype="int16"))
    data = bytearray(ir.encode(p.plan()))
    data[8] = 2
    for read in (ir.decode, lambda d: Engine(d, b"")):
        with pytest.raises(PlanError, match="version 2 has neither int16 nor"):
            read(bytes(data))


def test_version_3_may_hold_what_version_2_does() -> None:
    p = Program()
    p.output("y", p.input("x", (3,)))
    data = bytearray(ir.encode(p.plan()))
    data[8] = 3
    assert ir.decode(bytes(data)) == p.plan()
    assert Engine(bytes(data), b"").run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[1, 1, 1]]
