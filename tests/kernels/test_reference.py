from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgewright_kernels import plan as ir
from edgewright_kernels import reference
from kernels.plans import Draw, Program, one_operator, rescale


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("acc", "multiplier", "shift", "expected"),
    [
        (0, 5, 1, 0),
        (1, 1, 1, 1),  # a half rounds up
        (-1, 1, 1, 0),  # towards plus infinity, below zero too
        (3, 1, 1, 2),
        (-3, 1, 1, -1),
        (5, 3, 2, 4),  # 15 / 4 = 3.75
        (-5, 3, 2, -4),
        (2**31 - 1, 2**31 - 1, 62, 1),
        (-(2**31), 2**31 - 1, 62, -1),
        (2**31 - 1, 2**31 - 1, 1, ((2**31 - 1) ** 2 + 1) // 2),
        (123456, 1 << 30, 31, 61728),
        (1, 0, 62, 0),
    ],
)
def test_requantize_rounds_as_written(acc: int, multiplier: int, shift: int, expected: int) -> None:
    assert reference.requantize(acc, multiplier, shift) == expected
    assert expected == (acc * multiplier + 2 ** (shift - 1)) // 2**shift  # Python's own big integers


def test_requantize_agrees_with_big_integers_everywhere() -> None:
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**31), 2**31, 2000)
    multiplier, shift = rng.integers(0, 2**31, 2000), rng.integers(1, 63, 2000)
    found = reference.requantize(acc, multiplier, shift).tolist()
    for a, m, s, value in zip(acc.tolist(), multiplier.tolist(), shift.tolist(), found, strict=True):
        assert value == (a * m + 2 ** (s - 1)) // 2**s


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300, np.nan, np.inf, -np.inf], np.float32)
    y = ir.Tensor(name="y", dtype="uint8", shape=(10,), scale=1.0, zero_point=10)
    assert reference.quantize(x, y).tolist() == [10, 12, 12, 10, 8, 255, 0, 10, 255, 0]
    wide = ir.Tensor(name="y", dtype="int16", shape=(10,), scale=2.0**-7)
    found = reference.quantize(x, wide)
    assert found.dtype == np.int16
    assert found.tolist() == [64, 192, 320, -64, -192, 32767, -32768, 0, 32767, -32768]


def test_dequantize_is_one_multiplication() -> None:
    x = ir.Tensor(name="x", dtype="uint8", shape=(3,), scale=float(np.float32(0.1)), zero_point=3)
    found = reference.dequantize(np.array([0, 3, 255], np.uint8), x)
    np.testing.assert_array_equal(found, np.array([-3, 0, 252], np.float32) * np.float32(0.1))


def _rescaled(acc: torch.Tensor, op: ir.Op, y: ir.Tensor) -> list[object]:
    """float64 accumulators to outputs with Python's own integers."""
    assert isinstance(op, ir.Convolution | ir.TransposedConvolution | ir.FullyConnected)
    channel_last = acc.movedim(1, -1)
    flat = channel_last.reshape(-1, channel_last.shape[-1]).tolist()
    multiplier, shift = op.rescale.multiplier.tolist(), op.rescale.shift.tolist()
    rows = []
    for row in flat:
        for c, value in enumerate(row):
            assert value == int(value)
            m, s = multiplier[c % len(multiplier)], shift[c % len(shift)]
            q = (int(value) * m + 2 ** (s - 1)) // 2**s + y.zero_point
            rows.append(min(max(q, op.rescale.low), op.rescale.high))
    return rows


CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def _only(program: Program, kind: type[ir.Op]) -> int:
    """The number of the one operator of this kind."""
    return next(i for i, op in enumerate(program.ops) if isinstance(op, kind))


def _channels_first(values: dict[str, np.ndarray], t: ir.Tensor) -> torch.Tensor:
    return torch.from_numpy(values[t.name].astype(np.float64) - t.zero_point).movedim(-1, 1)


def _padded(x: torch.Tensor, window: ir.Window, fill: float = 0.0) -> torch.Tensor:
    axes = len(window.kernel)
    around = [(window.padding[i], window.padding[axes + i]) for i in reversed(range(axes))]
    return functional.pad(x, [n for pair in around for n in pair], value=fill)


@pytest.mark.parametrize("kind", ["dense", "dense_1d", "dense_3d", "pointwise", "depthwise", "grouped"])
def test_convolutions_agree_with_torch_in_float64(kind: str) -> None:
    for seed in range(25):
        draw = Draw(seed)
        program = one_operator(kind, draw)
        plan, number = program.plan(), _only(program, ir.Convolution)
        op = plan.ops[number]
        assert isinstance(op, ir.Convolution)
        values = reference.trace(plan, program.weights, draw.inputs(plan, 2))
        y_t = plan.tensors[op.y]
        weight, bias = reference.check_weights(plan, program.weights)[number]
        acc = CONVOLUTIONS[len(op.window.kernel)](
            _padded(_channels_first(values, plan.tensors[op.x]), op.window),
            torch.from_numpy(weight.astype(np.float64)),
            torch.from_numpy(bias.astype(np.float64)),
            stride=op.window.stride,
            dilation=op.window.dilation,
            groups=op.groups,
        )
        assert values[y_t.name].ravel().tolist() == _rescaled(acc, op, y_t)


