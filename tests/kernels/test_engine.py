from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgewright_kernels import Engine, PlanError, UnsupportedError, cpu_paths, reference
from edgewright_kernels import plan as ir
from kernels.plans import OPERATORS, Draw, Program, one_operator, rescale, small_cnn


def same_bits(program: Program, inputs: dict[str, np.ndarray], cpu: str) -> None:
    plan = program.plan()
    expected = reference.run(plan, program.weights, inputs)
    engine = Engine(ir.encode(plan), program.weights, cpu=cpu)
    assert engine.cpu == cpu
    found = engine.run(inputs)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], value, strict=True)


def same_bits_everywhere(program: Program, inputs: dict[str, np.ndarray]) -> None:
    """As `same_bits`, on every path."""
    plan = program.plan()
    expected = reference.run(plan, program.weights, inputs)
    for cpu in cpu_paths():
        found = Engine(ir.encode(plan), program.weights, cpu=cpu).run(inputs)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, strict=True, err_msg=cpu)


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_random_operators_give_the_bits_of_the_reference(kind: str) -> None:
    for seed in range(150):
        draw = Draw(seed)
        program = one_operator(kind, draw)
        same_bits_everywhere(program, draw.inputs(program.plan(), draw.number(1, 5)))


@pytest.mark.parametrize("cpu", cpu_paths())
@pytest.mark.parametrize("shift", [1, 2, 31, 32, 33, 61, 62])
@pytest.mark.parametrize("multiplier", [0, 1, 12345, (1 << 31) - 1])
def test_every_end_of_the_rescale_gives_the_bits_of_the_reference(
    multiplier: int, shift: int, cpu: str
) -> None:
    """The whole 32-bit range of accumulators, between clamps that are and are not reached."""
    rng = np.random.default_rng(1)
    bias = np.array(
        [0, 1, -1, 2**31 - 1 - 127 * 255, -(2**31) + 1 + 127 * 255, *rng.integers(-(2**30), 2**30, 28)],
        np.int32,
    )
    for low, high, zero_point in ((0, 255, 0), (0, 255, 255), (17, 17, 3), (100, 200, 128)):
        p = Program()
        x = p.input("x", (1,))
        weight = rng.choice(np.array([-127, 127], np.int8), (33, 1))
        scale = rescale([multiplier] * 33, [shift] * 33, low, high)
        p.output("y", p.fully_connected(x, weight, bias, scale, zero_point))
        same_bits(p, {"x": np.array([[0], [1], [254], [255]], np.float32)}, cpu)
        p = Program()
        a, b = p.input("a", (40,), zero_point=0), p.input("b", (40,), zero_point=255)
        p.output("y", p.add(a, b, rescale([multiplier] * 2, [shift] * 2, low, high), zero_point))
        ends = rng.choice(np.array([0, 255], np.float32), (3, 40))
        same_bits(p, {"a": ends, "b": ends[::-1] - 255}, cpu)


@pytest.mark.parametrize("cpu", cpu_paths())
@pytest.mark.parametrize("terms", [*range(1, 36), 63, 64, 65, 1000])
def test_every_tail_of_terms_and_channels_is_exact(terms: int, cpu: str) -> None:
    draw = Draw(terms)
    for outputs in (1, 7, 8, 9, 15, 16, 17, 24, 33):
        p = Program()
        x = p.input("x", (1, 1 + terms % 7, terms), zero_point=draw.zero_point())
        weight = draw.weight((outputs, terms, 1, 1))
        window = ir.Window(kernel=(1, 1))
        scale = draw.rescale(outputs, 127.0 * terms)
        p.output("y", p.convolution(x, weight, draw.bias(outputs), window, scale, zero_point=11))
        same_bits(p, draw.inputs(p.plan(), 1), cpu)


def _weights_of_sums(terms: int, sums: list[int]) -> np.ndarray:
    """One output channel per entry: terms in pairs of equal sign, alternately so, each pair of that sum."""
    weight = np.zeros((len(sums), terms), np.int8)
    for row, total in zip(weight, sums, strict=True):
        for first in range(0, terms, 2):
            sign = 1 if first // 4 % 2 == 0 else -1
            row[first] = sign * min(127, total)
            if first + 1 < terms:
                row[first + 1] = sign * (total - min(127, total))
    return weight


