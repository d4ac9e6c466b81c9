"""Quantized graphs of other tools: their integers run natively, or the message says why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from edgewright.calibrate import observe
from edgewright.errors import ExportError
from edgewright.exporting import export
from edgewright.graph import float_graph
from edgewright.lower import lower
from edgewright.qdq import is_quantized, read_quantized
from edgewright.quantization import Quantized, activations_to_observe, quantize_graph
from edgewright.statistics import sqnr_db
from edgewright.verification import verify
from edgewright.weights import byte_ranges
from edgewright.widening import split_wide
from edgewright_device import Runner
from edgewright_kernels import Engine, reference
from edgewright_kernels.plan import Plan, encode
from sdk.foreign import float_file, inputs, operator_by_operator, pt2e, quantize_static
from sdk.graphs import FloatArray, graph, normal, rng, saved

TARGET = "x86-64"


@dataclass(frozen=True, kw_only=True)
class Read:
    """A foreign graph, read, and put together anew."""

    quantized: Quantized
    plan: Plan
    weights: bytes
    added: list[str]
    widened: list[str]
    floating: list[str]

    def native(self, feed: Mapping[str, Any]) -> dict[str, FloatArray]:
        """The engine's outputs, held to the reference's, bit for bit."""
        got: dict[str, FloatArray] = Engine(encode(self.plan), self.weights).run(dict(feed))
        want = reference.run(self.plan, self.weights, dict(feed))
        for name in want:
            assert got[name].tobytes() == want[name].tobytes()
        return got

    def steps(self, name: str, values: FloatArray) -> Any:
        return np.rint(values / self.quantized.grids[name].scale).astype(np.int64)


def read(source: onnx.ModelProto | Path, samples: Mapping[str, Any] | None = None) -> Read:
    raw = float_graph(source, slim=False) if isinstance(source, Path) else source
    floating, given = read_quantized(raw)
    floating = split_wide(floating, given)
    added = activations_to_observe(floating, given)
    observed = observe(floating, added, samples) if samples is not None else {}
    quantized = quantize_graph(floating, observed, given=given)
    weights = safetensors.numpy.save(dict(sorted(quantized.weights.items())))
    return Read(
        quantized=quantized,
        plan=lower(quantized.model, byte_ranges(weights), len(weights)),
        weights=weights,
        added=added,
        widened=given.widened,
        floating=given.floating,
    )


# Files of ONNX Runtime


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("floats")
    return {name: float_file(name, folder / f"{name}.onnx") for name in ("mlp", "cnn", "encoder")}


# Share of output values that may differ, and by how many steps, because a sum or an exponential falls on the
# other side of a rounding edge: an encoder's softmax and layer norms are fixed point here, with many edges.
ALLOWED = {"mlp": (0.005, 1), "cnn": (0.02, 1), "encoder": (0.15, 2)}


@pytest.mark.parametrize(
    ("types", "per_channel", "reduce_range"),
    [("U8S8", False, False), ("U8S8", True, True), ("S8S8", True, False), ("U8U8", False, False)],
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder"])
def test_a_file_of_quantize_static_runs_natively_with_its_own_integers(
    floats: dict[str, Path], tmp_path: Path, name: str, types: str, per_channel: bool, reduce_range: bool
) -> None:
    how = {"per_channel": per_channel, "reduce_range": reduce_range}
    file = quantize_static(floats[name], tmp_path / "q.onnx", inputs(name, 64), types, **how)
    made = read(file)
    assert made.added == made.floating == []
    x = {"x": inputs(name, 100, seed=1)}
    want = operator_by_operator(file, x)["y"]
    kept = operator_by_operator(made.quantized.model, x)["y"]
    if not made.widened:  # or float32 sums have another order
        assert kept.tobytes() == want.tobytes()  # the graph computes what it did, to the last bit

    share, most = ALLOWED[name]
    difference = np.abs(made.steps("y", made.native(x)["y"]) - made.steps("y", want))
    assert difference.max() <= most
    assert (difference > 0).mean() <= share
    assert sqnr_db(want, made.native(x)["y"]) > 40


@pytest.mark.parametrize("types", ["U8S8", "S8U8", "U8U8"])
def test_an_mlp_equals_its_evaluation_in_integers(types: str) -> None:
    """Two layers, in numpy's int64, from the integers in the file alone."""
    random = rng(4)
    kinds = {"U8": np.uint8, "S8": np.int8}
    a, w = kinds[types[:2]], kinds[types[2:]]
    zero_w = 128 if w is np.uint8 else 0
    zeros = random.integers(np.iinfo(a).min, np.iinfo(a).max + 1, 3)
    scales = np.array([0.02, 0.05, 0.11], np.float32)
    weights = [(zero_w + random.integers(-127, 128, s)).astype(w) for s in ((16, 8), (4, 16))]
    steps = [random.uniform(0.002, 0.01, len(v)).astype(np.float32) for v in weights]
    biases = [random.integers(-5000, 5000, len(v)).astype(np.int32) for v in weights]
    model = Foreign()
    value = model.pair("x", scales[0], a(zeros[0]))
    for i in range(2):
        weight = model.constant(weights[i], steps[i], np.full(len(steps[i]), zero_w, w), axis=0)
        zero_b = np.zeros(len(steps[i]), np.int32)
        bias = model.constant(biases[i], scales[i] * steps[i], zero_b, axis=0)
        value = model.pair(
            model.node("Gemm", [value, weight, bias], transB=1), scales[i + 1], a(zeros[i + 1])
        )
    made = read(model.done({"x": (8,)}, value, (4,)))

    x = normal(500, 8, seed=5)
    low, high = np.iinfo(a).min, np.iinfo(a).max
    q = np.clip(np.rint(x / scales[0]) + zeros[0], low, high).astype(np.int64)
    for i in range(2):
        sums = (q - zeros[i]) @ (weights[i].astype(np.int64) - zero_w).T + biases[i]
        real = sums * (np.float64(scales[i]) * steps[i] / scales[i + 1])
        q = np.clip(np.floor(real + 0.5) + zeros[i + 1], low, high).astype(np.int64)
    assert np.array_equal(made.steps("y", made.native({"x": x})["y"]), q - zeros[2])


