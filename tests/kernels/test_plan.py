from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgewright_kernels import Engine, PlanError, UnsupportedError, reference
from edgewright_kernels import plan as ir
from kernels.plans import OPERATORS, Draw, Program, one_operator, rescale, small_cnn


def verdict(read: Callable[[], object]) -> str:
    try:
        read()
    except (PlanError, UnsupportedError) as error:
        return type(error).__name__
    return "accepted"


def verdicts(data: bytes, weights: bytes) -> tuple[str, str]:
    """What the two readers say, each with the checks on weights."""

    def in_python() -> None:
        plan = ir.decode(data)
        reference.check_weights(plan, weights)

    return verdict(in_python), verdict(lambda: Engine(data, weights))


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_a_plan_survives_the_round_trip(kind: str) -> None:
    for seed in range(20):
        plan = one_operator(kind, Draw(seed)).plan()
        assert ir.decode(ir.encode(plan)) == plan


def test_a_network_survives_the_round_trip() -> None:
    plan = small_cnn(Draw(1)).plan()
    assert ir.decode(ir.encode(plan)) == plan


def _small(seed: int = 1) -> tuple[bytes, bytes]:
    """The operators of images, few channels: a plan whose every byte can be tried."""
    draw = Draw(seed)
    p = Program()
    x = p.input("x", (4, 3, 2), scale=0.5, zero_point=3)
    window = ir.Window(kernel=(1, 2), padding=(0, 1, 0, 0))
    dense = p.convolution(x, draw.weight((2, 2, 1, 2)), draw.bias(2), window, draw.rescale(2, 999.0))
    deep = p.convolution(x, draw.weight((2, 1, 1, 2)), None, window, draw.rescale(2, 999.0), groups=2)
    joined = p.requantize(p.add(dense, deep, rescale([1 << 20, 1 << 20], [21, 21])), rescale(1 << 20, 20))
    half = ir.Window(kernel=(2, 1), stride=(2, 1))
    pooled = p.average_pool(p.max_pool(joined, half), half, rescale(1 << 20, 21))
    flat = p.flatten(pooled)
    p.output(
        "y", p.fully_connected(flat, draw.weight((2, 6), 4), draw.bias(2), draw.rescale(2, 99.0), bits=4)
    )
    return ir.encode(p.plan()), bytes(p.weights)


def _small_rows(seed: int = 1) -> tuple[bytes, bytes]:
    """The operators of attention, and those that move values."""
    draw = Draw(seed)
    p = Program()
    words = p.embedding(p.indices("i", (3,)), draw.weight((4, 2)), rescale(1 << 20, 20), 7)
    a = p.reshape(words, (1, 3, 2))
    scores = p.matmul(a, a, rescale(1 << 20, 30), 9, transpose_b=True)
    kept = p.slice(p.input("m", (1, 5)), (0, 0), (1, 2), (1, 3))
    shares = p.softmax(scores, kept, rescale(1 << 30, 38))
    joined = p.concat([p.transpose(p.matmul(shares, a, rescale(1 << 20, 28)), (0, 2, 1))] * 2, 2)
    gain = p.constant(np.array([[[3], [5]]], np.uint8))
    scaled = p.multiply(joined, gain, rescale(1 << 20, 24))
    norm = p.layer_norm(scaled, np.arange(6) << 8, np.arange(6) << 20, 5, rescale(1, 20), 128)
    p.output("y", p.lookup(norm, np.arange(256, dtype=np.uint8)[::-1]))
    two = ir.Interpolation(first=(0, 1), second=(1, 0), fraction=(0, 512))
    grown = p.transposed_convolution(
        p.resize(p.input("v", (2, 2, 2)), two, two, rescale(1 << 20, 40)),
        draw.weight((2, 1, 2, 1)),
        draw.bias(2),
        ir.Window(kernel=(2, 1), stride=(2, 1)),
        (1, 0),
        draw.rescale(2, 999.0),
        groups=2,
    )
    p.output("z", grown)
    return ir.encode(p.plan()), bytes(p.weights)


