"""Tails, ends and limits of the operators without weights, on every path."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright_kernels import plan as ir
from kernels.plans import Draw, Program, rescale
from kernels.test_engine import same_bits_everywhere


def _ends(draw: Draw, p: Program, batch: int = 1) -> dict[str, np.ndarray]:
    """Inputs of 0 and 255 alone, as the tensors hold them."""
    plan = p.plan()
    found = {}
    for op in plan.ops:
        if isinstance(op, ir.Quantize):
            x, y = plan.tensors[op.x], plan.tensors[op.y]
            q = draw.rng.choice(np.array([0, 255], np.float32), (batch, *x.shape))
            found[x.name] = (q - np.float32(y.zero_point)) * np.float32(y.scale)
    return found


def _product(
    draw: Draw, rows: int, terms: int, columns: int, *, transposed: bool, zero_points: tuple[int, int]
) -> Program:
    p = Program()
    a = p.input("a", (rows, terms), zero_point=zero_points[0])
    b = p.input("b", (columns, terms) if transposed else (terms, columns), zero_point=zero_points[1])
    scale = draw.rescale(1, 30000.0 * terms**0.5)
    p.output("y", p.matmul(a, b, scale, draw.zero_point(), transpose_b=transposed))
    return p


@pytest.mark.parametrize("transposed", [False, True])
def test_every_tail_of_a_product_is_exact(transposed: bool) -> None:
    draw = Draw(1)
    for columns in (*range(1, 36), 47, 48, 49, 63, 64, 65, 97):
        rows, terms = draw.number(1, 30), draw.number(1, 70)
        zero_points = draw.zero_point(), draw.zero_point()
        p = _product(draw, rows, terms, columns, transposed=transposed, zero_points=zero_points)
        same_bits_everywhere(p, draw.inputs(p.plan(), 1))
    for terms in (*range(1, 36), 63, 64, 65):
        rows, columns = draw.number(1, 30), draw.number(1, 70)
        zero_points = draw.zero_point(), draw.zero_point()
        p = _product(draw, rows, terms, columns, transposed=transposed, zero_points=zero_points)
        same_bits_everywhere(p, draw.inputs(p.plan(), 1))
    for rows in range(1, 28):
        p = _product(draw, rows, 40, 40, transposed=transposed, zero_points=(128, 3))
        same_bits_everywhere(p, draw.inputs(p.plan(), 1))


@pytest.mark.parametrize("zero_points", [(0, 0), (0, 255), (255, 0), (255, 255), (128, 128), (0, 128)])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_largest_sums_of_a_product_are_exact(zero_points: tuple[int, int], transposed: bool) -> None:
    """33,025 products of 255^2, the most that a plan may ask for."""
    draw = Draw(2)
    for a, b in ((0, 0), (0, 255), (255, 0), (255, 255)):
        p = Program()
        x = p.input("a", (2, 33025), zero_point=zero_points[0])
        w = p.input("b", (3, 33025) if transposed else (33025, 3), zero_point=zero_points[1])
        p.output("y", p.matmul(x, w, rescale((1 << 31) - 1, 55), 128, transpose_b=transposed))
        ends = _ends(draw, p)
        for name, value, zero_point in (("a", a, zero_points[0]), ("b", b, zero_points[1])):
            ends[name][...] = value - zero_point
        same_bits_everywhere(p, ends)


@pytest.mark.parametrize("shift", [1, 20, 31, 32, 33, 53, 54, 55, 62])
def test_products_leave_by_every_shift(shift: int) -> None:
    draw = Draw(shift)
    for multiplier in (0, 1, 3, 1 << 30, (1 << 31) - 1):
        for low, high, zero_point in ((0, 255, 0), (0, 255, 255), (17, 17, 3), (100, 200, 128)):
            p = Program()
            a, b = p.input("a", (13, 9), zero_point=200), p.input("b", (9, 37), zero_point=40)
            p.output("y", p.matmul(a, b, rescale(multiplier, shift, low, high), zero_point))
            same_bits_everywhere(p, draw.inputs(p.plan(), 1))


@pytest.mark.parametrize("shift", [1, 31, 32, 36, 40, 54, 55, 62])
@pytest.mark.parametrize("mask", [None, "each", "row"])
def test_every_tail_of_a_softmax_is_exact(shift: int, mask: str | None) -> None:
    draw = Draw(shift)
    for values in (*range(1, 36), 63, 64, 65, 255, 300, 2047, 2048, 2049):
        p = Program()
        x = p.input("x", (3, values), scale=float(draw.rng.choice([1e-4, 0.05, 2.0])))
        masked = None
        if mask is not None:
            masked = p.input("mask", (3, values if mask == "each" else 1), zero_point=draw.number(0, 1))
        multiplier = int(draw.rng.choice([0, 1, 1 << 30, (1 << 31) - 1]))
        low, high = draw.clamps()
        p.output("y", p.softmax(x, masked, rescale(multiplier, shift, low, high), draw.zero_point()))
        inputs = draw.inputs(p.plan(), 1)
        if masked is not None:
            kept = draw.rng.random((3, 1)) < 0.7  # the other rows keep nothing
            zero_point = p.tensors[masked].zero_point
            inputs["mask"] = np.where(kept, draw.rng.integers(0, 2, inputs["mask"].shape[1:]), zero_point)
            inputs["mask"] = (inputs["mask"] - zero_point).astype(np.float32)[None]
        same_bits_everywhere(p, inputs)


@pytest.mark.parametrize("values", [*range(1, 36), 63, 64, 65, 768, 1000, 32768])
def test_every_tail_of_a_layer_norm_is_exact(values: int) -> None:
    draw = Draw(values)
    for shift in (1, 20, 30, 45, 62):
        for most in (100, (1 << 31) - 1):
            p = Program()
            x = p.input("x", (2, values), zero_point=draw.zero_point())
            gain = draw.rng.integers(-most, most + 1, values)
            limit = min(1 << 55, most << 23)
            offset = draw.rng.integers(-limit + 1, limit, values)
            p.output("y", p.layer_norm(x, gain, offset, 1, rescale(1, shift), draw.zero_point()))
            same_bits_everywhere(p, draw.inputs(p.plan(), 1))


def test_the_largest_normalized_values_are_exact() -> None:
    """One value apart from all others, which is the farthest that a value can be from the mean of its row."""
    draw = Draw(4)
    for values in (2, 64, 768, 32768):
        for odd_one, others in ((255, 0), (0, 255), (1, 0)):
            for shift in (23, 24, 25, 40):
                p = Program()
                x = p.input("x", (values,), zero_point=draw.zero_point())
                gain = draw.rng.choice(np.array([-(1 << 31), (1 << 31) - 1]), values)
                offset = draw.rng.choice(np.array([-(1 << 55) + 1, (1 << 55) - 1]), values)
                p.output("y", p.layer_norm(x, gain, offset, 1, rescale(1, shift), 128))
                row = np.full((1, values), others, np.float32)
                row[0, values // 2] = odd_one
                same_bits_everywhere(p, {"x": row - p.tensors[x].zero_point})


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 2048, 2049, 5000])
def test_every_value_and_every_tail_of_a_table_is_exact(count: int) -> None:
    draw = Draw(count)
    p = Program()
    x = p.input("x", (count,))
    p.output("y", p.lookup(x, draw.rng.permutation(256).astype(np.uint8)))
    values = (np.arange(3 * count) + np.arange(3).repeat(count) * 100) % 256
    same_bits_everywhere(p, {"x": values.reshape(3, count).astype(np.float32)})


@pytest.mark.parametrize("count", [1, 7, 8, 31, 32, 33, 63, 64, 65, 130])
def test_sums_and_products_of_pairs_leave_by_every_shift(count: int) -> None:
    """Around the multipliers and shifts where 32 bits stop being enough."""
    draw = Draw(count)
    for shift in (1, 15, 16, 17, 31, 32, 37, 38, 39, 54, 55, 62):
        for first in (0, 1, 0x7FFF7FFF, 0x7FFF8000, (1 << 31) - 1):
            second = int(draw.rng.choice([0, 3, 1 << 30, 0x7FFF7FFF, (1 << 31) - 1]))
            low, high = draw.clamps()
            p = Program()
            a, b = (p.input(name, (count,), zero_point=draw.zero_point()) for name in ("a", "b"))
            added = p.add(a, b, rescale([first, second], [shift, shift], low, high), draw.zero_point())
            p.output("sum", added)
            p.output("product", p.multiply(a, b, rescale(first, shift, low, high), draw.zero_point()))
            same_bits_everywhere(p, draw.inputs(p.plan(), 1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_every_size_become_pixels(channels: int) -> None:
    draw = Draw(channels)
    for height, width in ((1, 1), (1, 15), (4, 4), (1, 31), (4, 8), (3, 11), (8, 8), (7, 13), (40, 41)):
        p = Program()
        p.output("y", p.input("x", (height, width, channels), zero_point=draw.zero_point()))
        same_bits_everywhere(p, draw.inputs(p.plan(), 2))