@pytest.mark.parametrize("terms", [2, 4, 7, 8, 12, 33])
def test_weights_at_the_edge_of_sixteen_bits_are_exact(terms: int) -> None:
    """Weights that sum to 128 may be multiplied in 16 bits (255 * 128 = 32,640), to 129 not: pairs or fours.
    Activations are at the extremes, so that any sum that can leave 16 bits does."""
    for kept in (64, 65, 128, 129):
        for odd_one in (0, 129, 254):
            # Panels of one kind, and a panel where one channel differs from the others.
            weight = _weights_of_sums(terms, [kept] * 16 + [kept] * 15 + [odd_one or kept] + [kept] * 9)
            weight = np.concatenate([weight, np.abs(weight)])
            p = Program()
            x = p.input("x", (1, 7, terms), zero_point=3)
            scale = rescale([1 << 30] * len(weight), [44] * len(weight))
            shape = (*weight.shape, 1, 1)
            p.output(
                "y",
                p.convolution(
                    x, weight.reshape(shape), None, ir.Window(kernel=(1, 1)), scale, zero_point=128
                ),
            )
            ends = np.where(np.random.default_rng(terms).random((1, terms, 1, 7)) < 0.3, 0, 255).astype(
                np.float32
            )
            ends[..., 0] = 255
            ends[0, :, 0, 1] = np.where(np.arange(terms) // 4 % 2 == 0, 255, 0)
            same_bits_everywhere(p, {"x": ends - 3})


def test_results_beyond_the_fast_requantization_are_exact() -> None:
    """Shifts around 32 and 54, where the high half of a product stops being enough, channel by channel."""
    draw = Draw(8)
    for shift in (1, 20, 30, 31, 32, 33, 53, 54, 55, 56, 62):
        for multiplier in (1, 2, 3, (1 << 30) - 1, 1 << 30, (1 << 31) - 1):
            for groups, channels in ((1, 40), (40, 40)):
                p = Program()
                x = p.input("x", (3, 6, channels), zero_point=200)
                weight = draw.weight((channels, channels // groups, 1, 1))
                scale = rescale([multiplier] * channels, [shift] * channels)
                scale.shift[17] = 40
                window = ir.Window(kernel=(1, 1))
                p.output(
                    "y", p.convolution(x, weight, draw.bias(40), window, scale, groups=groups, zero_point=255)
                )
                same_bits_everywhere(p, draw.inputs(p.plan(), 1))


@pytest.mark.parametrize("channels", [1, 8, 15, 16, 17, 24, 31, 32, 33, 40, 48, 63, 80])
def test_every_tail_of_a_depthwise_convolution_is_exact(channels: int) -> None:
    draw = Draw(channels)
    for kernel, stride, dilation in (
        (3, 1, 1),
        (3, 2, 1),
        (5, 1, 1),
        (5, 2, 2),
        (4, 3, 1),
        (1, 1, 1),
        (7, 1, 3),
    ):
        for width in (1, 3, 4, 5, 9):
            pad = dilation * (kernel - 1) // 2 + 1
            window = ir.Window(
                kernel=(kernel, kernel),
                stride=(stride, stride),
                padding=(pad, pad, pad, pad),
                dilation=(dilation, dilation),
            )
            p = Program()
            x = p.input("x", (5, width, channels), zero_point=draw.zero_point())
            weight, scale = draw.weight((channels, 1, kernel, kernel)), draw.rescale(channels, 60000.0)
            p.output(
                "y",
                p.convolution(x, weight, draw.bias(channels), window, scale, groups=channels, zero_point=19),
            )
            same_bits_everywhere(p, draw.inputs(p.plan(), 1))


def test_wide_rows_and_far_taps_of_a_depthwise_convolution_are_exact() -> None:
    draw = Draw(11)
    for width, kernel, stride, dilation in ((900, 3, 1, 1), (901, 5, 2, 1), (700, 3, 1, 300), (40, 33, 1, 1)):
        window = ir.Window(
            kernel=(2, kernel), stride=(1, stride), padding=(0, 2, 1, 9), dilation=(1, dilation)
        )
        p = Program()
        x = p.input("x", (2, width, 20), zero_point=9)
        weight, scale = draw.weight((20, 1, 2, kernel)), draw.rescale(20, 50000.0)
        p.output("y", p.convolution(x, weight, draw.bias(20), window, scale, groups=20, zero_point=77))
        same_bits_everywhere(p, draw.inputs(p.plan(), 1))


@pytest.mark.parametrize("channels", [16, 48, 304])
def test_three_by_three_convolutions_of_stride_one_are_exact(channels: int) -> None:
    """Where a path may save multiplications: odd sizes, one-sided padding, extremes, all signs alike."""
    draw = Draw(channels)
    for height, width, padding in ((8, 8, (1, 1, 1, 1)), (9, 13, (0, 2, 1, 0)), (15, 5, (2, 0, 3, 2))):
        for outputs in (16, 17, 40):
            p = Program()
            x = p.input("x", (height, width, channels), zero_point=draw.zero_point())
            window = ir.Window(kernel=(3, 3), padding=padding)
            shift = [int(s) for s in draw.rng.integers(45, 52, outputs)]
            scale = rescale([(1 << 31) - 1 - i for i in range(outputs)], shift)
            weight = draw.weight((outputs, channels, 3, 3))
            p.output(
                "y", p.convolution(x, weight, draw.bias(outputs), window, scale, zero_point=draw.zero_point())
            )
            same_bits_everywhere(p, draw.inputs(p.plan(), 1))


@pytest.mark.parametrize("bias", [1 << 27, 1 << 28, (1 << 28) + 1, -(1 << 28), -(1 << 29), 1 << 30])
def test_large_sums_of_three_by_three_convolutions_are_exact(bias: int) -> None:
    for sign in (1, -1):
        p = Program()
        x = p.input("x", (8, 9, 896))
        weight = np.full((16, 896, 3, 3), sign * 127, np.int8)
        scale = rescale([1 << 30] * 16, [52] * 16)
        window = ir.Window(kernel=(3, 3), padding=(1, 1, 1, 1))
        y = p.convolution(x, weight, np.full(16, bias, np.int32), window, scale, zero_point=128)
        p.output("y", y)
        same_bits_everywhere(p, {"x": np.full((1, 896, 8, 9), 255, np.float32)})


@pytest.mark.parametrize("cpu", cpu_paths())
def test_an_image_larger_than_one_block_is_exact(cpu: str) -> None:
    draw = Draw(3)
    p = Program()
    x = p.input("x", (23, 19, 96), zero_point=77)
    window = ir.Window(kernel=(3, 3), padding=(1, 1, 1, 1))
    scale = draw.rescale(20, 500000.0)
    p.output("y", p.convolution(x, draw.weight((20, 96, 3, 3)), draw.bias(20), window, scale, zero_point=5))
    same_bits(p, draw.inputs(p.plan(), 2), cpu)


@pytest.mark.parametrize("cpu", cpu_paths())
def test_a_whole_network_gives_the_bits_of_the_reference(cpu: str) -> None:
    for seed in range(10):
        draw = Draw(seed)
        program = small_cnn(draw)
        images = draw.rng.uniform(-0.1, 1.1, (4, 3, 8, 8)).astype(np.float32)
        same_bits(program, {"image": images}, cpu)


@pytest.mark.parametrize("cpu", cpu_paths())
def test_a_batch_gives_what_its_samples_give_alone(cpu: str) -> None:
    program = small_cnn(Draw(5))
    engine = Engine(ir.encode(program.plan()), program.weights, cpu=cpu)
    images = np.random.default_rng(5).uniform(0, 1, (5, 3, 8, 8)).astype(np.float32)
    alone = [engine.run({"image": images[i : i + 1]})["logits"] for i in range(5)]
    np.testing.assert_array_equal(engine.run({"image": images})["logits"], np.concatenate(alone))


@pytest.mark.parametrize("cpu", cpu_paths())
@pytest.mark.parametrize("zero_point", [0, 7, 128, 255])
def test_nan_infinity_halves_and_extremes_quantize_as_specified(zero_point: int, cpu: str) -> None:
    scale = float(np.float32(0.1))
    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45]
    halves = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * np.float32(scale)
    values = np.concatenate([np.array(special, np.float32), halves, np.nextafter(halves, np.float32(0))])
    for grid in (scale, 1.0, float(np.float32(1e-40)), float(np.float32(3e38))):
        p = Program()
        p.output("y", p.input("x", (len(values),), scale=grid, zero_point=zero_point))
        same_bits(p, {"x": values[None]}, cpu)


def test_two_inputs_and_two_outputs_keep_their_names() -> None:
    p = Program()
    first, second = p.input("first", (3,)), p.input("second", (2, 3, 4))
    p.output("b", second)
    p.output("a", first)
    engine = Engine(ir.encode(p.plan()), b"")
    x = {
        "second": np.arange(48, dtype=np.float32).reshape(2, 4, 2, 3),
        "first": np.ones((2, 3), np.float32),
    }
    y = engine.run(x)
    assert list(y) == ["b", "a"]
    np.testing.assert_array_equal(y["b"], x["second"])
    np.testing.assert_array_equal(y["a"], x["first"])


def cnn_engine() -> tuple[Engine, np.ndarray]:
    program = small_cnn(Draw(2))
    images = np.random.default_rng(2).uniform(0, 1, (3, 3, 8, 8)).astype(np.float32)
    return Engine(ir.encode(program.plan()), program.weights), images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {}, "input 'image' is missing"),
        (lambda x: {"picture": x}, "input 'image' is missing"),
        (lambda x: {"image": x, "extra": x}, "unknown input 'extra'"),
        (lambda x: {"image": x, 7: x}, "unknown input 7"),
        (lambda x: {"image": x.astype(np.float64)}, "input 'image' is float64"),
        (lambda x: {"image": x.astype(np.uint8)}, "input 'image' is uint8"),
        (lambda x: {"image": x.astype(">f4")}, "input 'image' is >f4"),
        (lambda x: {"image": x[0]}, r"'image' has shape \(3, 8, 8\), \(N, 3, 8, 8\)"),
        (lambda x: {"image": x[:, :2]}, r"'image' has shape \(3, 2, 8, 8\), \(N, 3, 8, 8\)"),
        (lambda x: {"image": x[:0]}, r"'image' has shape \(0, 3, 8, 8\)"),
        (lambda _: {"image": np.float32(1)}, r"'image' has shape \(\), "),
        (lambda _: {"image": "a picture"}, "input 'image' is "),
        (lambda _: {"image": None}, "input 'image' is "),
    ],
)
def test_a_wrong_input_is_a_value_error_that_names_it(change, message: str) -> None:  # type: ignore[no-untyped-def]
    engine, images = cnn_engine()
    program = small_cnn(Draw(2))
    with pytest.raises(ValueError, match=message):
        engine.run(change(images))
    with pytest.raises(ValueError, match=message.split(" is ")[0]):
        reference.run(program.plan(), program.weights, change(images))
    assert engine.run({"image": images})["logits"].shape == (3, 10)