def _small_int16(seed: int = 1) -> tuple[bytes, bytes]:
    """What takes or gives int16: each of its forms once."""
    draw, wide = Draw(seed), (-32768, 32767)
    p = Program()
    x = p.input("x", (2, 3), scale=0.25, dtype="int16")
    narrow = p.requantize(x, rescale([1 << 20, 1 << 19, 1 << 18], [21, 21, 21]), 9)
    dense = p.fully_connected(
        x, draw.weight((2, 3)), draw.bias(2), rescale([1 << 20] * 2, [24] * 2, *wide), dtype="int16"
    )
    grown = p.matmul(narrow, narrow, rescale(1 << 20, 22, *wide), dtype="int16", transpose_b=True)
    shares = p.softmax(grown, None, rescale(1 << 30, 38))
    joined = p.add(dense, shares, rescale([1 << 20, 1 << 20], [21, 21], *wide), dtype="int16")
    norm = p.layer_norm(
        joined, np.arange(2) << 8, np.arange(2) << 20, 5, rescale(1, 20, *wide), dtype="int16"
    )
    rows = p.embedding(
        p.indices("i", (2,)), draw.weight((4, 2)), rescale([1, 1], [1, 1], *wide), dtype="int16"
    )
    sums = p.concat([p.transpose(norm, (1, 0)), rows], 0)
    halved = p.average_pool(
        sums, ir.Window(kernel=(2,), stride=(2,)), rescale(1 << 20, 21, *wide), dtype="int16"
    )
    curve = p.lookup(p.reshape(halved, (4,)), np.arange(513, dtype=np.int32) * 60)
    p.output("y", p.lookup(curve, np.arange(256, dtype=np.int16) - 99, dtype="int16"))
    return ir.encode(p.plan()), bytes(p.weights)


PLANS = (_small, _small_rows, _small_int16)


@pytest.mark.parametrize("make", PLANS)
def test_every_truncation_is_refused_by_both_readers(make: Callable[[], tuple[bytes, bytes]]) -> None:
    data, weights = make()
    for size in range(len(data)):
        assert verdicts(data[:size], weights) == ("PlanError", "PlanError"), size
    assert verdicts(data + b"\0", weights) == ("PlanError", "PlanError")


@pytest.mark.parametrize("make", PLANS)
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_judged_alike_by_both_readers(
    flip: int, make: Callable[[], tuple[bytes, bytes]]
) -> None:
    data, weights = make()
    seen: set[str] = set()
    for at in range(len(data)):
        hostile = bytearray(data)
        hostile[at] ^= flip
        python, native = verdicts(bytes(hostile), weights)
        assert python == native, at
        seen.add(native)
        if native != "accepted":
            continue
        plan = ir.decode(bytes(hostile))
        if max(t.size_bytes for t in plan.tensors) < 1 << 16:
            inputs = Draw(at).inputs(plan, 2)
            expected = reference.run(plan, weights, inputs)
            found = Engine(bytes(hostile), weights).run(inputs)
            assert list(found) == list(expected)
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value, err_msg=f"byte {at}")
    assert "accepted" in seen
    assert "PlanError" in seen


@pytest.mark.parametrize("make", PLANS)
def test_random_damage_is_judged_alike_by_both_readers(make: Callable[[int], tuple[bytes, bytes]]) -> None:
    data, weights = make(2)
    rng = np.random.default_rng(3)
    words = [0, 1, 2, 3, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFC0, 1 << 20, 4096]
    for case in range(2000):
        hostile = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, len(data) // 4)) * 4
            hostile[at : at + 4] = int(rng.choice(words)).to_bytes(4, "little")
        python, native = verdicts(bytes(hostile), weights)
        assert python == native, case