# Graphs made by hand


KIND = {"ids": TensorProto.INT64}  # all other inputs are float32


class Foreign:
    """A QDQ graph while it is being written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}

    def node(self, op: str, names: list[str], **given: Any) -> str:
        self.nodes.append(helper.make_node(op, names, [f"v{len(self.nodes)}"], **given))
        return str(self.nodes[-1].output[0])

    def add(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def pair(self, name: str, scale: float, zero_point: Any) -> str:
        numbers = [self.add(np.float32(scale)), self.add(zero_point)]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, *numbers]), *numbers])

    def constant(self, integers: Any, scale: Any, zero_point: Any, **given: Any) -> str:
        names = [self.add(integers), self.add(np.asarray(scale, np.float32)), self.add(zero_point)]
        return self.node("DequantizeLinear", names, **given)

    def done(
        self, shapes: Mapping[str, Any], output: str | list[str], shape: Any, opset: int = 20
    ) -> onnx.ModelProto:
        """The model, its outputs named y, or y0 and on; every output has the same shape."""
        names = [output] if isinstance(output, str) else output
        outputs = ["y"] if isinstance(output, str) else [f"y{i}" for i in range(len(names))]
        renamed = dict(zip(names, outputs, strict=True))
        for node in self.nodes:
            node.input[:] = [renamed.get(n, n) for n in node.input]
            node.output[:] = [renamed.get(n, n) for n in node.output]
        made = helper.make_graph(
            self.nodes,
            "foreign",
            [helper.make_tensor_value_info(n, KIND.get(n, 1), ["N", *s]) for n, s in shapes.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *shape]) for n in outputs],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(model)
        return model

    def layer(self, name: str, outputs: int, channels: int, *, kernel: int = 1, seed: int = 0) -> str:
        """A Conv without bias, its int8 weights drawn."""
        weight = rng(seed).integers(-127, 128, (outputs, channels, kernel, kernel)).astype(np.int8)
        value = self.constant(weight, np.full(outputs, 0.004), np.zeros(outputs, np.int8), axis=0)
        return self.node("Conv", [name, value], pads=[kernel // 2] * 4)


def same(model: onnx.ModelProto, shape: tuple[int, ...], *, share: float = 0.01) -> Read:
    """Reads a graph, and holds both the new graph and the engine to the old one."""
    made = read(model)
    x = {"x": normal(50, *shape, seed=3)}
    want = operator_by_operator(model, x)
    kept = operator_by_operator(made.quantized.model, x)
    got = made.native(x)
    for name, values in want.items():
        if not made.widened:  # float32 sums in another order
            assert kept[name].tobytes() == values.tobytes()
        for result in (kept, got):
            difference = np.abs(made.steps(name, result[name]) - made.steps(name, values))
            assert difference.max() <= 1
            assert (difference > 0).mean() <= share
        assert np.unique(values).size > 20
    return made


# Scales have no common measure below, so that no value lies midway between two steps.


def image(model: Foreign) -> str:
    return model.pair("x", 0.019837, np.uint8(120))


KINDS: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any]]] = {
    "Conv": ("Conv", (6, 4, 3, 3), 0, {"pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", (4, 1, 3, 3), 0, {"pads": [1, 1, 1, 1], "group": 4}),
    "groups": ("Conv", (6, 2, 1, 1), 0, {"group": 2}),
    "ConvTranspose": ("ConvTranspose", (4, 3, 2, 2), 1, {"strides": [2, 2]}),
    "ConvTranspose in groups": ("ConvTranspose", (4, 3, 1, 1), 1, {"group": 2}),
}


@pytest.mark.parametrize("zero_point", [0, 100, 127, 128, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_do_not_fit_are_exact_all_the_same(kind: str, zero_point: int) -> None:
    op, shape, axis, given = KINDS[kind]
    model = Foreign()
    weight = rng(7).integers(0, 256, shape).astype(np.uint8)
    weight.reshape(-1)[:2] = 0, 255
    outputs = shape[axis]
    steps = rng(8).uniform(0.001, 0.003059, outputs).astype(np.float32)
    value = model.constant(weight, steps, np.full(outputs, zero_point, np.uint8), axis=axis)
    layer = model.node(op, [image(model), value], **given)
    channels = outputs * (given.get("group", 1) if axis else 1)
    size = 10 if kind == "ConvTranspose" else 5
    made = same(
        model.done({"x": (4, 5, 5)}, model.pair(layer, 0.1, np.uint8(128)), (channels, size, size)), (4, 5, 5)
    )
    assert len(made.widened) == 1
    assert (
        max(np.abs(w.astype(int)).max() for w in made.quantized.weights.values() if w.dtype == np.int8) == 127
    )


@pytest.mark.parametrize("turned", [False, True])
def test_a_matrix_of_minus_128_is_exact_on_any_axes(turned: bool) -> None:
    model = Foreign()
    weight = rng(7).integers(-128, 128, (6, 8)).astype(np.int8)
    weight[:, 3] = -128
    steps = np.float32(rng(8).uniform(0.001, 0.003059, 6))
    if turned:  # per channel along the second axis, as quantize_static writes MatMul
        value = model.constant(np.ascontiguousarray(weight.T), steps, np.zeros(6, np.int8), axis=1)
    else:  # transposed behind, as torch writes it
        value = model.node(
            "Transpose", [model.constant(weight, steps, np.zeros(6, np.int8), axis=0)], perm=[1, 0]
        )
    product = model.node("MatMul", [image(model), value])
    made = same(model.done({"x": (5, 8)}, model.pair(product, 0.050317, np.uint8(128)), (5, 6)), (5, 8))
    assert len(made.widened) == 1
    assert sum(w.dtype == np.int8 and w.shape == (6, 9) for w in made.quantized.weights.values()) == 1


def test_one_scale_for_a_weight_is_one_for_every_channel() -> None:
    model = Foreign()
    weight = model.constant(rng().integers(-127, 128, (6, 4, 1, 1)).astype(np.int8), 0.003059, np.int8(0))
    layer = model.node("Conv", [image(model), weight])
    made = same(
        model.done({"x": (4, 5, 5)}, model.pair(layer, 0.050317, np.uint8(128)), (6, 5, 5)), (4, 5, 5)
    )
    (scale,) = [w for n, w in made.quantized.weights.items() if n.endswith(".scale") and w.size == 6][:1]
    assert (scale == np.float32(0.003059)).all()


def test_a_batch_norm_behind_a_layer_changes_scales_and_signs_not_magnitudes() -> None:
    model = Foreign()
    layer = model.layer(image(model), 6, 4, seed=2)
    gain = np.array([1, -2, 0.5, -0.1, 3, 1], np.float32)
    numbers = [model.add(np.asarray(v, np.float32)) for v in (gain, gain + 1, gain, np.abs(gain))]
    normed = model.node("BatchNormalization", [layer, *numbers])
    done = model.done({"x": (4, 5, 5)}, model.pair(normed, 0.050317, np.uint8(128)), (6, 5, 5))
    made = read(done)
    (weight,) = [w for w in made.quantized.weights.values() if w.dtype == np.int8]
    original = next(v for v in model.constants.values() if v.shape == (6, 4, 1, 1))
    assert np.array_equal(weight, original * np.sign(gain).astype(np.int8).reshape(-1, 1, 1, 1))
    x = {"x": normal(50, 4, 5, 5, seed=3)}
    want, got = operator_by_operator(done, x)["y"], made.native(x)["y"]
    difference = np.abs(made.steps("y", got) - made.steps("y", want))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02  # the float bias is rounded to the accumulator's grid


MOVES: dict[str, Any] = {
    "MaxPool": lambda m, v: m.node("MaxPool", [v], kernel_shape=[2, 2], strides=[2, 2]),
    "Relu": lambda m, v: m.node("Relu", [v]),
    "Clip": lambda m, v: m.node("Clip", [v, m.add(np.float32(0)), m.add(np.float32(0.61))]),
    "Transpose": lambda m, v: m.node("Transpose", [v], perm=[0, 1, 3, 2]),
    "Reshape": lambda m, v: m.node("Reshape", [v, m.add(np.array([0, 4, 2, 8]))]),
    "Concat": lambda m, v: m.node("Concat", [v, v], axis=1),
    "Slice": lambda m, v: m.node("Slice", [v, *(m.add(np.array([n])) for n in (1, 3, 2))]),
}
MOVED = {"MaxPool": (4, 2, 2), "Reshape": (4, 2, 8), "Concat": (8, 4, 4), "Slice": (4, 2, 4)}


@pytest.mark.parametrize("between", ["float before", "the same grid", "another grid"])
@pytest.mark.parametrize("move", MOVES)
def test_moves_take_grids_before_them_behind_them_or_both(move: str, between: str) -> None:
    model = Foreign()
    value = model.layer(image(model), 4, 4, seed=2)
    if between != "float before":
        value = model.pair(value, 0.019837, np.uint8(100))
    value = MOVES[move](model, value)
    value = model.pair(value, 0.03 if between == "another grid" else 0.019837, np.uint8(100))
    made = same(model.done({"x": (4, 4, 4)}, value, MOVED.get(move, (4, 4, 4))), (4, 4, 4))
    assert made.added == []


def test_clamps_between_moves_need_no_grid_of_their_own() -> None:
    model = Foreign()
    pooled = MOVES["MaxPool"](model, model.layer(image(model), 4, 4, seed=2))
    value = model.node("Relu", [pooled])
    made = same(model.done({"x": (4, 4, 4)}, model.pair(value, 0.019837, np.uint8(9)), (4, 2, 2)), (4, 4, 4))
    assert made.added == []


def test_a_value_on_two_grids_is_computed_twice() -> None:
    model = Foreign()
    value = model.node("Relu", [model.layer(image(model), 4, 4, seed=2)])
    fine, coarse = model.pair(value, 0.010137, np.uint8(3)), model.pair(value, 0.027119, np.uint8(0))
    outputs = [
        model.pair(model.layer(v, 4, 4, seed=s), 0.029483, np.uint8(128)) for v, s in ((fine, 4), (coarse, 5))
    ]
    made = same(model.done({"x": (4, 4, 4)}, outputs, (4, 4, 4)), (4, 4, 4))
    assert (
        len(
            {n.scale for n in made.quantized.grids.values()}
            & {float(np.float32(s)) for s in (0.010137, 0.027119)}
        )
        == 2
    )


def test_a_second_grid_behind_the_first_is_a_change_of_scale() -> None:
    model = Foreign()
    first = model.pair(model.layer(image(model), 4, 4, seed=2), 0.010137, np.int8(-3))
    second = model.pair(first, 0.012911, np.int8(5))
    value = model.node("Add", [first, second])
    same(model.done({"x": (4, 4, 4)}, model.pair(value, 0.029483, np.int8(0)), (4, 4, 4)), (4, 4, 4))


def test_outputs_may_be_any_values_and_several() -> None:
    model = Foreign()
    first = model.pair(model.layer(image(model), 4, 4, seed=2), 0.019837, np.uint8(128))
    second = model.pair(model.layer(first, 4, 4, seed=3), 0.029483, np.uint8(128))
    same(model.done({"x": (4, 4, 4)}, [first, second], (4, 4, 4)), (4, 4, 4))


def test_constants_keep_the_grid_they_came_with() -> None:
    model = Foreign()
    operand = model.constant(rng(3).integers(0, 256, (4, 1, 1)).astype(np.uint8), 0.011273, np.uint8(77))
    other = model.constant(rng(4).integers(-128, 128, (1, 4, 4, 4)).astype(np.int8), 0.012911, np.int8(-20))
    value = model.pair(model.node("Mul", [image(model), operand]), 0.019837, np.uint8(128))
    value = model.pair(model.node("Add", [value, other]), 0.019837, np.uint8(128))
    value = model.pair(model.layer(value, 4, 4, seed=2), 0.029483, np.uint8(128))
    same(model.done({"x": (4, 4, 4)}, value, (4, 4, 4)), (4, 4, 4))


def test_weights_may_stand_between_quantize_and_dequantize() -> None:
    """As quantize_static's AddQDQPairToWeight leaves them: in float32."""
    model = Foreign()
    weight = model.add(normal(6, 4, 1, 1, seed=1, scale=0.2))
    numbers = [model.add(np.full(6, 0.005, np.float32)), model.add(np.zeros(6, np.int8))]
    value = model.node(
        "DequantizeLinear", [model.node("QuantizeLinear", [weight, *numbers], axis=0), *numbers], axis=0
    )
    layer = model.node("Conv", [image(model), value])
    same(model.done({"x": (4, 5, 5)}, model.pair(layer, 0.050317, np.uint8(128)), (6, 5, 5)), (4, 5, 5))