def test_transposed_convolutions_agree_with_torch_in_float64() -> None:
    for seed in range(40):
        draw = Draw(seed)
        program = one_operator("transposed_convolution", draw)
        plan, number = program.plan(), _only(program, ir.TransposedConvolution)
        op = plan.ops[number]
        assert isinstance(op, ir.TransposedConvolution)
        values = reference.trace(plan, program.weights, draw.inputs(plan, 2))
        y_t = plan.tensors[op.y]
        weight, bias = reference.check_weights(plan, program.weights)[number]
        whole = TRANSPOSED[len(op.extra)](
            _channels_first(values, plan.tensors[op.x]),
            torch.from_numpy(weight.astype(np.float64)),
            torch.from_numpy(bias.astype(np.float64)),
            stride=op.window.stride,
            dilation=op.window.dilation,
            output_padding=op.extra,
            groups=op.groups,
        )
        inside = [slice(p, p + n) for p, n in zip(op.window.padding, y_t.shape[:-1], strict=False)]
        acc = whole[(slice(None), slice(None), *inside)]
        assert values[y_t.name].ravel().tolist() == _rescaled(acc, op, y_t)


def test_fully_connected_agrees_with_torch_in_float64() -> None:
    for seed in range(25):
        draw = Draw(seed)
        program = one_operator("fully_connected", draw)
        plan, number = program.plan(), _only(program, ir.FullyConnected)
        op = plan.ops[number]
        assert isinstance(op, ir.FullyConnected)
        values = reference.trace(plan, program.weights, draw.inputs(plan, 2))
        x_t, y_t = plan.tensors[op.x], plan.tensors[op.y]
        weight, bias = (
            torch.from_numpy(v * 1.0) for v in reference.check_weights(plan, program.weights)[number]
        )
        x = torch.from_numpy(values[x_t.name].astype(np.float64) - x_t.zero_point)
        acc = functional.linear(x, weight, bias).movedim(-1, 1)
        assert values[y_t.name].ravel().tolist() == _rescaled(acc, op, y_t)


def test_four_bit_weights_are_what_was_packed() -> None:
    draw = Draw(1)
    for columns in (1, 2, 5, 8):
        p = Program()
        weight = draw.weight((6, columns), 4)
        x = p.input("x", (columns,))
        p.output("y", p.fully_connected(x, weight, None, draw.rescale(6, 99.0), bits=4))
        assert p.ranges[0].size == 6 * -(-columns // 2)
        np.testing.assert_array_equal(reference.check_weights(p.plan(), p.weights)[1][0], weight)


def test_max_pool_agrees_with_torch() -> None:
    pools = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
    for seed in range(40):
        draw = Draw(seed)
        program = one_operator("max_pool", draw)
        plan = program.plan()
        op = plan.ops[_only(program, ir.MaxPool)]
        assert isinstance(op, ir.MaxPool)
        values = reference.trace(plan, b"", draw.inputs(plan, 2))
        x = torch.from_numpy(values[plan.tensors[op.x].name].astype(np.float64)).movedim(-1, 1)
        expected = pools[len(op.window.kernel)](
            _padded(x, op.window, -1.0), op.window.kernel, op.window.stride, dilation=op.window.dilation
        )
        found = values[plan.tensors[op.y].name].astype(np.float64)
        np.testing.assert_array_equal(found, expected.movedim(1, -1).numpy())


def test_average_pool_counts_padding_as_zero() -> None:
    p = Program()
    x = p.input("x", (2, 2, 1), zero_point=100)
    window = ir.Window(kernel=(2, 2), padding=(1, 1, 0, 0))
    p.output("y", p.average_pool(x, window, rescale(1 << 28, 30), zero_point=50))  # a quarter
    inputs = {"x": np.array([[[[8, 4], [-4, 20]]]], np.float32)}
    values = reference.trace(p.plan(), b"", inputs)
    # Sums: 8, 12, 4, 28.
    assert values[p.tensors[p.ops[1].y].name].ravel().tolist() == [52, 53, 51, 57]


def test_add_rounds_once() -> None:
    p = Program()
    a, b = p.input("a", (2,), zero_point=1), p.input("b", (2,), zero_point=2)
    p.output("y", p.add(a, b, rescale([1, 3], [2, 2]), zero_point=10))
    # (1 * 1 + 1 * 3 + 2) >> 2 = 1 and (-1 * 1 + 2 * 3 + 2) >> 2 = 1
    found = reference.run(
        p.plan(), b"", {"a": np.array([[1, -1]], np.float32), "b": np.array([[1, 2]], np.float32)}
    )
    assert found["y"].tolist() == [[1.0, 1.0]]


def test_flatten_is_in_the_order_of_pytorch() -> None:
    p = Program()
    p.output("y", p.flatten(p.input("x", (2, 3, 4))))
    x = np.arange(24, dtype=np.float32).reshape(1, 4, 2, 3)
    np.testing.assert_array_equal(reference.run(p.plan(), b"", {"x": x})["y"], x.reshape(1, 24))


def test_trace_keeps_every_tensor_as_the_plan_lays_it_out() -> None:
    draw = Draw(4)
    program = one_operator("dense", draw)
    plan = program.plan()
    values = reference.trace(plan, program.weights, draw.inputs(plan, 3))
    assert {name: (v.dtype.name, v.shape) for name, v in values.items()} == {
        t.name: (t.dtype, (3, *t.shape)) for t in plan.tensors
    }