def test_inputs_of_different_batch_sizes_are_refused() -> None:
    p = Program()
    p.output("y", p.add(p.input("a", (2,)), p.input("b", (2,)), rescale([1, 1], [1, 1])))
    inputs = {"a": np.zeros((2, 2), np.float32), "b": np.zeros((3, 2), np.float32)}
    with pytest.raises(ValueError, match=r"'b' has shape \(3, 2\)"):
        Engine(ir.encode(p.plan()), b"").run(inputs)
    with pytest.raises(ValueError, match=r"'b' has shape \(3, 2\)"):
        reference.run(p.plan(), b"", inputs)


def test_strided_unaligned_and_read_only_inputs_are_taken() -> None:
    engine, images = cnn_engine()
    expected = engine.run({"image": images})["logits"]
    strided = np.asfortranarray(images)
    unaligned = np.frombuffer(b"\0" + images.tobytes(), np.uint8)[1:].view(np.float32).reshape(images.shape)
    frozen = images.copy()
    frozen.flags.writeable = False
    for array in (strided, unaligned, frozen):
        np.testing.assert_array_equal(engine.run({"image": array})["logits"], expected)


def test_outputs_are_the_callers_own() -> None:
    engine, images = cnn_engine()
    first = engine.run({"image": images})["logits"]
    kept = first.copy()
    engine.run({"image": 1 - images})
    np.testing.assert_array_equal(first, kept)