def test_an_old_opset_and_constant_nodes_are_read() -> None:
    model = Foreign()
    layer = model.layer(image(model), 4, 4, seed=2)
    done = model.done({"x": (4, 4, 4)}, model.pair(layer, 0.029483, np.uint8(128)), (4, 4, 4), opset=13)
    for name in [i.name for i in done.graph.initializer]:
        tensor = next(i for i in done.graph.initializer if i.name == name)
        done.graph.node.insert(0, helper.make_node("Constant", [], [name], value=tensor))
    del done.graph.initializer[:]
    same(done, (4, 4, 4))


def tokens(table: Any, scale: float, zero_point: Any) -> onnx.ModelProto:
    model = Foreign()
    rows = model.node("Gather", [model.constant(table, scale, zero_point), "ids"])
    value = model.pair(rows, 0.021, np.uint8(100))
    weight = model.constant(rng(1).integers(-127, 128, (8, 6)).astype(np.int8), 0.010137, np.int8(0))
    value = model.pair(model.node("MatMul", [value, weight]), 0.050317, np.uint8(128))
    return model.done({"ids": (3,)}, value, (3, 6))


@pytest.mark.parametrize(
    ("kind", "zero_point"), [(np.int8, 0), (np.int8, -20), (np.uint8, 128), (np.uint8, 101)]
)
def test_embeddings_keep_their_integers(kind: Any, zero_point: int) -> None:
    limits = np.iinfo(kind)
    table = rng(2).integers(limits.min, limits.max + 1, (50, 8)).astype(kind)
    model = tokens(table, 0.019837, kind(zero_point))
    made = read(model)
    feed = {"ids": rng(3).integers(0, 50, (40, 3))}
    want = operator_by_operator(model, feed)["y"]
    difference = np.abs(made.steps("y", made.native(feed)["y"]) - made.steps("y", want))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_table_far_from_its_zero_point_is_refused() -> None:
    table = np.array([[0] * 8, [255] * 8], np.uint8)
    with pytest.raises(ExportError, match=r"its table has integers up to 255 from its zero point"):
        read(tokens(table, 0.019837, np.uint8(0)))