@pytest.mark.parametrize(
    "name", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x9f\xbf", b"\x80", b"\xc3", b"a\xff"]
)
def test_a_name_that_is_not_utf8_is_refused(name: bytes) -> None:
    p = Program()
    p.output("y" * len(name), p.input("x", (1,)))
    data = ir.encode(p.plan())
    hostile = data[: -2 * len(name) + len(name)] + name if data.endswith(b"y" * len(name)) else b""
    assert verdicts(hostile, b"") == ("PlanError", "PlanError")


@pytest.mark.parametrize("name", ["ü", "名前", "\U0001f600", "a\0b", "\ud7ff", "\U0010ffff"])
def test_a_name_may_be_any_utf8(name: str) -> None:
    p = Program()
    p.output(name, p.input("x", (1,)))
    data = ir.encode(p.plan())
    assert list(Engine(data, b"").run({"x": np.ones((1, 1), np.float32)})) == [name]
    assert ir.decode(data) == p.plan()


def _replaced(p: Program, number: int, **changes: object) -> ir.Plan:
    tensors = list(p.tensors)
    tensors[number] = replace(tensors[number], **changes)  # type: ignore[arg-type]
    return replace(p.plan(), tensors=tuple(tensors))


def test_a_value_overwritten_before_it_is_read_is_refused() -> None:
    p = Program()
    x = p.input("x", (4,))
    first = p.requantize(x, rescale(1, 1))
    second = p.requantize(x, rescale(1, 1))
    p.output("y", p.add(first, second, rescale([1, 1], [1, 1])))
    ir.check(p.plan())
    broken = _replaced(p, second, offset=p.tensors[first].offset)
    with pytest.raises(PlanError, match=r"operator 3 \(Add\): reads 't2' after it was overwritten"):
        ir.check(broken)


def test_a_shape_whose_product_wraps_is_refused() -> None:
    p = Program()
    p.output("y", p.input("x", (1,)))
    with pytest.raises(PlanError, match="elements"):
        ir.check(_replaced(p, 0, shape=(1 << 20,) * 6))


def test_encode_refuses_what_decode_would() -> None:
    p = Program()
    p.output("y", p.input("x", (3,)))
    with pytest.raises(ValueError, match="input 1 is not a float32 or int64 tensor"):
        ir.encode(replace(p.plan(), inputs=(1,)))


@pytest.mark.parametrize(
    ("at", "message"),
    [(8, "format version 4"), (None, "is of kind 99, which this engine does not know")],
)
def test_newer_plans_are_unsupported_not_damaged(at: int | None, message: str) -> None:
    p = Program()
    p.output("y", p.input("x", (3,)))
    data = bytearray(ir.encode(p.plan()))
    if at is None:
        operators_at = ir.HEADER.size + 3 * ir.TENSOR.size + 4 * 2
        assert data[operators_at] == 1
        data[operators_at] = 99
    else:
        data[at] = 4
    for read in (ir.decode, lambda d: Engine(d, b"")):
        with pytest.raises(UnsupportedError, match=message):
            read(bytes(data))


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "message"),
    [
        ((2, 2), (2, 0, 0, 0), (1, 1), "padding is as large"),
        ((9, 1), (0, 0, 0, 0), (1, 1), "does not fit"),
        ((2, 1), (4, 0, 4, 0), (5, 1), "dilation is larger"),
        ((0, 1), (0, 0, 0, 0), (1, 1), "out of bounds"),
        ((5000, 1), (0, 0, 0, 0), (1, 1), "out of bounds"),
    ],
)
def test_a_pool_that_could_see_padding_alone_is_refused(
    kernel: tuple[int, int], padding: tuple[int, int, int, int], dilation: tuple[int, int], message: str
) -> None:
    p = Program()
    x = p.input("x", (4, 4, 1))
    p.output("y", p.max_pool(x, ir.Window(kernel=(1, 1))))
    pool = p.ops[1]
    assert isinstance(pool, ir.MaxPool)
    p.ops[1] = replace(pool, window=ir.Window(kernel=kernel, padding=padding, dilation=dilation))
    with pytest.raises(PlanError, match=message):
        ir.check(p.plan())