def test_weights_come_from_any_buffer_and_may_go_away(tmp_path: Path) -> None:
    program = small_cnn(Draw(2))
    plan = ir.encode(program.plan())
    images = np.random.default_rng(2).uniform(0, 1, (3, 3, 8, 8)).astype(np.float32)
    expected = Engine(plan, bytes(program.weights)).run({"image": images})["logits"]
    path = tmp_path / "weights"
    path.write_bytes(program.weights)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        from_mmap = Engine(plan, mapped)
    from_array = Engine(plan, np.fromfile(path, np.uint8))
    for engine in (from_mmap, from_array):
        np.testing.assert_array_equal(engine.run({"image": images})["logits"], expected)


@pytest.mark.parametrize("change", [-1, 1])
def test_weights_of_another_size_are_refused(change: int) -> None:
    program = small_cnn(Draw(2))
    weights = bytes(program.weights) + b"\0" if change > 0 else bytes(program.weights)[:change]
    with pytest.raises(PlanError, match="the plan was made for"):
        Engine(ir.encode(program.plan()), weights)
    with pytest.raises(PlanError, match="the plan was made for"):
        reference.run(program.plan(), weights, {"image": np.zeros((1, 3, 8, 8), np.float32)})


def _refused_by_both(p: Program, message: str) -> None:
    plan = p.plan()
    with pytest.raises(PlanError, match=message):
        reference.run(plan, p.weights, Draw(0).inputs(plan, 1))
    for cpu in cpu_paths():
        with pytest.raises(PlanError, match=message):
            Engine(ir.encode(plan), p.weights, cpu=cpu)