# What cannot be read


ZERO = np.uint8(3)


def broken(scale: Any = 0.02, zero_point: Any = ZERO, then: Any = None) -> onnx.ModelProto:
    """One layer between pairs, of which the first is as given."""
    model = Foreign()
    numbers = [model.add(np.asarray(scale, np.float32)), model.add(zero_point)]
    other = [model.add(np.asarray(then, np.float32)), numbers[1]] if then is not None else numbers
    value = model.node("DequantizeLinear", [model.node("QuantizeLinear", ["x", *numbers]), *other])
    layer = model.layer(value, 4, 4)
    return model.done({"x": (4, 4, 4)}, model.pair(layer, 0.05, np.uint8(128)), (4, 4, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: broken(zero_point=np.uint16(3)), "activations are uint16; files with int8 or uint8"),
        (lambda: broken(scale=[0.1] * 4, zero_point=np.zeros(4, np.uint8)), "must have one scale, not 4"),
        (lambda: broken(scale=0.0), "its scale is 0; is the model calibrated"),
        (lambda: broken(scale=np.nan), "its scale is nan; is the model calibrated"),
        (lambda: broken(then=0.03), "its scale or zero point is not that of its QuantizeLinear"),
    ],
)
def test_what_no_integer_program_can_do_is_named(model: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        read(model())


def test_another_format_than_qdq_is_named() -> None:
    made = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])],
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("q", TensorProto.UINT8, ["N", 4])],
    )
    with pytest.raises(ExportError, match="is quantized with DynamicQuantizeLinear; only the QDQ format"):
        is_quantized(helper.make_model(made))


