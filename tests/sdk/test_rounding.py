"""Rounding with second-order information: integers that keep a layer's results, within their limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import edgewright as ew
from edgewright.graph import float_graph, onnx_function
from edgewright.hessian import damped, layers_of, moments, stages
from edgewright.normalform import normalize
from edgewright.overflow import MOST, added_together
from edgewright.progress import Progress
from edgewright.rounding import like, nearest, rounded, sweep
from edgewright.statistics import sqnr_db
from sdk.graphs import graph, mlp, normal, quantize, rng, saved
from sdk.test_overflow import SHAPES, terms_of, worst


def correlated(terms: int, samples: int = 400, seed: int = 0) -> np.ndarray:
    """Inputs of which a few directions hold most."""
    random = rng(seed)
    mixed: np.ndarray = random.normal(size=(samples, 3)) @ random.normal(size=(3, terms))
    mixed += 0.1 * random.normal(size=mixed.shape)
    return mixed


def ignore(report: Progress) -> None:
    del report


def test_the_costs_of_the_terms_add_up_to_the_squared_error_of_the_results() -> None:
    x, steps = correlated(150), rng(1).uniform(-100, 100, (7, 150))
    spent = np.zeros(7)

    def choose(term: int, target: np.ndarray, cost: float) -> np.ndarray:
        nonlocal spent
        chosen: np.ndarray = np.rint(target)
        spent = spent + cost * (chosen - target) ** 2
        return chosen

    chosen = sweep(steps, x.T @ x, choose)
    np.testing.assert_allclose(spent, np.square(x @ (steps - chosen).T).sum(axis=0), rtol=1e-6)
    plain = np.square(x @ (steps - np.rint(steps)).T).sum(axis=0)
    assert (spent < 0.5 * plain).all()


def test_weights_that_nothing_ties_together_go_to_the_nearest_integer() -> None:
    steps = rng(0).uniform(-127.4, 127.4, (5, 40))
    chosen = sweep(steps, np.diag(np.linspace(1, 3, 40)), nearest(np.rint(steps), (5, 40), "off"))
    np.testing.assert_array_equal(chosen, np.rint(steps))


@pytest.mark.parametrize("safe", ["pairs", "quads"])
@pytest.mark.parametrize("shape", SHAPES)
def test_terms_that_are_added_together_are_told(shape: tuple[int, ...], safe: Any) -> None:
    weight = np.arange(np.prod(shape[1:])).reshape(1, *shape[1:])
    eights = terms_of(weight + 1).reshape(-1, 8)
    together = [(0, 1), (2, 3), (4, 5), (6, 7)] if safe == "pairs" else [(0, 1, 4, 5), (2, 3, 6, 7)]
    found = added_together(shape, safe)
    groups = [{int(n) - 1 for n in eight[list(t)] if n} for eight in eights for t in together]
    for group in filter(None, groups):
        assert {i for i in range(found.size) if found[i] == found[min(group)]} == group


CASES: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "2d, stride, padding": (("Conv", {"strides": [2, 1], "pads": [1, 0, 2, 1]}, (6, 4, 3, 2)), (4, 9, 8)),
    "2d, dilation, groups": (("Conv", {"dilations": [2, 1], "group": 2}, (6, 2, 3, 3)), (4, 9, 8)),
    "depthwise, same": (("Conv", {"group": 4, "auto_pad": "SAME_UPPER"}, (4, 1, 3, 3)), (4, 9, 8)),
    "1d": (("Conv", {"pads": [1, 1]}, (3, 2, 3)), (2, 11)),
    "3d": (("Conv", {}, (3, 2, 2, 2, 1)), (2, 4, 5, 3)),
    "gemm": (("Gemm", {"transB": 1}, (5, 7)), (7,)),
    "matmul": (("MatMul", {}, (7, 5)), (6, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_times_weights_are_what_the_layer_gives(case: str) -> None:
    (op, given, weight_shape), shape = CASES[case]
    weight, x = normal(*weight_shape), normal(16, *shape, seed=1)
    probe = graph([(op, ["x", "w"], "y", given)], {"x": shape}, {"y": ()}, {"w": weight}, check=False)
    probe.graph.output[0].type.tensor_type.ClearField("shape")
    probe = onnx.shape_inference.infer_shapes(probe)
    normal_form = normalize(probe)
    quantized = quantize(probe, {"x": x})
    (layer,) = layers_of(quantized.model, normal_form)
    (want,) = onnx_function(normal_form)({"x": x}).values()
    rows = layer.rows(x, None)
    assert rows.shape == (layer.groups, layer.positions(x), layer.terms)
    each = layer.weight.reshape(layer.groups, -1, layer.terms)
    got = np.einsum("grt,got->rgo", rows, each).reshape(rows.shape[1], -1)
    last = np.moveaxis(want, 1, -1) if op == "Conv" else want
    np.testing.assert_allclose(got, last.reshape(got.shape), rtol=1e-4, atol=1e-4)
    some = np.array([0, 3, 5])
    np.testing.assert_array_equal(layer.rows(x, some), rows[:, some])
    found = moments(quantized.model, [layer], {"x": x})[layer.name]
    error = np.abs(found - rows.swapaxes(1, 2) @ rows).max()
    assert error < 0.01 * found.max()  # of the grid that the layer reads


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 32, 3)
        self.last = nn.Linear(32, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.wide(x + self.deep(x)))
        y: torch.Tensor = self.last(x.mean(dim=(2, 3)))
        return y


def images(count: int, seed: int = 0) -> np.ndarray:
    """Smooth ones, as those of cameras."""
    random = rng(seed)
    wave = np.cos(np.arange(16) * random.uniform(0, 1, (count, 3, 1)) + random.uniform(0, 6, (count, 3, 1)))
    fall = np.sin(np.arange(16) * random.uniform(0, 1, (count, 3, 1)))
    made: np.ndarray = wave[..., :, None] * fall[..., None, :]
    return (made + 0.05 * random.normal(size=made.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    traced = float_graph(Net().eval(), [images(2)], slim=False)
    return saved(traced, tmp_path_factory.mktemp("net") / "net.onnx")


def exported(net: Path, out: Path, **how: Any) -> ew.Artifact:
    quantize = ew.Quantize(**how)
    return ew.export(net, target="x86-avx2", calibration=images(128), out=out, quantize=quantize)


def sqnr(net: Path, artifact: ew.Artifact) -> float:
    x = images(200, seed=5)
    (want,) = onnx_function(onnx.load(net))({"x": x}).values()
    (got,) = ew.Runner(artifact).run({"x": x}).values()
    return sqnr_db(want, got)


@pytest.mark.parametrize(("safe", "gain_db"), [("off", 0.3), ("quads", 1)])
def test_results_of_new_inputs_come_nearer_to_the_float_models(
    net: Path, tmp_path: Path, safe: Any, gain_db: float
) -> None:
    plain = exported(net, tmp_path / "plain.ew", overflow_safe=safe)
    rounded_ = exported(net, tmp_path / "rounded.ew", overflow_safe=safe, rounding="gptq")
    assert sqnr(net, rounded_) > sqnr(net, plain) + gain_db
    x = {"x": images(8, seed=6)}
    native, exact = (ew.Runner(rounded_, backend=b).run(x) for b in ("native", "reference"))
    for name, value in exact.items():
        np.testing.assert_array_equal(native[name], value)


def test_products_that_are_added_still_fit_16_bits(net: Path, tmp_path: Path) -> None:
    artifact = exported(net, tmp_path / "net.ew", overflow_safe="quads", rounding="gptq")
    weights = [
        numpy_helper.to_array(t, str(artifact.path))
        for t in onnx.load(artifact.path / "model.onnx").graph.initializer
        if t.data_type == onnx.TensorProto.INT8
    ]
    for weight in (w for w in weights if w.ndim > 1 and w.shape[1] > 1):
        winograd = weight.shape == (32, 16, 3, 3)
        quads: list[tuple[int, ...]] = [(0, 1, 4, 5), (2, 3, 6, 7)]
        pairs: list[tuple[int, ...]] = [(0, 1), (2, 3), (4, 5), (6, 7)]
        together = pairs if winograd else quads
        assert worst(terms_of(weight), together) <= MOST


def test_the_same_export_gives_the_same_bytes(net: Path, tmp_path: Path) -> None:
    made = [exported(net, tmp_path / f"{i}.ew", rounding="gptq") for i in range(2)]
    first, second = (a.read("weights.safetensors") for a in made)
    assert first == second


def test_progress_counts_the_layers_and_may_cancel(net: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    quantize = ew.Quantize(rounding="gptq")
    x = images(32)
    ew.export(
        net, target="x86-avx2", calibration=x, out=tmp_path / "a.ew", quantize=quantize, progress=seen.append
    )
    assert [(p.done, p.total) for p in seen if p.step == "round"] == [(i, 4) for i in range(1, 5)]

    def stop(report: Progress) -> None:
        if report.step == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ew.export(
            net, target="x86-avx2", calibration=x, out=tmp_path / "b.ew", quantize=quantize, progress=stop
        )
    assert not (tmp_path / "b.ew").exists()


def test_weights_that_are_integers_already_stay() -> None:
    model = mlp()
    x = {"x": normal(64, 8)}
    quantized = quantize(model, x)
    on_grid = onnx.ModelProto()
    on_grid.CopyFrom(normalize(model))
    for constant in on_grid.graph.initializer:
        if constant.name in {"w1", "w2"}:
            value = quantized.weights[constant.name] * quantized.weights[f"{constant.name}.scale"][:, None]
            constant.CopyFrom(numpy_helper.from_array(value.astype(np.float32), constant.name))
    same = rounded(quantized, on_grid, x, report=ignore)
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(same.weights[name], quantized.weights[name])
    changed = rounded(quantized, normalize(model), x, report=ignore)
    assert (changed.weights["w1"] != quantized.weights["w1"]).any()
    again = like(quantized, changed.model)
    np.testing.assert_array_equal(again.weights["w1"], changed.weights["w1"])


def test_sums_of_layers_that_read_int16_stay_within_32_bits() -> None:
    weight = np.full((2, 514), 0.5, np.float32)
    weight[:, ::2] = 0.4993
    model = graph([("MatMul", ["x", "w"], "y", {})], {"x": (2, 514)}, {"y": (2, 2)}, {"w": weight.T.copy()})
    x = {"x": normal(64, 2, 514)}
    made = quantize(model, x, activations="int16")
    assert not made.narrowed
    changed = rounded(made, normalize(model), x, report=ignore)
    sums = np.abs(changed.weights["w"].astype(np.int64)).sum(axis=1)
    assert (sums * (1 << 15) < 1 << 31).all()


def test_stages_are_few_and_bounded() -> None:
    model = quantize(mlp(), {"x": normal(64, 8)})
    layers = layers_of(model.model, normalize(mlp())) * 8
    most = 8 * 16**2 * 3
    parts = list(stages(layers, most, 100))
    assert [x for part in parts for x in part] == layers
    assert all(len(p) == 1 for p in parts)
    parts = list(stages(layers, most, 4))
    assert all(sum(8 * x.groups * x.terms**2 for x in p) <= most for p in parts)
    assert len(list(stages(layers, 1 << 30, 4))) == 4


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    seen = damped(np.zeros((1, 4, 4)))
    weight = rng(0).normal(size=(3, 4))
    steps = 50 * weight
    chosen = sweep(steps, seen[0], nearest(np.rint(steps), (3, 4), "off"))
    np.testing.assert_array_equal(chosen, np.rint(steps))