def test_the_weight_minus_128_is_refused_with_operator_and_channel() -> None:
    p = Program()
    weight = np.array([[1, 2], [3, -128]], np.int8)
    p.output("y", p.fully_connected(p.input("x", (2,)), weight, None, rescale([1, 1], [1, 1])))
    _refused_by_both(p, r"operator 1 \(FullyConnected\): row 1 has the weight -128")


@pytest.mark.parametrize(("bias", "fits"), [(2**31 - 1 - 255, True), (2**31 - 255, False)])
def test_an_accumulator_that_could_leave_32_bits_is_refused(bias: int, fits: bool) -> None:
    p = Program()
    x = p.input("x", (2, 2, 1), zero_point=10)
    # The zero point is folded into the bias before the proof: that of channel 1 grows by 10.
    given = np.array([0, -10 - bias], np.int64).astype(np.int32)
    weight = np.array([1, -1], np.int8).reshape(2, 1, 1, 1)
    p.output(
        "y",
        p.convolution(x, weight, given, ir.Window(kernel=(1, 1)), rescale([1, 1], [1, 1])),
    )
    if fits:
        same_bits(p, Draw(0).inputs(p.plan(), 2), "scalar")
    else:
        _refused_by_both(
            p, rf"operator 1 \(Convolution\): output channel 1 can reach {2**31}, beyond 32 bits"
        )


def test_a_plan_that_packs_the_same_weights_without_end_is_refused() -> None:
    p = Program()
    x = p.input("x", (1 << 20,))
    weight, scale = np.zeros((1, 1 << 20), np.int8), rescale(1, 1)
    outputs = [p.fully_connected(x, weight, None, scale)]
    for _ in range(64):
        y = p.value((1,))
        p.ops.append(ir.FullyConnected(x=x, y=y, weight=0, bias=None, rescale=scale))
        outputs.append(y)
    p.output("y", outputs[-1])
    if "avx2" in cpu_paths():  # which pads one channel to eight
        with pytest.raises(PlanError, match="the same weights too many times"):
            Engine(ir.encode(p.plan()), p.weights, cpu="avx2")


def test_eight_threads_on_one_engine_get_the_same_bits() -> None:
    engine, images = cnn_engine()
    expected = engine.run({"image": images})["logits"].tobytes()
    wrong: list[int] = []
    together = threading.Barrier(8)

    def work(number: int) -> None:
        together.wait(timeout=30)
        if any(engine.run({"image": images})["logits"].tobytes() != expected for _ in range(200)):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_an_unknown_path_is_refused_with_the_known_ones() -> None:
    plan = ir.encode(one_operator("reshape", Draw(1)).plan())
    with pytest.raises(UnsupportedError, match=r"cpu=pentium: .* it has .*scalar"):
        Engine(plan, b"", cpu="pentium")


PRINT_PATH = """
import sys
from edgewright_kernels import Engine, UnsupportedError
try:
    print(Engine(sys.stdin.buffer.read(), b"").cpu)
except UnsupportedError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("scalar", "scalar"),
        ("", cpu_paths()[0]),
        (None, cpu_paths()[0]),
        ("mmx", f"EDGEWRIGHT_CPU=mmx: this machine has no such path; it has {', '.join(cpu_paths())}"),
    ],
)
def test_the_environment_forces_the_path(value: str | None, printed: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "EDGEWRIGHT_CPU"}
    if value is not None:
        environment["EDGEWRIGHT_CPU"] = value
    plan = ir.encode(one_operator("reshape", Draw(1)).plan())
    done = subprocess.run(
        [sys.executable, "-c", PRINT_PATH], input=plan, env=environment, capture_output=True, timeout=60
    )
    assert (done.stdout.decode().strip(), done.stderr) == (printed, b"")


def test_an_argument_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEWRIGHT_CPU", "mmx")
    plan = ir.encode(one_operator("reshape", Draw(1)).plan())
    assert Engine(plan, b"", cpu="scalar").cpu == "scalar"


def test_the_arena_covers_the_plan() -> None:
    program = small_cnn(Draw(2))
    plan = program.plan()
    assert Engine(ir.encode(plan), program.weights).arena_bytes >= plan.arena_bytes


def test_a_ragged_list_is_a_value_error_that_names_the_input() -> None:
    engine, _ = cnn_engine()
    with pytest.raises(ValueError, match="input 'image' is <class 'list'>, a float32 array is needed"):
        engine.run({"image": [[1.0], [1.0, 2.0]]})  # type: ignore[dict-item]