def test_integers_read_by_other_nodes_are_refused() -> None:
    model = Foreign()
    numbers = [model.add(np.float32(0.02)), model.add(np.uint8(3))]
    q = model.node("QuantizeLinear", ["x", *numbers])
    moved = model.node("Transpose", [q], perm=[0, 2, 1])
    value = model.node("DequantizeLinear", [moved, *numbers])
    with pytest.raises(
        ExportError, match=r"operator Transpose .*reads integers|which no QuantizeLinear gives"
    ):
        read(model.done({"x": (4, 4)}, value, (4, 4)))


def test_a_float_graph_is_not_taken_for_a_quantized_one() -> None:
    assert not is_quantized(graph([("Relu", ["x"], "y", {})], {"x": (4,)}, {"y": (4,)}))


# Export


@pytest.fixture(scope="module")
def mlp_file(floats: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mlp") / "mlp.onnx"
    return quantize_static(floats["mlp"], out, inputs("mlp", 64), "U8S8", per_channel=True)


def test_a_file_with_every_grid_needs_no_samples(
    mlp_file: Path, floats: dict[str, Path], tmp_path: Path
) -> None:
    made = export(mlp_file, target=TARGET, out=tmp_path / "m.ew")
    again = export(mlp_file, target=TARGET, out=tmp_path / "again" / "m.ew")
    assert made.digest == again.digest
    (port,) = made.inputs
    assert port.minimum == pytest.approx(-port.scale * port.zero_point)
    assert port.maximum == pytest.approx(port.scale * (255 - port.zero_point))
    golden, outputs = made.golden()
    assert golden["x"].shape == (8, 20)
    assert golden["x"].min() >= port.minimum
    assert golden["x"].max() <= port.maximum
    assert Runner(made).run(golden)["y"].tobytes() == outputs["y"].tobytes()
    x = inputs("mlp", 200, seed=1)
    for source in (mlp_file, floats["mlp"]):  # both the file and the float model may be the reference
        assert verify(made, reference=source, cases=400, data=x, max_flip_rate=0.2).passed


def test_samples_change_no_integer_where_the_file_has_every_grid(mlp_file: Path, tmp_path: Path) -> None:
    x = inputs("mlp", 30, seed=6)
    given = export(mlp_file, target=TARGET, out=tmp_path / "m.ew", calibration=x)
    drawn = export(mlp_file, target=TARGET, out=tmp_path / "drawn" / "m.ew")
    for name in ("plan.bin", "weights.safetensors", "model.onnx"):
        assert given.read(name) == drawn.read(name)
    assert (given.inputs[0].minimum, given.inputs[0].maximum) == (float(x.min()), float(x.max()))


def test_values_without_a_grid_need_samples(tmp_path: Path) -> None:
    model = Foreign()
    value = model.node("GlobalAveragePool", [model.layer(image(model), 4, 4, seed=2)])
    path = saved(model.done({"x": (4, 4, 4)}, value, (4, 1, 1)), tmp_path / "m.onnx")
    with pytest.raises(
        ExportError, match=r"leaves 2 values in floating point .* such as 'v\d+'; give calibration"
    ):
        export(path, target=TARGET, out=tmp_path / "m.ew")
    x = normal(100, 4, 4, 4, seed=3)
    made = export(path, target=TARGET, out=tmp_path / "m.ew", calibration=x)
    want = operator_by_operator(path, {"x": x})["y"]
    assert sqnr_db(want, Runner(made).run({"x": x})["y"]) > 30


def test_tokens_are_drawn_from_the_rows_of_their_table(tmp_path: Path) -> None:
    table = rng(2).integers(-127, 128, (50, 8)).astype(np.int8)
    path = saved(tokens(table, 0.02, np.int8(0)), tmp_path / "m.onnx")
    made = export(path, target=TARGET, out=tmp_path / "m.ew")
    assert made.inputs[0].dtype == "int64"
    assert 0 <= made.golden()[0]["ids"].min() <= made.golden()[0]["ids"].max() < 50


# Files of torchao

# x86 quantizes what its kernels take alone: the rest gets 8-bit grids here, and its noise.
FIDELITY = {
    ("mlp", "xnnpack"): 45,
    ("cnn", "xnnpack"): 40,
    ("encoder", "xnnpack"): 30,
    ("mlp", "x86"): 30,
    ("cnn", "x86"): 30,
    ("encoder", "x86"): 25,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "quantizer"), FIDELITY)
def test_a_file_of_pt2e_runs_natively(tmp_path: Path, name: str, quantizer: str) -> None:
    pytest.importorskip("torchao")
    file = pt2e(name, quantizer, tmp_path / "q.onnx")
    samples = inputs(name, 64)
    made = read(file, {"x": samples})
    want = operator_by_operator(file, {"x": samples})["y"]
    assert sqnr_db(want, made.native({"x": samples})["y"]) > FIDELITY[name, quantizer]
    assert (made.added == []) == (quantizer == "xnnpack" and name != "encoder")
    # Every weight is the file's: its integers, to the sign and to what was split.
    stored = [numpy_helper.to_array(i) for i in onnx.load(str(file)).graph.initializer]
    original = sum(int(np.abs(w.astype(int)).sum()) for w in stored if w.dtype == np.int8 and w.ndim > 1)
    kept = {n: w for n, w in made.quantized.weights.items() if w.dtype == np.int8}
    if quantizer == "xnnpack" or name != "encoder":  # there, attention's weights are left in float32
        assert sum(int(np.abs(w.astype(int)).sum()) for w in kept.values()) == original
