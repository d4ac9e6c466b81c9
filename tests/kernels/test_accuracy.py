"""The integer operators against the real functions they stand for: right to the step of the result's grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from edgewright_kernels import plan as ir
from edgewright_kernels import reference
from kernels.plans import Program, rescale

FloatArray = npt.NDArray[np.float64]


def factor(value: float) -> ir.Rescale:
    """A real factor as multiplier and shift."""
    shift = 31 - int(np.frexp(value)[1])
    return rescale(round(value * 2.0**shift), shift)


def real(p: Program, values: dict[str, np.ndarray], number: int) -> FloatArray:
    """A tensor's values in its own unit."""
    t = p.tensors[number]
    return (values[t.name].astype(np.float64) - t.zero_point) * t.scale


def traced(p: Program, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    return reference.trace(p.plan(), p.weights, {k: v.astype(np.float32) for k, v in inputs.items()})


def on_grid(p: Program, number: int, scale: float, zero_point: int) -> int:
    """Gives a result the grid that its rescale was made for."""
    t = p.tensors[number]
    p.tensors[number] = ir.Tensor(
        name=t.name, dtype=t.dtype, shape=t.shape, scale=scale, zero_point=zero_point, offset=t.offset
    )
    return number


def steps_apart(p: Program, values: dict[str, np.ndarray], y: int, expected: FloatArray) -> FloatArray:
    """How far each result is from the real one, in steps of its grid, where the grid holds the real one."""
    t = p.tensors[y]
    low, high = -t.zero_point * t.scale, (255 - t.zero_point) * t.scale
    difference: FloatArray = np.abs(real(p, values, y) - np.clip(expected, low, high)) / t.scale
    return difference


@pytest.mark.parametrize("scale", [2.0**-7, 0.05, 0.1, 0.35])
@pytest.mark.parametrize("columns", [2, 17, 128, 1000])
def test_softmax_is_right_to_a_step(scale: float, columns: int) -> None:
    scale = float(np.float32(scale))
    rng = np.random.default_rng(columns)
    p = Program()
    x = p.input("x", (6, columns), scale=scale, zero_point=131)
    y_scale = 1 / 256
    y = on_grid(p, p.softmax(x, None, factor(2.0**-16 / y_scale)), y_scale, 0)
    p.output("y", y)
    values = traced(p, x=rng.normal(0, 60 * scale, (2, 6, columns)))
    expected = torch.softmax(torch.from_numpy(real(p, values, x)), -1).numpy()
    apart = steps_apart(p, values, y, expected)
    assert apart.max() < 0.51 + 256 * columns * 2.0**-17  # half a step, and what rounding the table may add
    sums = real(p, values, y).sum(-1)
    assert np.abs(sums - 1).max() <= columns * y_scale / 2


def test_masked_values_are_left_out_of_softmax() -> None:
    rng = np.random.default_rng(1)
    p = Program()
    x = p.input("x", (3, 4, 30), scale=0.0625, zero_point=100, order=(0, 1, 2))
    mask = p.input("mask", (4, 30), zero_point=7)
    y = on_grid(p, p.softmax(x, mask, factor(2.0**-8)), 1 / 256, 0)
    p.output("y", y)
    kept = rng.integers(0, 2, (2, 4, 30))
    kept[:, 0] = 0  # a whole row
    values = traced(p, x=rng.normal(0, 3, (2, 3, 4, 30)), mask=kept)
    exact = torch.from_numpy(real(p, values, x)).masked_fill(torch.from_numpy(kept == 0)[:, None], -torch.inf)
    expected = torch.softmax(exact, -1).nan_to_num(0.0).numpy()
    assert steps_apart(p, values, y, expected).max() < 0.6
    assert not values[p.tensors[y].name][:, :, 0].any()


@pytest.mark.parametrize("spread", [3.0, 25.0, 120.0])
@pytest.mark.parametrize("columns", [2, 5, 64, 768, 4096])
def test_layer_norm_is_right_to_a_step(spread: float, columns: int) -> None:
    rng = np.random.default_rng(columns)
    gain, offset = rng.normal(1, 0.5, columns), rng.normal(0, 0.5, columns)
    x_scale, y_scale, shift = 0.03125, 0.0625, 24
    given = max(1, round(columns**2 * 1e-5 / x_scale**2))
    epsilon = given * x_scale**2 / columns**2
    p = Program()
    x = p.input("x", (5, columns), scale=x_scale, zero_point=121)
    y = p.layer_norm(
        x,
        np.rint(gain / y_scale * 2.0 ** (shift - 15)).astype(np.int64),
        np.rint(offset / y_scale * 2.0**shift).astype(np.int64),
        given,
        rescale(1, shift),
        128,
    )
    p.output("y", on_grid(p, y, y_scale, 128))
    values = traced(p, x=rng.normal(0, spread * x_scale, (2, 5, columns)))
    exact = torch.from_numpy(real(p, values, x))
    expected = functional.layer_norm(
        exact, (columns,), torch.from_numpy(gain), torch.from_numpy(offset), epsilon
    ).numpy()
    assert steps_apart(p, values, y, expected).max() < 0.52


def test_layer_norm_of_equal_values_is_its_offset() -> None:
    p = Program()
    x = p.input("x", (1, 300), zero_point=3)
    y = p.layer_norm(x, np.full(300, 1 << 20), np.full(300, 5 << 20), 1, rescale(1, 20), 128)
    p.output("y", y)
    for q in (0, 3, 255):
        values = traced(p, x=np.full((1, 1, 300), q - 3))
        assert set(values[p.tensors[y].name].ravel().tolist()) == {133}


@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul_is_right_to_a_step(transpose_b: bool) -> None:
    rng = np.random.default_rng(2)
    p = Program()
    a = p.input("a", (2, 3, 9, 70), scale=0.02, zero_point=120)
    b = p.input("b", (2, 3, 11, 70) if transpose_b else (2, 3, 70, 11), scale=0.05, zero_point=9)
    scales = p.tensors[a].scale * p.tensors[b].scale
    y = on_grid(p, p.matmul(a, b, factor(scales / 0.25), 128, transpose_b=transpose_b), 0.25, 128)
    p.output("y", y)
    values = traced(
        p, a=rng.normal(0, 0.8, (1, *p.tensors[a].shape)), b=rng.uniform(0, 5, (1, *p.tensors[b].shape))
    )
    second = real(p, values, b)
    expected = real(p, values, a) @ (second.swapaxes(-1, -2) if transpose_b else second)
    assert steps_apart(p, values, y, expected).max() < 0.501


def test_multiply_and_add_broadcast_and_are_right_to_a_step() -> None:
    rng = np.random.default_rng(3)
    for shape in ((4, 5, 6), (6,), (1, 6), (5, 1), (4, 1, 6), (1,)):
        p = Program()
        a = p.input("a", (4, 5, 6), scale=0.02, zero_point=120)
        b = p.input("b", shape, scale=0.05, zero_point=30)
        sa, sb = p.tensors[a].scale, p.tensors[b].scale
        product = on_grid(p, p.multiply(a, b, factor(sa * sb / 0.125), 90), 0.125, 90)
        both = rescale([round(sa / 0.0625 * 2**24), round(sb / 0.0625 * 2**24)], [24, 24])
        total = on_grid(p, p.add(a, b, both, 60), 0.0625, 60)
        p.output("product", product)
        p.output("total", total)
        given = {n: p.tensors[t].shape for n, t in (("a", p.inputs[0]), ("b", p.inputs[1]))}
        values = traced(p, **{n: rng.normal(1, 2, (2, *s)) for n, s in given.items()})
        left, right = real(p, values, a), real(p, values, b)
        right = right.reshape(2, *(1,) * (3 - len(shape)), *shape)
        assert steps_apart(p, values, product, left * right).max() < 0.501
        assert steps_apart(p, values, total, left + right).max() < 0.501


@pytest.mark.parametrize(
    ("mode", "size"), [("nearest", (8, 12)), ("bilinear", (8, 12)), ("bilinear", (3, 5))]
)
def test_resize_is_that_of_torch(mode: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    p = Program()
    x = p.input("x", (4, 6, 3), scale=0.5, zero_point=50)

    def along(old: int, new: int) -> ir.Interpolation:
        """PyTorch's align_corners=False."""
        if mode == "nearest":
            first = np.arange(new) * old // new
            return ir.Interpolation(first=tuple(first), second=tuple(first), fraction=(0,) * new)
        at = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
        first = np.floor(at).astype(int)
        fraction = np.rint((at - first) * 2048).astype(int)
        second = np.minimum(first + 1, old - 1)
        return ir.Interpolation(
            first=tuple(first.tolist()), second=tuple(second.tolist()), fraction=tuple(fraction.tolist())
        )

    y = p.resize(x, along(4, size[0]), along(6, size[1]), factor(2.0**-22), 50)
    p.output("y", on_grid(p, y, 0.5, 50))
    values = traced(p, x=rng.normal(20, 30, (2, 3, 4, 6)))
    exact = torch.from_numpy(real(p, values, x)).permute(0, 3, 1, 2)
    expected = functional.interpolate(exact, size, mode=mode).permute(0, 2, 3, 1).numpy()
    assert steps_apart(p, values, y, expected).max() < (1e-9 if mode == "nearest" else 0.6)


def test_embedding_gives_the_rows_it_is_asked_for() -> None:
    rng = np.random.default_rng(5)
    weight = rng.integers(-127, 128, (9, 4)).astype(np.int8)
    p = Program()
    y = p.embedding(p.indices("ids", (5,)), weight, rescale(1, 1), 128)
    p.ops[-1] = ir.Embedding(x=0, y=y, weight=0, rescale=rescale(1 << 20, 20))
    p.output("y", y)
    ids = rng.integers(0, 9, (3, 5))
    found = reference.run(p.plan(), p.weights, {"ids": ids})["y"]
    np.testing.assert_array_equal(found, weight[ids].astype(np.float32))


def test_values_are_moved_as_numpy_moves_them() -> None:
    rng = np.random.default_rng(6)
    p = Program()
    x = p.input("x", (4, 5, 6), order=(0, 1, 2))
    turned = p.transpose(x, (2, 0, 1))
    shaped = p.reshape(turned, (12, 10))
    joined = p.concat([shaped, shaped], 1)
    p.output("y", p.slice(joined, (1, 3), (3, 2), (4, 8)))
    q = rng.integers(0, 256, (2, 4, 5, 6))
    found = reference.run(p.plan(), b"", {"x": q.astype(np.float32)})["y"]
    expected = q.transpose(0, 3, 1, 2).reshape(2, 12, 10)
    expected = np.concatenate([expected, expected], 2)[:, 1:12:3, 3:19:2]
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_a_lookup_is_its_table() -> None:
    p = Program()
    table = np.random.default_rng(7).integers(0, 256, 256).astype(np.uint8)
    p.output("y", p.lookup(p.input("x", (256,)), table))
    found = reference.run(p.plan(), b"", {"x": np.arange(256, dtype=np.float32)[None]})["y"]
    np.testing.assert_array_equal(found[0], table.astype(np.float32))
